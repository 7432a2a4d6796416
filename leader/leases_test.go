package leader

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/metric"
	"github.com/kvorum/kvorum/state"
)

// town is a cluster of one state that many lead in turn: what is proposed is
// applied at once, in the term that is set, and told to the clocks of all.
type town struct {
	t       *testing.T
	machine *state.Machine
	clocks  []*Leases
	nodes   []*Deadlines
	began   time.Time

	mu struct {
		sync.Mutex
		term     state.Term
		hold     chan struct{} // proposals wait until it is closed
		slow     time.Duration // of a barrier
		barrier  error
		propose  error
		commands int
	}
}

func newTown(t *testing.T) *town {
	machine, err := state.Open(state.Options{Memory: state.NewMemory()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { machine.Close() })
	w := &town{t: t, machine: machine, began: time.Now()}
	w.mu.term = 1
	return w
}

func (w *town) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *town) View() *state.View { return w.machine.View() }

func (w *town) Barrier(ctx context.Context) error {
	w.mu.Lock()
	slow, err := w.mu.slow, w.mu.barrier
	w.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (w *town) Propose(ctx context.Context, command []byte) (state.Outcome, error) {
	w.mu.Lock()
	hold := w.mu.hold
	w.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return state.Outcome{}, ctx.Err()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.propose != nil {
		return state.Outcome{}, w.mu.propose
	}
	w.mu.commands++
	before := w.View()
	applied, _ := w.machine.Applied()
	outcomes, err := w.machine.Apply([]state.Entry{{Index: applied + 1, Term: w.mu.term, Commands: [][]byte{command}, Wanted: true}})
	if err != nil {
		return state.Outcome{}, err
	}
	for _, l := range w.clocks {
		l.Observe(outcomes)
	}
	for _, d := range w.nodes {
		d.Observe(before, w.View())
	}
	return outcomes[0], nil
}

func (w *town) do(kind state.Kind, q state.Command) state.Outcome {
	w.t.Helper()
	q.Kind = kind
	command, err := q.Append(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := w.Propose(w.t.Context(), command)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *town) grant(id, ttl int64) {
	w.t.Helper()
	w.do(state.LeaseGrant, state.Command{Request: &pb.LeaseGrantRequest{ID: id, TTL: ttl}})
}

func (w *town) revoke(id int64) {
	w.t.Helper()
	w.do(state.LeaseRevoke, state.Command{Request: &pb.LeaseRevokeRequest{ID: id}})
}

func (w *town) ids() (ids []int64) {
	for l := range w.View().Leases() {
		ids = append(ids, int64(l.ID))
	}
	return ids
}

// at goes to a moment, counted from the beginning, and wants these leases then.
func (w *town) at(moment time.Duration, want ...int64) {
	w.t.Helper()
	time.Sleep(moment - time.Since(w.began)) // of the bubble
	synctest.Wait()
	if got := w.ids(); !slices.Equal(got, want) {
		w.t.Fatalf("after %v there are the leases %v, want %v", moment, got, want)
	}
}

// mayor is one that may lead a town.
type mayor struct {
	*Leases
	*town
	office Office
	ended  chan error
}

func (w *town) mayor(o LeaseOptions) *mayor {
	m := &mayor{town: w, ended: make(chan error, 1)}
	m.Leases = NewLeases(o, &m.office, w)
	w.clocks = append(w.clocks, m.Leases)
	ctx, stop := context.WithCancel(context.Background())
	go func() { m.ended <- m.office.Run(ctx, m.Serve) }()
	w.t.Cleanup(func() {
		stop()
		if err := <-m.ended; err != nil {
			w.t.Error(err)
		}
	})
	return m
}

// lead has m elected in a term.
func (m *mayor) lead(term state.Term) {
	m.town.set(func() { m.town.mu.term = term })
	m.office.Hold(term)
	synctest.Wait()
}

func (m *mayor) renew(want int64, ids ...state.LeaseID) {
	m.t.Helper()
	ttls, err := m.Renew(m.t.Context(), ids)
	if err != nil {
		m.t.Fatal(err)
	}
	for i, ttl := range ttls {
		if ttl != want {
			m.t.Fatalf("lease %d renewed for %d, want %d", ids[i], ttl, want)
		}
	}
}

func (m *mayor) left(id state.LeaseID, want int64) {
	m.t.Helper()
	left, err := m.Remaining(m.t.Context(), []state.LeaseID{id})
	if err != nil || left[0] != want {
		m.t.Fatalf("%v left of lease %d, %v; want %d", left, id, err, want)
	}
}

const slack = 150 * time.Millisecond // a rest, and a little

func TestLeasesEndWhenTheirTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		var renewed, expired metric.Counter
		m := w.mayor(LeaseOptions{Renewed: &renewed, Expired: &expired})
		w.grant(1, 10) // before anybody leads
		m.lead(1)
		w.grant(2, 10)
		w.grant(3, 5)
		w.grant(4, 5)
		w.grant(5, 9_000_000_000)
		m.left(5, 9_000_000_000)
		m.left(6, -1)

		w.at(4*time.Second, 1, 2, 3, 4, 5)
		m.renew(5, 3)
		m.renew(0, 6)
		m.left(3, 5)
		m.left(4, 1)
		w.revoke(2)
		m.renew(0, 2)
		w.grant(2, 60) // another one, with a clock of its own
		w.at(5*time.Second-time.Millisecond, 1, 2, 3, 4, 5)
		w.at(5*time.Second+slack, 1, 2, 3, 5)
		w.at(9*time.Second-time.Millisecond, 1, 2, 3, 5)
		w.at(9*time.Second+slack, 1, 2, 5)
		w.at(11*time.Second-time.Millisecond, 1, 2, 5) // with the grace of a new term
		w.at(11*time.Second+slack, 2, 5)
		if renewed.Value() != 1 || expired.Value() != 3 {
			t.Errorf("%d renewed, %d expired", renewed.Value(), expired.Value())
		}
	})
}

func TestOnlyTheLeaderEndsLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		a, b := w.mayor(LeaseOptions{}), w.mayor(LeaseOptions{})
		a.lead(2)
		w.grant(1, 10)

		// Another one is elected, which a does not hear of: that lease was
		// renewed there.
		w.at(8*time.Second, 1)
		b.lead(3)
		b.renew(10, 1)
		w.at(17*time.Second, 1)
		a.office.Hold(0)
		synctest.Wait()
		if _, err := a.Renew(t.Context(), []state.LeaseID{1}); fault.Of(err) != fault.NotLeader {
			t.Errorf("renewed by a former leader: %v", err)
		}
		if _, err := a.Remaining(t.Context(), []state.LeaseID{1}); fault.Of(err) != fault.NotLeader {
			t.Errorf("asked a former leader: %v", err)
		}
		w.at(19*time.Second-time.Millisecond, 1) // a renewal takes no grace away
		w.at(19*time.Second + slack)
	})
}

// TestAnAnswerComesFromTheLeader loses the office while a renewal waits for
// proof of it.
func TestAnAnswerComesFromTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		m := w.mayor(LeaseOptions{})
		m.lead(2)
		w.grant(1, 10)
		for name, disturb := range map[string]func(){
			"deposed":        func() { m.office.Hold(0) },
			"elected anew":   func() { m.lead(3) },
			"without quorum": func() { w.set(func() { w.mu.barrier = errors.New("nobody answers") }) },
		} {
			w.set(func() { w.mu.slow = time.Second })
			answered := make(chan error)
			go func() {
				_, err := m.Renew(t.Context(), []state.LeaseID{1})
				answered <- err
			}()
			synctest.Wait()
			disturb()
			if name == "without quorum" {
				w.set(func() { w.mu.slow = 0 })
				if _, err := m.Renew(t.Context(), []state.LeaseID{1}); err == nil {
					t.Error("renewed without a quorum")
				}
			}
			if err := <-answered; name != "without quorum" && fault.Of(err) != fault.NotLeader {
				t.Errorf("%s: %v", name, err)
			}
			w.set(func() { w.mu.slow, w.mu.barrier = 0, nil })
			m.lead(2)
			m.renew(10, 1)
		}
	})
}

