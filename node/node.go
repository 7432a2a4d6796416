package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/api"
	"github.com/kvorum/kvorum/config"
	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/listen"
	"github.com/kvorum/kvorum/peer"
	"github.com/kvorum/kvorum/rpc"
	"github.com/kvorum/kvorum/state"
	"github.com/kvorum/kvorum/web"
)

// At shutdown leadership may take so long to be handed over, and calls in
// progress to end. Who stops a server expects it to be gone in 1.5 s, of which
// saying goodbye to other members and the last flush need the rest.
const (
	handOverTimeout = 500 * time.Millisecond
	drainTimeout    = 600 * time.Millisecond
)

// ErrKilled, as the cause of the end of Run's context, has a server end as if it
// were killed, as far as one process can: leadership is not handed over, and
// nobody is waited for.
var ErrKilled = errors.New("killed")

// Run runs a server until ctx ends, and returns nil then, or until something
// fails. Sockets come first, then the directory: a server that cannot start
// has changed nothing on disk.
func Run(ctx context.Context, s *config.Server, log *slog.Logger) (err error) {
	if s.MemoryLock {
		if err := lockMemory(); err != nil {
			return fmt.Errorf("lock the process in memory: %w", err)
		}
	}
	metrics := api.NewMetrics(s.Metrics == "extensive")
	doors, err := openDoors(ctx, s, metrics, log)
	if err != nil {
		return err
	}
	defer doors.close()
	doors.lobby = openLobby(doors.peers.HTTP())
	defer doors.lobby.close()

	dir, err := openDataDir(s.DataDir)
	if err != nil {
		return err
	}
	defer dir.Close()

	m, err := openServer(ctx, s, dir, doors, metrics, log)
	if err != nil && errors.Is(err, ctx.Err()) {
		log.Info("stopping", "reason", context.Cause(ctx))
		return nil
	}
	if err != nil {
		return err
	}
	a := api.New(apiOptions(s, metrics, log), m)
	err = serve(ctx, s, m, a, doors, dir.identity.Joined, log)
	if err == errRemoved {
		gone := dir.identity
		gone.Removed = true
		if err := dir.claim(gone); err != nil {
			return err
		}
		log.Info("stopped: this member was removed from the cluster; its data is of no more use, and it can come back only as a new member, with an empty data directory", "data-dir", s.DataDir)
		return nil
	}
	return err
}

