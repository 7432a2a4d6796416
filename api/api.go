// Package api is the ring that knows what is asked: the v3 gRPC services, the
// same as HTTP and JSON, and the paths for those who run a member. It knows
// neither how members agree nor how data lies on disk: what it needs of them
// it asks of a Backend.
//
//	Register   puts the services on a gRPC server
//	HTTP       answers everything else on the client's port
//	Monitoring answers on the separate port for metrics and probes
//	Members    is asked by other members
package api

import (
	"log/slog"
	"net/http"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/kvorum/kvorum/api/internal/gate"
	"github.com/kvorum/kvorum/api/internal/ops"
	"github.com/kvorum/kvorum/api/internal/v2"
	"github.com/kvorum/kvorum/api/internal/v3"
	"github.com/kvorum/kvorum/internal/gateway"
	"github.com/kvorum/kvorum/rpc"
	"github.com/kvorum/kvorum/web"
)

// The versions that clients see. They choose what to ask for by them, and
// parse them as three numbers: they name the contract that is kept, not the
// program that keeps it.
const (
	ServerVersion  = "3.7.3"
	ClusterVersion = "3.7.0"
	StorageVersion = "3.7.0"
)

type (
	// Backend is the member that stands behind the api. Its methods may be
	// called from any goroutine.
	Backend interface {
		v3.Backend
		v2.Backend
	}

	// Traffic is what passed between a member and the others.
	Traffic = v2.Traffic

	// PeerTraffic is that with one of them.
	PeerTraffic = v2.PeerTraffic

	// Status is what a member knows about agreement at one moment.
	Status = gate.Status

	// Change says what a member is from now on.
	Change = gate.Change
	Party  = gate.Party

	// Vote is a member's part in agreement.
	Vote = gate.Vote

	// Members is how a member changes the cluster by itself.
	Members = v3.Members

	// Metrics are the values that rooms are handed to count with.
	Metrics = ops.Metrics

	// Feature is one switch of the command line.
	Feature = ops.Feature
)

// What a member can be.
const (
	NoMember = gate.NoMember
	Learner  = gate.Learner
	Voter    = gate.Voter
)

// NewMetrics returns metrics at zero; extensive adds the histograms of calls.
func NewMetrics(extensive bool) *Metrics { return ops.NewMetrics(extensive) }

// Options work when empty.
type Options struct {
	RequestBytesMax int           // of one proposal; default 1.5 MiB
	TxnOpsMax       int           // default 128
	RequestTimeout  time.Duration // a proposal may wait so long; default 7 s
	LeaderTimeout   time.Duration // without a leader, streams of clients that want one end after so long; default 3 s
	LearnersMax     int           // members without a vote; default 1
	LeaseSecondsMin int64         // shorter leases are granted for so long; default 2
	LaxReconfig     bool          // let changes of the members endanger the quorum
	QuotaBytes      int64         // of the table on disk; default 2 GiB, below 0 none
	SlowRequest     time.Duration // a longer unary call is logged; default 300 ms, below 0 none

	NoGateway bool     // do not serve /v3/ over HTTP and JSON
	NoV2      bool     // do not serve /v2/
	Pprof     bool     // serve /debug/pprof/
	Origins   []string // origins of browser pages that may ask; default all
	Hosts     []string // names that plain-text HTTP may be addressed to; default all

	Features []Feature    // shown among the metrics
	Metrics  *Metrics     // default NewMetrics(false)
	Logger   *slog.Logger // default none
}

const (
	defaultRequestBytesMax = 1.5 * 1024 * 1024
	defaultTxnOpsMax       = 128
	defaultLearnersMax     = 1
	defaultLeaseSecondsMin = 2
	defaultRequestTimeout  = 7 * time.Second
	defaultLeaderTimeout   = 3 * time.Second
	defaultQuotaBytes      = 2 << 30
	defaultSlowRequest     = 300 * time.Millisecond

	// frameOverhead is what a message may be larger than the largest proposal,
	// so that what is too large is refused by name and not by the transport.
	frameOverhead = 512 * 1024
)

