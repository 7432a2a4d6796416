package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/kvorum/kvorum/listen"
)

// Dialer connects to a TLS server that is to speak a protocol, named as in ALPN.
type Dialer func(ctx context.Context, network, address, protocol string) (net.Conn, error)

// addresses turns endpoints into addresses, each once. Those without a scheme
// speak TLS if the proxy can.
func addresses(endpoints []string, secure bool) (all []string, err error) {
	for _, endpoint := range endpoints {
		endpoint = strings.TrimSpace(endpoint)
		switch {
		case strings.HasPrefix(endpoint, "unix:"), strings.HasPrefix(endpoint, "unixs:"), strings.Contains(endpoint, "://"):
		case secure:
			endpoint = "https://" + endpoint
		default:
			endpoint = "http://" + endpoint
		}
		u, err := url.Parse(endpoint)
		if err == nil && u.Opaque != "" { // unix:name
			u = &url.URL{Scheme: u.Scheme, Host: u.Opaque}
		}
		if err == nil {
			_, _, _, err = listen.Address(*u)
		}
		if err == nil && u.Host == "" && u.Path == "" {
			err = errors.New("no host is named")
		}
		if err == nil && strings.HasPrefix(u.Scheme, "http") && u.Port() == "" {
			err = errors.New("no port is named: clients are served on 2379 as a rule")
		}
		if err != nil {
			return nil, fmt.Errorf("endpoint %q: %w", endpoint, err)
		}
		address := u.Scheme + "://" + u.Host
		if strings.HasPrefix(u.Scheme, "unix") {
			address += u.Path
		}
		if !slices.Contains(all, address) {
			all = append(all, address)
		}
	}
	return all, nil
}

func dial(ctx context.Context, address, protocol string, secured Dialer) (net.Conn, error) {
	return listen.Dial(ctx, address, func(ctx context.Context, network, name string) (net.Conn, error) {
		if secured == nil {
			return nil, fmt.Errorf("%s speaks TLS: --cacert names the authority to trust", address)
		}
		return secured(ctx, network, name, protocol)
	})
}
