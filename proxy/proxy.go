package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kvorum/kvorum/internal/gateway"
	"github.com/kvorum/kvorum/listen"
	"github.com/kvorum/kvorum/proxy/internal/merge"
	"github.com/kvorum/kvorum/proxy/internal/namespace"
	"github.com/kvorum/kvorum/proxy/internal/upstream"
	"github.com/kvorum/kvorum/rpc"
)

// DefaultListen is where etcd's proxies listen.
const DefaultListen = "127.0.0.1:23790"

// Options of a proxy. Endpoints or SRV are required, all else may be left out.
type Options struct {
	Endpoints []string
	SRV       SRV           // used where it names a domain
	Sync      time.Duration // how often the members are asked who they are; default 10 s, below 0 never
	Upstream  TLS           // what members are shown, and what they must show
	Namespace string        // put before all keys

	DialKeepAlive        time.Duration // a silent member is pinged so often; default 10 s, below 0 never
	DialKeepAliveTimeout time.Duration // and has so long to answer; default 5 s
	SendBytesMax         int           // of a request; default 1.5 MiB
	ReceiveBytesMax      int           // of an answer; default 2 GiB - 1

	Listen  string // host:port or unix:name; default DefaultListen
	Clients TLS    // what clients are shown, and what they must show; default clear text

	ConcurrentStreamsMax uint32        // calls of one client; default no limit
	KeepAliveMinTime     time.Duration // a client that pings more often is sent away; default 5 s
	KeepAliveInterval    time.Duration // a silent client is pinged so often; default 2 h, below 0 never
	KeepAliveTimeout     time.Duration // and has so long to answer; default 20 s, below 0 for ever

	Metrics  string // URL to serve metrics and health at besides; default none
	Profiles bool   // serve /debug/pprof/

	Logger *slog.Logger // default none

	Listening func(net.Addr) // hears where, once it does; default nobody
}

// TLS names the files and rules of one side.
type TLS struct {
	CertFile, KeyFile string
	TrustedCAFile     string
	CRLFile           string   // of revoked client certificates
	Auto              string   // directory of a certificate that is made where CertFile is not given; default none
	AutoYears         int      // it is good for; default 1
	CipherSuites      []string // default Go's
	Min, Max          uint16   // versions; default TLS 1.2 and Go's newest
	Insecure          bool     // of members: believe whoever answers
	ServerName        string   // of members: who they must be; default the host dialled
}

const (
	defaultSendBytesMax = 1.5 * 1024 * 1024

	// frameOverhead leaves it to a member to refuse by name what is too large.
	frameOverhead = 512 * 1024

	drainTimeout = 600 * time.Millisecond
)

