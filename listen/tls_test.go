package listen

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvorum/kvorum/test/authority"
)

const (
	every    = time.Nanosecond // look at the files at each handshake
	patience = time.Minute     // longer than anything may take on the busiest machine
)

// echo listens with rules and sends back what it reads. It returns the
// address and the reasons for which callers were turned away.
func echo(t *testing.T, rules TLS) (string, *reasons) {
	t.Helper()
	c, err := rules.Load()
	must(t, err)
	return echoWith(t, c)
}

func echoWith(t *testing.T, c *Credentials) (string, *reasons) {
	t.Helper()
	why := &reasons{heard: make(chan error, 100)}
	l, err := Listen(t.Context(), parseURLs(t, "https://127.0.0.1:0"), Options{Credentials: c, Rejected: why.add})
	must(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return l.Addr().String(), why
}

// folder holds the files of one test.
type folder struct {
	t    *testing.T
	path string
}

func (f folder) write(name string, data []byte) string {
	path := filepath.Join(f.path, name)
	must(f.t, os.WriteFile(path, data, 0o600))
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type reasons struct{ heard chan error }

func (r *reasons) add(_ net.Addr, err error) { r.heard <- err }

func (r *reasons) want(t *testing.T, text string) {
	t.Helper()
	select {
	case err := <-r.heard:
		if !strings.Contains(err.Error(), text) {
			t.Errorf("turned away with %q, want %q", err, text)
		}
	case <-time.After(patience):
		t.Errorf("nobody was turned away, want %q", text)
	}
}

// call says a word and wants it back. Under TLS 1.3 a client learns only then
// whether it was let in.
func call(address string, config *tls.Config) (tls.ConnectionState, error) {
	c, err := tls.Dial("tcp", address, config)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("hello")); err != nil {
		return tls.ConnectionState{}, err
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		return tls.ConnectionState{}, err
	}
	return c.ConnectionState(), nil
}

func parseURLs(t *testing.T, texts ...string) []url.URL {
	t.Helper()
	var all []url.URL
	for _, text := range texts {
		u, err := url.Parse(text)
		must(t, err)
		all = append(all, *u)
	}
	return all
}

func TestWhoMayComeIn(t *testing.T) {
	ours, theirs := authority.New(t, "ours"), authority.New(t, "theirs")
	dir := folder{t, t.TempDir()}
	server := ours.Issue("server")
	revokedOne := ours.Issue("revoked")
	sameSerial := theirs.Issue("same", func(c *x509.Certificate) { c.SerialNumber = revokedOne.Leaf.SerialNumber })
	base := TLS{
		CertFile: dir.write("cert", server.Cert), KeyFile: dir.write("key", server.Key),
		TrustedCAFile: dir.write("ca", append(ours.PEM, theirs.PEM...)), ClientCertAuth: true, Recheck: every,
		CRLFile: dir.write("crl", ours.Revoke(time.Now().Add(-time.Minute), revokedOne)), // out of date
	}
	rules := func(change func(*TLS)) TLS {
		r := base
		change(&r)
		return r
	}
	same := func(*TLS) {}
	cns := func(r *TLS) { r.AllowedCNs = []string{"alice", "bob"} }
	hosts := func(r *TLS) { r.AllowedHostnames = []string{"good.example"} }
	address := func(r *TLS) { r.CheckAddress = true }
	usage := func(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = u }
	}
	names := func(ip []net.IP, dns ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = ip, dns }
	}

	for _, tt := range []struct {
		name  string
		rules func(*TLS)
		cert  authority.Pair
		why   string // "": let in
	}{
		{"a good certificate", same, ours.Issue("x"), ""},
		{"none", same, authority.Pair{}, "client didn't provide a certificate"},
		{"of a stranger", same, authority.New(t, "nobody").Issue("x"), "certificate signed by unknown authority"},
		{"run out", same, ours.Issue("x", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "certificate has expired"},
		{"not good yet", same, ours.Issue("x", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "not yet valid"},
		{"for servers only", same, ours.Issue("x", usage(x509.ExtKeyUsageServerAuth)), "incompatible key usage"},
		{"revoked", same, revokedOne, "is revoked"},
		{"with the number of a revoked one of another authority", same, sameSerial, ""},
		{"allowed by common name", cns, ours.Issue("bob"), ""},
		{"with another common name", cns, ours.Issue("mallory"), "client certificate authentication failed"},
		{"allowed by host name", hosts, ours.Issue("x", names(nil, "good.example")), ""},
		{"with another host name", hosts, ours.Issue("x"), "client certificate authentication failed"},
		{"with the caller's address", address, ours.Issue("x", names([]net.IP{net.IPv4(127, 0, 0, 1)})), ""},
		{"with a name of the caller's", address, ours.Issue("x", names(nil, "localhost")), ""},
		{"with no address or name", address, ours.Issue("x", names(nil)), ""},
		{"with another's address", address, ours.Issue("x", names([]net.IP{net.IPv4(192, 0, 2, 1)})), "does not match any"},
		{"with another's address, not asked about", same, ours.Issue("x", names([]net.IP{net.IPv4(192, 0, 2, 1)})), ""},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(fmt.Sprintf("%s/%s", tt.name, tls.VersionName(version)), func(t *testing.T) {
				at, why := echo(t, rules(tt.rules))
				config := &tls.Config{InsecureSkipVerify: true, MaxVersion: version}
				if tt.cert.Leaf != nil {
					// Shown even if it does not suit: callers may be wrong.
					config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
						c := tt.cert.TLS(t)
						return &c, nil
					}
				}
				_, err := call(at, config)
				if tt.why == "" {
					must(t, err)
					return
				}
				if err == nil {
					t.Fatal("was let in")
				}
				why.want(t, tt.why)
			})
		}
	}
}

