package config

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// LookupSRV finds the initial cluster in the SRV records of the domain that
// --discovery-srv names. This member is the one whose advertised address a
// record leads to; the others are numbered, since records hold no names.
// Records of members under TLS count first: where they have this one, those in
// clear text are not looked at.
func (s *Server) LookupSRV(ctx context.Context, resolver *net.Resolver) (InitialCluster, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var errs error
	for _, kind := range []struct{ service, scheme string }{{"etcd-server-ssl", "https"}, {"etcd-server", "http"}} {
		service := kind.service
		if s.Discovery.SRVName != "" {
			service += "-" + s.Discovery.SRVName
		}
		_, records, err := resolver.LookupSRV(ctx, service, "tcp", s.Discovery.SRV)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("config: error querying DNS SRV records for _%s %w", service, err))
			continue
		}
		c, err := s.matchSRV(ctx, resolver, records, kind.scheme, service)
		if err == nil {
			return c, nil
		}
		errs = errors.Join(errs, err)
	}
	return nil, errs
}

// matchSRV makes members of records, of which one must be this one.
func (s *Server) matchSRV(ctx context.Context, resolver *net.Resolver, records []*net.SRV, scheme, service string) (InitialCluster, error) {
	// DNS answers in any order.
	slices.SortFunc(records, func(a, b *net.SRV) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Port, b.Port))
	})
	found, others := false, 0
	var pairs []string
	for _, r := range records {
		target := url.URL{Scheme: scheme, Host: net.JoinHostPort(strings.TrimSuffix(r.Target, "."), strconv.Itoa(int(r.Port)))}
		name := s.Name
		if own, ok := s.advertises(ctx, resolver, target); !ok {
			name = strconv.Itoa(others)
			others++
		} else if own.Scheme != scheme {
			return nil, fmt.Errorf("config: bootstrap at %s from DNS for %s has scheme mismatch with expected peer %s", target.String(), service, own.String())
		} else {
			found = true
		}
		pairs = append(pairs, name+"="+target.String())
	}
	if !found {
		return nil, fmt.Errorf("config: cannot find local etcd member %q in SRV records: none of _%s._tcp.%s leads to %s, which --initial-advertise-peer-urls changes",
			s.Name, service, s.Discovery.SRV, s.InitialAdvertisePeerURLs)
	}
	return ParseInitialCluster(strings.Join(pairs, ","))
}

// advertises tells which of this member's own addresses target leads to.
func (s *Server) advertises(ctx context.Context, resolver *net.Resolver, target url.URL) (own url.URL, ok bool) {
	for _, own := range s.InitialAdvertisePeerURLs {
		if own.Port() != target.Port() {
			continue
		}
		if strings.EqualFold(own.Hostname(), target.Hostname()) {
			return own, true
		}
		theirs, err := resolver.LookupHost(ctx, target.Hostname())
		if err != nil {
			continue // one that is not up yet
		}
		ours, err := resolver.LookupHost(ctx, own.Hostname())
		if err == nil && slices.ContainsFunc(ours, func(ip string) bool { return slices.Contains(theirs, ip) }) {
			return own, true
		}
	}
	return own, false
}
