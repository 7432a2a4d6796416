package ctl

import (
	"context"
	"errors"
	"math/rand/v2"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvorum/kvorum/ctl/internal/load"
)

// A workload is something that "bench" can measure.
type workload struct {
	name, short, long, example string

	reads bool // every key has to be there
	flags func(*cobra.Command, *benchOptions)

	start func(context.Context, *benchmark) (load.Ask, finish, error)
}

// A finish ends what a workload's start began, and adds what it met meanwhile
// to the result; nil: there is nothing to end.
type finish func(context.Context, *load.Result)

const (
	kindGet    = "get"
	kindRange  = "range"
	kindTxn    = "txn"
	kindEvent  = "event"
	kindGrant  = "grant"
	kindRevoke = "revoke"
)

var errMissing = errors.New("a key that was written is missing")

var workloads = []workload{
	{
		name:  "put",
		short: "Write single keys",
		long:  "Put values under keys chosen at random.",
		example: `
{{program}} bench put
{{program}} bench put --clients=1 --conns=1               # one write after another: the latency of a disk
{{program}} bench put --keys=1000000 --value-size=1024 --total=1000000`,
		start: asking((*benchmark).put),
	},
	{
		name:  "get",
		short: "Read single keys",
		long: `Put every key once, then get keys chosen at random. A read is linearizable
unless --serializable lets any member answer from what it knows.`,
		example: `
{{program}} bench get
{{program}} bench get --serializable --clients=200`,
		reads: true,
		flags: serializableFlag,
		start: asking((*benchmark).get),
	},
	{
		name:  "range",
		short: "Read pages of neighbouring keys",
		long:  "Put every key once, then read pages of --limit keys, each from a key chosen at random.",
		example: `
{{program}} bench range --limit=1000
{{program}} bench range --clients=10 --serializable`,
		reads: true,
		flags: func(cmd *cobra.Command, o *benchOptions) {
			cmd.Flags().Int64Var(&o.limit, "limit", 100, "keys of a page")
			serializableFlag(cmd, o)
		},
		start: asking((*benchmark).page),
	},
	{
		name:  "txn",
		short: "Write several keys at once, if one is as expected",
		long:  "Put every key once, then commit transactions that compare one key and put --ops of them.",
		example: `
{{program}} bench txn
{{program}} bench txn --ops=50 --value-size=64`,
		reads: true,
		flags: func(cmd *cobra.Command, o *benchOptions) {
			cmd.Flags().IntVar(&o.ops, "ops", 4, "keys that a transaction puts")
		},
		start: asking((*benchmark).txn),
	},
	{
		name:  "mixed",
		short: "Read and write single keys",
		long:  "Put every key once, then get and put keys chosen at random, and tell the two apart.",
		example: `
{{program}} bench mixed --reads=95
{{program}} bench mixed --rate=5000 --duration=1m`,
		reads: true,
		flags: func(cmd *cobra.Command, o *benchOptions) {
			cmd.Flags().IntVar(&o.reads, "reads", 80, "how many of a hundred requests are reads")
			serializableFlag(cmd, o)
		},
		start: asking((*benchmark).either),
	},
	{
		name:  "watch",
		short: "Tell how long events take to all who listen",
		long: `Let --watchers listen to all keys, and put keys chosen at random. An event's
latency counts from the beginning of the put to its arrival at one listener.`,
		example: `
{{program}} bench watch
{{program}} bench watch --watchers=1000 --rate=20 --conns=10`,
		flags: func(cmd *cobra.Command, o *benchOptions) {
			cmd.Flags().IntVar(&o.watchers, "watchers", 100, "how many listen")
			rate := cmd.Flags().Lookup("rate")
			rate.Usage = "puts per second of all clients together (0: as many as are answered)"
			o.rate, rate.DefValue = 100, "100" // each put becomes as many events as there are watchers
		},
		start: func(ctx context.Context, b *benchmark) (load.Ask, finish, error) { return b.watch(ctx) },
	},
	{
		name:  "lease",
		short: "Grant and revoke leases",
		long:  "Each client grants a lease, revokes it, and begins again.",
		example: `
{{program}} bench lease
{{program}} bench lease --clients=500 --total=100000`,
		start: func(_ context.Context, b *benchmark) (load.Ask, finish, error) { return b.lease() },
	},
}

