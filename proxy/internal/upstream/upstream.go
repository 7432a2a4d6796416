// Package upstream is the way from a proxy to the members of a cluster: one
// connection to each, kept by grpc-go, of which every call takes the next that
// is well. It asks each member once a second whether it can still answer for
// the cluster, learns from the cluster who its members are, and needs nobody to
// be there when it starts.
//
//	upstream.go who there is, and who is well
//	pick.go     which of them a call goes to
//	address.go  what an address means, and how it is dialled
//	http.go     requests that are not gRPC
//
// U1: a call that may have reached a member is sent to no other one, unless it
// only reads.
// U2: an address that was not given by the operator is used once its member has
// shown that it belongs to the same cluster.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
)

// Options of an Upstream. Endpoints or Lookup are required.
type Options struct {
	Endpoints []string // as http://host:port, https://host:port or unix:path
	// Lookup finds endpoints in the place of Endpoints, again and again.
	Lookup func(context.Context) ([]string, error)

	Sync      time.Duration // how often the members are asked who they are; default 10 s, below 0 never
	Probe     time.Duration // rest between two questions whether a member is well; default 1 s
	Patience  time.Duration // a call waits so long for any member to be connected; default 5 s
	Keepalive time.Duration // a silent connection is pinged so often; default 10 s, below 0 never

	KeepaliveTimeout time.Duration // and dropped when there is no answer for so long; default 5 s
	SendBytesMax     int           // of one request; default 2 GiB - 1
	ReceiveBytesMax  int           // of one answer; default 2 GiB - 1

	TLS    Dialer       // for https addresses; default: they cannot be reached
	Logger *slog.Logger // default none
}

const defaultSync = 10 * time.Second

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.Sync, defaultSync)
	def(&o.Probe, time.Second)
	def(&o.Patience, 5*time.Second)
	def(&o.Keepalive, 10*time.Second)
	def(&o.KeepaliveTimeout, 5*time.Second)
	if o.SendBytesMax == 0 {
		o.SendBytesMax = math.MaxInt32
	}
	if o.ReceiveBytesMax == 0 {
		o.ReceiveBytesMax = math.MaxInt32
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Upstream is a connection to whichever member is well. It is a
// grpc.ClientConnInterface.
type Upstream struct {
	// Immutable after New.
	options  Options
	conn     *grpc.ClientConn
	resolver *manual.Resolver
	http     httpWay

	mu struct {
		sync.Mutex
		members []*member // in the order of their addresses
		cluster uint64    // 0: nobody has told yet
		changed chan struct{}
		well    bool // somebody was, when that was last logged
		said    bool // it was logged at all
	}
}

// condition says what is known of a member.
type condition int32

const (
	unknown condition = iota
	well
	unwell
	stranger // of another cluster
)

// member is one address.
type member struct {
	// Immutable.
	of      *Upstream
	address string

	condition atomic.Int32
	given     atomic.Bool // by the operator

	// Under Upstream.mu.
	id      uint64
	reason  string          // why it is not well
	dialErr error           // of the last attempt
	healthy context.Context // ends when it is well no more
	ail     context.CancelFunc
}

func (m *member) is(c condition) bool { return condition(m.condition.Load()) == c }

// Nobody is what a call ends with that no member could be asked. Clients know
// by the text that nothing was done, and that they may ask again.
var Nobody = status.Error(codes.Unavailable, "there is no connection available")

const roundRobin = `{"loadBalancingConfig": [{"kvorum_members": {}}]}`

// reads may be asked of another member when one did not answer (U1).
var reads = map[string]bool{
	pb.KV_Range_FullMethodName:              true,
	pb.Lease_LeaseTimeToLive_FullMethodName: true,
	pb.Lease_LeaseLeases_FullMethodName:     true,
	pb.Cluster_MemberList_FullMethodName:    true,
	pb.Maintenance_Status_FullMethodName:    true,
	pb.Maintenance_HashKV_FullMethodName:    true,
}

const (
	readsMax    = 4               // times that a read is tried
	readsFor    = 2 * time.Second // after so long it is not tried again
	readsRest   = 10 * time.Millisecond
	readsFactor = 3 // by which the rest grows
)

// New returns an Upstream that connects at once. The caller runs and closes it.
func New(o Options) (*Upstream, error) {
	o = o.withDefaults()
	u := &Upstream{options: o, resolver: manual.NewBuilderWithScheme("kvorum")}
	u.http.init(u)
	u.mu.changed = make(chan struct{})
	given, err := addresses(o.Endpoints, o.TLS != nil)
	if err != nil {
		return nil, err
	}
	u.resolver.InitialState(u.replace(given, nil))

	dialling := []grpc.DialOption{
		grpc.WithResolvers(u.resolver),
		grpc.WithContextDialer(u.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // dial shakes hands
		grpc.WithNoProxy(),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // it would wrap what members say
		grpc.WithDefaultServiceConfig(roundRobin),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(o.SendBytesMax), grpc.MaxCallRecvMsgSize(o.ReceiveBytesMax)),
	}
	if o.Keepalive > 0 {
		dialling = append(dialling, grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: o.Keepalive, Timeout: o.KeepaliveTimeout, PermitWithoutStream: true,
		}))
	}
	u.conn, err = grpc.NewClient(u.resolver.Scheme()+":///members", dialling...)
	if err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	u.conn.Connect()
	return u, nil
}

