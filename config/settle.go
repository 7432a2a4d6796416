package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	electionMax       = 50 * time.Second
	bcryptCostDefault = 10
	bcryptCostMin     = 4
	bcryptCostMax     = 31
	requestBytesWise  = 10 << 20 // beyond it one request delays all others for long
	peerURLDefault    = "http://localhost:2380"
)

// settle fills what depends on other settings and refuses what makes no sense
// together.
func (p *parser) settle(s *Server) error {
	if s.DataDir == "" {
		dir, err := p.home(s.Name)
		if err != nil {
			return err
		}
		s.DataDir = dir
	}
	if s.BcryptCost < bcryptCostMin || s.BcryptCost > bcryptCostMax {
		p.note(slog.LevelWarn, "--bcrypt-cost=%d is outside %d to %d; using %d", s.BcryptCost, bcryptCostMin, bcryptCostMax, bcryptCostDefault)
		s.BcryptCost = bcryptCostDefault
	}
	if s.MaxRequestBytes > requestBytesWise {
		p.note(slog.LevelWarn, "--max-request-bytes=%d lets one request delay all others; up to %d is wise", s.MaxRequestBytes, requestBytesWise)
	}
	if err := p.settleCluster(s); err != nil {
		return err
	}
	if err := s.AutoCompaction.settle(); err != nil {
		return err
	}
	return errors.Join(
		s.checkTiming(),
		p.checkListeners(s),
		s.checkTLS(),
		s.checkLog(),
		s.FeatureGates.check(),
	)
}

// settleCluster lets the addresses, the name and the initial cluster follow
// each other where they were not given.
func (p *parser) settleCluster(s *Server) error {
	byToken := s.Discovery.Token != "" || len(s.Discovery.Endpoints) > 0
	if byToken && (s.Discovery.Token == "" || len(s.Discovery.Endpoints) == 0) {
		return errors.New("config: --discovery-token and --discovery-endpoints need each other")
	}
	var ways []string
	for _, way := range []struct {
		flag string
		used bool
	}{
		{"--initial-cluster", len(s.InitialCluster) > 0},
		{"--discovery-endpoints", byToken},
		{"--discovery-srv", s.Discovery.SRV != ""},
		{"--join", len(s.Join) > 0},
	} {
		if way.used {
			ways = append(ways, way.flag)
		}
	}
	if len(ways) > 1 {
		return fmt.Errorf("config: %s name the other members in different ways: keep one", strings.Join(ways, " and "))
	}

	if err := p.settleJoin(s); err != nil {
		return err
	}
	if len(s.InitialAdvertisePeerURLs) == 0 {
		own, err := p.advertisedPeers(s)
		if err != nil {
			return err
		}
		s.InitialAdvertisePeerURLs = own
	}
	if len(ways) == 0 {
		s.InitialCluster = InitialCluster{{s.Name, s.InitialAdvertisePeerURLs.Strings()}}
	}
	if s.Name == "default" && len(s.InitialCluster) > 1 {
		p.note(slog.LevelWarn, "this member is called \"default\": give each member of a cluster its own --name")
	}

	if p.isGiven("listen-client-urls") && !p.isGiven("advertise-client-urls") {
		return errors.New("--advertise-client-urls is required when --listen-client-urls is set explicitly")
	}
	return nil
}

// settleJoin has a member that joins others on another machine listen where they
// can reach it, if nothing else was said: on the address from which it reaches
// them.
func (p *parser) settleJoin(s *Server) error {
	var remote []string
	for _, given := range s.Join {
		address := given
		if !strings.Contains(address, "://") {
			address = "http://" + address
		}
		parsed, err := ParseURLs([]string{address})
		if err != nil || parsed[0].Scheme[0] != 'h' || parsed[0].Hostname() == "" {
			return fmt.Errorf("config: --join=%s: want HOST:PORT of a member", given)
		}
		ip := net.ParseIP(parsed[0].Hostname())
		if parsed[0].Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			remote = append(remote, parsed[0].Host)
		}
	}
	if len(remote) == 0 {
		return nil
	}
	for _, side := range []struct {
		flag, advertised string
		listen, tell     *URLs
		tls              TLS
	}{
		{"listen-peer-urls", "initial-advertise-peer-urls", &s.ListenPeerURLs, &s.InitialAdvertisePeerURLs, s.PeerTLS},
		{"listen-client-urls", "advertise-client-urls", &s.ListenClientURLs, &s.AdvertiseClientURLs, s.ClientTLS},
	} {
		if p.isGiven(side.flag) {
			continue
		}
		host, err := p.address(remote...)
		if err != nil {
			return fmt.Errorf("config: no address of this machine is known: give --%s and --%s: %w", side.flag, side.advertised, err)
		}
		own := slices.Clone(*side.listen)
		for i := range own {
			own[i].Host = net.JoinHostPort(host, own[i].Port())
			if side.tls.Auto || side.tls.CertFile != "" {
				own[i].Scheme = "https"
			}
		}
		if !p.isGiven(side.advertised) {
			*side.tell = own
		}
		if side.flag == "listen-client-urls" {
			own = slices.Concat(own, *side.listen) // commands on this machine expect it there
		}
		*side.listen = own
		p.note(slog.LevelInfo, "listening on %s, since others are to be joined; --%s changes that", own, side.flag)
	}
	return nil
}

