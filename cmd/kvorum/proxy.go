package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/kvorum/kvorum/ctl"
	"github.com/kvorum/kvorum/node"
	"github.com/kvorum/kvorum/proxy"
)

func proxyCommand() *cobra.Command {
	var f proxyFlags
	cmd := &cobra.Command{
		Use:     "proxy --endpoints HOST:PORT,...",
		Short:   "A door to the cluster on a machine without a member",
		GroupID: "server",
		Long: `Run a proxy: the programs of this machine talk to it at 127.0.0.1:23790, and it
talks to the members. It speaks all that a member speaks (gRPC, JSON, the v2 API).

It holds nothing. Start it before the cluster, kill it, run one on each machine:
calls go to members that are well, in turn; one that dies or loses the others is
left alone until it is back, and members that come, go or move are found.

Many watchers of the same keys cost the members one, and all keep-alives one
stream. With --namespace the programs see only the keys below a prefix, without
it, and cannot reach any other.

http://127.0.0.1:23790/health tells whether calls would find a member, and if not
why; /metrics what was saved.`,
		Example: `  kvorum proxy --endpoints 10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379
  kvorum proxy --discovery-srv example.org
  kvorum proxy --endpoints 10.0.0.1:2379 --namespace /team-a/
  kvorum proxy --endpoints https://10.0.0.1:2379 --cacert ca.pem --cert proxy.pem --key proxy.key
  kvorum proxy --endpoints 10.0.0.1:2379 --listen-addr 0.0.0.0:2379 \
      --cert-file door.pem --key-file door.key --trusted-ca-file ca.pem

  kvorum put a b --endpoints 127.0.0.1:23790`,
		Args: cobra.NoArgs,
		RunE: f.run,
	}
	f.register(cmd.Flags())
	return cmd
}

func gatewayCommand() *cobra.Command {
	var f gatewayFlags
	cmd := &cobra.Command{
		Use:     "gateway --endpoints HOST:PORT,...",
		Short:   "Forward connections to the members, and look into none",
		GroupID: "server",
		Long: `Forward TCP connections to the members in turn. Unlike "kvorum proxy" it knows
nothing of what is said: TLS is between client and member, and a connection stays
with the member that it was given to.`,
		Example: `  kvorum gateway --endpoints 10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379
  kvorum gateway --discovery-srv example.org --listen-addr 127.0.0.1:2379`,
		Args: cobra.NoArgs,
		RunE: f.run,
	}
	f.register(cmd.Flags())
	return cmd
}

// etcdCommands are those that etcd has beside the server.
func etcdCommands() *cobra.Command {
	root := &cobra.Command{Use: "etcd", SilenceUsage: true, SilenceErrors: true, CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true}}
	under := func(name string, cmd *cobra.Command) {
		parent := &cobra.Command{Use: name, Short: cmd.Short}
		cmd.Use, cmd.GroupID = "start", ""
		cmd.Example = ""
		parent.AddCommand(cmd)
		root.AddCommand(parent)
	}
	under("grpc-proxy", proxyCommand())
	under("gateway", gatewayCommand())
	return root
}

// isEtcdCommand tells whether arguments name one of etcdCommands.
func isEtcdCommand(args []string) bool {
	return len(args) > 0 && (args[0] == "grpc-proxy" || args[0] == "gateway")
}

// srvFlags say where in DNS the endpoints stand.
type srvFlags struct{ proxy.SRV }

func (f *srvFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.Domain, "discovery-srv", "", "domain whose SRV records name the endpoints; they are read again and again")
	fs.StringVar(&f.Name, "discovery-srv-name", "", "service name to ask for in those records")
	fs.BoolVar(&f.Insecure, "insecure-discovery", false, "accept records of endpoints without TLS too")
}

const defaultEndpoint = "127.0.0.1:2379"

// proxyFlags are etcd's.
type proxyFlags struct {
	o        proxy.Options
	srv      srvFlags
	autoTLS  bool
	dataDir  string
	min, max string
	sync     time.Duration
	debug    bool

	keepAliveInterval, keepAliveTimeout time.Duration
}

