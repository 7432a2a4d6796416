// Command kvorum is server and client in one program: by subcommand, or by the
// name it is called as. Linked as etcd it is the server, linked as etcdctl the
// client.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kvorum/kvorum/ctl"
)

func main() {
	called := strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe")
	switch called {
	case "etcd":
		if isEtcdCommand(os.Args[1:]) {
			os.Exit(runEtcdCommand(os.Args[1:]))
		}
		os.Exit(serve(os.Args[1:], called))
	case ctl.Etcdctl:
		os.Exit(run(ctl.New(ctl.Etcdctl)))
	}

	root := ctl.New("kvorum")
	root.Short = "A strongly consistent key-value store that speaks etcd's API"
	root.AddGroup(&cobra.Group{ID: "server", Title: "Server commands:"})
	root.AddCommand(&cobra.Command{
		Use:     "server",
		Short:   "Run a member of a cluster; without settings, a cluster of one",
		GroupID: "server",
		Example: "  kvorum server\n  kvorum server --data-dir /var/lib/kvorum --listen-client-urls http://10.0.0.1:2379 --advertise-client-urls http://10.0.0.1:2379\n  kvorum server --name m2 --join 10.0.0.1:2380",

		// The settings of a server are etcd's, with one dash or two, and have a
		// help of their own.
		DisableFlagParsing: true,
		Run:                func(_ *cobra.Command, args []string) { os.Exit(serve(args, "kvorum")) },
	})
	root.AddCommand(devCommand(), proxyCommand(), gatewayCommand())
	os.Exit(run(root))
}

// run runs a client command, which an interrupt ends.
func run(root *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return ctl.Run(ctx, root)
}