// Close ends all connections and calls. Run must have returned.
func (u *Upstream) Close() error {
	u.http.transport.CloseIdleConnections()
	return u.conn.Close()
}

// Run watches over the members until ctx ends.
func (u *Upstream) Run(ctx context.Context) {
	var synced time.Time
	every := u.options.Sync
	if every < 0 {
		every = defaultSync // of lookups
	}
	for ctx.Err() == nil {
		changed := u.probe(ctx)
		if asks := u.options.Lookup != nil || u.options.Sync > 0; asks && (changed || time.Since(synced) >= every) {
			if u.sync(ctx) {
				synced = time.Now()
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(u.options.Probe):
		}
	}
}

func (u *Upstream) all() []*member {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.mu.members
}

// replace makes the members those at the given addresses and those found, and
// returns what the resolver has to say.
func (u *Upstream) replace(given, found []string) resolver.State {
	u.mu.Lock()
	defer u.mu.Unlock()
	former := u.mu.members
	u.mu.members = nil
	var state resolver.State
	for i, address := range append(slices.Clone(given), found...) {
		if slices.ContainsFunc(u.mu.members, func(m *member) bool { return m.address == address }) {
			continue
		}
		m := &member{of: u, address: address, reason: "not asked yet"}
		if at := slices.IndexFunc(former, func(m *member) bool { return m.address == address }); at >= 0 {
			m = former[at]
		} else {
			m.healthy, m.ail = context.WithCancel(context.Background())
			m.ail()
		}
		m.given.Store(i < len(given))
		u.mu.members = append(u.mu.members, m)
		state.Addresses = append(state.Addresses, resolver.Address{
			Addr: address, Attributes: attributes.New(memberKey{}, m),
		})
	}
	for _, m := range former {
		if !slices.Contains(u.mu.members, m) {
			m.ail()
		}
	}
	return state
}

// sync finds out who the members are. It returns false where that is not known
// of all.
func (u *Upstream) sync(ctx context.Context) (known bool) {
	ctx, cancel := context.WithTimeout(ctx, u.options.Patience)
	defer cancel()
	given, found, known := u.list(true), u.list(false), true
	if u.options.Lookup != nil {
		endpoints, err := u.options.Lookup(ctx)
		var looked []string
		if err == nil {
			looked, err = addresses(endpoints, u.options.TLS != nil)
		}
		if err != nil {
			u.options.Logger.Warn("could not look up the endpoints", "error", err)
			known = false
		} else {
			given = looked
		}
	}
	if u.options.Sync > 0 {
		told, all := u.advertised(ctx, given)
		if known = known && all; len(told) > 0 {
			found = told
		}
	}
	before := u.all()
	state := u.replace(given, found)
	if slices.Equal(before, u.all()) {
		return known
	}
	u.resolver.UpdateState(state)
	u.conn.ResetConnectBackoff()
	u.options.Logger.Info("the members' addresses changed", "endpoints", append(u.list(true), u.list(false)...))
	return known
}

// advertised returns the addresses that the members tell their clients to use,
// but for those of members that are known by a given one. It returns false where
// members have not told yet.
func (u *Upstream) advertised(ctx context.Context, given []string) (found []string, all bool) {
	if u.Health() != nil {
		return nil, false
	}
	list, err := pb.NewClusterClient(u).MemberList(ctx, &pb.MemberListRequest{})
	if err != nil {
		u.options.Logger.Debug("members were not listed", "error", err)
		return nil, status.Code(err) != codes.Unavailable // who is not allowed to know need not ask again
	}
	known := map[uint64]bool{}
	for _, m := range u.all() {
		if slices.Contains(given, m.address) && m.is(well) {
			known[u.identity(m)] = true
		}
	}
	all = true
	for _, m := range list.Members {
		if known[m.ID] {
			continue
		}
		// What a member says of itself may be any nonsense.
		urls, err := addresses(m.ClientURLs, u.options.TLS != nil)
		if all = all && len(urls) > 0; err == nil {
			found = append(found, urls...)
		}
	}
	slices.Sort(found)
	return found, all
}

func (u *Upstream) identity(m *member) uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return m.id
}

