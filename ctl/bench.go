package ctl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvorum/kvorum/ctl/internal/load"
)

// benchOptions are the flags of the benchmarks. Not every one has all.
type benchOptions struct {
	clients, conns int
	total          int64
	duration       time.Duration
	rate           float64

	keys               int64
	keySize, valueSize int
	prefix             string
	seed               uint64
	keep               bool

	serializable bool
	limit        int64 // keys of a range
	ops          int   // puts of a transaction
	reads        int   // of a hundred mixed requests
	watchers     int
}

// benchDuration is how long a benchmark takes that was not told how much to ask.
const benchDuration = 10 * time.Second

func (a *app) benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "bench",
		Short:   "Measure what a cluster can do: put, get, range, txn, mixed, watch, lease",
		GroupID: groupUtility,
		Long: `Keep many clients asking a cluster, and tell how many requests a second it
took and how long they waited.

Without --rate each client asks again as soon as it is answered: that shows the
most the cluster can do, and latencies under full load. With --rate requests
come at their own time, as those of many users do, and a request's latency
counts from when it was due: that shows what users would feel. Look for the
most with the first, and measure latencies at half of it with the second.

The keys are chosen by --seed and are the same in each run. They have a prefix
of their own, which must be empty before and is empty afterwards (see --keep).`,
		Example: `
{{program}} bench put
{{program}} bench get --clients=200 --duration=30s
{{program}} bench mixed --rate=2000 --reads=95
{{program}} bench put --total=100000 --value-size=1024 -w json`,
	}
	for _, w := range workloads {
		cmd.AddCommand(a.workloadCommand(w))
	}
	return family(cmd)
}

func (a *app) workloadCommand(w workload) *cobra.Command {
	var o benchOptions
	cmd := &cobra.Command{
		Use:               w.name,
		Short:             w.short,
		Long:              w.long,
		Example:           w.example,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.total > 0 && !cmd.Flags().Changed("duration") {
				o.duration = 0
			}
			if err := o.check(); err != nil {
				return err
			}
			return a.bench(cmd, w, o)
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.IntVar(&o.clients, "clients", 50, "how many ask at the same time")
	fs.IntVar(&o.conns, "conns", 4, "connections that they share")
	fs.DurationVar(&o.duration, "duration", benchDuration, "how long to ask")
	fs.Int64Var(&o.total, "total", 0, "how many requests to make (instead of, or within --duration)")
	fs.Float64Var(&o.rate, "rate", 0, "requests per second of all clients together (0: as many as are answered)")
	if w.name != "lease" {
		fs.Int64Var(&o.keys, "keys", 10_000, "how many different keys there are")
		fs.IntVar(&o.keySize, "key-size", 32, "bytes of a key, its prefix included")
		fs.IntVar(&o.valueSize, "value-size", 256, "bytes of a value")
	} else {
		o.keys, o.keySize = 1, 32
	}
	if w.flags != nil {
		w.flags(cmd, &o)
	}
	fs.StringVar(&o.prefix, "prefix", "kvorum-bench/", "prefix of all keys")
	fs.Uint64Var(&o.seed, "seed", 1, "which sequence of keys to ask for")
	fs.BoolVar(&o.keep, "keep", false, "leave the keys there, and use those that are there already")
	return cmd
}

func (o *benchOptions) check() error {
	digits := len(strconv.FormatInt(o.keys-1, 10))
	switch {
	case o.clients < 1:
		return badArgs("--clients is %d, but somebody has to ask", o.clients)
	case o.conns < 1:
		return badArgs("--conns is %d, but at least one connection is needed", o.conns)
	case o.total < 0 || o.duration < 0 || o.rate < 0:
		return badArgs("--total, --duration and --rate cannot be negative")
	case o.total == 0 && o.duration == 0:
		return badArgs("the benchmark would never end: give --duration or --total")
	case o.keys < 1:
		return badArgs("--keys is %d, but at least one is needed", o.keys)
	case o.valueSize < 0:
		return badArgs("--value-size cannot be negative")
	case o.keySize < len(o.prefix)+digits:
		return badArgs("--key-size is %d, but the prefix %q and the number of one of %d keys need %d bytes",
			o.keySize, o.prefix, o.keys, len(o.prefix)+digits)
	case o.prefix == "":
		return badArgs("--prefix is empty, but all that has it is deleted in the end")
	case o.ops < 0 || int64(o.ops) > o.keys:
		return badArgs("--ops is %d, but a transaction can put each of the %d keys once", o.ops, o.keys)
	case o.reads < 0 || o.reads > 100:
		return badArgs("--reads is %d, but it is a share of 100", o.reads)
	case o.limit < 0 || o.watchers < 0:
		return badArgs("--limit and --watchers cannot be negative")
	}
	return nil
}

// benchmark is a run of a workload.
type benchmark struct {
	*connections
	benchOptions
	noise []byte // values are cut out of it
	ours  bool   // no key had the prefix before
}

// noiseStarts is how many different values there are. They do not compress,
// so that nothing looks faster than with data of weight.
const noiseStarts = 4096

func (a *app) bench(cmd *cobra.Command, w workload, o benchOptions) error {
	format, err := a.format()
	if err != nil {
		return err
	}
	if format == formatFields || format == formatProtobuf {
		return badFeature("%s not supported as output format", format)
	}
	o.conns = min(o.conns, o.clients)
	cs, err := a.connect(cmd, o.conns)
	if err != nil {
		return err
	}
	defer cs.close()

	b := &benchmark{connections: cs, benchOptions: o, noise: make([]byte, o.valueSize+noiseStarts)}
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], o.seed)
	rand.NewChaCha8(seed).Read(b.noise)

	result, err := b.measure(cmd, w)
	cleared := b.clear(context.WithoutCancel(cmd.Context())) // an interrupt must not leave the keys behind
	switch {
	case err != nil && isFailure(err):
		return err
	case err != nil:
		return a.explain(cmd.Context(), cs.config, err)
	}
	report := newBenchReport(w.name, o, result)
	if err := a.print(cmd, report.answer()); err != nil {
		return err
	}
	switch failed, all := report.failed(); {
	case cleared != nil:
		return fmt.Errorf("deleting the keys with prefix %q: %w", o.prefix, cleared)
	case cmd.Context().Err() != nil:
		return &failure{code: exitInterrupted, err: errors.New("interrupted: the figures are of what was asked until then")}
	case failed > 0:
		return &failure{code: exitError, err: fmt.Errorf("%d of %d requests failed", failed, all)}
	}
	return nil
}