// A session that began under other rules must not outlive them.
func TestResumedSessionsMeetTheRulesOfToday(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, tt := range []struct {
			name   string
			change func(f folder, ours *authority.Authority, caller authority.Pair)
			why    string
		}{
			{"nothing changes", func(folder, *authority.Authority, authority.Pair) {}, ""},
			{"the caller is revoked", func(f folder, ours *authority.Authority, caller authority.Pair) {
				f.write("crl", ours.Revoke(time.Now().Add(time.Hour), caller))
			}, "is revoked"},
			{"the authority is replaced", func(f folder, _ *authority.Authority, _ authority.Pair) {
				other := authority.New(t, "other")
				f.write("ca", other.PEM)
				f.write("crl", other.Revoke(time.Now().Add(time.Hour)))
			}, "unknown authority"},
		} {
			t.Run(tt.name+"/"+tls.VersionName(version), func(t *testing.T) {
				ours := authority.New(t, "ours")
				f := folder{t, t.TempDir()}
				server, caller := ours.Issue("server"), ours.Issue("caller")
				at, why := echo(t, TLS{
					CertFile: f.write("cert", server.Cert), KeyFile: f.write("key", server.Key),
					TrustedCAFile: f.write("ca", ours.PEM), CRLFile: f.write("crl", ours.Revoke(time.Now().Add(time.Hour))),
					Recheck: every,
				})
				config := &tls.Config{
					InsecureSkipVerify: true, MaxVersion: version,
					ClientSessionCache: tls.NewLRUClientSessionCache(1),
					GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
						c := caller.TLS(t)
						return &c, nil
					},
				}
				_, err := call(at, config)
				must(t, err)

				tt.change(f, ours, caller)
				state, err := call(at, config)
				if tt.why == "" {
					must(t, err)
					if !state.DidResume {
						t.Error("the session was not resumed: the test shows nothing")
					}
					return
				}
				if err == nil {
					t.Fatalf("was let in, resumed: %t", state.DidResume)
				}
				why.want(t, tt.why)
			})
		}
	}
}

