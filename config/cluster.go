package config

import (
	"context"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// DefaultToken is the --initial-cluster-token of those who did not choose one.
const DefaultToken = "etcd-cluster"

// Seed is one member of a cluster that is about to be formed.
type Seed struct {
	Name     string
	PeerURLs []string // sorted
}

// InitialCluster lists the members that form a cluster, sorted by name.
type InitialCluster []Seed

// ParseInitialCluster reads name=URL,name=URL. A name may come several times,
// an address once.
func ParseInitialCluster(text string) (InitialCluster, error) {
	var c InitialCluster
	owners := make(map[string]string)
	for pair := range strings.SplitSeq(text, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, address, ok := strings.Cut(pair, "=")
		if name = strings.TrimSpace(name); !ok || name == "" {
			return nil, fmt.Errorf("%q: want name=URL", pair)
		}
		urls, err := ParseURLs([]string{address})
		if err != nil {
			return nil, err
		}
		if len(urls) == 0 {
			return nil, fmt.Errorf("%q: want name=URL", pair)
		}
		peer := urls[0].String()
		if owner, taken := owners[peer]; taken {
			return nil, fmt.Errorf("%s is given to %s and again to %s", peer, owner, name)
		}
		owners[peer] = name
		if i := slices.IndexFunc(c, func(s Seed) bool { return s.Name == name }); i >= 0 {
			c[i].PeerURLs = append(c[i].PeerURLs, peer)
			slices.Sort(c[i].PeerURLs)
		} else {
			c = append(c, Seed{name, []string{peer}})
		}
	}
	slices.SortFunc(c, func(a, b Seed) int { return strings.Compare(a.Name, b.Name) })
	return c, nil
}

func initialCluster(field *InitialCluster) value {
	return of(field, ParseInitialCluster, func(c InitialCluster) any { return c.String() })
}

// String returns the list as ParseInitialCluster reads it.
func (c InitialCluster) String() string {
	var parts []string
	for _, seed := range c {
		for _, peer := range seed.PeerURLs {
			parts = append(parts, seed.Name+"="+peer)
		}
	}
	return strings.Join(parts, ",")
}

// Seed returns the member called name.
func (c InitialCluster) Seed(name string) (Seed, bool) {
	for _, seed := range c {
		if seed.Name == name {
			return seed, true
		}
	}
	return Seed{}, false
}

// MemberID returns the identity that the seed has in a cluster formed under
// token.
func (s Seed) MemberID(token string) uint64 { return MemberID(s.PeerURLs, token) }

// ClusterID returns the identity of the cluster that these members form under
// token.
func (c InitialCluster) ClusterID(token string) uint64 {
	var members []uint64
	for _, seed := range c {
		members = append(members, seed.MemberID(token))
	}
	return ClusterID(members)
}

// MemberID computes a founding member's identity as etcd does, so that both
// give the same member the same number: the first eight bytes of SHA-1 over
// its sorted addresses and the token.
func MemberID(peerURLs []string, token string) uint64 {
	sum := sha1.Sum([]byte(strings.Join(slices.Sorted(slices.Values(peerURLs)), "") + token))
	return binary.BigEndian.Uint64(sum[:])
}

// ClusterID computes the identity of the cluster that members found, as etcd
// does: the first eight bytes of SHA-1 over their sorted identities.
func ClusterID(members []uint64) uint64 {
	var b []byte
	for _, id := range slices.Sorted(slices.Values(members)) {
		b = binary.BigEndian.AppendUint64(b, id)
	}
	sum := sha1.Sum(b)
	return binary.BigEndian.Uint64(sum[:])
}

// CheckBootstrap tells whether a member without data can take its place in the
// initial cluster. A member with data must not ask: its data knows better. It
// may look up host names, as names and numbers of one address count as equal.
func (s *Server) CheckBootstrap(ctx context.Context) error {
	seed, ok := s.InitialCluster.Seed(s.Name)
	if !ok {
		var names []string
		for _, seed := range s.InitialCluster {
			names = append(names, seed.Name)
		}
		return fmt.Errorf("config: --name=%s is not in --initial-cluster, which holds %s", s.Name, strings.Join(names, ", "))
	}
	advertised := s.InitialAdvertisePeerURLs.Strings()
	if slices.Equal(seed.PeerURLs, advertised) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if slices.Equal(resolved(ctx, seed.PeerURLs), resolved(ctx, advertised)) {
		return nil
	}
	return fmt.Errorf("config: --initial-cluster says that %s is at %s, but --initial-advertise-peer-urls says %s: make both the same",
		s.Name, strings.Join(seed.PeerURLs, ","), strings.Join(advertised, ","))
}

// resolved puts numbers for host names where they are known, and sorts.
func resolved(ctx context.Context, addresses []string) []string {
	var all []string
	for _, address := range addresses {
		if u, err := url.Parse(address); err == nil {
			if ips, err := net.DefaultResolver.LookupHost(ctx, u.Hostname()); err == nil && len(ips) > 0 {
				u.Host = net.JoinHostPort(slices.Min(ips), u.Port())
			}
			address = u.String()
		}
		all = append(all, address)
	}
	slices.Sort(all)
	return all
}