// measure sees to the keys that have to be there, and runs the workload.
func (b *benchmark) measure(cmd *cobra.Command, w workload) (load.Result, error) {
	there, err := b.count(cmd.Context(), b.prefix, clientv3.GetPrefixRangeEnd(b.prefix))
	if err != nil {
		return load.Result{}, err
	}
	b.ours = there == 0
	if !b.ours && !b.keep {
		return load.Result{}, &failure{
			code: exitInvalidInput,
			err:  fmt.Errorf("%d keys have the prefix %q already", there, b.prefix),
			hint: fmt.Sprintf("Choose another --prefix, use them with --keep, or delete them: {{program}} del --prefix %q", b.prefix),
		}
	}
	if w.reads {
		there, err := b.count(cmd.Context(), b.key(0), b.key(b.keys-1)+"\x00")
		if err == nil && there != b.keys {
			err = b.fill(cmd)
		}
		if err != nil {
			return load.Result{}, err
		}
	}
	ask, finish, err := w.start(cmd.Context(), b)
	if err != nil {
		return load.Result{}, err
	}
	o := load.Options{Callers: b.clients, Total: b.total, Duration: b.duration, Rate: b.rate, FromDue: true}
	o.Progress = b.progress(cmd, "asking", b.total, b.duration)
	result := load.Run(cmd.Context(), o, ask)
	o.Progress(b.total, b.duration)
	if finish != nil {
		finish(context.WithoutCancel(cmd.Context()), &result)
	}
	return result, nil
}

// progress shows how far a run has come towards its total or, without one, its end.
func (b *benchmark) progress(cmd *cobra.Command, doing string, total int64, duration time.Duration) func(int64, time.Duration) {
	if total > 0 {
		bar := b.app.bar(cmd, doing, total, "requests")
		return func(done int64, _ time.Duration) { bar.at(done) }
	}
	bar := b.app.bar(cmd, doing, int64(duration/time.Millisecond), "")
	return func(_ int64, elapsed time.Duration) { bar.at(int64(elapsed / time.Millisecond)) }
}

func (b *benchmark) count(ctx context.Context, from, end string) (int64, error) {
	ctx, cancel := b.patience(ctx)
	defer cancel()
	r, err := b.of(0).Get(ctx, from, clientv3.WithRange(end), clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	return r.Count, nil
}

// fill puts every key once, some at a time.
func (b *benchmark) fill(cmd *cobra.Command) error {
	const opsMax, bytesMax = 100, 1 << 20 // below what servers take
	each := min(opsMax, max(1, bytesMax/int64(b.keySize+b.valueSize)))
	batches := (b.keys + each - 1) / each
	result := load.Run(cmd.Context(), load.Options{
		Callers: b.clients, Total: batches,
		Progress: b.progress(cmd, "filling", batches, 0),
	}, func(ctx context.Context, r load.Request) (string, error) {
		var ops []clientv3.Op
		for i := r.Number * each; i < min((r.Number+1)*each, b.keys); i++ {
			ops = append(ops, clientv3.OpPut(b.key(i), b.value(uint64(i))))
		}
		ctx, cancel := b.patience(ctx)
		defer cancel()
		_, err := b.of(r.Caller).Txn(ctx).Then(ops...).Commit()
		return "txn", err
	})
	if err := cmd.Context().Err(); err != nil {
		return err
	}
	for text := range result.Kinds["txn"].Errors {
		return fmt.Errorf("filling the store: %s", text)
	}
	return nil
}

// clear deletes the keys in slices, so that nobody else has to wait long.
func (b *benchmark) clear(ctx context.Context) error {
	if !b.ours || b.keep {
		return nil
	}
	const slice = 10_000
	for from := int64(0); from < b.keys; from += slice {
		end := clientv3.GetPrefixRangeEnd(b.prefix)
		if from+slice < b.keys {
			end = b.key(from + slice)
		}
		start := b.prefix
		if from > 0 {
			start = b.key(from)
		}
		ctx, cancel := context.WithTimeout(ctx, clearTime)
		_, err := b.of(0).Delete(ctx, start, clientv3.WithRange(end))
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *benchmark) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, b.app.commandTimeout)
}

// key is the name of a key by its number; names sort as the numbers do.
func (b *benchmark) key(number int64) string {
	return fmt.Sprintf("%s%0*d", b.prefix, b.keySize-len(b.prefix), number)
}

func (b *benchmark) value(number uint64) string {
	start := number % noiseStarts
	return string(b.noise[start : start+uint64(b.valueSize)])
}

// chance is what a request's choices are made with: they follow from the seed
// and its number.
func (b *benchmark) chance(r load.Request) *rand.PCG { return rand.NewPCG(b.seed, uint64(r.Number)) }

func (b *benchmark) anyKey(chance *rand.PCG) string {
	return b.key(int64(chance.Uint64() % uint64(b.keys)))
}