// TestClocksWaitForTheBarrier has a leader that does not know yet what was
// agreed on before.
func TestClocksWaitForTheBarrier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		m := w.mayor(LeaseOptions{})
		w.set(func() { w.mu.barrier = fault.NoLeader })
		m.lead(2)
		w.grant(1, 5)
		w.at(20*time.Second, 1)
		if _, err := m.Renew(t.Context(), []state.LeaseID{1}); fault.Of(err) != fault.NotLeader {
			t.Errorf("renewed on clocks that stand still: %v", err)
		}
		w.set(func() { w.mu.barrier = nil })
		w.at(20*time.Second+slack, 1)
		m.renew(5, 1)
		w.at(26*time.Second, 1)
		w.at(26*time.Second + 2*slack)
	})
}

// TestWhatIsEndingIsNotRenewed renews a lease whose end is under way.
func TestWhatIsEndingIsNotRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		m := w.mayor(LeaseOptions{})
		m.lead(2)
		w.grant(1, 5)
		w.grant(2, 60)
		open := make(chan struct{})
		w.set(func() { w.mu.hold = open })
		w.at(6*time.Second, 1, 2)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if _, err := m.Renew(ctx, []state.LeaseID{1}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("renewed while its end was proposed: %v", err)
		}
		cancel()
		m.renew(60, 2)

		answered := make(chan []int64)
		go func() {
			ttls, err := m.Renew(t.Context(), []state.LeaseID{2, 1})
			if err != nil {
				t.Error(err)
			}
			answered <- ttls
		}()
		synctest.Wait()
		close(open)
		if ttls := <-answered; !slices.Equal(ttls, []int64{60, 0}) {
			t.Errorf("renewed for %v", ttls)
		}
		w.at(8*time.Second, 2)
	})
}

// TestRevokedWhileRenewed revokes a lease between its renewal and the answer.
func TestRevokedWhileRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		m := w.mayor(LeaseOptions{})
		m.lead(2)
		w.grant(1, 5)
		w.set(func() { w.mu.slow = time.Second })
		go func() {
			synctest.Wait()
			w.revoke(1)
		}()
		m.renew(0, 1, 2)

		// And one is granted meanwhile.
		go func() {
			synctest.Wait()
			w.grant(3, 7)
		}()
		m.renew(7, 3)
	})
}

// TestLongLeasesDoNotLiveForEver changes leaders more often than a lease would
// end.
func TestLongLeasesDoNotLiveForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		a, b := w.mayor(LeaseOptions{}), w.mayor(LeaseOptions{})
		a.lead(2)
		w.grant(1, 3600)
		w.grant(2, 3600)
		w.grant(3, 299) // short
		w.at(11*time.Minute, 1, 2)
		a.renew(3600, 2) // what was written down is undone before the answer
		for l := range w.View().Leases() {
			if want := map[state.LeaseID]int64{1: 3000, 2: 0}[l.ID]; l.Remaining != want {
				t.Errorf("lease %d: %d seconds were written down, want %d", l.ID, l.Remaining, want)
			}
		}
		leaders := []*mayor{a, b}
		for n := range 5 {
			leaders[n%2].office.Hold(0)
			leaders[(n+1)%2].lead(state.Term(3 + n))
			time.Sleep(6 * time.Minute)
		}
		// Each change cost the minute that was not written down, and the grace.
		b.left(1, 3600-10*60-4*(5*60-1)-6*60+1)
	})
}

// TestProposalsAreInsistedOn has them fail for a while.
func TestProposalsAreInsistedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		m := w.mayor(LeaseOptions{})
		m.lead(2)
		w.grant(1, 5)
		w.set(func() { w.mu.propose = fault.TooManyRequests })
		w.at(20*time.Second, 1)
		w.set(func() { w.mu.propose = nil })
		w.at(20*time.Second + slack)
	})
}

