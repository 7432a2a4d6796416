package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/kvorum/kvorum/api"
	"github.com/kvorum/kvorum/config"
	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// A member can see to it itself that it becomes one: it looks for somebody who
// belongs to the cluster, has itself added as a learner, and asks for a vote
// once it holds what the others hold. Both are asked on the members' port, with
// the members' credentials.

const (
	enlistPatience = 30 * time.Second // for anybody to be reached
	welcomeTimeout = 15 * time.Second // for a member to have another one added
	enlistRest     = time.Second      // between two attempts
	enlistRemind   = time.Minute      // a reason to wait is told again
	voteRest       = 200 * time.Millisecond
)

// wish is what a member says of itself that wants to be added.
type wish struct {
	Name     string   `json:"name"`
	PeerURLs []string `json:"peerURLs"`
	Token    string   `json:"token,omitempty"` // if it was chosen
}

// enlisting is a member that looks for a cluster.
type enlisting struct {
	wish      wish
	addresses []string
	patience  time.Duration // until anybody is reached
	log       *slog.Logger

	peerDial, clientDial     func(context.Context, string) (net.Conn, error)
	peerScheme, clientScheme string // of addresses without one
}

func newEnlisting(s *config.Server, d *doors, log *slog.Logger) *enlisting {
	e := &enlisting{
		wish:      wish{Name: s.Name, PeerURLs: s.InitialAdvertisePeerURLs.Strings(), Token: chosen(s.InitialClusterToken)},
		addresses: s.Join, patience: enlistPatience, log: log,
		peerDial: peerDialer(d.peerCredentials), clientDial: peerDialer(d.peerCredentials),
		peerScheme: "http", clientScheme: "http",
	}
	if d.peerCredentials != nil {
		e.peerScheme = "https"
	}
	if d.credentials != nil {
		e.clientDial, e.clientScheme = peerDialer(d.credentials), "https"
	}
	return e
}

// chosen returns a token that somebody has chosen. Who joins need not know it.
func chosen(token string) string {
	if token == config.DefaultToken {
		return ""
	}
	return token
}

// run returns who this member is, once the cluster has added it. Where that has
// to wait for something, it waits.
func (e *enlisting) run(ctx context.Context) (identity, error) {
	e.log.Info("looking for the cluster to join", "join", e.addresses, "name", e.wish.Name, "peer-urls", e.wish.PeerURLs)
	reached := time.Now()
	told, toldAt := "", time.Time{}
	for {
		own, err := e.attempt(ctx)
		if err == nil {
			e.log.Info("added to the cluster; a vote follows once all data is here",
				"cluster-id", fmt.Sprintf("%x", own.Cluster), "member-id", fmt.Sprintf("%x", own.Member))
			return own, nil
		}
		answer := (*statusError)(nil)
		switch said := errors.As(err, &answer); {
		case said && answer.code == http.StatusConflict:
			return identity{}, fmt.Errorf("join: %s", answer.text)
		case said && answer.code == http.StatusServiceUnavailable:
			reached = time.Now()
		case time.Since(reached) > e.patience:
			return identity{}, fmt.Errorf("join: no member can be reached: see that one runs at an address of --join, listens on more than localhost if it is on another machine, and speaks TLS if and only if this one does: %w", err)
		}
		reason := strings.ReplaceAll(err.Error(), "\n", "; ")
		if answer != nil {
			reason = answer.text
		}
		if reason != told || time.Since(toldAt) > enlistRemind {
			told, toldAt = reason, time.Now()
			e.log.Warn("waiting to be let in", "reason", reason)
		}
		select {
		case <-ctx.Done():
			return identity{}, ctx.Err()
		case <-time.After(enlistRest):
		}
	}
}

// attempt asks those who can be found to add this member, until one does.
func (e *enlisting) attempt(ctx context.Context) (identity, error) {
	found, err := e.find(ctx)
	if err != nil {
		return identity{}, err
	}
	for _, k := range found[1:] {
		if k.cluster != found[0].cluster {
			return identity{}, &statusError{http.StatusConflict, fmt.Sprintf(
				"%s and %s belong to different clusters: keep those of one in --join", found[0].at, k.at)}
		}
	}
	for _, k := range found {
		var added aboutMember
		if added, err = e.ask(ctx, k.at); err == nil {
			return identity{Cluster: k.cluster, Member: added.ID, Joined: true}, nil
		}
		if answer := (*statusError)(nil); errors.As(err, &answer) && answer.code == http.StatusConflict {
			break
		}
	}
	return identity{}, err
}

func (e *enlisting) ask(ctx context.Context, address string) (added aboutMember, err error) {
	ctx, cancel := context.WithTimeout(ctx, welcomeTimeout)
	defer cancel()
	_, body, err := exchange(ctx, e.peerDial, address, http.MethodPost, "/members", e.wish)
	if err == nil {
		err = json.Unmarshal(body, &added)
	}
	if err != nil {
		return added, fmt.Errorf("ask %s: %w", address, err)
	}
	return added, nil
}

// find returns what those members know who can be reached, at least one. An
// address of a client port leads to the members' ports.
func (e *enlisting) find(ctx context.Context) ([]known, error) {
	found, err := asker{e.peerDial, e.with(e.peerScheme)}.all(ctx)
	if len(found) > 0 {
		return found, nil
	}
	for _, address := range e.with(e.clientScheme) {
		others, clientErr := e.list(ctx, address)
		if clientErr != nil {
			err = errors.Join(err, fmt.Errorf("ask %s as a client: %w", address, clientErr))
			continue
		}
		found, clientErr = asker{e.peerDial, others}.all(ctx)
		if len(found) > 0 {
			return found, nil
		}
		err = errors.Join(err, clientErr)
	}
	return nil, err
}

