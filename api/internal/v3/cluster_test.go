package v3

import (
	"errors"
	"testing"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// voters are written as a letter each: u is up, n has just come up, d is down,
// and x was added and never started.
func parseVoters(text string) (h quorumHealth) {
	for i, c := range text {
		h = append(h, voter{
			id: state.MemberID(i + 1), started: c != 'x',
			reached: c == 'u' || c == 'n', settled: c == 'u',
		})
	}
	return h
}

// The member that is asked is the first one.
func TestAClusterKeepsItsQuorum(t *testing.T) {
	last := func(voters string) state.MemberID { return state.MemberID(len(voters)) }
	for _, c := range []struct {
		voters                        string
		add, learner, remove, promote *fault.Fault // remove the last one
	}{
		{"u", nil, nil, fault.NotEnoughStarted, nil},
		{"uu", nil, nil, nil, nil},
		{"un", fault.Unhealthy, fault.Unhealthy, fault.Unhealthy, nil},
		{"ux", fault.NotEnoughStarted, fault.Unhealthy, nil, nil},
		{"uuu", nil, nil, nil, nil},
		{"unn", fault.Unhealthy, fault.Unhealthy, fault.Unhealthy, nil},
		{"uud", fault.Unhealthy, fault.Unhealthy, nil, nil},
		{"udu", fault.Unhealthy, fault.Unhealthy, fault.Unhealthy, nil},
		{"uux", fault.NotEnoughStarted, fault.Unhealthy, nil, nil},
		{"uxu", fault.NotEnoughStarted, fault.Unhealthy, fault.NotEnoughStarted, nil},
		{"uuud", nil, nil, nil, nil},
		{"uduu", nil, nil, nil, nil},
		{"uudd", fault.Unhealthy, fault.Unhealthy, nil, nil},
		{"uuuud", nil, nil, nil, nil},
		{"uuudd", fault.Unhealthy, fault.Unhealthy, nil, nil},
		{"udduu", fault.Unhealthy, fault.Unhealthy, fault.Unhealthy, nil},
		{"uuuuudd", nil, nil, nil, nil},
		{"uddduuu", fault.Unhealthy, fault.Unhealthy, fault.Unhealthy, nil},
		{"uxx", fault.NotEnoughStarted, fault.Unhealthy, fault.NotEnoughStarted, fault.NotEnoughStarted},
	} {
		h := parseVoters(c.voters)
		for _, step := range []struct {
			what string
			err  error
			want *fault.Fault
		}{
			{"add a voter", h.mayAdd(false), c.add},
			{"add a learner", h.mayAdd(true), c.learner},
			{"remove the last", h.mayRemove(last(c.voters)), c.remove},
			{"promote", h.mayPromote(), c.promote},
		} {
			if !(step.err == nil && step.want == nil) && !errors.Is(step.err, step.want) {
				t.Errorf("%s: %s: %v, want %v", c.voters, step.what, step.err, step.want)
			}
		}
	}
}

func TestAddressesOfMembers(t *testing.T) {
	for _, good := range []string{"http://127.0.0.1:1", " https://[::1]:2380", "unix://localhost:1", "unixs:///"} {
		if _, err := peerURLs([]string{good}); (err == nil) == (good == "unixs:///") {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "127.0.0.1:1", "http://127.0.0.1", "ftp://a:1", "http://a:1/b", "http://a:1 b"} {
		if _, err := peerURLs([]string{"http://a:1", bad}); err != fault.MemberURLs {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := peerURLs(nil); err != fault.MemberURLs {
		t.Errorf("none: %v", err)
	}
}
