package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// SRV finds endpoints in the SRV records of a domain.
type SRV struct {
	Domain   string
	Name     string        // of the service, behind etcd-client and a dash; default none
	Insecure bool          // take also those that do not speak TLS
	Resolver *net.Resolver // default the system's
}

// Lookup returns the endpoints that the records name, those with TLS first.
func (s SRV) Lookup(ctx context.Context) (endpoints []string, err error) {
	resolver := s.Resolver
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	kinds := []struct{ service, scheme string }{{"etcd-client-ssl", "https"}}
	if s.Insecure {
		kinds = append(kinds, struct{ service, scheme string }{"etcd-client", "http"})
	}
	var errs []error
	for _, kind := range kinds {
		service := kind.service
		if s.Name != "" {
			service += "-" + s.Name
		}
		_, records, err := resolver.LookupSRV(ctx, service, "tcp", s.Domain)
		if err != nil {
			errs = append(errs, fmt.Errorf("query DNS for _%s._tcp.%s: %w", service, s.Domain, err))
			continue
		}
		for _, r := range records {
			host := net.JoinHostPort(strings.TrimSuffix(r.Target, "."), strconv.Itoa(int(r.Port)))
			endpoints = append(endpoints, kind.scheme+"://"+host)
		}
	}
	if len(endpoints) == 0 {
		return nil, errors.Join(errs...)
	}
	return endpoints, nil
}
