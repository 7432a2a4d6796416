package crash

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvorum/kvorum/test/authority"
)

func write(t testing.TB, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// papers are the files by which members know each other.
type papers struct {
	*authority.Authority
	t       *testing.T
	dir     string
	revoked []authority.Pair
}

func newPapers(t *testing.T) *papers {
	p := &papers{Authority: authority.New(t, "members"), t: t, dir: t.TempDir()}
	write(t, p.file("ca"), p.PEM)
	p.revoke()
	return p
}

func (p *papers) file(name string) string { return filepath.Join(p.dir, name) }

// give makes a pair the one of a member.
func (p *papers) give(m *clusterMember, own authority.Pair) {
	p.t.Helper()
	write(p.t, p.file(m.name+".crt"), own.Cert)
	write(p.t, p.file(m.name+".key"), own.Key)
}

// revoke tells all members of pairs that are not good any more.
func (p *papers) revoke(pairs ...authority.Pair) {
	p.t.Helper()
	p.revoked = append(p.revoked, pairs...)
	write(p.t, p.file("crl"), p.Revoke(time.Now().Add(time.Hour), p.revoked...))
}

// flags are those of a member.
func (p *papers) flags(m *clusterMember) []string {
	return []string{
		"--peer-cert-file=" + p.file(m.name+".crt"), "--peer-key-file=" + p.file(m.name+".key"),
		"--peer-trusted-ca-file=" + p.file("ca"), "--peer-crl-file=" + p.file("crl"), "--peer-client-cert-auth",
	}
}

// serveWithout has a cluster of three take a write without one of its members.
func (c *cluster) serveWithout(m *clusterMember) {
	c.t.Helper()
	one := c.others(m)[0]
	if err := insist(c.t, func() error { _, err := one.client.Put(c.t.Context(), "without", m.name); return err }); err != nil {
		c.t.Errorf("the others, without %s: %v", m.name, err)
	}
}

// TestMembersKnowEachOtherByCertificates has a member come back with papers
// that are no good, of each kind. The others say what is wrong, and go on.
func TestMembersKnowEachOtherByCertificates(t *testing.T) {
	t.Parallel()
	p := newPapers(t)
	revoked := p.Issue("member")
	p.revoke(revoked)
	good := map[string]authority.Pair{}
	c := &cluster{t: t, flags: clusterFlags, secure: func(m *clusterMember) []string {
		good[m.name] = p.Issue("member")
		p.give(m, good[m.name])
		return append(p.flags(m), "--peer-cert-allowed-cn=member")
	}}
	c.found(3)
	c.put(10, 1000)
	c.wantEqual()

	place := c.others(c.leader())[0]
	other := c.others(place)[0]
	elsewhere := func(cert *x509.Certificate) {
		cert.DNSNames, cert.IPAddresses = nil, []net.IP{net.IPv4(192, 0, 2, 7)}
	}
	for _, bad := range []struct {
		name string
		pair authority.Pair
		says string // by the others
	}{
		{"of another authority", authority.New(t, "others").Issue("member"), "certificate signed by unknown authority"},
		{"of somebody else", p.Issue("client"), `common name \"client\" is not allowed`},
		{"of another machine", p.Issue("member", elsewhere), `\"127.0.0.1\" does not match any of the certificate's addresses [192.0.2.7]`},
		{"out of date", p.Issue("member", func(cert *x509.Certificate) { cert.NotAfter = time.Now().Add(-time.Minute) }), "certificate has expired"},
		{"revoked", revoked, "is revoked"},
	} {
		c.kill(place)
		p.give(place, bad.pair)
		c.start(place, "new")
		c.says(other, "rejected connection on peer endpoint", bad.says)
		c.says(place, "cannot connect to peer", "tls")
		c.serveWithout(place)
		if place.leads(t.Context()) {
			t.Errorf("%s: it leads", bad.name)
		}
	}
	c.kill(place)
	p.give(place, good[place.name])

	// Without any.
	place.flags = []string{"--listen-peer-urls=http://" + place.peer}
	c.start(place, "new")
	c.says(place, "asks for TLS, but there is no certificate for members", "--peer-cert-file")
	c.serveWithout(place)
	c.kill(place)
	place.flags = append(p.flags(place), "--listen-peer-urls="+place.url, "--peer-cert-file=/nonexistent")
	c.start(place, "new")
	place.refused(t, "/nonexistent")

	// It has new ones while it runs, and its old ones are revoked: others let it
	// in again, and it can tell that from theirs.
	place.flags = append(p.flags(place), "--listen-peer-urls="+place.url)
	c.start(place, "new")
	place.ready(t, place.client)
	p.give(place, p.Issue("member"))
	p.revoke(good[place.name])
	c.kill(other)
	c.start(other, "new") // and so meets all anew
	other.ready(t, other.client)
	third := c.others(place)[1]
	c.kill(third)
	c.await("two to be a quorum", func() bool {
		_, err := place.client.Put(t.Context(), "renewed", "yes")
		return err == nil
	})
	c.start(third, "new")
	third.ready(t, third.client)
	c.wantEqual()
}

// TestMembersKnowEachOtherByName demands a name of members' certificates.
func TestMembersKnowEachOtherByName(t *testing.T) {
	t.Parallel()
	p := newPapers(t)
	named := func(cert *x509.Certificate) {
		cert.DNSNames = append(cert.DNSNames, "members.kvorum.test")
	}
	c := &cluster{t: t, flags: clusterFlags, secure: func(m *clusterMember) []string {
		p.give(m, p.Issue("any", named))
		return append(p.flags(m), "--peer-cert-allowed-hostname=members.kvorum.test")
	}}
	c.found(3)
	c.put(1, 10)
	place := c.others(c.leader())[0]
	c.kill(place)
	p.give(place, p.Issue("any"))
	c.start(place, "new")
	c.says(c.others(place)[0], "rejected connection on peer endpoint", `good for [\"localhost\"], of which none is allowed`)
	c.serveWithout(place)
}

// TestMembersUnderSelfSignedCertificates needs no papers.
func TestMembersUnderSelfSignedCertificates(t *testing.T) {
	t.Parallel()
	c := &cluster{t: t, flags: clusterFlags, secure: func(*clusterMember) []string { return []string{"--peer-auto-tls"} }}
	c.found(3)
	away := c.others(c.leader())[0]
	revive := c.killed(away)
	c.put(100, 1000)
	revive()
	away.ready(t, away.client)
	c.wantEqual()
	c.says(away, "received snapshot")
}
