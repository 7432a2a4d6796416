package peer

import (
	"context"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/kvorum/kvorum/listen"
	"github.com/kvorum/kvorum/test/authority"
)

func TestTLSBothWays(t *testing.T) {
	trusted, others := authority.New(t, "trusted"), authority.New(t, "others")
	file := func(text []byte) string {
		name := filepath.Join(t.TempDir(), "pem")
		must(t, os.WriteFile(name, text, 0o600))
		return name
	}
	member := func(id uint64, by *authority.Authority) *node {
		own := by.Issue("member")
		credentials, err := listen.TLS{
			CertFile: file(own.Cert), KeyFile: file(own.Key), TrustedCAFile: file(trusted.PEM), ClientCertAuth: true,
		}.Load()
		must(t, err)
		l, err := listen.Listen(context.Background(), []url.URL{{Scheme: "https", Host: "127.0.0.1:0"}}, listen.Options{Credentials: credentials})
		must(t, err)
		n := startOn(t, l, id, machine(70, 3<<20), func(o *Options) {
			o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
				return credentials.Dial(ctx, "tcp", strings.TrimPrefix(address, "https://"))
			}
		})
		n.url = "https://" + l.Addr().String()
		return n
	}
	a, b, stranger := member(1, trusted), member(2, trusted), member(3, others)
	meet(a, b, stranger)
	connected(t, a, b)
	for i := range uint64(500) {
		a.p.Send([]*pb.Message{message(pb.MsgApp, a, b, i, make([]byte, 3000))})
		b.p.Send([]*pb.Message{message(pb.MsgApp, b, a, i, make([]byte, 3000))})
	}
	for i := range uint64(500) {
		if x, y := a.next().GetIndex(), b.next().GetIndex(); x != i || y != i {
			t.Fatalf("%d and %d arrive, want %d", x, y, i)
		}
	}
	b.p.Send([]*pb.Message{snapshot(b, a, 1, 1)})
	if !b.snapshotEnd() {
		t.Error(b.log)
	}
	eventually(t, "the stranger has tried", func() bool {
		return stranger.p.attempts.Load() > 4 || strings.Contains(stranger.log.String(), "cannot connect")
	})
	if a.p.Connected(3) || stranger.p.Connected(1) {
		t.Error("a certificate of somebody else gets in")
	}
}
