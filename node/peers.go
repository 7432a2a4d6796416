package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvorum/kvorum/api"
	"github.com/kvorum/kvorum/listen"
	"github.com/kvorum/kvorum/peer"
	"github.com/kvorum/kvorum/state"
)

// peerOptions are what a member needs to meet the others.
type peerOptions struct {
	Listener     net.Listener
	Dial         func(ctx context.Context, address string) (net.Conn, error)
	Dir          string        // of snapshots that others send
	ReadTimeout  time.Duration // of a silent connection
	WriteTimeout time.Duration
}

// openPeers makes the means to talk to the other members. It follows the
// opening of the replica, which numbers this run.
func (m *member) openPeers() (err error) {
	o, metrics := m.o.Peers, m.o.Metrics
	m.peers, err = peer.New(peer.Options{
		Cluster: m.o.Cluster, ID: m.o.ID, Incarnation: m.replica.Incarnation(),
		Version: api.ServerVersion,
		Dir:     o.Dir,
		Dial:    o.Dial,

		Deliver:          m.hear,
		Lost:             m.replica.ReportUnreachable,
		SnapshotSent:     m.replica.ReportSnapshot,
		WriteSnapshot:    m.writeSnapshot,
		SnapshotReceived: m.takeSnapshot,
		Evicted: func(by uint64) {
			m.o.Log.Warn("another member says that this one was removed from the cluster", "by", fmt.Sprintf("%x", by))
			close(m.evicted)
		},

		ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout,
		Metrics: peer.Metrics{
			SentBytes: metrics.PeerSentBytes, ReceivedBytes: metrics.PeerReceivedBytes,
			SentFailures: metrics.PeerSentFailures, ReceivedFailures: metrics.PeerReceivedFailures,
			RoundTrip: metrics.PeerRoundTrip,
			Active:    metrics.ActivePeers, Known: metrics.KnownPeers, Disconnected: metrics.DisconnectedPeers,
			SnapshotSent: metrics.SnapshotsSent, SnapshotSendFailures: metrics.SnapshotSendFailures,
			SnapshotSending: metrics.SnapshotsSending, SnapshotSendSeconds: metrics.SnapshotSendSeconds,
			SnapshotReceived: metrics.SnapshotsReceived, SnapshotReceiveFailures: metrics.SnapshotReceiveFailures,
			SnapshotReceiving: metrics.SnapshotsReceiving, SnapshotReceiveSeconds: metrics.SnapshotReceiveSeconds,
		},
		Logger: m.o.Log,
	})
	if err != nil {
		return err
	}
	m.peers.Handle(askCaughtUp, m.answerCaughtUp)
	m.peers.Handle(askSums, m.answerSums)
	m.peers.Handle(askRenew, m.renewals.answer)
	m.peers.Handle(askRemaining, m.remainders.answer)
	m.peers.Observe(membershipOf(m.machine.View()))
	return nil
}

// membershipOf returns the members as peers are told of them.
func membershipOf(v *state.View) peer.Membership {
	ms := peer.Membership{Index: uint64(v.Index)}
	for _, one := range v.Members() {
		ms.Members = append(ms.Members, peer.Member{ID: uint64(one.ID), URLs: one.PeerURLs})
	}
	for _, id := range v.RemovedMembers() {
		ms.Removed = append(ms.Removed, uint64(id))
	}
	return ms
}

// postman carries the replica's messages. There are none before the member
// runs, and by then it has peers.
type postman struct{ m *member }

func (p postman) Send(messages []*raftpb.Message) {
	if p.m.peers == nil {
		return
	}
	for _, message := range messages {
		if message.GetType() == raftpb.MsgApp {
			p.m.traffic.sent.Add(1)
		}
	}
	p.m.peers.Send(messages)
}

// hear takes a message of another member.
func (m *member) hear(message *raftpb.Message) {
	if message.GetType() == raftpb.MsgApp {
		m.traffic.received.Add(1)
	}
	m.replica.Step(message)
}

// connected tells whether a member can be reached.
func (m *member) connected(id uint64) bool { return m.peers != nil && m.peers.Connected(id) }

// writeSnapshot writes the state for a member that has fallen far behind.
func (m *member) writeSnapshot(_ context.Context, index uint64, w io.Writer) (*raftpb.SnapshotMetadata, error) {
	s, err := m.machine.Snapshot()
	if err != nil {
		return nil, err
	}
	members := &raftpb.ConfState{}
	err = proto.Unmarshal(s.Configuration, members)
	if err == nil {
		began := time.Now()
		err = s.Write(w)
		m.o.Metrics.SnapshotSeconds.Observe(time.Since(began).Seconds())
	}
	if err := errors.Join(err, s.Close()); err != nil {
		return nil, err
	}
	return &raftpb.SnapshotMetadata{
		Index: proto.Uint64(uint64(s.Index)), Term: proto.Uint64(uint64(s.Term)), ConfState: members,
	}, nil
}

// takeSnapshot has the replica look at a snapshot that another member has
// sent. Those that came to nothing are in the way by now.
func (m *member) takeSnapshot(message *raftpb.Message, _ string) error {
	if err := m.received.drop(m.machine.View().Index); err != nil {
		return err
	}
	m.replica.Step(message)
	return nil
}

// peerDialer connects to other members, as their addresses say: in clear text
// or under TLS.
func peerDialer(credentials *listen.Credentials) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		return listen.Dial(ctx, address, func(ctx context.Context, network, name string) (net.Conn, error) {
			if credentials == nil {
				return nil, fmt.Errorf("%s asks for TLS, but there is no certificate for members: give --peer-cert-file and --peer-key-file, or --peer-auto-tls", address)
			}
			return credentials.Dial(ctx, network, name)
		})
	}
}

// receivedDir is where snapshots of other members wait to be restored.
func receivedDir(dataDir string) string { return filepath.Join(dataDir, "received") }