// asking starts a workload that has nothing to prepare.
func asking(ask func(*benchmark, context.Context, load.Request) (string, error)) func(context.Context, *benchmark) (load.Ask, finish, error) {
	return func(_ context.Context, b *benchmark) (load.Ask, finish, error) {
		return func(ctx context.Context, r load.Request) (string, error) { return ask(b, ctx, r) }, nil, nil
	}
}

func serializableFlag(cmd *cobra.Command, o *benchOptions) {
	cmd.Flags().BoolVar(&o.serializable, "serializable", false, "let a member answer from what it knows, be it old")
}

func (b *benchmark) put(ctx context.Context, r load.Request) (string, error) {
	ctx, cancel := b.patience(ctx)
	defer cancel()
	chance := b.chance(r)
	_, err := b.of(r.Caller).Put(ctx, b.anyKey(chance), b.value(chance.Uint64()))
	return kindPut, err
}

func (b *benchmark) readOptions(more ...clientv3.OpOption) []clientv3.OpOption {
	if b.serializable {
		more = append(more, clientv3.WithSerializable())
	}
	return more
}

func (b *benchmark) get(ctx context.Context, r load.Request) (string, error) {
	ctx, cancel := b.patience(ctx)
	defer cancel()
	answer, err := b.of(r.Caller).Get(ctx, b.anyKey(b.chance(r)), b.readOptions()...)
	if err == nil && len(answer.Kvs) == 0 {
		err = errMissing
	}
	return kindGet, err
}

func (b *benchmark) either(ctx context.Context, r load.Request) (string, error) {
	// A chance of its own: which key it is must not depend on the share of reads.
	if rand.NewPCG(^b.seed, uint64(r.Number)).Uint64()%100 < uint64(b.reads) {
		return b.get(ctx, r)
	}
	return b.put(ctx, r)
}

func (b *benchmark) page(ctx context.Context, r load.Request) (string, error) {
	ctx, cancel := b.patience(ctx)
	defer cancel()
	// Every page is full: it starts where enough keys follow.
	limit := min(b.limit, b.keys)
	first := int64(b.chance(r).Uint64() % uint64(b.keys-limit+1))
	answer, err := b.of(r.Caller).Get(ctx, b.key(first),
		b.readOptions(clientv3.WithRange(clientv3.GetPrefixRangeEnd(b.prefix)), clientv3.WithLimit(limit))...)
	if err == nil && int64(len(answer.Kvs)) < limit {
		err = errMissing
	}
	return kindRange, err
}

func (b *benchmark) txn(ctx context.Context, r load.Request) (string, error) {
	ctx, cancel := b.patience(ctx)
	defer cancel()
	// Neighbours, since a transaction may put a key only once.
	chance := b.chance(r)
	first := int64(chance.Uint64() % uint64(b.keys))
	value := b.value(chance.Uint64())
	puts := make([]clientv3.Op, b.ops)
	for i := range puts {
		puts[i] = clientv3.OpPut(b.key((first+int64(i))%b.keys), value)
	}
	answer, err := b.of(r.Caller).Txn(ctx).
		If(clientv3.Compare(clientv3.Version(b.key(first)), ">", 0)).
		Then(puts...).
		Commit()
	if err == nil && !answer.Succeeded {
		err = errMissing
	}
	return kindTxn, err
}

// leaseTTL bounds how long a lease outlives a benchmark that was killed.
const leaseTTL = 60 // seconds

func (b *benchmark) lease() (load.Ask, finish, error) {
	held := make([]clientv3.LeaseID, b.clients) // by caller
	ask := func(ctx context.Context, r load.Request) (string, error) {
		ctx, cancel := b.patience(ctx)
		defer cancel()
		if id := held[r.Caller]; id != clientv3.NoLease {
			held[r.Caller] = clientv3.NoLease
			_, err := b.of(r.Caller).Revoke(ctx, id)
			return kindRevoke, err
		}
		granted, err := b.of(r.Caller).Grant(ctx, leaseTTL)
		if err == nil {
			held[r.Caller] = granted.ID
		}
		return kindGrant, err
	}
	revokeAll := func(ctx context.Context, _ *load.Result) {
		ctx, cancel := b.patience(ctx)
		defer cancel()
		for caller, id := range held {
			if id != clientv3.NoLease {
				_, _ = b.of(caller).Revoke(ctx, id) // or it ends by itself
			}
		}
	}
	return ask, revokeAll, nil
}