func TestFilesAreFollowed(t *testing.T) {
	first, second := authority.New(t, "first"), authority.New(t, "second")
	f := folder{t, t.TempDir()}
	one, two := first.Issue("one"), first.Issue("two", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(30 * time.Minute) })
	caller, newcomer := first.Issue("caller"), second.Issue("newcomer")

	var mu sync.Mutex
	var reports []string
	c, err := TLS{
		CertFile: f.write("cert", one.Cert), KeyFile: f.write("key", one.Key),
		TrustedCAFile: f.write("ca", first.PEM), CRLFile: f.write("crl", first.Revoke(time.Now().Add(time.Hour))), Recheck: every,
		Report: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			reports = append(reports, err.Error())
		},
	}.Load()
	must(t, err)
	at, _ := echoWith(t, c)
	shown := func(p authority.Pair) string {
		t.Helper()
		state, err := call(at, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{p.TLS(t)}})
		if err != nil {
			return "refused"
		}
		return state.PeerCertificates[0].Subject.CommonName
	}
	want := func(p authority.Pair, name string) {
		t.Helper()
		if got := shown(p); got != name {
			t.Fatalf("got %s, want %s", got, name)
		}
	}
	want(caller, "one")

	f.write("cert", two.Cert) // half of a pair
	want(caller, "one")
	want(caller, "one")
	f.write("key", two.Key)
	want(caller, "two")
	if !c.Expiry().Equal(two.Leaf.NotAfter) {
		t.Errorf("expiry %v, want %v", c.Expiry(), two.Leaf.NotAfter)
	}

	want(newcomer, "refused")
	f.write("ca", append(first.PEM, second.PEM...))
	want(newcomer, "two")
	want(caller, "two")

	f.write("crl", first.Revoke(time.Now().Add(-time.Minute), caller))
	want(caller, "refused")
	want(newcomer, "two")

	f.write("crl", []byte("half a li"))
	want(caller, "refused")
	must(t, os.Remove(c.rules.CRLFile))
	want(caller, "refused")
	f.write("crl", first.Revoke(time.Now().Add(time.Hour)))
	want(caller, "two")

	mu.Lock()
	defer mu.Unlock()
	wants := []string{"private key does not match", "was due for renewal", "malformed crl", "no such file"}
	if len(reports) != len(wants) {
		t.Fatalf("each change must be reported once, got %q", reports)
	}
	for i, text := range wants {
		if !strings.Contains(reports[i], text) {
			t.Errorf("report %d is %q, want %q", i, reports[i], text)
		}
	}
}

func TestWhatCannotBeLoaded(t *testing.T) {
	ours, theirs := authority.New(t, "ours"), authority.New(t, "theirs")
	f := folder{t, t.TempDir()}
	server := ours.Issue("server")
	cert, key, ca := f.write("cert", server.Cert), f.write("key", server.Key), f.write("ca", ours.PEM)
	for _, tt := range []struct {
		rules TLS
		why   string
	}{
		{TLS{CertFile: cert, KeyFile: "/none"}, "no such file"},
		{TLS{CertFile: cert, KeyFile: cert}, "with"},
		{TLS{CertFile: cert, KeyFile: key, TrustedCAFile: key}, "holds no certificate"},
		{TLS{CertFile: cert, KeyFile: key, TrustedCAFile: ca, CRLFile: "/none"}, "no such file"},
		{TLS{CertFile: cert, KeyFile: key, TrustedCAFile: ca, CRLFile: cert}, "cert"},
		{TLS{CertFile: cert, KeyFile: key, CRLFile: f.write("crl", ours.Revoke(time.Now()))}, "name the authority"},
		{TLS{CertFile: cert, KeyFile: key, TrustedCAFile: ca, CRLFile: f.write("crl2", theirs.Revoke(time.Now()))}, "no trusted authority"},
		{TLS{CertFile: cert, KeyFile: key, CipherSuites: []string{"TLS_RSA_WITH_RC4_128_SHA"}}, "choose from TLS_AES_128_GCM_SHA256"},
		{TLS{CertFile: cert, KeyFile: key, CipherSuites: []string{"nonsense"}}, "unknown or no longer safe"},
	} {
		if _, err := tt.rules.Load(); err == nil || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("got %v, want %q", err, tt.why)
		}
	}
}

