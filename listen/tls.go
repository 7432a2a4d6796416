package listen

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// TLS names the files and rules of one side. Files are read again when they
// change: a certificate, an authority or a revocation takes effect with the
// next handshake.
type TLS struct {
	CertFile, KeyFile             string
	ClientCertFile, ClientKeyFile string // shown when dialling; default CertFile and KeyFile

	TrustedCAFile    string   // who signs callers, and when dialling the other side; default: the system's
	ServerName       string   // whose certificate those must show who are dialled; default: the host dialled
	CRLFile          string   // revoked certificates; needs TrustedCAFile
	ClientCertAuth   bool     // demand a certificate of callers; also when TrustedCAFile or a list below is given
	AllowedCNs       []string // common names of which a caller's certificate has one
	AllowedHostnames []string // names of which a caller's certificate is good for one
	CheckAddress     bool     // names and addresses in a caller's certificate, if any, must hold its own

	// AutoDir, when CertFile is empty, is where a self-signed certificate for
	// AutoHosts is kept. Whoever dials with it encrypts, but does not know
	// whom it talks to.
	AutoDir      string
	AutoHosts    []string
	AutoValidity time.Duration // default a year

	MinVersion, MaxVersion uint16   // by crypto/tls; default TLS 1.2 and Go's newest
	CipherSuites           []string // of TLS 1.2, by name; default Go's

	// Report hears once of each change that could not be taken, and of lists
	// of revoked certificates that are out of date.
	Report func(error)

	Recheck time.Duration // files are looked at no more often; default 1 s
}

// Credentials are a TLS whose files were read and found good.
type Credentials struct {
	// Immutable after Load.
	rules  TLS
	suites []uint16
	base   *tls.Config

	current atomic.Pointer[material]

	mu struct {
		sync.Mutex
		checked time.Time // when the files were last looked at
		refused digest    // contents that were already reported
	}
}

type digest [sha256.Size]byte

// material is what the files held at one moment, all of one piece.
type material struct {
	digest  digest
	cert    tls.Certificate
	client  tls.Certificate
	trusted *x509.CertPool // nil: the system's
	revoked revoked
	expiry  time.Time

	server *tls.Config
}

// Load reads the files of t. What cannot be read now is an error; what cannot
// be read later is reported, and the former contents stay in force.
func (t TLS) Load() (*Credentials, error) {
	if t.MinVersion == 0 {
		t.MinVersion = tls.VersionTLS12
	}
	if t.AutoValidity == 0 {
		t.AutoValidity = 365 * 24 * time.Hour
	}
	if t.Recheck == 0 {
		t.Recheck = time.Second
	}
	if t.Report == nil {
		t.Report = func(error) {}
	}
	if t.CRLFile != "" && t.TrustedCAFile == "" {
		return nil, fmt.Errorf("listen: %s cannot be verified: name the authority that signed it as trusted", t.CRLFile)
	}
	suites, err := cipherSuites(t.CipherSuites)
	if err != nil {
		return nil, err
	}
	c := &Credentials{rules: t, suites: suites}
	c.base = &tls.Config{
		NextProtos: []string{"h2", "http/1.1"},
		MinVersion: t.MinVersion,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			return c.configFor(hello), nil
		},
	}

	if err := c.renewAuto(); err != nil {
		return nil, err
	}
	files, sum := c.read()
	m, err := c.parse(files)
	if err != nil {
		return nil, err
	}
	m.digest = sum
	c.current.Store(m)
	c.mu.checked = time.Now()
	return c, nil
}

// Server returns the configuration for a listener. It follows the files: one
// call is enough.
func (c *Credentials) Server() *tls.Config { return c.base }

// Client returns a configuration for dialling with what the files hold now.
// It does not follow them: call Client for each connection, or use Dial.
func (c *Credentials) Client() *tls.Config {
	m := c.now()
	config := &tls.Config{
		NextProtos:   []string{"h2", "http/1.1"},
		RootCAs:      m.trusted,
		ServerName:   c.rules.ServerName,
		MinVersion:   c.rules.MinVersion,
		MaxVersion:   c.rules.MaxVersion,
		CipherSuites: c.suites,
		// Nobody has signed a self-signed certificate of another member.
		InsecureSkipVerify: c.auto(),
		VerifyConnection:   func(s tls.ConnectionState) error { return m.revoked.check(s.VerifiedChains) },
	}
	if m.client.Certificate != nil {
		// Shown also to those who name other authorities: they can then say what
		// they do not trust.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &m.client, nil }
	}
	return config
}