func (o Options) withDefaults() Options {
	if o.Listen == "" {
		o.Listen = DefaultListen
	}
	if o.SendBytesMax == 0 {
		o.SendBytesMax = defaultSendBytesMax
	}
	if o.ConcurrentStreamsMax == 0 {
		o.ConcurrentStreamsMax = 1<<32 - 1
	}
	if o.KeepAliveMinTime == 0 {
		o.KeepAliveMinTime = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Run runs a proxy until ctx ends, and returns nil then, or until something
// fails. That no member answers is no failure.
func Run(ctx context.Context, o Options) (err error) {
	o = o.withDefaults()
	if len(o.Endpoints) == 0 && o.SRV.Domain == "" {
		return errors.New("no endpoint is known: --endpoints names them, or --discovery-srv the domain that does")
	}
	up, err := openUpstream(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, up.Close()) }()
	doors, err := openDoors(ctx, o)
	if err != nil {
		return err
	}
	defer doors.close()
	return serve(ctx, o, up, doors)
}

func openUpstream(o Options) (*upstream.Upstream, error) {
	dial, err := dialer(o)
	if err != nil {
		return nil, err
	}
	options := upstream.Options{
		Endpoints: o.Endpoints, Sync: o.Sync,
		Keepalive: o.DialKeepAlive, KeepaliveTimeout: o.DialKeepAliveTimeout,
		SendBytesMax: o.SendBytesMax + frameOverhead, ReceiveBytesMax: o.ReceiveBytesMax,
		TLS: dial, Logger: o.Logger,
	}
	if o.SRV.Domain != "" {
		options.Endpoints, options.Lookup = nil, o.SRV.Lookup
	}
	return upstream.New(options)
}

// dialer returns how to reach members that speak TLS.
func dialer(o Options) (upstream.Dialer, error) {
	rules := listen.TLS{
		CertFile: o.Upstream.CertFile, KeyFile: o.Upstream.KeyFile,
		TrustedCAFile: o.Upstream.TrustedCAFile, ServerName: o.Upstream.ServerName,
		Report: func(err error) { o.Logger.Warn("TLS files for members", "error", err) },
	}
	secured := o.Upstream.CertFile != "" || o.Upstream.TrustedCAFile != "" || o.Upstream.Insecure
	for _, endpoint := range o.Endpoints {
		secured = secured || strings.HasPrefix(strings.TrimSpace(endpoint), "https:") || strings.HasPrefix(strings.TrimSpace(endpoint), "unixs:")
	}
	if !secured && (o.SRV.Domain == "" || o.SRV.Insecure) {
		return nil, nil
	}
	credentials, err := rules.Load()
	if err != nil {
		return nil, err
	}
	// Members that take the common name for a user would take it for that of all
	// clients.
	if shown := credentials.Client().GetClientCertificate; shown != nil {
		cert, err := shown(nil)
		if err == nil && cert.Leaf != nil && cert.Leaf.Subject.CommonName != "" {
			return nil, fmt.Errorf("cert has non empty Common Name (%s)", cert.Leaf.Subject.CommonName)
		}
	}
	return func(ctx context.Context, network, address, protocol string) (net.Conn, error) {
		config := credentials.Client()
		config.NextProtos = []string{protocol}
		config.InsecureSkipVerify = o.Upstream.Insecure
		d := tls.Dialer{Config: config}
		return d.DialContext(ctx, network, address)
	}, nil
}

// doors are the sockets that a proxy listens on.
type doors struct {
	clients *listen.Splitter
	address net.Addr
	metrics *listen.Listener // nil unless metrics have a port of their own
}

func (d *doors) close() {
	if d.clients != nil {
		d.clients.Close()
	}
	if d.metrics != nil {
		d.metrics.Close()
	}
}

func openDoors(ctx context.Context, o Options) (_ *doors, err error) {
	address, credentials, err := clientDoor(o)
	if err != nil {
		return nil, err
	}
	options := listen.Options{
		Credentials: credentials,
		Rejected: func(remote net.Addr, err error) {
			o.Logger.Warn("rejected connection on client endpoint", "remote-addr", fmt.Sprint(remote), "error", err)
		},
	}
	d := &doors{}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	clients, err := listen.Listen(ctx, []url.URL{*address}, options)
	if err != nil {
		return nil, err
	}
	d.address = clients.Addr()
	d.clients = listen.Split(clients)
	if o.Metrics != "" {
		u, err := url.Parse(o.Metrics)
		if err != nil {
			return nil, fmt.Errorf("--metrics-addr: %w", err)
		}
		if d.metrics, err = listen.Listen(ctx, []url.URL{*u}, options); err != nil {
			return nil, fmt.Errorf("--metrics-addr: %w", err)
		}
	}
	return d, nil
}

// clientDoor returns where to listen, and what to show there.
func clientDoor(o Options) (*url.URL, *listen.Credentials, error) {
	t := o.Clients
	name, unix := strings.CutPrefix(o.Listen, "unix:")
	address := &url.URL{Scheme: "http", Host: name}
	if unix {
		address = &url.URL{Scheme: "unix", Path: strings.TrimPrefix(name, "//")}
	}
	if t.CertFile == "" && t.Auto == "" {
		if t.TrustedCAFile != "" || t.CRLFile != "" {
			return nil, nil, errors.New("clients cannot be asked for certificates in clear text: --cert-file and --key-file name those of the proxy")
		}
		return address, nil, nil
	}
	address.Scheme = map[bool]string{false: "https", true: "unixs"}[unix]
	rules := listen.TLS{
		CertFile: t.CertFile, KeyFile: t.KeyFile, TrustedCAFile: t.TrustedCAFile, CRLFile: t.CRLFile,
		CipherSuites: t.CipherSuites, MinVersion: t.Min, MaxVersion: t.Max,
		Report: func(err error) { o.Logger.Warn("TLS files for clients", "error", err) },
	}
	if t.CertFile == "" {
		rules.AutoDir = filepath.Join(t.Auto, "auto-tls", "proxy")
		rules.AutoHosts = []string{address.Hostname()}
		rules.AutoValidity = time.Duration(max(1, t.AutoYears)) * 365 * 24 * time.Hour
	}
	credentials, err := rules.Load()
	return address, credentials, err
}

// serve serves until ctx ends or something fails. Its second half is the order
// of shutdown.
func serve(ctx context.Context, o Options, up *upstream.Upstream, d *doors) error {
	counts := newMetrics()
	ns := namespace.Prefix(o.Namespace)
	watches := merge.NewWatches(merge.WatchOptions{Upstream: up.While(), Namespace: ns, Metrics: counts.watch, Logger: o.Logger})
	defer watches.Close()
	keepAlives := merge.NewKeepAlives(merge.KeepAliveOptions{Upstream: up.While(), Metrics: counts.leases, Logger: o.Logger})
	defer keepAlives.Close()

	server := rpc.New(rpc.Options{
		ReceiveBytesMax:      o.SendBytesMax + frameOverhead,
		ConcurrentStreamsMax: o.ConcurrentStreamsMax,
		PingIntervalMin:      o.KeepAliveMinTime,
		PingWithoutStream:    true,
		KeepaliveInterval:    o.KeepAliveInterval,
		KeepaliveTimeout:     o.KeepAliveTimeout,
	})
	forwarder := &forwarder{up: up, namespace: ns, watches: watches, keepAlives: keepAlives, metrics: counts}
	if err := forwarder.register(server); err != nil {
		return err
	}
	registerHealth(server, up)
	pipe, inside, err := rpc.Inside()
	if err != nil {
		return err
	}
	defer inside.Close()
	// Bytes travel as base64 in JSON, and numbers as text.
	json, err := gateway.New(inside, 2*int64(o.SendBytesMax+frameOverhead))
	if err != nil {
		return err
	}

	g, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	upCtx, stopUpstream := context.WithCancel(failed)
	defer stopUpstream()
	g.Go(func() error { up.Run(upCtx); return nil })
	g.Go(func() error { return server.Serve(d.clients.GRPC()) })
	g.Go(func() error { return server.Serve(pipe) })
	web := listen.HTTPServer(pages(up, counts, json, ns, o.Profiles))
	monitors := http.NewServeMux()
	monitoring(monitors, up, counts)
	monitor := listen.HTTPServer(monitors)
	serveHTTP := func(server *http.Server, l net.Listener) {
		g.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve HTTP: %w", err)
			}
			return nil
		})
	}
	serveHTTP(web, d.clients.HTTP())
	if d.metrics != nil {
		serveHTTP(monitor, d.metrics)
	}
	if o.Listening != nil {
		o.Listening(d.address)
	}
	o.Logger.Info("started gRPC proxy", "address", d.address.String(), "endpoints", o.Endpoints, "namespace", o.Namespace)

	select {
	case <-ctx.Done():
		o.Logger.Info("stopping", "reason", context.Cause(ctx))
	case <-failed.Done():
	}

	// No new callers; those inside may finish. Streams never would.
	watches.End()
	keepAlives.End()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	gone := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(gone)
	}()
	for _, server := range []*http.Server{web, monitor} {
		server.Shutdown(drain)
	}
	select {
	case <-gone:
	case <-drain.Done():
		server.Stop()
		<-gone
	}
	for _, server := range []*http.Server{web, monitor} {
		server.Close()
	}
	stopUpstream()
	return g.Wait()
}
