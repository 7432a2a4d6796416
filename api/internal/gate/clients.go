package gate

import (
	"context"
	"sync"
	"unicode/utf8"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/rpc"
)

// versionsMax bounds how many client versions are told apart: the claim is
// free text from outside, and each one known costs a series for ever.
const versionsMax = 64

// clients counts calls by the version that the client's library claims.
type clients struct {
	family *metric.Family[metric.Counter] // immutable

	mu struct {
		sync.RWMutex
		known map[string]*claimed
	}
}

type claimed struct{ unary, stream *metric.Counter }

func newClients(f *metric.Family[metric.Counter]) *clients {
	c := &clients{family: f}
	c.mu.known = map[string]*claimed{}
	return c
}

func (c *clients) count(ctx context.Context, streaming bool) error {
	version, claimed := rpc.Header(ctx, "client-api-version")
	if !claimed {
		version = "unknown"
	}
	of, err := c.of(version)
	if err != nil {
		return err
	}
	if streaming {
		of.stream.Inc()
	} else {
		of.unary.Inc()
	}
	return nil
}

func (c *clients) of(version string) (*claimed, error) {
	c.mu.RLock()
	known := c.mu.known[version]
	c.mu.RUnlock()
	if known != nil {
		return known, nil
	}

	if !utf8.ValidString(version) {
		return nil, fault.InvalidClientAPI
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.mu.known) >= versionsMax {
		version = "other"
	}
	if known := c.mu.known[version]; known != nil {
		return known, nil
	}
	known = &claimed{unary: c.family.With("unary", version), stream: c.family.With("stream", version)}
	c.mu.known[version] = known
	return known, nil
}