// Dial connects to a TLS listener at address with what the files hold now. It
// fits http.Transport's DialTLSContext.
func (c *Credentials) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := tls.Dialer{Config: c.Client()}
	return d.DialContext(ctx, network, address)
}

// Expiry returns when the certificate shown to callers ends.
func (c *Credentials) Expiry() time.Time { return c.now().expiry }

func (c *Credentials) auto() bool { return c.rules.CertFile == "" && c.rules.AutoDir != "" }

// now returns what the files hold, looking at them if that was long ago. Of
// several callers one looks, and the others go on with what there is.
func (c *Credentials) now() *material {
	m := c.current.Load()
	if !c.mu.TryLock() {
		return m
	}
	defer c.mu.Unlock()
	if time.Since(c.mu.checked) < c.rules.Recheck {
		return m
	}
	c.mu.checked = time.Now()

	autoErr := c.renewAuto()
	files, sum := c.read()
	if sum == m.digest && autoErr == nil {
		c.mu.refused = digest{}
		return m
	}
	if sum == c.mu.refused {
		return m
	}
	fresh, err := c.parse(files)
	if err = errors.Join(autoErr, err); err != nil {
		c.mu.refused = sum
		c.rules.Report(fmt.Errorf("listen: keeping the former certificates: %w", err))
		return m
	}
	fresh.digest = sum
	c.mu.refused = digest{}
	c.current.Store(fresh)
	return fresh
}

// file is one file's contents, or why there are none.
type file struct {
	data []byte
	err  error
}

// read takes all files together. Their digest tells whether anything changed;
// times and sizes would miss a file written twice within a tick of the clock.
func (c *Credentials) read() (map[string]file, digest) {
	files := make(map[string]file)
	h := sha256.New()
	for _, name := range []string{
		c.certFile(), c.keyFile(), c.rules.ClientCertFile, c.rules.ClientKeyFile, c.rules.TrustedCAFile, c.rules.CRLFile,
	} {
		if name == "" {
			continue
		}
		f := file{}
		f.data, f.err = os.ReadFile(name)
		files[name] = f
		fmt.Fprintf(h, "%s %d %v\n", name, len(f.data), f.err)
		h.Write(f.data)
	}
	return files, digest(h.Sum(nil))
}

func (c *Credentials) certFile() string {
	if c.auto() {
		return filepath.Join(c.rules.AutoDir, autoFile)
	}
	return c.rules.CertFile
}

func (c *Credentials) keyFile() string {
	if c.auto() {
		return c.certFile()
	}
	return c.rules.KeyFile
}

// parse makes material of files, of all of them or of none.
func (c *Credentials) parse(files map[string]file) (*material, error) {
	pair := func(certFile, keyFile string) (tls.Certificate, error) {
		if certFile == "" {
			return tls.Certificate{}, nil
		}
		for _, name := range []string{certFile, keyFile} {
			if err := files[name].err; err != nil {
				return tls.Certificate{}, fmt.Errorf("listen: %w", err)
			}
		}
		cert, err := tls.X509KeyPair(files[certFile].data, files[keyFile].data)
		if err != nil {
			return cert, fmt.Errorf("listen: %s with %s: %w", certFile, keyFile, err)
		}
		return cert, nil
	}
	m := new(material)
	var err error
	if m.cert, err = pair(c.certFile(), c.keyFile()); err != nil {
		return nil, err
	}
	if m.client, err = pair(c.rules.ClientCertFile, c.rules.ClientKeyFile); err != nil {
		return nil, err
	}
	if m.client.Certificate == nil {
		m.client = m.cert
	}
	if m.cert.Leaf != nil {
		m.expiry = m.cert.Leaf.NotAfter
	}

	var authorities []*x509.Certificate
	if name := c.rules.TrustedCAFile; name != "" {
		if authorities, err = certificates(name, files[name]); err != nil {
			return nil, err
		}
		m.trusted = x509.NewCertPool()
		for _, a := range authorities {
			m.trusted.AddCert(a)
		}
	}
	if name := c.rules.CRLFile; name != "" {
		if m.revoked, err = readRevoked(name, files[name], authorities, c.rules.Report); err != nil {
			return nil, err
		}
	}
	m.server = c.serverConfig(m)
	return m, nil
}