// openServer opens the member whose directory dir is, or founds it.
func openServer(ctx context.Context, s *config.Server, dir *dataDir, d *doors, metrics *api.Metrics, log *slog.Logger) (*member, error) {
	if dir.identity.Removed {
		return nil, fmt.Errorf("%w and cannot come back: add a new one with an empty data directory", errRemoved)
	}
	var first state.Genesis
	if !dir.identity.Started {
		// Until the first log and table are on disk nothing was promised to
		// anybody, and founding the member can begin again.
		var err error
		var own identity
		if own, first, err = begin(ctx, s, d, log); err != nil {
			return nil, err
		}
		if err := dir.claim(own); err != nil {
			return nil, err
		}
	} else if len(s.Join) > 0 {
		log.Info("this member has data and belongs to a cluster; --join counts no more", "data-dir", dir.path)
	}

	alone := s.ForceNewCluster && dir.identity.Started && !dir.identity.Forced
	if s.ForceNewCluster && !alone {
		log.Warn("--force-new-cluster does nothing here: it has been done, or there was no data. Leave it away from now on; after a start without it, it counts again", "data-dir", dir.path)
	}

	logDir := s.WALDir
	if logDir == "" {
		logDir = filepath.Join(dir.path, "wal")
	}
	cache := s.ValueCacheBytes
	if cache == 0 {
		cache = memoryBytes() / 4
	}
	var compactHashCheck time.Duration
	if s.FeatureGates.Enabled(config.CompactHashCheck) {
		compactHashCheck = s.CompactHashCheckTime
	}
	m, err := openMember(memberOptions{
		FS: vfs.Default, LogDir: logDir, TableDir: filepath.Join(dir.path, "table"),
		Cluster: dir.identity.Cluster, ID: dir.identity.Member,
		Fresh: !dir.identity.Started, Genesis: first, Alone: alone,
		Claims: claims{dir: dir.path, name: s.Name, peerURLs: s.InitialAdvertisePeerURLs.Strings()},
		Peers: &peerOptions{
			Listener:    d.peers.Members(),
			Dial:        peerDialer(d.peerCredentials),
			Dir:         receivedDir(dir.path),
			ReadTimeout: s.RaftReadTimeout, WriteTimeout: s.RaftWriteTimeout,
		},
		Tick:          s.HeartbeatInterval,
		ElectionTicks: int(s.ElectionTimeout / s.HeartbeatInterval),
		NoPreVote:     !s.PreVote,
		Limit:         requestTimeout(s),
		WaitingMax:    s.MaxWaitingRequests,
		WaitingBytes:  s.MaxWaitingBytes,
		Hasten:        s.InitialElectionTickAdvance,
		NoSync:        s.UnsafeNoFsync,
		KeepEntries:   int(min(s.SnapshotCatchUpEntries, math.MaxInt32)),
		FlushEntries:  s.SnapshotCount,
		ValueCache:    cache,
		SweepBatch:    s.CompactionBatchLimit,
		SweepRest:     s.CompactionSleepInterval,
		SlowApply:     s.Log.SlowApply,
		WatchProgress: s.WatchProgressNotifyInterval,
		Metrics:       metrics,
		Log:           log,

		CorruptCheck:     s.CorruptCheckTime,
		CompactHashCheck: compactHashCheck,
		CompactPeriod:    s.AutoCompaction.Period,
		CompactRevisions: s.AutoCompaction.Revisions,
	})
	if err != nil {
		return nil, err
	}
	// What was done is noted once it is done: done twice, it does no harm.
	if now := dir.identity; !now.Started || now.Forced != s.ForceNewCluster {
		now.Started, now.Forced = true, s.ForceNewCluster
		if err := dir.claim(now); err != nil {
			return nil, errors.Join(err, m.close())
		}
	}
	if threshold := s.BootstrapDefragMegabytes; threshold > 0 {
		if err := m.giveBack(ctx, int64(min(threshold<<20, math.MaxInt64))); err != nil {
			return nil, errors.Join(err, m.close())
		}
	}
	return m, nil
}

// requestTimeout is how long a request may wait: for a leader to be missed, and
// another to be found.
func requestTimeout(s *config.Server) time.Duration { return 5*time.Second + 2*s.ElectionTimeout }

func apiOptions(s *config.Server, metrics *api.Metrics, log *slog.Logger) api.Options {
	var features []api.Feature
	s.FeatureGates.All(func(gate config.Gate, stage string, on bool) {
		features = append(features, api.Feature{Name: string(gate), Stage: stage, Enabled: on})
	})
	return api.Options{
		Features:        features,
		RequestBytesMax: int(s.MaxRequestBytes),
		TxnOpsMax:       s.MaxTxnOps,
		RequestTimeout:  requestTimeout(s),
		LeaderTimeout:   3 * s.ElectionTimeout,
		QuotaBytes:      s.QuotaBackendBytes,
		LearnersMax:     s.MaxLearners,
		LeaseSecondsMin: leaseSecondsMin(s.ElectionTimeout),
		LaxReconfig:     !s.StrictReconfigCheck,
		SlowRequest:     s.Log.SlowRequest,
		NoGateway:       !s.EnableGateway,
		NoV2:            !s.EnableV2,
		Pprof:           s.EnablePprof,
		Origins:         s.CORS,
		Hosts:           s.HostWhitelist,
		Metrics:         metrics,
		Logger:          log,
	}
}