// advertisedPeers finds the addresses that other members should use. Those
// that the initial cluster holds are known to them already.
func (p *parser) advertisedPeers(s *Server) (URLs, error) {
	if seed, ok := s.InitialCluster.Seed(s.Name); ok {
		return ParseURLs(seed.PeerURLs)
	}
	if !p.isGiven("listen-peer-urls") && len(s.Join) == 0 {
		return ParseURLs([]string{peerURLDefault})
	}
	own := slices.Clone(s.ListenPeerURLs)
	for i := range own {
		if ip := net.ParseIP(own[i].Hostname()); ip == nil || !ip.IsUnspecified() {
			continue
		}
		host, err := p.address()
		if err != nil {
			return nil, fmt.Errorf("config: no address of this machine is known: give --initial-advertise-peer-urls: %w", err)
		}
		own[i].Host = net.JoinHostPort(host, own[i].Port())
		p.note(slog.LevelInfo, "other members will reach this one at %s; --initial-advertise-peer-urls changes that", own[i].String())
	}
	return ParseURLs(own.Strings())
}

// routeAddress returns the address this machine would send from, to the first
// target to which it could. Nothing is sent: connecting a datagram socket only
// asks the routing table.
func routeAddress(targets ...string) (string, error) {
	var firstErr error
	dialer := net.Dialer{Timeout: lookupTimeout}
	for _, target := range append(targets, "192.0.2.1:9", "[2001:db8::1]:9") { // reserved for documentation
		c, err := dialer.Dial("udp", target)
		if err != nil {
			firstErr = errors.Join(firstErr, err)
			continue
		}
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).IP.String(), nil
	}
	return "", firstErr
}

func (a *AutoCompaction) settle() error {
	n, err := strconv.ParseInt(a.Retention, 10, 64)
	whole := err == nil
	switch {
	case a.Mode == "revision" && whole && n >= 0:
		a.Revisions = n
		return nil
	case a.Mode == "revision":
		return fmt.Errorf("config: --auto-compaction-retention=%s: in revision mode want a number of revisions", a.Retention)
	case whole && n >= 0 && n <= int64(200*365*24):
		a.Period = time.Duration(n) * time.Hour
		return nil
	}
	if a.Period, err = time.ParseDuration(a.Retention); err != nil || a.Period < 0 {
		return fmt.Errorf("config: --auto-compaction-retention=%s: want hours, or a duration such as 30m", a.Retention)
	}
	return nil
}

func (s *Server) checkTiming() error {
	if s.ElectionTimeout < 5*s.HeartbeatInterval {
		return fmt.Errorf("config: --election-timeout=%v must be at least five times --heartbeat-interval=%v, or one late heartbeat costs the leader its place",
			s.ElectionTimeout, s.HeartbeatInterval)
	}
	if s.ElectionTimeout > electionMax {
		return fmt.Errorf("config: --election-timeout=%v must be at most %v", s.ElectionTimeout, electionMax)
	}
	return nil
}

