package gate

import (
	"context"
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/state"
)

// alone is a backend that applies at once what is proposed to it.
type alone struct {
	Backend
	machine *state.Machine
	self    state.MemberID
}

func (a *alone) View() *state.View           { return a.machine.View() }
func (a *alone) Size() (int64, int64)        { return a.machine.Size() }
func (a *alone) Status() Status              { return Status{Member: a.self, Leader: a.self} }
func (*alone) Barrier(context.Context) error { return nil }

func (a *alone) Propose(_ context.Context, command []byte) (state.Outcome, error) {
	applied, _ := a.machine.Applied()
	outcomes, err := a.machine.Apply([]state.Entry{{Index: applied + 1, Term: 1, Commands: [][]byte{command}, Wanted: true}})
	if err != nil {
		return state.Outcome{}, err
	}
	return outcomes[0], nil
}

// TestWhomACorruptMemberConcerns has members 1 and 2 know of an alarm, and wants
// to know what member 1 still does.
func TestWhomACorruptMemberConcerns(t *testing.T) {
	machine, err := state.Open(state.Options{Memory: state.NewMemory()})
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	err = machine.Bootstrap(state.Genesis{Cluster: 1, Index: 1, Term: 1, Members: []state.Member{
		{ID: 1, PeerURLs: []string{"http://1"}}, {ID: 2, PeerURLs: []string{"http://2"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	g := New(Options{
		RequestBytesMax: 1 << 20, QuotaBytes: -1, Timeout: 1 << 40,
		Metrics: Metrics{RequestSeconds: metric.NewFamily(func() *metric.Histogram { return metric.NewHistogram(1, 2, 3) }, "type", "success")},
	}, &alone{machine: machine, self: 1})

	ctx := t.Context()
	put := &pb.PutRequest{Key: []byte("k")}
	do := map[string]func() error{
		"get":    func() error { return g.EnterUnary(ctx, &pb.RangeRequest{Serializable: true}) },
		"watch":  func() error { return g.EnterStream(ctx, pb.Watch_Watch_FullMethodName) },
		"status": func() error { return g.EnterUnary(ctx, &pb.StatusRequest{}) },
		"alarms": func() error { return g.EnterUnary(ctx, &pb.AlarmRequest{}) },
		"put": func() error {
			if err := g.EnterUnary(ctx, put); err != nil {
				return err
			}
			_, err := g.Propose(ctx, state.Put, put)
			return err
		},
	}
	for _, test := range []struct {
		named   uint64
		refused []string
		ill     bool
	}{
		{named: 1, refused: []string{"get", "watch", "put"}, ill: true},
		{named: 2},
		{named: 0, refused: []string{"put"}, ill: true},
		{named: 9, refused: []string{"put"}, ill: true},
	} {
		alarm := func(action pb.AlarmRequest_AlarmAction) {
			if _, err := g.Propose(ctx, state.Alarm, &pb.AlarmRequest{Action: action, MemberID: test.named, Alarm: pb.AlarmType_CORRUPT}); err != nil {
				t.Fatal(err)
			}
		}
		alarm(pb.AlarmRequest_ACTIVATE)
		want := map[string]bool{}
		for _, what := range test.refused {
			want[what] = true
		}
		for what, ask := range do {
			if err := ask(); errors.Is(err, fault.Corrupt) != want[what] || err != nil && !want[what] {
				t.Errorf("%s while %d is corrupt: %v", what, test.named, err)
			}
		}
		if ill := len(g.Alarms()) > 0; ill != test.ill {
			t.Errorf("alarms while %d is corrupt: %v", test.named, g.Alarms())
		}
		alarm(pb.AlarmRequest_DEACTIVATE)
		for what, ask := range do {
			if err := ask(); err != nil {
				t.Errorf("%s after the alarm: %v", what, err)
			}
		}
	}
}
