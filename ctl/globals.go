package ctl

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.etcd.io/etcd/client/pkg/v3/srv"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/term"
	"google.golang.org/grpc/grpclog"
)

// globals are the flags that every command has. Their names, defaults and
// environment variables are etcdctl's.
type globals struct {
	endpoints        []string
	dialTimeout      time.Duration
	commandTimeout   time.Duration
	keepaliveTime    time.Duration
	keepaliveTimeout time.Duration
	maxRequestBytes  int
	maxRecvBytes     int

	cert, key, cacert  string
	insecureTransport  bool
	insecureSkipVerify bool

	discoverySrv      string
	discoverySrvName  string
	insecureDiscovery bool

	user, password, token string

	writeOut string
	hex      bool
	debug    bool
}

func (g *globals) register(fs *pflag.FlagSet) {
	fs.StringSliceVar(&g.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "addresses of the servers, separated by commas")
	fs.DurationVar(&g.dialTimeout, "dial-timeout", 2*time.Second, "time allowed to log in")
	fs.DurationVar(&g.commandTimeout, "command-timeout", 5*time.Second, "time allowed for a request, connecting included")
	fs.DurationVar(&g.keepaliveTime, "keepalive-time", 2*time.Second, "how long a connection may be silent before it is probed")
	fs.DurationVar(&g.keepaliveTimeout, "keepalive-timeout", 6*time.Second, "how long to wait for the answer to a probe")
	fs.IntVar(&g.maxRequestBytes, "max-request-bytes", 0, "largest request to send, in bytes (0: 2 MiB)")
	fs.IntVar(&g.maxRecvBytes, "max-recv-bytes", 0, "largest answer to accept, in bytes (0: 2 GiB)")

	fs.StringVar(&g.cert, "cert", "", "client certificate file")
	fs.StringVar(&g.key, "key", "", "private key file of the client certificate")
	fs.StringVar(&g.cacert, "cacert", "", "file with the authorities that may sign the server's certificate")
	fs.BoolVar(&g.insecureTransport, "insecure-transport", true, "allow connections without TLS")
	fs.BoolVar(&g.insecureSkipVerify, "insecure-skip-tls-verify", false, "do not verify the server's certificate (for tests only)")

	fs.StringVarP(&g.discoverySrv, "discovery-srv", "d", "", "domain whose SRV records name the endpoints")
	fs.StringVar(&g.discoverySrvName, "discovery-srv-name", "", "service name to ask for in those SRV records")
	fs.BoolVar(&g.insecureDiscovery, "insecure-discovery", true, "accept SRV records that name endpoints without TLS")

	fs.StringVar(&g.user, "user", "", "user name, or name:password")
	fs.StringVar(&g.password, "password", "", "password of --user (asked for on a terminal when missing)")
	fs.StringVar(&g.token, "auth-jwt-token", "", "token to present instead of a user and password")

	fs.StringVarP(&g.writeOut, "write-out", "w", "simple", "output format: simple, fields, json, protobuf or table")
	fs.BoolVar(&g.hex, "hex", false, "print bytes and ids in hexadecimal")
	fs.BoolVar(&g.debug, "debug", false, "log what the client does to standard error")
}

// environments are the prefixes of variables that stand for global flags, the
// one that wins first.
var environments = []string{"KVORUM_", "ETCDCTL_"}

// fromEnvironment sets the flags that the command line left alone.
func fromEnvironment(fs *pflag.FlagSet) error {
	var failed error
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Changed || failed != nil {
			return
		}
		value, name := variable(strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")))
		if value == "" {
			return
		}
		if err := fs.Set(f.Name, value); err != nil {
			failed = badArgs("invalid value %q for %s: %w", value, name, err)
		}
	})
	return failed
}

