package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kvorum/kvorum/api"
	"github.com/kvorum/kvorum/config"
	"github.com/kvorum/kvorum/listen"
	"github.com/kvorum/kvorum/state"
)

// A member without an identity cannot speak the members' protocol yet: what it
// must know first it asks by HTTP, on the same port.

const (
	askTimeout  = 2 * time.Second        // for one member to answer
	joinTimeout = 10 * time.Second       // for some member to know the one that joins
	joinRest    = 200 * time.Millisecond // between two attempts
)

// begin finds out who a member without data is: a founder of a new cluster,
// which begins with the genesis, or somebody whom a running one has added, or
// adds now.
func begin(ctx context.Context, s *config.Server, d *doors, log *slog.Logger) (identity, state.Genesis, error) {
	if len(s.Join) > 0 {
		own, err := newEnlisting(s, d, log).run(ctx)
		return own, state.Genesis{}, err
	}
	s, err := founding(ctx, s, log)
	if err != nil {
		return identity{}, state.Genesis{}, err
	}
	ask := newAsker(s, d.peerCredentials)
	if s.InitialClusterState == "existing" {
		own, err := ask.join(ctx, s.InitialAdvertisePeerURLs.Strings())
		return own, state.Genesis{}, err
	}

	self, _ := s.InitialCluster.Seed(s.Name)
	own := identity{
		Cluster: s.InitialCluster.ClusterID(s.InitialClusterToken),
		Member:  self.MemberID(s.InitialClusterToken),
	}
	// A founder that has run before and lost its directory has forgotten whom
	// it voted for, and what it acknowledged.
	answers, _ := ask.all(ctx) // at a founding the others need not run yet
	for _, known := range answers {
		for _, m := range known.members {
			if known.cluster == own.Cluster && m.ID == own.Member && m.Name != "" {
				return own, state.Genesis{}, fmt.Errorf("member %x of cluster %x has already been bootstrapped, but %s is empty: restore the directory, or remove the member from the cluster and add it again", own.Member, own.Cluster, s.DataDir)
			}
			if known.cluster != own.Cluster && m.Name != "" {
				return own, state.Genesis{}, fmt.Errorf("%s, of --initial-cluster, runs cluster %x already, and this member would found another one, %x: to join that cluster, add this member to it (member add) and give --initial-cluster-state=existing; otherwise correct --initial-cluster or --initial-cluster-token", m.Name, known.cluster, own.Cluster)
			}
		}
	}
	var founders []state.Member
	for _, seed := range s.InitialCluster {
		founders = append(founders, state.Member{ID: state.MemberID(seed.MemberID(s.InitialClusterToken)), PeerURLs: seed.PeerURLs})
	}
	return own, genesis(own.Cluster, founders), nil
}

// founding returns the settings with the initial cluster that they lead to.
func founding(ctx context.Context, s *config.Server, log *slog.Logger) (*config.Server, error) {
	found := *s
	var err error
	switch {
	case s.Discovery.SRV != "":
		found.InitialCluster, err = s.LookupSRV(ctx, net.DefaultResolver)
	case s.Discovery.Token != "":
		found.InitialClusterToken = s.Discovery.Token
		found.InitialCluster, err = discover(ctx, s, log)
	default:
		return s, s.CheckBootstrap(ctx)
	}
	if err == nil {
		log.Info("discovered the initial cluster", "initial-cluster", found.InitialCluster.String())
	}
	return &found, err
}

// asker asks members.
type asker struct {
	dial   func(ctx context.Context, address string) (net.Conn, error)
	others []string // peer URLs
}

func newAsker(s *config.Server, credentials *listen.Credentials) asker {
	a := asker{dial: peerDialer(credentials)}
	for _, seed := range s.InitialCluster {
		if seed.Name != s.Name {
			a.others = append(a.others, seed.PeerURLs...)
		}
	}
	return a
}

// known is what a member knows of its cluster.
type known struct {
	at      string // its address
	cluster uint64
	members []aboutMember
}