func TestCipherSuitesByOldAndNewNames(t *testing.T) {
	ours := authority.New(t, "ours")
	f := folder{t, t.TempDir()}
	server := ours.Issue("server")
	at, _ := echo(t, TLS{
		CertFile: f.write("cert", server.Cert), KeyFile: f.write("key", server.Key), MaxVersion: tls.VersionTLS12,
		CipherSuites: []string{"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"},
	})
	state, err := call(at, &tls.Config{InsecureSkipVerify: true})
	must(t, err)
	if state.CipherSuite != tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 || state.Version != tls.VersionTLS12 {
		t.Errorf("agreed on %s, %s", tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite))
	}
	_, err = call(at, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	if err == nil {
		t.Error("a version above the newest was spoken")
	}
}

func TestSelfSignedCertificateIsKeptAndRenewed(t *testing.T) {
	rules := TLS{AutoDir: t.TempDir(), AutoHosts: []string{"localhost", "127.0.0.1"}, AutoValidity: time.Hour, Recheck: every}
	c, err := rules.Load()
	must(t, err)
	at, _ := echoWith(t, c)
	conn, err := c.Dial(t.Context(), "tcp", at)
	must(t, err)
	conn.Close()
	info, err := os.Stat(c.certFile())
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("a file with a key has mode %v", info.Mode())
	}

	again, err := rules.Load()
	must(t, err)
	if !again.Expiry().Equal(c.Expiry()) {
		t.Error("a restart made a new certificate")
	}
	rules.AutoHosts = append(rules.AutoHosts, "other")
	again, err = rules.Load()
	must(t, err)
	if err := again.now().cert.Leaf.VerifyHostname("other"); err != nil {
		t.Error(err)
	}

	rules.AutoValidity = 24 * time.Hour // an hour is now less than a tenth
	again, err = rules.Load()
	must(t, err)
	if time.Until(again.Expiry()) < 23*time.Hour {
		t.Error("a certificate near its end was not renewed")
	}
}

// The text that operators and scripts know, on both ends.
func TestRefusedCallerIsTold(t *testing.T) {
	ours := authority.New(t, "ours")
	f := folder{t, t.TempDir()}
	server, caller := ours.Issue("server"), ours.Issue("caller")
	serverSide := TLS{
		CertFile: f.write("cert", server.Cert), KeyFile: f.write("key", server.Key),
		TrustedCAFile: f.write("ca", ours.PEM), AllowedCNs: []string{"other"},
	}
	at, why := echo(t, serverSide)
	callerSide := serverSide
	callerSide.CertFile, callerSide.KeyFile = f.write("cert2", caller.Cert), f.write("key2", caller.Key)
	c, err := callerSide.Load()
	must(t, err)
	conn, err := c.Dial(t.Context(), "tcp", at)
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "remote error: tls: bad certificate") {
		t.Errorf("caller was told %v", err)
	}
	why.want(t, "client certificate authentication failed")

	// A server whose certificate names another host is not believed.
	elsewhere := ours.Issue("elsewhere", func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, nil })
	at, _ = echo(t, TLS{CertFile: f.write("cert3", elsewhere.Cert), KeyFile: f.write("key3", elsewhere.Key)})
	_, port, _ := net.SplitHostPort(at)
	_, err = c.Dial(t.Context(), "tcp", "localhost:"+port)
	var wrongHost x509.HostnameError
	if !errors.As(err, &wrongHost) {
		t.Errorf("got %v, want a complaint about the host name", err)
	}
}