// config turns the flags into a client's configuration.
func (a *app) config(cmd *cobra.Command) (clientv3.Config, error) {
	if err := fromEnvironment(cmd.Root().PersistentFlags()); err != nil {
		return clientv3.Config{}, err
	}
	for _, file := range []struct{ flag, value string }{{"cert", a.cert}, {"key", a.key}, {"cacert", a.cacert}} {
		if cmd.Flags().Changed(file.flag) && file.value == "" {
			return clientv3.Config{}, badArgs("empty string is passed to --%s option", file.flag)
		}
	}
	if _, err := a.format(); err != nil {
		return clientv3.Config{}, err // before the request: a put must not happen and then fail
	}
	if err := a.discover(cmd.ErrOrStderr()); err != nil {
		return clientv3.Config{}, err
	}
	auth, err := a.auth(cmd)
	if err != nil {
		return clientv3.Config{}, err
	}

	spec := &clientv3.ConfigSpec{
		Endpoints:          a.endpoints,
		DialTimeout:        a.dialTimeout,
		KeepAliveTime:      a.keepaliveTime,
		KeepAliveTimeout:   a.keepaliveTimeout,
		MaxCallSendMsgSize: a.maxRequestBytes,
		MaxCallRecvMsgSize: a.maxRecvBytes,
		Auth:               auth,
		Secure: &clientv3.SecureConfig{
			Cert: a.cert, Key: a.key, Cacert: a.cacert,
			InsecureTransport:  a.insecureTransport,
			InsecureSkipVerify: a.insecureSkipVerify,
		},
	}
	if !a.insecureDiscovery {
		spec.Secure.ServerName = a.discoverySrv
	}
	logger := a.logger(cmd.ErrOrStderr())
	cfg, err := clientv3.NewClientConfig(spec, logger)
	if err != nil {
		return clientv3.Config{}, &failure{code: exitBadArgs, err: err, hint: "Check the files given as --cacert, --cert and --key."}
	}
	cfg.Logger = logger
	return *cfg, nil
}

// logger is silent unless asked: everything the client's own log says arrives
// as an error as well, and there it can be explained.
func (a *app) logger(stderr io.Writer) *zap.Logger {
	if !a.debug {
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
		return zap.NewNop()
	}
	grpclog.SetLoggerV2(grpclog.NewLoggerV2WithVerbosity(stderr, stderr, stderr, 4))
	logger, err := zap.NewDevelopment()
	if err != nil {
		return zap.NewNop()
	}
	return logger
}

// discover replaces the endpoints by those that DNS names.
func (a *app) discover(stderr io.Writer) error {
	for i, endpoint := range a.endpoints {
		a.endpoints[i] = strings.TrimSpace(endpoint)
	}
	if a.discoverySrv == "" {
		return nil
	}
	found, err := srv.GetClient("etcd-client", a.discoverySrv, a.discoverySrvName)
	if err != nil {
		return &failure{code: exitError, err: fmt.Errorf("discovery: %w", err), hint: "Name the servers with --endpoints instead of --discovery-srv."}
	}
	endpoints := found.Endpoints
	if !a.insecureDiscovery {
		endpoints = nil
		for _, endpoint := range found.Endpoints {
			if strings.HasPrefix(endpoint, "http://") {
				fmt.Fprintf(stderr, "ignoring discovered insecure endpoint %q\n", endpoint)
				continue
			}
			endpoints = append(endpoints, endpoint)
		}
	}
	if len(endpoints) > 0 {
		a.endpoints = endpoints
	}
	return nil
}

func (a *app) auth(cmd *cobra.Command) (*clientv3.AuthConfig, error) {
	switch {
	case a.token != "":
		return &clientv3.AuthConfig{Token: a.token}, nil
	case a.user == "":
		return nil, nil
	case a.password != "":
		return &clientv3.AuthConfig{Username: a.user, Password: a.password}, nil
	}
	if name, password, ok := strings.Cut(a.user, ":"); ok {
		return &clientv3.AuthConfig{Username: name, Password: password}, nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil, &failure{
			code: exitBadArgs,
			err:  fmt.Errorf("no password for user %q, and no terminal to ask for it", a.user),
			hint: "Give --password, or put it into KVORUM_PASSWORD.",
		}
	}
	fmt.Fprint(cmd.ErrOrStderr(), "Password: ")
	password, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(cmd.ErrOrStderr())
	if err != nil {
		return nil, &failure{code: exitIO, err: fmt.Errorf("reading the password: %w", err)}
	}
	a.password = string(password) // asked once, however many members are visited
	return &clientv3.AuthConfig{Username: a.user, Password: a.password}, nil
}