// leaseSecondsMin is longer than it takes to find out that a leader is gone,
// and to elect another.
func leaseSecondsMin(election time.Duration) int64 {
	return int64((election*3/2 + time.Second - 1) / time.Second)
}

// doors are the sockets that a server listens on.
type doors struct {
	clients *listen.Splitter
	peers   *listen.Splitter
	http    net.Listener // nil unless HTTP has a port of its own
	metrics net.Listener // nil unless metrics have a port of their own
	lobby   *lobby       // on the members' port

	credentials     *listen.Credentials // for clients; nil: there is no TLS
	peerCredentials *listen.Credentials // for other members; nil likewise
}

func openDoors(ctx context.Context, s *config.Server, metrics *api.Metrics, log *slog.Logger) (_ *doors, err error) {
	credentials, err := clientCredentials(s, log)
	if err != nil {
		return nil, err
	}
	options := listen.Options{
		Credentials:  credentials,
		ReusePort:    s.ReusePort,
		ReuseAddress: s.ReuseAddress,
		Received:     metrics.ClientReceivedBytes,
		Sent:         metrics.ClientSentBytes,
		Rejected: func(remote net.Addr, err error) {
			log.Warn("rejected connection on client endpoint", "remote-addr", fmt.Sprint(remote), "error", err)
		},
	}
	d := &doors{credentials: credentials}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	clients, err := listen.Listen(ctx, s.ListenClientURLs, options)
	if err != nil {
		return nil, err
	}
	d.clients = listen.Split(clients)
	if d.peers, err = openPeerDoor(ctx, s, d, log); err != nil {
		return nil, err
	}
	if len(s.ListenClientHTTPURLs) > 0 {
		l, err := listen.Listen(ctx, s.ListenClientHTTPURLs, options)
		if err != nil {
			return nil, err
		}
		d.http = l
	}
	if len(s.ListenMetricsURLs) > 0 {
		l, err := listen.Listen(ctx, s.ListenMetricsURLs, options)
		if err != nil {
			return nil, err
		}
		d.metrics = l
	}
	return d, nil
}

func (d *doors) close() {
	for _, l := range []*listen.Splitter{d.clients, d.peers} {
		if l != nil {
			l.Close()
		}
	}
	for _, l := range []net.Listener{d.http, d.metrics} {
		if l != nil {
			l.Close()
		}
	}
}

// openPeerDoor opens the port for other members, and says in d by what they
// know each other.
func openPeerDoor(ctx context.Context, s *config.Server, d *doors, log *slog.Logger) (*listen.Splitter, error) {
	var err error
	if d.peerCredentials, err = peerCredentials(s, log); err != nil {
		return nil, err
	}
	peers, err := listen.Listen(ctx, s.ListenPeerURLs, listen.Options{
		Credentials:  d.peerCredentials,
		ReusePort:    s.ReusePort,
		ReuseAddress: s.ReuseAddress,
		Rejected: func(remote net.Addr, err error) {
			log.Warn("rejected connection on peer endpoint", "remote-addr", fmt.Sprint(remote), "error", err)
		},
	})
	if err != nil {
		return nil, err
	}
	return listen.SplitMembers(peers, peer.FirstByte), nil
}

// clientCredentials returns what the client port shows and demands, or nil
// where it speaks in clear text only.
func clientCredentials(s *config.Server, log *slog.Logger) (*listen.Credentials, error) {
	rules, any := tlsRules(s, s.ClientTLS, "client", s.ListenClientURLs, log)
	if !any {
		return nil, nil
	}
	return rules.Load()
}

// peerCredentials returns what members show to each other and demand, or nil
// where they speak in clear text only.
func peerCredentials(s *config.Server, log *slog.Logger) (*listen.Credentials, error) {
	rules, any := tlsRules(s, s.PeerTLS, "peer", s.ListenPeerURLs, log)
	if !any {
		return nil, nil
	}
	rules.CheckAddress = !s.PeerTLS.SkipClientSAN
	if s.PeerTLS.TrustedCAFile == "" {
		// Where the world's authorities are believed, whoever answers for the
		// domain could lead members anywhere.
		rules.ServerName = s.Discovery.SRV
	}
	return rules.Load()
}