// list returns the addresses that were given, or those that were found.
func (u *Upstream) list(given bool) (addresses []string) {
	for _, m := range u.all() {
		if m.given.Load() == given {
			addresses = append(addresses, m.address)
		}
	}
	return addresses
}

// probe asks every member for something that it can only tell together with the
// others. It tells whether any answers otherwise than before.
func (u *Upstream) probe(ctx context.Context) (changed bool) {
	members := u.all()
	before := u.conditions(members)
	var asking sync.WaitGroup
	for _, m := range members {
		asking.Go(func() { u.ask(ctx, m) })
	}
	asking.Wait()
	if ctx.Err() == nil {
		u.report(members)
	}
	return !slices.Equal(before, u.conditions(members))
}

func (u *Upstream) conditions(members []*member) (all []int32) {
	for _, m := range members {
		all = append(all, m.condition.Load())
	}
	return all
}

const probeTimeout = 1500 * time.Millisecond

func (u *Upstream) ask(ctx context.Context, m *member) {
	timed, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	resp, err := pb.NewKVClient(u.conn).Range(only(timed, m), &pb.RangeRequest{Key: []byte("health"), KeysOnly: true}, grpc.WaitForReady(true))
	if ctx.Err() != nil {
		return
	}
	now, reason := well, ""
	var cluster, id uint64
	switch status.Code(err) {
	case codes.OK:
		cluster, id = resp.GetHeader().GetClusterId(), resp.GetHeader().GetMemberId()
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument:
		// It wants to know who asks. That it can say so is all there is to learn.
	default:
		now, reason = unwell, status.Convert(err).Message()
	}

	u.mu.Lock()
	defer u.mu.Unlock()
	if now == unwell && status.Code(err) == codes.DeadlineExceeded && m.dialErr != nil {
		reason = m.dialErr.Error()
	}
	if cluster != 0 {
		m.id = id
		if u.mu.cluster == 0 && m.given.Load() {
			u.mu.cluster = cluster
		}
		if cluster != u.mu.cluster {
			now, reason = stranger, fmt.Sprintf("belongs to another cluster, %x", cluster)
		}
	}
	if now == well && cluster == 0 && !m.given.Load() {
		now, reason = unknown, "does not say to which cluster it belongs"
	}
	was := condition(m.condition.Swap(int32(now)))
	m.reason = reason
	if was == now {
		return
	}
	if now == well {
		m.healthy, m.ail = context.WithCancel(context.Background())
	} else {
		m.ail()
	}
	close(u.mu.changed)
	u.mu.changed = make(chan struct{})
}

// report logs once when members can be asked, and once when they cannot. Where
// all that was given leads to another cluster by now, that is the one.
func (u *Upstream) report(members []*member) {
	u.mu.Lock()
	defer u.mu.Unlock()
	any := slices.ContainsFunc(members, func(m *member) bool { return m.is(well) })
	if !any && slices.ContainsFunc(members, func(m *member) bool { return m.given.Load() && m.is(stranger) }) {
		u.options.Logger.Warn("the endpoints lead to another cluster now", "former", fmt.Sprintf("%x", u.mu.cluster))
		u.mu.cluster = 0
		return
	}
	if u.mu.said && any == u.mu.well {
		return
	}
	u.mu.said, u.mu.well = true, any
	if any {
		var names []string
		for _, m := range members {
			if m.is(well) {
				names = append(names, m.address)
			}
		}
		u.options.Logger.Info("members answer", "endpoints", names)
		return
	}
	u.options.Logger.Warn("no member answers; calls wait, and fail until one does", "reason", u.reason())
}