// call connects, lets do use the client within the command's time, and
// explains the error it comes back with.
func (a *app) call(cmd *cobra.Command, do func(context.Context, *clientv3.Client) error) error {
	cfg, err := a.config(cmd)
	if err != nil {
		return err
	}
	return a.callWith(cmd, cfg, do)
}

func (a *app) callWith(cmd *cobra.Command, cfg clientv3.Config, do func(context.Context, *clientv3.Client) error) error {
	return a.stayWith(cmd, cfg, func(ctx context.Context, c *clientv3.Client) error {
		ctx, cancel := context.WithTimeout(ctx, a.commandTimeout)
		defer cancel()
		return do(ctx, c)
	})
}

// stay is call for what has no end of its own: it takes the time it takes.
func (a *app) stay(cmd *cobra.Command, do func(context.Context, *clientv3.Client) error) error {
	cfg, err := a.config(cmd)
	if err != nil {
		return err
	}
	return a.stayWith(cmd, cfg, do)
}

func (a *app) stayWith(cmd *cobra.Command, cfg clientv3.Config, do func(context.Context, *clientv3.Client) error) error {
	c, err := clientv3.New(cfg)
	if err != nil {
		f := a.explain(cmd.Context(), cfg, err)
		if f.code == exitError {
			f.code = exitBadConnection
		}
		return f
	}
	defer c.Close()
	if err := do(cmd.Context(), c); err != nil {
		if isFailure(err) {
			return err
		}
		return a.explain(cmd.Context(), cfg, err)
	}
	return nil
}

// interrupted is the end of what only an interrupt ends: nothing went wrong.
func interrupted() error { return &failure{code: exitInterrupted, etcdctl: exitSignal} }

// variable returns the value of a variable by its name without prefix, and the
// name under which it was found.
func variable(name string) (value, full string) {
	for _, prefix := range environments {
		full = prefix + name
		if value = os.Getenv(full); value != "" {
			break
		}
	}
	return value, full
}

// hideGlobals keeps the help of a command to its own flags.
func hideGlobals(root *cobra.Command) {
	fs := root.PersistentFlags()
	fs.VisitAll(func(f *pflag.Flag) { f.Hidden = true })
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		// The help of a command that does not exist is not that of its parent.
		if names := cmd.Flags().Args(); root.Name() != Etcdctl && cmd.HasSubCommands() && len(names) > 0 {
			f := unknownCommand(cmd, names[0])
			fmt.Fprintf(cmd.ErrOrStderr(), "Error: %v\n%s\n", f, f.hint)
			return
		}
		help(cmd, args)
		if cmd.InheritedFlags().Lookup("endpoints") != nil || cmd == root {
			fmt.Fprintf(cmd.OutOrStdout(), "\nUse \"%s options\" for the flags that every client command has.\n", root.Name())
		}
	})
}

func (a *app) optionsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "options",
		Short:   "Show the flags, variables and exit codes that all client commands share",
		GroupID: groupUtility,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			shown := pflag.NewFlagSet("", pflag.ContinueOnError)
			cmd.Root().PersistentFlags().VisitAll(func(f *pflag.Flag) {
				visible := *f
				visible.Hidden = false
				shown.AddFlag(&visible)
			})
			_, err := fmt.Fprintf(cmd.OutOrStdout(),
				"Flags of every client command:\n\n%s\nEach has an environment variable: --dial-timeout is KVORUM_DIAL_TIMEOUT, or ETCDCTL_DIAL_TIMEOUT.\nA flag wins over KVORUM_, and KVORUM_ over ETCDCTL_.\n\nExit codes:\n\n%s\n",
				shown.FlagUsages(), indent(exitCodesHelp))
			return err
		},
	}
}