// with returns the addresses, each with a scheme.
func (e *enlisting) with(scheme string) []string {
	var all []string
	for _, address := range e.addresses {
		if !strings.Contains(address, "://") {
			address = scheme + "://" + address
		}
		all = append(all, address)
	}
	return all
}

// list asks at a client port where the members are.
func (e *enlisting) list(ctx context.Context, address string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, body, err := exchange(ctx, e.clientDial, address, http.MethodPost, "/v3/cluster/member/list", struct{}{})
	if err != nil {
		return nil, err
	}
	var answer pb.MemberListResponse
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("read the members: %w", err)
	}
	var urls []string
	for _, one := range answer.Members {
		urls = append(urls, one.PeerURLs...)
	}
	return urls, nil
}

// welcome adds the member that asks for it in r. What time may heal is answered
// as unavailable, what somebody has to change as a conflict.
func (m *member) welcome(r *http.Request, members api.Members, token string) (state.Member, *statusError) {
	var none state.Member
	// A page in somebody's browser must not let anybody in.
	if r.Header.Get("Origin") != "" {
		return none, &statusError{http.StatusForbidden, "browsers are not members"}
	}
	var w wish
	if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 64<<10)).Decode(&w); err != nil {
		return none, &statusError{http.StatusBadRequest, err.Error()}
	}
	view := m.machine.View()
	if view.Index == 0 {
		return none, &statusError{http.StatusServiceUnavailable, "this member is joining itself"}
	}
	if why := w.objection(view.Members(), chosen(token)); why != "" {
		return none, &statusError{http.StatusConflict, why}
	}
	added, err := members.Welcome(r.Context(), w.PeerURLs)
	switch fault.Of(err) {
	case nil:
		if err == nil {
			return added, nil
		}
	case fault.PeerURLExists:
		return none, &statusError{http.StatusConflict, fmt.Sprintf("one of the addresses %s belongs to another member: give others with --initial-advertise-peer-urls", strings.Join(w.PeerURLs, ","))}
	case fault.MemberURLs:
		return none, &statusError{http.StatusConflict, err.Error()}
	case fault.TooManyLearners:
		err = fmt.Errorf("%w: one after the other gets its vote, unless --max-learners allows more", err)
	case fault.Unhealthy:
		err = fmt.Errorf("%w: its members have not been connected to each other for a while", err)
	}
	return none, &statusError{http.StatusServiceUnavailable, err.Error()}
}

// objection says why a member cannot be added as it is, and what to do.
func (w wish) objection(members []state.Member, token string) string {
	if w.Token != "" && token != "" && w.Token != token {
		return "this cluster was formed under another --initial-cluster-token: see that --join names the right one"
	}
	own := slices.Sorted(slices.Values(w.PeerURLs))
	for _, one := range members {
		here := slices.Equal(slices.Sorted(slices.Values(one.PeerURLs)), own)
		switch {
		case here && one.Name != "":
			return fmt.Sprintf("member %x, called %s, has run at %s before, but the data directory is empty: restore it, or remove the member (member remove %[1]x) and start again",
				one.ID, one.Name, strings.Join(own, ","))
		case here:
		case one.Name == w.Name:
			return fmt.Sprintf("the name %s belongs to member %x at %s: give this one a --name of its own, or remove the other if it is gone for good (member remove %[2]x)",
				w.Name, one.ID, strings.Join(one.PeerURLs, ","))
		case onlyHere(w.PeerURLs) && !onlyHere(one.PeerURLs):
			return fmt.Sprintf("nobody on another machine can reach this member at %s: give --listen-peer-urls or --initial-advertise-peer-urls with an address of this machine",
				strings.Join(w.PeerURLs, ","))
		case onlyHere(one.PeerURLs) && !onlyHere(w.PeerURLs):
			return fmt.Sprintf("member %x is known at %s, where nobody on another machine can reach it: give it another address first (member update %[1]x --peer-urls=URL)",
				one.ID, strings.Join(one.PeerURLs, ","))
		}
	}
	return ""
}

// onlyHere tells whether all addresses lead back to the machine that dials them.
func onlyHere(urls []string) bool {
	return !slices.ContainsFunc(urls, func(address string) bool {
		u, err := url.Parse(address)
		if err != nil || strings.HasPrefix(u.Scheme, "unix") {
			return false
		}
		ip := net.ParseIP(u.Hostname())
		return u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback())
	})
}

// askForVote has this member promoted, which it is not before it holds what the
// leader holds.
func (m *member) askForVote(ctx context.Context, members api.Members, timeout time.Duration) {
	own := state.MemberID(m.o.ID)
	told := ""
	for ctx.Err() == nil {
		if one, ok := m.machine.View().Member(own); !ok || !one.Learner {
			return
		}
		attempt, cancel := context.WithTimeout(ctx, timeout)
		err := members.Promote(attempt, own)
		cancel()
		if err == nil {
			m.o.Log.Info("this member has a vote now")
			return
		}
		if fault.Of(err) != fault.LearnerNotReady && err.Error() != told && ctx.Err() == nil {
			told = err.Error()
			m.o.Log.Warn("still waiting for a vote", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(voteRest):
		}
	}
}
