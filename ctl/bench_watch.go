package ctl

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvorum/kvorum/ctl/internal/load"
)

// The first bytes of a value tell when its put began.
const (
	stampBytes = 8
	lastStamp  = math.MaxUint64 // nothing follows
)

var errUnheard = errors.New("the event did not come")

// audience hears what a benchmark puts.
type audience struct {
	*benchmark
	epoch time.Time // stamps count from here

	acknowledged atomic.Int64 // puts
	listening    sync.WaitGroup
	mu           struct {
		sync.Mutex
		heard load.Stats
	}
}

// watch lets watchers listen, and returns how to put what they will hear.
func (b *benchmark) watch(ctx context.Context) (load.Ask, finish, error) {
	if b.valueSize < stampBytes {
		return nil, nil, badArgs("--value-size is %d, but %d bytes are needed to tell when a put began", b.valueSize, stampBytes)
	}
	l := &audience{benchmark: b, epoch: time.Now()}
	l.mu.heard.Errors = map[string]int64{}

	// An interrupt ends the puts; what was put is still heard.
	ctx, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	var refused error
	for i := range b.watchers {
		events := b.of(i).Watch(ctx, b.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		if refused = b.created(ctx, events); refused != nil {
			break
		}
		l.listening.Go(func() { l.listen(events) })
	}
	if refused != nil {
		hangUp()
		l.listening.Wait()
		return nil, nil, refused
	}
	return l.put, func(ctx context.Context, result *load.Result) {
		defer hangUp()
		l.finish(ctx, hangUp)
		result.Kinds[kindEvent] = &l.mu.heard
	}, nil
}

func (b *benchmark) created(ctx context.Context, events clientv3.WatchChan) error {
	ctx, cancel := b.patience(ctx)
	defer cancel()
	select {
	case answer := <-events:
		return answer.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *audience) put(ctx context.Context, r load.Request) (string, error) {
	ctx, cancel := l.patience(ctx)
	defer cancel()
	chance := l.chance(r)
	key := l.anyKey(chance)
	value := l.stamped(uint64(r.Start.Sub(l.epoch)), chance.Uint64())
	_, err := l.of(r.Caller).Put(ctx, key, value)
	if err == nil {
		l.acknowledged.Add(1)
	}
	return kindPut, err
}

func (l *audience) stamped(stamp, number uint64) string {
	var value strings.Builder
	value.Write(binary.BigEndian.AppendUint64(nil, stamp))
	value.WriteString(l.value(number)[stampBytes:])
	return value.String()
}

// listen counts events until the last one, or until the watch ends.
func (l *audience) listen(events clientv3.WatchChan) {
	var heard load.Stats
	var broken error
	for last := false; !last; {
		answer, open := <-events
		if broken = answer.Err(); !open || broken != nil {
			break
		}
		now := time.Now()
		for _, event := range answer.Events {
			value := event.Kv.GetValue()
			if len(value) < stampBytes {
				continue // not one of ours
			}
			stamp := binary.BigEndian.Uint64(value)
			if last = stamp == lastStamp; last {
				break
			}
			heard.Latency.Add(now.Sub(l.epoch.Add(time.Duration(stamp))))
		}
	}
	unheard := max(0, l.acknowledged.Load()-heard.Latency.Count())

	l.mu.Lock()
	defer l.mu.Unlock()
	all := &l.mu.heard
	all.Latency.Merge(&heard.Latency)
	if unheard > 0 {
		if broken == nil {
			broken = errUnheard
		}
		all.Failed += unheard
		all.Errors[broken.Error()] += unheard
	}
}

// finish waits until everybody has heard everything, but no longer than a
// request may take.
func (l *audience) finish(ctx context.Context, hangUp func()) {
	ctx, cancel := l.patience(ctx)
	defer cancel()
	if _, err := l.of(0).Put(ctx, l.key(0), l.stamped(lastStamp, 0)); err != nil {
		hangUp()
	}
	stop := context.AfterFunc(ctx, hangUp)
	defer stop()
	l.listening.Wait()
}
