// Package config holds the settings of a server: what may be set, by which
// flag, variable or line of a file, to what by default, and whether the whole
// makes sense. It reads the configuration file and looks up host names when
// asked to; it never logs, never creates anything, and never touches the
// data directory.
//
// Every setting is declared once, in settings.go. Flags, variables, file keys,
// help and the dump in the start-up log all derive from that table.
//
// G1: a flag wins over a variable, a variable over the file, the file over
// the default; a setting given twice is never an error, and a note says who
// won.
// G2: what starts etcd 3.4 to 3.7 parses here: removed flags are mapped to
// their heirs or passed over with a note.
package config

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"
)

// Server is one complete, checked set of settings. Durations, sizes and
// addresses are already typed; lists are nil when empty.
type Server struct {
	// Member
	Name                       string
	DataDir                    string
	WALDir                     string // "": inside DataDir
	SnapshotCount              uint64
	HeartbeatInterval          time.Duration
	ElectionTimeout            time.Duration
	InitialElectionTickAdvance bool
	ListenPeerURLs             URLs
	ListenClientURLs           URLs
	ListenClientHTTPURLs       URLs
	MaxSnapshots               uint64
	MaxWALs                    uint64
	MemoryLock                 bool
	QuotaBackendBytes          int64 // < 0: none; 0: the default of 2 GiB
	ValueCacheBytes            int64 // 0: a quarter of memory
	BackendFreelist            string
	BackendBatchInterval       time.Duration
	BackendBatchLimit          int64
	MaxTxnOps                  int
	MaxRequestBytes            int64
	MaxConcurrentStreams       uint32
	MaxWaitingRequests         int
	MaxWaitingBytes            int64
	KeepAliveMinTime           time.Duration
	KeepAliveInterval          time.Duration // 0: never ping a client
	KeepAliveTimeout           time.Duration
	ReusePort                  bool
	ReuseAddress               bool
	EnableGateway              bool
	EnableV2                   bool
	RaftReadTimeout            time.Duration
	RaftWriteTimeout           time.Duration
	FeatureGates               Gates

	// Clustering
	InitialAdvertisePeerURLs URLs
	InitialCluster           InitialCluster // nil when discovered or joined
	InitialClusterState      string         // "new" or "existing"
	InitialClusterToken      string
	AdvertiseClientURLs      URLs
	Join                     []string // members of a running cluster to join
	Discovery                Discovery
	StrictReconfigCheck      bool
	PreVote                  bool
	AutoCompaction           AutoCompaction
	V2Deprecation            string

	// Security
	ClientTLS          TLS // the client port, and metrics under https
	PeerTLS            TLS
	CipherSuites       []string // names; empty: Go's choice
	TLSMin, TLSMax     TLSVersion
	SelfSignedValidity time.Duration
	CORS               []string // nil or "*": every origin
	HostWhitelist      []string // nil or "*": every host

	// Auth
	AuthToken    AuthToken
	AuthTokenTTL time.Duration // of simple tokens
	BcryptCost   int

	// Profiling and monitoring
	EnablePprof       bool
	Metrics           string // "basic" or "extensive"
	ListenMetricsURLs URLs

	// Logging and tracing
	Log     Log
	Tracing Tracing

	// Features
	CorruptCheckTime            time.Duration // 0: never
	CompactHashCheckTime        time.Duration
	CompactionBatchLimit        int
	CompactionSleepInterval     time.Duration
	WatchProgressNotifyInterval time.Duration
	BootstrapDefragMegabytes    uint64
	MaxLearners                 int
	DowngradeCheckTime          time.Duration
	SnapshotCatchUpEntries      uint64

	// Unsafe
	ForceNewCluster bool
	UnsafeNoFsync   bool
}

// TLS names the files and rules of one side: the client port or the peers'.
type TLS struct {
	CertFile         string
	KeyFile          string
	ClientCertFile   string // used when this member dials; "": CertFile
	ClientKeyFile    string
	TrustedCAFile    string
	CRLFile          string
	ClientCertAuth   bool
	AllowedCNs       []string
	AllowedHostnames []string
	Auto             bool // make a self-signed certificate when none is named
	SkipClientSAN    bool
}

// Discovery tells how to find the other members without naming them.
type Discovery struct {
	Token              string
	Endpoints          []string
	DialTimeout        time.Duration
	RequestTimeout     time.Duration
	KeepAliveTime      time.Duration
	KeepAliveTimeout   time.Duration
	InsecureTransport  bool
	InsecureSkipVerify bool
	CertFile           string
	KeyFile            string
	CAFile             string
	User               string
	Password           string
	SRV                string // DNS domain
	SRVName            string
}

// AutoCompaction tells what history to keep. At most one of Period and
// Revisions is above zero; none means that nothing is compacted unasked.
type AutoCompaction struct {
	Mode      string // "periodic" or "revision"
	Retention string // as written

	Period    time.Duration // derived
	Revisions int64         // derived
}

