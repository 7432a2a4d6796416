package peer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/kvorum/kvorum/listen"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (a *authority) issue(name string, isCA bool) (certFile, keyFile string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := a.cert, a.key
	if isCA {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	must(a.t, err)
	if isCA {
		a.key = key
		a.cert, err = x509.ParseCertificate(der)
		must(a.t, err)
	}
	encoded, err := x509.MarshalECPrivateKey(key)
	must(a.t, err)
	certFile, keyFile = filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")
	must(a.t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(a.t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: encoded}), 0o600))
	return certFile, keyFile
}

func TestTLSBothWays(t *testing.T) {
	trusted, others := &authority{t: t, dir: t.TempDir()}, &authority{t: t, dir: t.TempDir()}
	ca, _ := trusted.issue("ca", true)
	others.issue("ca", true)

	member := func(id uint64, by *authority) *node {
		cert, key := by.issue("member", false)
		credentials, err := listen.TLS{CertFile: cert, KeyFile: key, TrustedCAFile: ca, ClientCertAuth: true}.Load()
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
