package main

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"

	"github.com/kvorum/kvorum/dev"
)

func devCommand() *cobra.Command {
	o := dev.Options{Program: program()}
	cmd := &cobra.Command{
		Use:     "dev",
		Short:   "Try things out: a member, or with --nodes a cluster, in one process",
		GroupID: "server",
		Long: `Run a member, or a whole cluster, for trying things out. It tells what to do
next, and reads commands: kill, stop, start and restart members, and see what
becomes of the cluster. Ctrl-C ends it all.

Clients find the members at 127.0.0.1:2379, 22379, 32379. What stands behind
"--" is given to each of them, as to "kvorum server".`,
		Example: `  kvorum dev
  kvorum dev --nodes 3
  kvorum dev --nodes 3 --port 3379 --data-dir ./cluster    # beside the other, and kept
  kvorum dev -- --quota-backend-bytes=64MiB`,
		Args: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); len(args) > 0 && dash != 0 {
				return fmt.Errorf("%q stands alone: the settings of a server go behind --, as in kvorum dev -- --quota-backend-bytes=64MiB", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			// A stop of one member is not one of the process.
			os.Unsetenv("NOTIFY_SOCKET")
			grpclog.SetLoggerV2(newGRPCLog(slog.New(slog.DiscardHandler)))
			o.Settings, o.Out, o.Commands = args, os.Stdout, typed()
			return dev.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().IntVar(&o.Nodes, "nodes", 1, "members of the cluster, 1 to 9")
	cmd.Flags().IntVar(&o.Port, "port", dev.DefaultPort, "where clients find the first member; the others are 20000, 30000, 30100... further")
	cmd.Flags().StringVar(&o.DataDir, "data-dir", "", "directory to keep the data in (default: a temporary one, removed at the end)")
	return cmd
}

// program is what the user types to run this again.
func program() string {
	if fromSource := filepath.Base(filepath.Dir(os.Args[0])) == "exe" && strings.Contains(os.Args[0], "go-build"); fromSource {
		return "go run ./cmd/kvorum"
	}
	return os.Args[0]
}

// typed yields the lines of standard input. Nobody waits for its goroutine: a
// read from a terminal ends with the process.
func typed() <-chan string {
	// In the background a read from the terminal fails, instead of stopping us.
	signal.Ignore(syscall.SIGTTIN)
	lines := make(chan string)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			lines <- in.Text()
		}
	}()
	return lines
}