func (f *proxyFlags) register(fs *pflag.FlagSet) {
	fs.SortFlags = false
	fs.StringSliceVar(&f.o.Endpoints, "endpoints", nil, "addresses of members, separated by commas")
	f.srv.register(fs)
	fs.DurationVar(&f.sync, "endpoints-auto-sync-interval", 10*time.Second, "how often the members are asked who they are; 0: never")
	fs.StringVar(&f.o.Listen, "listen-addr", proxy.DefaultListen, "address to listen on: host:port or unix:file")
	fs.StringVar(&f.o.Namespace, "namespace", "", "prefix to put before all keys")

	fs.StringVar(&f.o.Upstream.TrustedCAFile, "cacert", "", "authorities that may sign the members' certificates (default: the system's)")
	fs.StringVar(&f.o.Upstream.CertFile, "cert", "", "certificate to show to members")
	fs.StringVar(&f.o.Upstream.KeyFile, "key", "", "its private key")
	fs.BoolVar(&f.o.Upstream.Insecure, "insecure-skip-tls-verify", false, "believe whoever answers to be a member (for tests only)")

	fs.StringVar(&f.o.Clients.CertFile, "cert-file", "", "certificate to show to clients, who then have to speak TLS")
	fs.StringVar(&f.o.Clients.KeyFile, "key-file", "", "its private key")
	fs.StringVar(&f.o.Clients.TrustedCAFile, "trusted-ca-file", "", "authorities of clients' certificates, which are then demanded")
	fs.StringVar(&f.o.Clients.CRLFile, "client-crl-file", "", "list of clients' certificates that were revoked")
	fs.BoolVar(&f.autoTLS, "auto-tls", false, "show a self-signed certificate to clients, kept in --data-dir")
	fs.StringVar(&f.dataDir, "data-dir", "default.proxy", "where --auto-tls keeps its certificate; nothing else is written")
	fs.IntVar(&f.o.Clients.AutoYears, "self-signed-cert-validity", 1, "years for which it is good")
	fs.StringSliceVar(&f.o.Clients.CipherSuites, "listen-cipher-suites", nil, "cipher suites of TLS 1.2 for clients (default: Go's)")
	fs.StringVar(&f.min, "tls-min-version", "TLS1.2", "oldest version of TLS for clients: TLS1.2 or TLS1.3")
	fs.StringVar(&f.max, "tls-max-version", "", "newest version of TLS for clients (default: Go's)")

	fs.IntVar(&f.o.SendBytesMax, "max-send-bytes", 1536*1024, "largest request, as the members' --max-request-bytes")
	fs.IntVar(&f.o.ReceiveBytesMax, "max-recv-bytes", math.MaxInt32, "largest answer")
	fs.Uint32Var(&f.o.ConcurrentStreamsMax, "max-concurrent-streams", math.MaxUint32, "calls that one client connection may have open")
	fs.DurationVar(&f.o.DialKeepAlive, "dial-keepalive-time", 10*time.Second, "how often a silent member is pinged")
	fs.DurationVar(&f.o.DialKeepAliveTimeout, "dial-keepalive-timeout", 5*time.Second, "how long it has to answer")
	fs.DurationVar(&f.o.KeepAliveMinTime, "grpc-keepalive-min-time", 5*time.Second, "a client that pings more often is disconnected")
	fs.DurationVar(&f.keepAliveInterval, "grpc-keepalive-interval", 2*time.Hour, "how often a silent client is pinged; 0: never")
	fs.DurationVar(&f.keepAliveTimeout, "grpc-keepalive-timeout", 20*time.Second, "how long it has to answer; 0: for ever")

	fs.StringVar(&f.o.Metrics, "metrics-addr", "", "URL to serve /metrics and /health at besides, as http://127.0.0.1:4379")
	fs.BoolVar(&f.o.Profiles, "enable-pprof", false, "serve /debug/pprof/")
	fs.BoolVar(&f.debug, "debug", false, "log more")
	for _, name := range noEffect {
		fs.String(name, "", "")
		_ = fs.MarkHidden(name)
	}
	for _, name := range noEffectBare {
		fs.Bool(name, false, "")
		_ = fs.MarkHidden(name)
	}
}

// Flags of etcd's proxy that are accepted and said to do nothing.
var (
	noEffect     = []string{"resolver-prefix", "resolver-ttl", "advertise-client-url", "experimental-leasing-prefix"}
	noEffectBare = []string{"experimental-serializable-ordering", "experimental-enable-grpc-logging", "permit-without-stream"}
)