// TestNothingEndsWhileNothingIsWritten raises the alarm that freezes a cluster.
func TestNothingEndsWhileNothingIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		m := w.mayor(LeaseOptions{})
		m.lead(2)
		w.grant(1, 5)
		alarm := func(action pb.AlarmRequest_AlarmAction) {
			w.do(state.Alarm, state.Command{Request: &pb.AlarmRequest{Action: action, Alarm: pb.AlarmType_CORRUPT}})
		}
		alarm(pb.AlarmRequest_ACTIVATE)
		w.at(20*time.Second, 1)
		alarm(pb.AlarmRequest_DEACTIVATE)
		w.at(20*time.Second + slack)
	})
}

// TestManyEndTogether wants few commands for many ends.
func TestManyEndTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		m := w.mayor(LeaseOptions{Batch: 100})
		m.lead(2)
		for id := range int64(2000) {
			w.grant(id+1, 5)
		}
		w.set(func() { w.mu.commands = 0 })
		w.at(5*time.Second + 2*slack)
		w.set(func() {
			if w.mu.commands > 25 {
				t.Errorf("%d commands to end 2000 leases", w.mu.commands)
			}
		})
	})
}

// TestLeasesByEnd wants those that end first at the front, if that is known.
func TestLeasesByEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		m := w.mayor(LeaseOptions{})
		for id, ttl := range []int64{50, 30, 40} {
			w.grant(int64(id+1), ttl)
		}
		ids := []state.LeaseID{1, 2, 3}
		if m.SortByEnd(ids); !slices.Equal(ids, []state.LeaseID{1, 2, 3}) {
			t.Errorf("by nobody's clock: %v", ids)
		}
		m.lead(2)
		if m.SortByEnd(ids); !slices.Equal(ids, []state.LeaseID{2, 3, 1}) {
			t.Errorf("by the leader's clock: %v", ids)
		}
	})
}

// TestRandomLives grants, renews, revokes and changes leaders at random, and
// wants each lease to live as long as it was promised to, and not much longer.
func TestRandomLives(t *testing.T) {
	for range 20 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { randomLives(t, seed) }) })
	}
}

func randomLives(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	w := newTown(t)
	o := LeaseOptions{Checkpoint: 20 * time.Second, Batch: 1 + r.IntN(4)}
	mayors := []*mayor{w.mayor(o), w.mayor(o)}
	now, term := mayors[0], state.Term(1)
	now.lead(term)

	type life struct {
		ttl           time.Duration
		from, longest time.Time // promised until from+ttl; gone by longest, if no leader changes
	}
	lives := map[int64]*life{}
	for range 300 {
		switch n := r.IntN(20); {
		case n < 6:
			id, ttl := r.Int64N(1<<40)+1, 1+r.Int64N(60)
			w.grant(id, ttl)
			d := time.Duration(ttl) * time.Second
			lives[id] = &life{d, time.Now(), time.Now().Add(d)}
		case n < 16:
			for id, l := range lives {
				before := time.Now()
				ttls, err := now.Renew(t.Context(), []state.LeaseID{state.LeaseID(id)})
				if err != nil {
					t.Fatal(err)
				}
				if ttls[0] == 0 {
					if time.Now().Before(l.from.Add(l.ttl)) {
						t.Fatalf("lease %d of %v ended %v after its last renewal", id, l.ttl, time.Since(l.from))
					}
					delete(lives, id)
				} else {
					l.from, l.longest = before, time.Now().Add(l.ttl)
				}
				break
			}
		case n < 17:
			for id := range lives {
				w.revoke(id)
				delete(lives, id)
				break
			}
		case n < 18:
			now.office.Hold(0)
			term++
			now = mayors[r.IntN(2)]
			now.lead(term)
			for _, l := range lives { // at most all of its time again, and the grace
				l.longest = time.Now().Add(l.ttl + time.Second)
			}
		}
		time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
		synctest.Wait()
		for id, l := range lives {
			_, exists := w.View().Lease(state.LeaseID(id))
			if end := l.from.Add(l.ttl); !exists && time.Now().Before(end) {
				t.Fatalf("lease %d of %v ended %v too early", id, l.ttl, time.Until(end))
			}
			if exists && time.Since(l.longest) > time.Second {
				t.Fatalf("lease %d of %v lives on %v after its time", id, l.ttl, time.Since(l.longest))
			}
			if !exists {
				delete(lives, id)
			}
		}
	}
}