// Health returns nil where a member can answer for the cluster, or why none can.
func (u *Upstream) Health() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if slices.ContainsFunc(u.mu.members, func(m *member) bool { return m.is(well) }) {
		return nil
	}
	return errors.New(u.reason())
}

// why tells of each member why it is not well.
func (u *Upstream) why() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.reason()
}

// reason is why, with mu held.
func (u *Upstream) reason() string {
	if len(u.mu.members) == 0 {
		return "no endpoint is known"
	}
	var all []string
	for _, m := range u.mu.members {
		all = append(all, m.address+": "+m.reason)
	}
	return strings.Join(all, "; ")
}

// Member tells of one address.
type Member struct {
	Address string
	Well    bool
}

// Members returns all addresses in use.
func (u *Upstream) Members() (all []Member) {
	for _, m := range u.all() {
		all = append(all, Member{m.address, m.is(well)})
	}
	return all
}

// Invoke asks one member. It waits a while for one to be connected.
func (u *Upstream) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if err := u.await(ctx); err != nil {
		return err
	}
	began, rest := time.Now(), readsRest
	for tried := 1; ; tried++ {
		err := u.conn.Invoke(ctx, method, args, reply, opts...)
		if status.Code(err) != codes.Unavailable || !reads[method] || tried == readsMax || time.Since(began) > readsFor {
			return err
		}
		select {
		case <-time.After(rest):
			rest *= readsFactor
		case <-ctx.Done():
			return err
		}
	}
}

// NewStream begins a call to one member, and waits likewise.
func (u *Upstream) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := u.await(ctx); err != nil {
		return nil, err
	}
	return u.conn.NewStream(ctx, desc, method, opts...)
}

// Each calls ask with a context for each member in turn, whose calls go to
// that member alone, until ask returns false.
func (u *Upstream) Each(ctx context.Context, ask func(context.Context) bool) {
	for _, m := range u.all() {
		if m.is(well) && !ask(only(ctx, m)) {
			return
		}
	}
}

// To returns a context whose calls go to the member with an identity, if it is
// known and well.
func (u *Upstream) To(ctx context.Context, id uint64) (_ context.Context, ok bool) {
	for _, m := range u.all() {
		if m.is(well) && u.identity(m) == id {
			return only(ctx, m), true
		}
	}
	return ctx, false
}

// await returns when some member is connected.
func (u *Upstream) await(ctx context.Context) error {
	state := u.conn.GetState()
	if state == connectivity.Ready {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, u.options.Patience)
	defer cancel()
	for ; state != connectivity.Ready; state = u.conn.GetState() {
		if state == connectivity.Shutdown {
			return Nobody
		}
		if !u.conn.WaitForStateChange(waiting, state) {
			if ctx.Err() != nil {
				return status.FromContextError(ctx.Err()).Err()
			}
			return Nobody
		}
	}
	return nil
}

// While returns a connection whose streams go to a member that is well, and end
// as soon as it is not. They wait for one as long as their context lasts, which
// must end when they are of no more use.
func (u *Upstream) While() grpc.ClientConnInterface { return while{u} }

type while struct{ *Upstream }

var errAiling = errors.New("the member cannot answer for the cluster any more")

func (u while) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	for {
		u.mu.Lock()
		changed := u.mu.changed
		any := slices.ContainsFunc(u.mu.members, func(m *member) bool { return m.is(well) })
		u.mu.Unlock()
		if any {
			return u.open(ctx, desc, method, opts...)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (u while) open(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	chosen := new(choice)
	stream, err := u.Upstream.NewStream(context.WithValue(ctx, choiceKey{}, chosen), desc, method, opts...)
	m := chosen.member.Load()
	if err != nil {
		cancel(nil)
		return nil, err
	}
	u.mu.Lock()
	healthy := m.healthy
	u.mu.Unlock()
	stop := context.AfterFunc(healthy, func() { cancel(errAiling) })
	context.AfterFunc(ctx, func() { stop() })
	return stream, nil
}

// dial remembers why a member could not be reached.
func (u *Upstream) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := dial(ctx, address, "h2", u.options.TLS)
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, m := range u.mu.members {
		if m.address == address {
			m.dialErr = err
		}
	}
	return conn, err
}