func (f *proxyFlags) run(cmd *cobra.Command, _ []string) error {
	o := f.o
	o.SRV = f.srv.SRV
	if err := chooseEndpoints(cmd, &o.Endpoints, o.SRV.Domain); err != nil {
		return err
	}
	o.Logger = proxyLogger(cmd, f.debug)
	for _, name := range append(slices.Clone(noEffect), noEffectBare...) {
		if cmd.Flags().Changed(name) {
			o.Logger.Warn("--" + name + " has no effect: " + withoutEffect(name))
		}
	}
	var err error
	if o.Clients.Min, err = tlsVersion("tls-min-version", f.min); err != nil {
		return err
	}
	if o.Clients.Max, err = tlsVersion("tls-max-version", f.max); err != nil {
		return err
	}
	if f.autoTLS {
		o.Clients.Auto = f.dataDir
	}
	if o.Sync = f.sync; o.Sync == 0 {
		o.Sync = -1
	}
	if o.DialKeepAlive == 0 {
		o.DialKeepAlive = -1
	}
	if o.KeepAliveInterval = f.keepAliveInterval; o.KeepAliveInterval == 0 {
		o.KeepAliveInterval = -1
	}
	if o.KeepAliveTimeout = f.keepAliveTimeout; o.KeepAliveTimeout == 0 {
		o.KeepAliveTimeout = -1
	}
	o.Listening = ready
	ctx, stop := untilStopped()
	defer stop()
	return proxy.Run(ctx, o)
}

func withoutEffect(name string) string {
	switch {
	case strings.HasPrefix(name, "resolver"), name == "advertise-client-url":
		return "members are listed as they are, and proxies not among them"
	case name == "experimental-leasing-prefix":
		return "reads are always asked of a member"
	case name == "experimental-serializable-ordering":
		return "ask for linearizable reads instead"
	case name == "permit-without-stream":
		return "silent members are always pinged"
	}
	return "there is no such log"
}

// gatewayFlags are etcd's.
type gatewayFlags struct {
	o   proxy.TCPOptions
	srv srvFlags
	ca  string
}

func (f *gatewayFlags) register(fs *pflag.FlagSet) {
	fs.SortFlags = false
	fs.StringSliceVar(&f.o.Endpoints, "endpoints", nil, "addresses of members, separated by commas")
	f.srv.register(fs)
	fs.StringVar(&f.o.Listen, "listen-addr", proxy.DefaultListen, "address to listen on")
	fs.DurationVar(&f.o.RetryDelay, "retry-delay", time.Minute, "a member that could not be reached is left alone for so long, unless no other can")
	fs.StringVar(&f.ca, "trusted-ca-file", "", "")
	_ = fs.MarkHidden("trusted-ca-file")
}

func (f *gatewayFlags) run(cmd *cobra.Command, _ []string) error {
	o := f.o
	if err := chooseEndpoints(cmd, &o.Endpoints, f.srv.Domain); err != nil {
		return err
	}
	if f.srv.Domain != "" {
		o.Lookup = f.srv.Lookup
	}
	o.Logger = proxyLogger(cmd, false)
	if f.ca != "" {
		o.Logger.Warn("--trusted-ca-file has no effect: who connects verifies the member itself")
	}
	o.Listening = ready
	ctx, stop := untilStopped()
	defer stop()
	return proxy.RunTCP(ctx, o)
}

// chooseEndpoints gives etcd's default to who uses etcd's name. Who asks for a
// proxy by ours has to say to what.
func chooseEndpoints(cmd *cobra.Command, endpoints *[]string, domain string) error {
	switch {
	case len(*endpoints) > 0 || domain != "":
	case cmd.Root().Name() == "etcd":
		*endpoints = []string{defaultEndpoint}
	default:
		return fmt.Errorf("to which members? Name some: %s --endpoints 10.0.0.1:2379,10.0.0.2:2379", cmd.CommandPath())
	}
	return nil
}

func tlsVersion(flag, name string) (uint16, error) {
	switch name {
	case "":
		return 0, nil
	case "TLS1.2":
		return tls.VersionTLS12, nil
	case "TLS1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("--%s: %q is not TLS1.2 or TLS1.3", flag, name)
}

func proxyLogger(cmd *cobra.Command, debug bool) *slog.Logger {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	if cmd.Root().Name() != "etcd" && term.IsTerminal(int(os.Stderr.Fd())) {
		return node.NewTerminalLogger(os.Stderr, level)
	}
	return node.NewLogger(os.Stderr, level)
}

// ready tells systemd.
func ready(net.Addr) { _, _ = daemon.SdNotify(false, daemon.SdNotifyReady) }

func untilStopped() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
}

func runEtcdCommand(args []string) int {
	root := etcdCommands()
	root.SetArgs(args)
	return ctl.Run(context.Background(), root)
}