func (o Options) withDefaults() Options {
	if o.RequestBytesMax == 0 {
		o.RequestBytesMax = defaultRequestBytesMax
	}
	if o.TxnOpsMax == 0 {
		o.TxnOpsMax = defaultTxnOpsMax
	}
	if o.LeaseSecondsMin == 0 {
		o.LeaseSecondsMin = defaultLeaseSecondsMin
	}
	if o.RequestTimeout == 0 {
		o.RequestTimeout = defaultRequestTimeout
	}
	if o.LeaderTimeout == 0 {
		o.LeaderTimeout = defaultLeaderTimeout
	}
	if o.LearnersMax == 0 {
		o.LearnersMax = defaultLearnersMax
	}
	if o.QuotaBytes == 0 {
		o.QuotaBytes = defaultQuotaBytes
	}
	if o.SlowRequest == 0 {
		o.SlowRequest = defaultSlowRequest
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(false)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// API answers for one member.
type API struct {
	// Immutable after New.
	options Options
	backend Backend
	gate    *gate.Gate
	calls   *gate.Calls
	metrics http.Handler
}

// New returns an API that asks backend.
func New(o Options, backend Backend) *API {
	o = o.withDefaults()
	a := &API{options: o, backend: backend}
	a.gate = gate.New(gate.Options{
		RequestBytesMax: o.RequestBytesMax,
		QuotaBytes:      o.QuotaBytes,
		Timeout:         o.RequestTimeout,
		LeaderTimeout:   o.LeaderTimeout,
		Metrics:         o.Metrics.Gate,
	}, backend)
	a.calls = gate.NewCalls(a.gate, o.Metrics.Calls, o.SlowRequest, o.Logger)
	a.metrics = o.Metrics.Handler(a.versions(), o.Features, a.facts)
	return a
}

func (a *API) versions() ops.Versions {
	return ops.Versions{Server: ServerVersion, Cluster: ClusterVersion, Storage: StorageVersion}
}

// MessageBytesMax is the largest message that a gRPC server should accept.
func (a *API) MessageBytesMax() int { return a.options.RequestBytesMax + frameOverhead }

// Register puts every service on s. Each call is admitted, measured and
// reported by what stands around its method: s needs no interceptors. It is one
// of package rpc, or another whose streams take rpc.Messages.
func (a *API) Register(s grpc.ServiceRegistrar) {
	v3.Register(a.services(), a.gate, a.backend, registrar{s, a.calls})
}

// RegisterFast gives the methods that nearly all calls ask for a way from
// bytes to bytes on s, where Register has put them before.
func (a *API) RegisterFast(s interface{ Fast(path string, f rpc.Fast) }) {
	v3.Fast(a.services(), a.gate, a.calls, a.backend, s)
}

func (a *API) services() v3.Options {
	return v3.Options{
		TxnOpsMax:       a.options.TxnOpsMax,
		RequestBytesMax: a.options.RequestBytesMax,
		AnswerBytesMax:  a.MessageBytesMax(),
		QuotaBytes:      a.options.QuotaBytes,
		LearnersMax:     a.options.LearnersMax,
		LeaseSecondsMin: a.options.LeaseSecondsMin,
		StrictReconfig:  !a.options.LaxReconfig,
		Version:         ServerVersion,
		StorageVersion:  StorageVersion,
		Watch: v3.WatchMetrics{
			Events:   a.options.Metrics.WatchSend,
			Event:    a.options.Metrics.WatchSendEvent,
			Control:  a.options.Metrics.WatchControl,
			Progress: a.options.Metrics.WatchProgress,
		},
	}
}

// Members returns what other members may ask of this one, on their port.
func (a *API) Members() Members { return v3.NewMembers(a.services(), a.gate, a.backend) }

type registrar struct {
	server grpc.ServiceRegistrar
	calls  *gate.Calls
}

func (r registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	r.server.RegisterService(r.calls.Wrap(desc), impl)
}

// HTTP returns the handler of all that is not gRPC on the client's port. The
// gateway asks over conn, which leads to the server that Register was given:
// its calls share the limits of all others.
//
// The second handler, if there is one, may answer plain requests in the first
// one's place.
func (a *API) HTTP(conn grpc.ClientConnInterface) (all http.Handler, plain web.Handler, err error) {
	mux := http.NewServeMux()
	ops.Register(mux, ops.Options{Versions: a.versions(), Pprof: a.options.Pprof}, a.gate, a.metrics, &a.options.Metrics.Health)
	if !a.options.NoGateway {
		// Bytes travel as base64 in JSON, and numbers as text.
		h, err := gateway.New(conn, 2*int64(a.MessageBytesMax()))
		if err != nil {
			return nil, nil, err
		}
		mux.Handle("/v3/", h)
	}
	access := gateway.Access{Origins: a.options.Origins, Hosts: a.options.Hosts}
	if a.options.NoV2 {
		return access.Guard(mux), nil, nil
	}
	keys := v2.New(a.gate, a.backend, pb.NewClusterClient(conn), a.options.Metrics.NodesExpired)
	if access.Open() {
		plain = keys
	}
	return access.Guard(keys.Guard(mux)), plain, nil
}

// Monitoring returns the handler of the separate port for metrics and probes.
func (a *API) Monitoring() http.Handler {
	mux := http.NewServeMux()
	ops.RegisterMonitoring(mux, a.gate, a.metrics, &a.options.Metrics.Health)
	return mux
}

// everything is a request for the number of all keys.
var everything = &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true}

func (a *API) facts() ops.Facts {
	view := a.backend.View()
	keys, err := view.Range(everything)
	if err != nil {
		a.options.Logger.Error("could not count keys for the metrics", "error", err)
	}
	total, used := a.backend.Size()
	facts := ops.Facts{
		Status:       a.backend.Status(),
		Revision:     int64(view.Revision),
		Compacted:    int64(view.Compacted),
		Keys:         keys.Count,
		Bytes:        total,
		BytesInUse:   used,
		QuotaBytes:   max(0, a.options.QuotaBytes),
		AuthRevision: v3.FirstAuthRevision,
	}
	for _, alarm := range view.Alarms(pb.AlarmType_NONE) {
		facts.Alarms = append(facts.Alarms, ops.Alarm{Member: alarm.MemberID, Type: alarm.Alarm.String()})
	}
	return facts
}