func certificates(name string, f file) ([]*x509.Certificate, error) {
	if f.err != nil {
		return nil, fmt.Errorf("listen: %w", f.err)
	}
	var all []*x509.Certificate
	for block, rest := pem.Decode(f.data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("listen: %s: %w", name, err)
		}
		all = append(all, cert)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("listen: %s holds no certificate", name)
	}
	return all, nil
}

func (c *Credentials) serverConfig(m *material) *tls.Config {
	config := &tls.Config{
		Certificates: []tls.Certificate{m.cert},
		NextProtos:   c.base.NextProtos,
		MinVersion:   c.rules.MinVersion,
		MaxVersion:   c.rules.MaxVersion,
		CipherSuites: c.suites,
		ClientCAs:    m.trusted,
	}
	if c.demanding() {
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return config
}

// demanding tells whether callers must show a certificate. A list of who may
// come in would mean nothing if they need not say who they are.
func (c *Credentials) demanding() bool {
	r := c.rules
	return r.ClientCertAuth || r.TrustedCAFile != "" || len(r.AllowedCNs) > 0 || len(r.AllowedHostnames) > 0
}

// configFor returns the configuration for one handshake: the files as they
// are now, and the rules bound to the caller. The rules stand in
// VerifyConnection because that alone also runs when a session is resumed.
func (c *Credentials) configFor(hello *tls.ClientHelloInfo) *tls.Config {
	m := c.now()
	if !c.demanding() {
		return m.server
	}
	config := m.server.Clone()
	config.VerifyConnection = func(s tls.ConnectionState) error {
		return c.admit(hello.Context(), m, s, hello.Conn.RemoteAddr())
	}
	return config
}

var errNotAllowed = errors.New("client certificate authentication failed")

// admit applies every rule to a caller whose certificate TLS has verified,
// now or when the session began.
func (c *Credentials) admit(ctx context.Context, m *material, s tls.ConnectionState, remote net.Addr) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("tls: client didn't provide a certificate")
	}
	leaf := s.PeerCertificates[0]
	chains := s.VerifiedChains
	if s.DidResume {
		// Since the session began the certificate may have run out and the
		// authorities may have changed.
		var err error
		if chains, err = verify(s.PeerCertificates, m.trusted); err != nil {
			return err
		}
	}
	if err := m.revoked.check(chains); err != nil {
		return err
	}
	if cns := c.rules.AllowedCNs; len(cns) > 0 && !slices.Contains(cns, leaf.Subject.CommonName) {
		return fmt.Errorf("%w: common name %q is not allowed", errNotAllowed, leaf.Subject.CommonName)
	}
	if names := c.rules.AllowedHostnames; len(names) > 0 &&
		!slices.ContainsFunc(names, func(name string) bool { return leaf.VerifyHostname(name) == nil }) {
		return fmt.Errorf("%w: good for %q, of which none is allowed", errNotAllowed, leaf.DNSNames)
	}
	if c.rules.CheckAddress {
		return checkAddress(ctx, leaf, remote)
	}
	return nil
}

func verify(certs []*x509.Certificate, trusted *x509.CertPool) ([][]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	return certs[0].Verify(x509.VerifyOptions{
		Roots:         trusted,
		Intermediates: between,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// checkAddress demands that a certificate which names hosts or addresses
// names the caller's: a key copied to another machine is then of no use.
func checkAddress(ctx context.Context, leaf *x509.Certificate, remote net.Addr) error {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok || len(leaf.IPAddresses)+len(leaf.DNSNames) == 0 {
		return nil
	}
	if slices.ContainsFunc(leaf.IPAddresses, tcp.IP.Equal) {
		return nil
	}
	// A pattern cannot be looked up, but the caller's own names can.
	var own []string
	for _, name := range leaf.DNSNames {
		if strings.HasPrefix(name, "*.") {
			if own == nil {
				own, _ = net.DefaultResolver.LookupAddr(ctx, tcp.IP.String())
			}
			if slices.ContainsFunc(own, func(host string) bool {
				_, domain, _ := strings.Cut(strings.TrimSuffix(host, "."), ".")
				return strings.EqualFold(domain, name[len("*."):])
			}) {
				return nil
			}
			continue
		}
		addrs, err := net.DefaultResolver.LookupIPAddr(ctx, name)
		if err == nil && slices.ContainsFunc(addrs, func(a net.IPAddr) bool { return a.IP.Equal(tcp.IP) }) {
			return nil
		}
	}
	return fmt.Errorf("tls: %q does not match any of the certificate's addresses %v and names %q", tcp.IP, leaf.IPAddresses, leaf.DNSNames)
}