// aboutMember is a member as it is told of at /members.
type aboutMember struct {
	ID         uint64   `json:"id"`
	PeerURLs   []string `json:"peerURLs"`
	Learner    bool     `json:"isLearner,omitempty"`
	Name       string   `json:"name,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
}

const clusterHeader = "X-Etcd-Cluster-ID"

// all asks everybody at once and returns what those knew who answered, with
// the errors of the others.
func (a asker) all(ctx context.Context) (answers []known, errs error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	type result struct {
		known known
		err   error
	}
	results := make(chan result, len(a.others))
	for _, address := range a.others {
		go func() {
			k, err := a.one(ctx, address)
			if err != nil {
				err = fmt.Errorf("ask %s for the members: %w", address, err)
			}
			results <- result{k, err}
		}()
	}
	for range a.others {
		if r := <-results; r.err != nil {
			errs = errors.Join(errs, r.err)
		} else {
			answers = append(answers, r.known)
		}
	}
	return answers, errs
}

func (a asker) one(ctx context.Context, address string) (known, error) {
	k := known{at: address}
	header, body, err := exchange(ctx, a.dial, address, http.MethodGet, "/members", nil)
	if err != nil {
		return k, err
	}
	if k.cluster, err = strconv.ParseUint(header.Get(clusterHeader), 16, 64); err != nil {
		return k, fmt.Errorf("read its cluster id: %w", err)
	}
	return k, json.Unmarshal(body, &k.members)
}

// answerMax bounds what is read of an answer.
const answerMax = 16 << 20

// statusError is an answer that is none: the status, and what was said with it.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return fmt.Sprintf("%d: %s", e.code, e.text) }

// exchange makes one HTTP request at the address of a member.
func exchange(ctx context.Context, dial func(context.Context, string) (net.Conn, error), address, method, path string, ask any) (http.Header, []byte, error) {
	conn, err := dial(ctx, address)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var body io.Reader
	if ask != nil {
		text, err := json.Marshal(ask)
		if err != nil {
			return nil, nil, err
		}
		body = bytes.NewReader(text)
	}
	host := "member"
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		host = u.Host
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, body)
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	if err := request.Write(conn); err != nil {
		return nil, nil, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, answerMax))
	if err == nil && response.StatusCode != http.StatusOK {
		err = &statusError{response.StatusCode, strings.TrimSpace(string(answer))}
	}
	return response.Header, answer, err
}

// join returns who this member is in the cluster that has added it under its
// addresses. The one that is asked may not have heard of that yet.
func (a asker) join(ctx context.Context, own []string) (identity, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	for {
		answers, err := a.all(ctx)
		for _, k := range answers {
			for _, m := range k.members {
				if !slices.Equal(slices.Sorted(slices.Values(m.PeerURLs)), slices.Sorted(slices.Values(own))) {
					continue
				}
				if m.Name != "" {
					return identity{}, fmt.Errorf("member %x of cluster %x, called %s, has run before, but the data directory is empty: restore it, or remove the member and add it again", m.ID, k.cluster, m.Name)
				}
				return identity{Cluster: k.cluster, Member: m.ID}, nil
			}
		}
		if len(answers) > 0 {
			err = nil
		}
		select {
		case <-ctx.Done():
			if err != nil {
				return identity{}, fmt.Errorf("no member of the cluster to join can be reached: %w", err)
			}
			return identity{}, fmt.Errorf("no member of the cluster has the peer addresses %s: add this one first (member add), with the addresses of --initial-advertise-peer-urls", strings.Join(own, ","))
		case <-time.After(joinRest):
		}
	}
}

// lobby answers on the members' port from the beginning: founders ask each other
// who runs already, and must not have to wait for each other's answers.
type lobby struct {
	server  *http.Server
	handler atomic.Pointer[http.Handler] // nil: there is no member yet
	ended   chan struct{}
	err     error // once ended
}

func openLobby(port net.Listener) *lobby {
	l := &lobby{ended: make(chan struct{})}
	l.server = listen.HTTPServer(l)
	go func() {
		defer close(l.ended)
		if err := l.server.Serve(port); !errors.Is(err, http.ErrServerClosed) {
			l.err = fmt.Errorf("serve members: %w", err)
		}
	}()
	return l
}

func (l *lobby) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := l.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	http.Error(w, "this member is about to start", http.StatusServiceUnavailable)
}

// open has h answer from now on.
func (l *lobby) open(h http.Handler) { l.handler.Store(&h) }

func (l *lobby) wait() error {
	<-l.ended
	return l.err
}

func (l *lobby) close() {
	l.server.Close()
	<-l.ended
}

// peerHandler answers what does not need an identity.
func peerHandler(m *member, members api.Members, token string) http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, what any) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set(clusterHeader, strconv.FormatUint(m.o.Cluster, 16))
		_ = json.NewEncoder(w).Encode(what) // who asked has gone
	}
	mux.HandleFunc("GET /members", func(w http.ResponseWriter, r *http.Request) {
		view := m.machine.View()
		if view.Index == 0 {
			http.Error(w, "this member is joining and knows nobody yet", http.StatusServiceUnavailable)
			return
		}
		all := []aboutMember{}
		for _, one := range view.Members() {
			all = append(all, about(one))
		}
		answer(w, all)
	})
	mux.HandleFunc("POST /members", func(w http.ResponseWriter, r *http.Request) {
		added, err := m.welcome(r, members, token)
		if err != nil {
			http.Error(w, err.text, err.code)
			return
		}
		answer(w, about(added))
	})
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, r *http.Request) {
		answer(w, map[string]string{"etcdserver": api.ServerVersion, "etcdcluster": api.ClusterVersion})
	})
	return mux
}

func about(one state.Member) aboutMember {
	return aboutMember{uint64(one.ID), one.PeerURLs, one.Learner, one.Name, one.ClientURLs}
}