// Log tells where log lines go and which.
type Log struct {
	Outputs  []string // "default", "stderr", "stdout", "systemd/journal" or files
	Level    string
	Format   string // "json" or "console"
	Rotate   bool
	Rotation Rotation

	SlowRequest time.Duration // a unary call that takes longer is logged
	SlowApply   time.Duration // an entry that takes longer to apply is logged
}

// MinLevel is the least important level that is logged.
func (l Log) MinLevel() slog.Level {
	switch l.Level {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error", "panic", "fatal":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// Rotation tells when a log file is renamed and when old ones are deleted.
type Rotation struct {
	MaxMegabytes int  `json:"maxsize"`
	MaxAgeDays   int  `json:"maxage"`     // 0: however old
	MaxBackups   int  `json:"maxbackups"` // 0: however many
	LocalTime    bool `json:"localtime"`
	Compress     bool `json:"compress"`
}

// Tracing tells where spans are sent.
type Tracing struct {
	Enabled    bool
	Address    string // OTLP over gRPC
	Service    string
	Instance   string
	PerMillion int // spans kept of a million; 0: only those a caller asked for
}

// Note is something the operator should read in the log.
type Note struct {
	Level slog.Level
	Text  string
}

// UsageError is a command line or environment that cannot be understood, as
// opposed to settings that are understood and refused. A process ends with
// status 2 for the first and 1 for the second.
type UsageError struct{ text string }

// Error says what is wrong and what would be right.
func (e *UsageError) Error() string { return e.text }

func usage(format string, args ...any) error { return &UsageError{fmt.Sprintf(format, args...)} }

// Not settings but questions: Parse returns these when asked for help or for
// the version.
var (
	ErrHelp    = flag.ErrHelp
	ErrVersion = errors.New("config: version asked for")
)

// Parse makes the settings of a server from its arguments (without the
// program's name), its environment ("KEY=value") and the file that they name.
// called is the name of the program: as "etcd" it keeps etcd's default data
// directory. The notes are worth logging whether or not there is an error.
func Parse(args, env []string, called string) (*Server, []Note, error) {
	s := new(Server)
	p := newParser(s, env, called)
	err := p.parse(s, args, env)
	return s, p.notes, err
}

func newParser(s *Server, env []string, called string) *parser {
	return &parser{
		table:   settings(s),
		given:   make(map[string]given),
		gates:   make(map[Gate]bool),
		home:    homeOf(env, called),
		address: routeAddress,
	}
}

func (p *parser) parse(s *Server, args, env []string) error {
	flags, err := p.readFlags(args)
	if err != nil {
		return err
	}
	variables := p.readVariables(env)

	// Lowest rank first: what comes later wins.
	if file := fileNamed(flags, variables); file != "" {
		if err := p.readFile(file); err != nil {
			return err
		}
	}
	for _, g := range slices.Concat(variables, flags) {
		p.give(g)
	}
	return p.apply(s)
}

// apply turns what was given into settings.
func (p *parser) apply(s *Server) error {
	for _, row := range p.rows() {
		if err := row.value.set(row.def); err != nil {
			panic("config: default of --" + row.name + ": " + err.Error())
		}
		g, ok := p.given[row.name]
		if !ok {
			continue
		}
		if err := g.setOn(row.value); err != nil {
			return g.refuse(err)
		}
		if row.note != "" {
			p.note(slog.LevelWarn, "%s", row.note)
		}
	}
	p.settleGates(s)
	return p.settle(s)
}

// parser collects what was given before any of it is believed.
type parser struct {
	table   []group
	given   map[string]given // by the name of the setting
	gates   map[Gate]bool    // switched by the flags that came before --feature-gates
	notes   []Note
	home    func(name string) (string, error)
	address func(to ...string) (string, error) // this machine's, as those at an address see it
}

func (p *parser) note(level slog.Level, format string, args ...any) {
	p.notes = append(p.notes, Note{level, fmt.Sprintf(format, args...)})
}

func (p *parser) isGiven(name string) bool {
	_, ok := p.given[name]
	return ok
}

// give records g, which wins over all that was given before.
func (p *parser) give(g given) {
	name, g, ok := p.translate(g)
	if !ok {
		return
	}
	if before, ok := p.given[name]; ok && before.rank != g.rank {
		p.note(slog.LevelInfo, "%s wins over %s", g.from, before.from)
	}
	p.given[name] = g
}

// rows yields every setting in the order of the table.
func (p *parser) rows() []setting { return rows(p.table) }

func rows(table []group) []setting {
	var all []setting
	for _, g := range table {
		all = append(all, g.settings...)
	}
	return all
}

// Dump returns every setting under its flag's name, numbers as numbers and
// lists as lists, for the line that tells a log how the server was started.
// Secrets are left out.
func (s *Server) Dump() []slog.Attr {
	var attrs []slog.Attr
	for _, row := range rows(settings(s)) {
		switch {
		case row.hidden:
		case row.secret:
			attrs = append(attrs, slog.Bool(row.name+"-given", row.value.show() != ""))
		default:
			attrs = append(attrs, slog.Any(row.name, row.value.show()))
		}
	}
	return attrs
}

func sortedKeys[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