func (p *parser) checkListeners(s *Server) error {
	var errs []error
	for _, l := range []struct {
		flag  string
		urls  URLs
		tls   TLS
		files string
	}{
		{"listen-peer-urls", s.ListenPeerURLs, s.PeerTLS, "--peer-cert-file and --peer-key-file, or --peer-auto-tls"},
		{"listen-client-urls", s.ListenClientURLs, s.ClientTLS, "--cert-file and --key-file, or --auto-tls"},
		{"listen-client-http-urls", s.ListenClientHTTPURLs, s.ClientTLS, "--cert-file and --key-file, or --auto-tls"},
		{"listen-metrics-urls", s.ListenMetricsURLs, s.ClientTLS, ""},
	} {
		if len(l.urls) == 0 && l.files != "" && l.flag != "listen-client-http-urls" {
			errs = append(errs, fmt.Errorf("config: --%s is empty: give at least one address", l.flag))
		}
		certified := l.tls.Auto || l.tls.CertFile != "" && l.tls.KeyFile != ""
		for _, u := range l.urls {
			secure := u.Scheme == "https" || u.Scheme == "unixs"
			switch {
			case secure && !certified && l.files == "":
				// Scripts look for these words.
				errs = append(errs, fmt.Errorf("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url %q", u.String()))
			case secure && !certified:
				errs = append(errs, fmt.Errorf("config: --%s=%s needs a certificate: give %s", l.flag, u.String(), l.files))
			case !secure && certified && l.files != "":
				p.note(slog.LevelWarn, "--%s=%s is not encrypted although there is a certificate for it; write %s to use it", l.flag, u.String(), u.Scheme+"s://")
			}
			if host := u.Hostname(); u.Scheme[0] == 'h' && host != "localhost" && net.ParseIP(host) == nil {
				errs = append(errs, fmt.Errorf("config: --%s=%s: expected IP in URL for binding (%s): write a number or localhost; names belong in the advertised addresses",
					l.flag, u.String(), u.String()))
			}
		}
	}
	for _, a := range []struct {
		flag string
		urls URLs
	}{
		{"initial-advertise-peer-urls", s.InitialAdvertisePeerURLs},
		{"advertise-client-urls", s.AdvertiseClientURLs},
	} {
		for _, u := range a.urls {
			if u.Scheme[0] != 'h' {
				continue
			}
			if u.Hostname() == "" {
				errs = append(errs, fmt.Errorf("config: --%s=%s names no host: others could not reach it", a.flag, u.String()))
			} else if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsUnspecified() {
				p.note(slog.LevelWarn, "--%s=%s tells others to call themselves: name an address of this machine", a.flag, u.String())
			}
		}
	}
	return errors.Join(errs...)
}

func (s *Server) checkTLS() error {
	var errs []error
	for _, side := range []struct {
		prefix string // of the flags
		tls    TLS
	}{{"", s.ClientTLS}, {"peer-", s.PeerTLS}} {
		t := side.tls
		pair := func(cert, key, certFlag, keyFlag string) {
			if (cert == "") != (key == "") {
				errs = append(errs, fmt.Errorf("config: --%s and --%s need each other: give both or neither", side.prefix+certFlag, side.prefix+keyFlag))
			}
		}
		pair(t.CertFile, t.KeyFile, "cert-file", "key-file")
		pair(t.ClientCertFile, t.ClientKeyFile, "client-cert-file", "client-key-file")
		if len(t.AllowedCNs) > 0 && len(t.AllowedHostnames) > 0 {
			prefix := side.prefix
			if prefix == "" {
				prefix = "client-"
			}
			errs = append(errs, fmt.Errorf("config: --%scert-allowed-cn and --%[1]scert-allowed-hostname exclude each other: keep one", prefix))
		}
	}
	if s.TLSMax != 0 && s.TLSMin > s.TLSMax {
		errs = append(errs, fmt.Errorf("config: --tls-min-version=%v is above --tls-max-version=%v", s.TLSMin, s.TLSMax))
	}
	if s.TLSMin == tlsVersions["TLS1.3"] && len(s.CipherSuites) > 0 {
		errs = append(errs, errors.New("config: --cipher-suites cannot be chosen under --tls-min-version=TLS1.3, which has its own: drop one of the two"))
	}
	return errors.Join(errs...)
}

func (s *Server) checkLog() error {
	files := 0
	for _, out := range s.Log.Outputs {
		switch out {
		case "default", "stderr", "stdout", "systemd/journal":
		default:
			files++
		}
	}
	if s.Log.Rotate && (files != 1 || len(s.Log.Outputs) != 1) {
		return errors.New("config: --enable-log-rotation needs --log-outputs to name one file and nothing else")
	}
	return nil
}
