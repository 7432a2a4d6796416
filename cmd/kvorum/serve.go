package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"go.etcd.io/etcd/api/v3/version"
	"golang.org/x/term"

	"github.com/kvorum/kvorum/config"
	"github.com/kvorum/kvorum/node"
)

// serve runs a server until a signal ends it, and returns the exit code: 0
// for a clean end, 1 for a failure, 2 for a command line that makes no sense.
func serve(args []string, called string) int {
	settings, notes, err := config.Parse(args, os.Environ(), called)
	switch {
	case errors.Is(err, config.ErrHelp):
		config.Usage(os.Stdout, called)
		return 0
	case errors.Is(err, config.ErrVersion):
		printVersion(os.Stdout)
		return 0
	}

	log := logger(settings, called)
	for _, note := range notes {
		log.Log(context.Background(), note.Level, note.Text)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		if usage := (*config.UsageError)(nil); errors.As(err, &usage) {
			fmt.Fprintf(os.Stderr, "Run '%s --help' for all settings.\n", command(called))
			return 2
		}
		return 1
	}
	log.LogAttrs(context.Background(), slog.LevelInfo, "starting", append([]slog.Attr{
		slog.String("kvorum-version", buildVersion()),
		slog.String("etcd-version", version.Version),
		slog.String("go-version", runtime.Version()),
	}, settings.Dump()...)...)

	// SIGHUP ends the server too: its terminal has gone.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := node.Run(ctx, settings, log); err != nil {
		log.Error("server ended", "error", err)
		return 1
	}
	return 0
}

func command(called string) string {
	if called == "etcd" {
		return called
	}
	return called + " server"
}

// logger writes what etcd's log readers expect, but on the terminal of
// somebody who runs kvorum by its own name, lines for people.
func logger(s *config.Server, called string) *slog.Logger {
	level := slog.LevelInfo
	switch s.Log.Level {
	case "debug":
		level = slog.LevelDebug
	case "warn":
		level = slog.LevelWarn
	case "error", "panic", "fatal":
		level = slog.LevelError
	}
	people := s.Log.Format == "console" || called != "etcd" && term.IsTerminal(int(os.Stderr.Fd()))
	if people {
		return node.NewTerminalLogger(os.Stderr, level)
	}
	return node.NewLogger(os.Stderr, level)
}

// printVersion writes the four lines that tools look for, ours first among
// what follows.
func printVersion(w io.Writer) {
	fmt.Fprintf(w, "etcd Version: %s\n", version.Version)
	fmt.Fprintf(w, "Git SHA: %s\n", commit())
	fmt.Fprintf(w, "Go Version: %s\n", runtime.Version())
	fmt.Fprintf(w, "Go OS/Arch: %s/%s\n", runtime.GOOS, runtime.GOARCH)
	fmt.Fprintf(w, "kvorum Version: %s\n", buildVersion())
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func commit() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				return setting.Value[:min(9, len(setting.Value))]
			}
		}
	}
	return "unknown"
}