// tlsRules returns the rules of one port, if it can speak TLS.
func tlsRules(s *config.Server, t config.TLS, port string, listening config.URLs, log *slog.Logger) (rules listen.TLS, any bool) {
	if t.CertFile == "" && !t.Auto {
		return rules, false
	}
	rules = listen.TLS{
		CertFile: t.CertFile, KeyFile: t.KeyFile,
		ClientCertFile: t.ClientCertFile, ClientKeyFile: t.ClientKeyFile,
		TrustedCAFile: t.TrustedCAFile, CRLFile: t.CRLFile, ClientCertAuth: t.ClientCertAuth,
		AllowedCNs: t.AllowedCNs, AllowedHostnames: t.AllowedHostnames,
		MinVersion: uint16(s.TLSMin), MaxVersion: uint16(s.TLSMax), CipherSuites: s.CipherSuites,
		Report: func(err error) { log.Warn("TLS files of the "+port+" port", "error", err) },
	}
	if t.Auto && t.CertFile == "" {
		rules.AutoDir = filepath.Join(s.DataDir, "auto-tls", port)
		rules.AutoValidity = s.SelfSignedValidity
		for _, u := range listening {
			rules.AutoHosts = append(rules.AutoHosts, u.Hostname())
		}
	}
	return rules, true
}

// serve serves until ctx ends or something fails. Its second half is the
// order of shutdown. joined says that the member has added itself, and wants a
// vote.
func serve(ctx context.Context, s *config.Server, m *member, a *api.API, d *doors, joined bool, log *slog.Logger) error {
	server := rpc.New(rpc.Options{
		Credentials:          handshaken{},
		ReceiveBytesMax:      a.MessageBytesMax(),
		ConcurrentStreamsMax: s.MaxConcurrentStreams,
		PingIntervalMin:      orNever(s.KeepAliveMinTime),
		KeepaliveInterval:    orNever(s.KeepAliveInterval),
		KeepaliveTimeout:     orNever(s.KeepAliveTimeout),
	})
	a.Register(server)
	a.RegisterFast(server)

	// The gateway asks the same server over a pipe.
	pipe, inside, err := rpc.Inside()
	if err != nil {
		return errors.Join(err, m.close())
	}
	defer inside.Close()
	handler, plain, err := a.HTTP(inside)
	if err != nil {
		return errors.Join(err, m.close())
	}

	// The member outlives the servers: calls in progress still need it.
	g, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	memberCtx, stopMember := context.WithCancel(failed)
	defer stopMember()
	g.Go(func() error {
		err := m.run(memberCtx)
		if err == nil && m.removed {
			return errRemoved
		}
		return err
	})

	if s.FeatureGates.Enabled(config.InitialCorruptCheck) {
		if err := m.checkFirst(ctx); err != nil {
			stopMember()
			return errors.Join(err, g.Wait())
		}
	}

	pages := listen.HTTPServer(handler)
	d.lobby.open(peerHandler(m, a.Members(), s.InitialClusterToken))
	monitoring := listen.HTTPServer(a.Monitoring())
	serveHTTP := func(server *http.Server, l net.Listener) {
		g.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve HTTP: %w", err)
			}
			return nil
		})
	}
	g.Go(func() error { return server.Serve(d.clients.GRPC()) })
	g.Go(func() error { return server.Serve(pipe) })
	browsers := d.clients.HTTP()
	if d.http != nil {
		browsers.Close()
		browsers = d.http
	}
	rest := listen.NewRest(browsers.Addr())
	keys := web.New(web.Options{Handler: plain, Rest: rest.Give})
	if plain == nil {
		serveHTTP(pages, browsers)
	} else {
		serveHTTP(pages, rest)
		g.Go(func() error {
			if err := keys.Serve(browsers); err != nil {
				return fmt.Errorf("serve plain HTTP: %w", err)
			}
			return nil
		})
	}
	g.Go(d.lobby.wait)
	if d.metrics != nil {
		serveHTTP(monitoring, d.metrics)
	}

	g.Go(func() error {
		if err := publish(memberCtx, s, m, log); err != nil {
			return err
		}
		if joined {
			m.askForVote(memberCtx, a.Members(), s.ElectionTimeout)
		}
		announce(memberCtx, s, m, log)
		return nil
	})
	g.Go(func() error { tuneHeap(memberCtx); return nil })

	select {
	case <-ctx.Done():
		log.Info("stopping", "reason", context.Cause(ctx))
	case <-failed.Done():
	}
	notify(daemon.SdNotifyStopping)
	if errors.Is(context.Cause(ctx), ErrKilled) {
		stopMember()
		server.Stop()
		keys.Close()
		for _, server := range []*http.Server{pages, monitoring, d.lobby.server} {
			server.Close()
		}
		return g.Wait()
	}

	// Another member leads before this one is gone, so that nobody has to wait
	// for an election.
	handing, cancel := context.WithTimeout(context.WithoutCancel(ctx), handOverTimeout)
	if err := m.handOver(handing); err != nil && failed.Err() == nil {
		log.Warn("could not hand leadership over", "error", err)
	}
	cancel()

	// No new callers; those inside may finish. Watches would never.
	m.hub.Close()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	gone := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(gone)
	}()
	keys.Shutdown(drain)
	for _, server := range []*http.Server{pages, monitoring, d.lobby.server} {
		server.Shutdown(drain)
	}
	select {
	case <-gone:
	case <-drain.Done():
		log.Info("calls in progress are cut off", "after", drainTimeout)
		server.Stop()
		<-gone
	}
	for _, server := range []*http.Server{pages, monitoring, d.lobby.server} {
		server.Close()
	}

	// Then what they stood on.
	stopMember()
	return g.Wait()
}

