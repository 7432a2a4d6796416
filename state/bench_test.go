package state_test

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/state"
)

const (
	benchKeys  = 1 << 20
	benchBatch = 64
)

// load is a machine on disk that holds many keys, for benchmarks to share.
type load struct {
	*state.Machine
	options state.Options
	index   state.Index
	value   []byte
}

var shared *load

func benchKey(dst []byte, n int) []byte {
	// Spread as the keys of a real store are: a few kinds, names at random.
	h := uint64(n) * 0x9e3779b97f4a7c15
	dst = append(dst, "/registry/"...)
	dst = append(dst, [...]string{"pods/", "leases/", "events/", "secrets/"}[n&3]...)
	const hex = "0123456789abcdef"
	for i := 60; i >= 0; i -= 4 {
		dst = append(dst, hex[h>>i&15])
	}
	return dst
}

func (l *load) put(b testing.TB, keys func(i int) int, n int) {
	var q pb.PutRequest
	q.Value = l.value
	var key []byte
	commands := make([][]byte, 0, benchBatch)
	flush := func() {
		l.index++
		if _, err := l.Apply([]state.Entry{{Index: l.index, Term: 1, Commands: commands, Wanted: true}}); err != nil {
			b.Fatal(err)
		}
	}
	for i := range n {
		key = benchKey(key[:0], keys(i))
		q.Key = key
		binary.BigEndian.PutUint64(l.value, uint64(i))
		if i < benchBatch || len(commands) == cap(commands) && i < benchBatch {
			commands = append(commands, nil)
		}
		at := i % benchBatch
		commands = commands[:at+1]
		commands[at], _ = state.Command{Kind: state.Put, Request: &q}.Append(commands[at][:0])
		if at == benchBatch-1 {
			flush()
		}
	}
	if n%benchBatch != 0 {
		flush()
	}
}

func million(b *testing.B) *load {
	b.Helper()
	if shared == nil {
		dir, err := os.MkdirTemp("", "kvorum-bench")
		if err != nil {
			b.Fatal(err)
		}
		l := &load{options: state.Options{Dir: dir, ValueCacheBytes: 2 << 30}, value: make([]byte, 256)}
		for i := range l.value {
			l.value[i] = byte(rand.IntN(64))
		}
		m, err := state.Open(l.options)
		if err != nil {
			b.Fatal(err)
		}
		l.Machine = m
		before := heap()
		l.put(b, func(i int) int { return i }, benchKeys)
		b.Logf("%d bytes of heap a key", (heap()-before)/benchKeys)
		shared = l
	}
	b.ReportAllocs()
	b.ResetTimer()
	return shared
}

