package crash

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// BenchmarkOutage kills the leader of a cluster with etcd's own times, and tells
// how long nobody could write: from the kill to the answer of a put that was
// asked for after it, by the luckiest of one client at each member.
//
//	go test ./test/crash -run '^$' -bench Outage -benchtime 30x
func BenchmarkOutage(b *testing.B) {
	c := &cluster{t: b}
	c.found(3)
	ctx, stop := context.WithCancel(b.Context())
	var killed, answered atomic.Int64 // since the beginning; answered: the first one after
	began := time.Now()
	var writers sync.WaitGroup
	for _, m := range c.members {
		writers.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				asked := time.Since(began)
				one, cancel := context.WithTimeout(ctx, 5*time.Second)
				_, err := m.client.Put(one, m.name, fmt.Sprint(n))
				cancel()
				if at := killed.Load(); err == nil && at > 0 && int64(asked) > at {
					answered.CompareAndSwap(0, int64(time.Since(began)))
				}
			}
		})
	}
	var outages []time.Duration
	for b.Loop() {
		lead := c.leader()
		answered.Store(0)
		c.kill(lead)
		killed.Store(int64(time.Since(began)))
		c.await("a write", func() bool { return answered.Load() > 0 })
		outages = append(outages, time.Duration(answered.Load()-killed.Load()))
		killed.Store(0)
		c.start(lead, "new")
		lead.ready(b, lead.client)
	}
	stop()
	writers.Wait()
	slices.Sort(outages)
	quantile := func(q float64) float64 {
		return outages[min(len(outages)-1, int(q*float64(len(outages))))].Seconds()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(quantile(0.50), "p50-s")
	b.ReportMetric(quantile(0.99), "p99-s")
	b.ReportMetric(outages[len(outages)-1].Seconds(), "longest-s")
}

// BenchmarkEnd tells the leader of a cluster with etcd's own times to end, while
// clients put, and tells how long that takes.
//
//	go test ./test/crash -run '^$' -bench End -benchtime 30x
func BenchmarkEnd(b *testing.B) {
	c := &cluster{t: b}
	c.found(3)
	var clients []*clientv3.Client
	for _, m := range c.members {
		clients = append(clients, m.site.client(b))
	}
	watch(b, 1, time.Second, clients...)
	var longest, total time.Duration
	for b.Loop() {
		lead := c.leader()
		took := c.stop(lead)
		longest, total = max(longest, took), total+took
		c.start(lead, "new")
		lead.ready(b, lead.client)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(total.Seconds()/float64(b.N), "mean-s")
	b.ReportMetric(longest.Seconds(), "longest-s")
}

// awayEntries is how much a member misses in BenchmarkCatchUp.
const awayEntries = 100_000

// BenchmarkCatchUp kills a member, has the others agree on many entries, and
// tells how long the member needs from its start until it has applied what they
// had applied by then: by a snapshot, as it happens with etcd's own settings,
// and by entries alone.
//
//	go test ./test/crash -run '^$' -bench CatchUp -benchtime 3x -timeout 0
func BenchmarkCatchUp(b *testing.B) {
	for _, by := range []struct {
		name  string
		flags []string
		value int // bytes: of entries a leader keeps some MiB at most
	}{
		{"snapshot", nil, 256},
		{"entries", []string{"--snapshot-catchup-entries=1000000"}, 10},
	} {
		b.Run(by.name, func(b *testing.B) {
			c := &cluster{t: b, flags: by.flags}
			c.found(3)
			var longest, total time.Duration
			value := strings.Repeat("v", by.value)
			for b.Loop() {
				lead := c.leader()
				away := c.others(lead)[0]
				c.kill(away)
				behind := c.status(lead).RaftIndex + awayEntries
				var writers sync.WaitGroup
				for w := range 4 { // more would only make larger entries
					writers.Go(func() {
						for i := 0; c.status(lead).RaftIndex < behind; i++ {
							for k := range 100 {
								if _, err := lead.client.Put(b.Context(), fmt.Sprintf("key%d/%d/%d", w, i, k), value); err != nil {
									b.Error(err)
									return
								}
							}
						}
					})
				}
				writers.Wait()
				there := c.status(lead).RaftAppliedIndex
				began := time.Now()
				c.start(away, "new")
				away.ready(b, away.client)
				c.await("the member to be level", func() bool { return c.status(away).RaftAppliedIndex >= there })
				took := time.Since(began)
				if sent := strings.Contains(away.output.String(), "received snapshot"); sent != (by.name == "snapshot") {
					b.Errorf("a snapshot was sent: %v", sent)
				}
				longest, total = max(longest, took), total+took
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(total.Seconds()/float64(b.N), "mean-s")
			b.ReportMetric(longest.Seconds(), "longest-s")
		})
	}
}
