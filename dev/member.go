package dev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/kvorum/kvorum/config"
	"github.com/kvorum/kvorum/node"
)

// A member is one server of the cluster, running or not.
type member struct {
	// Immutable after newMember.
	number   int // from 1
	name     string
	url      string
	settings *config.Server
	log      *slog.Logger
	logFile  *os.File
	logName  string
	client   *grpc.ClientConn

	// Owned by the loop of the cluster.
	cancel context.CancelCauseFunc // nil: it does not run
	told   string                  // what it was told to be; "": to run
	again  bool                    // start it once it is gone
	serves bool
	last   string // what it was told last, while it does not run
	seen   look
}

func newMember(i int, s *config.Server, url, logName string) (*member, error) {
	f, err := os.OpenFile(logName, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	// A member that was just started must not have to wait to be seen.
	client, err := grpc.NewClient(s.ListenClientURLs[0].Host,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: lookEvery, Multiplier: 1, MaxDelay: lookEvery}}))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &member{
		number: i + 1, name: s.Name, url: url, settings: s,
		log: node.NewTerminalLogger(f, s.Log.MinLevel()), logFile: f, logName: logName, client: client,
	}, nil
}

func (m *member) close() error { return errors.Join(m.client.Close(), m.logFile.Close()) }

func (m *member) running() bool { return m.cancel != nil }

// start runs the member until it ends, and tells ended then.
func (m *member) start(ctx context.Context, ended chan<- ending) {
	ctx, m.cancel = context.WithCancelCause(ctx)
	m.again = false
	go func() { ended <- ending{m, node.Run(ctx, m.settings, m.log)} }()
}

// end tells the member to end.
func (m *member) end(as string, cause error) {
	m.told = as
	m.cancel(cause)
}

func (m *member) gone() {
	m.cancel(nil)
	m.cancel, m.serves = nil, false
	m.last, m.told = m.told, ""
}

// A look is what a member says about itself.
type look struct {
	err            error // it does not answer
	id, leader     uint64
	term           uint64
	revision, size int64
}

func (l look) leads() bool  { return l.leader == l.id }
func (l look) serves() bool { return l.err == nil && l.leader != 0 }

// lookEvery is how often the members are asked how they are.
const lookEvery = 200 * time.Millisecond

// watch asks all members, again and again, until ctx ends.
func watch(ctx context.Context, members []*member, looks chan<- []look) {
	again := time.NewTicker(lookEvery)
	defer again.Stop()
	for {
		seen := make([]look, len(members))
		var asking sync.WaitGroup
		for i, m := range members {
			asking.Go(func() { seen[i] = m.ask(ctx) })
		}
		asking.Wait()
		select {
		case <-ctx.Done():
			return
		case looks <- seen:
		}
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
	}
}

func (m *member) ask(ctx context.Context) look {
	ctx, cancel := context.WithTimeout(ctx, 5*lookEvery)
	defer cancel()
	s, err := pb.NewMaintenanceClient(m.client).Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return look{err: fmt.Errorf("ask %s: %w", m.name, err)}
	}
	return look{
		id: s.GetHeader().GetMemberId(), leader: s.GetLeader(), term: s.GetRaftTerm(),
		revision: s.GetHeader().GetRevision(), size: s.GetDbSize(),
	}
}
