package gate

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/metadata"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/metric"
)

func TestClientsAreCountedByVersion(t *testing.T) {
	f := metric.NewFamily(metric.NewCounter, "type", "client_api_version")
	c := newClients(f)
	claim := func(version string) context.Context {
		return metadata.NewIncomingContext(t.Context(), metadata.Pairs("client-api-version", version))
	}
	for _, ctx := range []context.Context{t.Context(), claim("3.7.3"), claim("3.7.3")} {
		if err := c.count(ctx, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.count(claim("3.7.3"), true); err != nil {
		t.Fatal(err)
	}
	if err := c.count(claim("\xff"), false); !errors.Is(err, fault.InvalidClientAPI) {
		t.Errorf("not text: %v", err)
	}
	for labels, want := range map[[2]string]uint64{
		{"unary", "unknown"}: 1, {"unary", "3.7.3"}: 2, {"stream", "3.7.3"}: 1,
	} {
		if got := f.With(labels[:]...).Value(); got != want {
			t.Errorf("%v: %d, want %d", labels, got, want)
		}
	}

	// A client that claims ever new versions does not fill the memory.
	for i := range 10 * versionsMax {
		if err := c.count(claim(fmt.Sprint("v", i)), false); err != nil {
			t.Fatal(err)
		}
	}
	series := 0
	f.Each(func([]string, *metric.Counter) { series++ })
	if series > 2*(versionsMax+1) {
		t.Errorf("%d series", series)
	}
}