// publish tells the cluster this member's name and addresses.
func publish(ctx context.Context, s *config.Server, m *member, log *slog.Logger) error {
	command, err := state.Command{Kind: state.Publish, Request: &pb.Member{
		ID: m.o.ID, Name: s.Name, ClientURLs: s.AdvertiseClientURLs.Strings(),
	}}.Append(nil)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second+2*s.ElectionTimeout)
		// Not before all is here: what a snapshot brings has no outcome.
		var out state.Outcome
		err := m.Barrier(attempt)
		if err == nil {
			out, err = m.Propose(attempt, command)
		}
		cancel()
		if err == nil && out.Refusal == fault.MemberNotFound {
			return nil // it was removed while it was away, and is about to hear of that
		}
		if err == nil && out.Refusal != nil {
			return fmt.Errorf("publish this member: %w", out.Refusal)
		}
		if err == nil {
			break
		}
		log.Warn("still waiting to publish this member to the cluster", "error", err)
	}
	return nil
}

// announce tells the world that this member serves.
func announce(ctx context.Context, s *config.Server, m *member, log *slog.Logger) {
	if ctx.Err() != nil {
		return
	}
	log.Info("ready to serve client requests",
		"name", s.Name, "listen-client-urls", s.ListenClientURLs.Strings(),
		"cluster-id", fmt.Sprintf("%x", m.o.Cluster), "member-id", fmt.Sprintf("%x", m.o.ID), "data-dir", s.DataDir)
	for _, u := range s.ListenClientURLs {
		log.Info("serving client traffic", "address", u.Host, "tls", u.Scheme == "https" || u.Scheme == "unixs")
	}
	notify(daemon.SdNotifyReady)
}

// orNever reads a setting whose 0 switches something off.
func orNever(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

func notify(state string) { _, _ = daemon.SdNotify(false, state) } // without systemd nobody listens