// cpu reports the processor time of an operation with all that happens in the
// background for it, which a busy machine distorts less than the time it took.
func cpu(b *testing.B) func() {
	now := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	from := now()
	return func() { b.ReportMetric(float64(now()-from)/float64(b.N), "cpu-ns/op") }
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkPutExisting(b *testing.B) {
	l := million(b)
	defer cpu(b)()
	l.put(b, func(int) int { return rand.IntN(benchKeys) }, b.N)
}

var fresh = benchKeys

func BenchmarkPutNew(b *testing.B) {
	l := million(b)
	defer cpu(b)()
	l.put(b, func(int) int { fresh++; return fresh }, b.N)
}

func BenchmarkGet(b *testing.B) {
	l := million(b)
	defer cpu(b)()
	var key []byte
	for range b.N {
		key = benchKey(key[:0], rand.IntN(benchKeys))
		a, err := l.View().Range(&pb.RangeRequest{Key: key})
		if err != nil || len(a.Pairs) != 1 {
			b.Fatal(a, err)
		}
	}
}

// BenchmarkGetFromTable reads keys whose values are not in memory.
func BenchmarkGetFromTable(b *testing.B) {
	l := million(b)
	if err := l.Flush(); err != nil {
		b.Fatal(err)
	}
	o := l.options
	o.ValueCacheBytes = 1
	l.Close()
	m, err := state.Open(o)
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		a, err := m.View().Range(&pb.RangeRequest{Key: benchKey(nil, rand.IntN(benchKeys))})
		if err != nil || len(a.Pairs) != 1 {
			b.Fatal(a, err)
		}
	}
	b.StopTimer()
	m.Close()
	if l.Machine, err = state.Open(l.options); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkPage(b *testing.B) {
	l := million(b)
	defer cpu(b)()
	var buf []byte
	end := []byte{0}
	for range b.N {
		a, err := l.View().Range(&pb.RangeRequest{Key: benchKey(nil, rand.IntN(benchKeys)), RangeEnd: end, Limit: 1000})
		if err != nil || a.Count == 0 {
			b.Fatal(a.Count, err)
		}
		buf = state.AppendAnswer(buf[:0], a)
	}
}

func BenchmarkPageOfThePast(b *testing.B) {
	l := million(b)
	defer cpu(b)()
	at := int64(l.View().Revision)
	l.put(b, func(int) int { fresh++; return fresh }, 100*benchBatch)
	b.ResetTimer()
	for range b.N {
		a, err := l.View().Range(&pb.RangeRequest{Key: benchKey(nil, rand.IntN(benchKeys)), RangeEnd: []byte{0}, Limit: 1000, Revision: at})
		if err != nil || a.Count == 0 {
			b.Fatal(a.Count, err)
		}
	}
}

func BenchmarkCount(b *testing.B) {
	l := million(b)
	defer cpu(b)()
	for range b.N {
		a, err := l.View().Range(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true})
		if err != nil || a.Count < benchKeys {
			b.Fatal(a.Count, err)
		}
	}
}

func BenchmarkTxn(b *testing.B) {
	l := million(b)
	defer cpu(b)()
	commands := make([][]byte, benchBatch)
	for n := 0; n < b.N; n += benchBatch {
		for i := range commands {
			key := benchKey(nil, rand.IntN(benchKeys))
			commands[i], _ = state.Command{Kind: state.Txn, Request: &pb.TxnRequest{
				Compare: []*pb.Compare{{Key: key, Result: pb.Compare_GREATER, Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{}}},
				Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: l.value}}}},
				Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}},
			}}.Append(commands[i][:0])
		}
		l.index++
		if _, err := l.Apply([]state.Entry{{Index: l.index, Term: 1, Commands: commands, Wanted: true}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSweep(b *testing.B) {
	l := million(b)
	defer cpu(b)()
	for range b.N {
		b.StopTimer()
		l.put(b, func(int) int { return rand.IntN(benchKeys) }, 500_000)
		c, _ := state.Command{Kind: state.Compact, Request: &pb.CompactionRequest{Revision: int64(l.View().Revision)}}.Append(nil)
		l.index++
		if _, err := l.Apply([]state.Entry{{Index: l.index, Term: 1, Commands: [][]byte{c}}}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		for more := true; more; {
			var err error
			if more, err = l.Sweep(2000); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	l := million(b)
	defer cpu(b)()
	if err := l.Flush(); err != nil {
		b.Fatal(err)
	}
	l.Close()
	b.ResetTimer()
	for range b.N {
		m, err := state.Open(l.options)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		b.ReportMetric(float64(m.View().Revision), "rows")
		m.Close()
		b.StartTimer()
	}
	b.StopTimer()
	m, err := state.Open(l.options)
	if err != nil {
		b.Fatal(err)
	}
	l.Machine = m
}

func BenchmarkPutEmptyStore(b *testing.B) {
	l := &load{options: state.Options{Memory: state.NewMemory()}, value: make([]byte, 256)}
	m, err := state.Open(l.options)
	if err != nil {
		b.Fatal(err)
	}
	l.Machine = m
	b.ReportAllocs()
	b.ResetTimer()
	l.put(b, func(i int) int { return i % 1000 }, b.N)
}
