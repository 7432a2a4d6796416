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
	"google.golang.org/grpc/grpclog"

	"github.com/kvorum/kvorum/config"
	"github.com/kvorum/kvorum/node"
)

// serve runs a server until a signal ends it, and returns the exit code: 0
// for a clean end, 1 for a failure, 2 for a command line that makes no sense.
func serve(args []string, called string) int {
	settings, notes, err := config.Parse(args, os.Environ(), called)
	switch {
	case errors.Is(err, config.ErrHelp):
		config.Usage(os.Stdout, command(called))
		return 0
	case errors.Is(err, config.ErrVersion):
		printVersion(os.Stdout)
		return 0
	}

	people := settings.Log.Format == "console" || called != "etcd" && term.IsTerminal(int(os.Stderr.Fd()))
	out, closeLogs, logErr := outputs(settings.Log.Outputs)
	if logErr != nil {
		fmt.Fprintln(os.Stderr, logErr)
		return 1
	}
	defer closeLogs()
	log := logger(settings, out, people)
	grpclog.SetLoggerV2(newGRPCLog(log))
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
	about := []slog.Attr{
		slog.String("kvorum-version", buildVersion()),
		slog.String("etcd-version", version.Version),
		slog.String("go-version", runtime.Version()),
	}
	if !people {
		about = append(about, settings.Dump()...)
	}
	log.LogAttrs(context.Background(), slog.LevelInfo, "starting", about...)

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
func logger(s *config.Server, out io.Writer, people bool) *slog.Logger {
	if people {
		return node.NewTerminalLogger(out, s.Log.MinLevel())
	}
	return node.NewLogger(out, s.Log.MinLevel())
}

// outputs opens what --log-outputs names: streams, or files that grow. Under
// systemd the journal reads standard error.
func outputs(names []string) (w io.Writer, closeAll func(), err error) {
	var all []io.Writer
	var files []*os.File
	closeAll = func() {
		for _, f := range files {
			f.Close()
		}
	}
	for _, name := range names {
		switch name {
		case "default", "stderr", "systemd/journal":
			all = append(all, os.Stderr)
		case "stdout":
			all = append(all, os.Stdout)
		default:
			f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				closeAll()
				return nil, nil, fmt.Errorf("--log-outputs: %w", err)
			}
			all, files = append(all, f), append(files, f)
		}
	}
	switch len(all) {
	case 0:
		return os.Stderr, closeAll, nil
	case 1:
		return all[0], closeAll, nil
	}
	return io.MultiWriter(all...), closeAll, nil
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
