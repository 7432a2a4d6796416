package ctl

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// explain gives a request's error its exit code and, where somebody can do
// something about it, the remedy.
func (a *app) explain(ctx context.Context, cfg clientv3.Config, err error) *failure {
	f := &failure{code: exitError, err: err}
	if ctx.Err() != nil {
		f.code = exitInterrupted
		return f
	}
	switch {
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		f.code = exitPermission
		f.hint = fmt.Sprintf("User %q may not do this. Ask an administrator to grant the permission, or log in as another with --user.", userOf(cfg))
	case errors.Is(err, rpctypes.ErrUserEmpty):
		f.code = exitPermission
		f.hint = "The server wants to know who is asking: add --user NAME."
	case errors.Is(err, rpctypes.ErrAuthFailed):
		f.code = exitPermission
		f.hint = fmt.Sprintf("Check the name and password of user %q.", userOf(cfg))
	case errors.Is(err, rpctypes.ErrNoSpace):
		f.hint = noSpaceHint
	case errors.Is(err, rpctypes.ErrCompacted):
		f.hint = "That revision is no longer kept. Leave --rev out, or ask for a younger one."
	case errors.Is(err, rpctypes.ErrTooManyOps):
		f.hint = "Split the transaction, or start the servers with a larger --max-txn-ops."
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		f.hint = "Store less under one key, or start the servers with a larger --max-request-bytes."
	case errors.Is(err, rpctypes.ErrNoLeader), errors.Is(err, rpctypes.ErrTimeout), errors.Is(err, rpctypes.ErrUnhealthy):
		f.hint = "The cluster has no quorum at the moment. See who is missing: {{program}} endpoint status --cluster -w table"
	case status.Code(err) == codes.Unimplemented && strings.Contains(err.Error(), "unexpected HTTP status code"):
		f.hint = "What answers there serves no clients. A member has a port for them, 2379 unless it was told another, and one for other members."
	case noAnswer(err):
		return a.explainSilence(ctx, cfg, f)
	}
	return f
}

const noSpaceHint = `The store has reached its quota, and only reads and deletes are let through. To free space:
  {{program}} del KEY...                      # drop what is not needed
  rev=$({{program}} get x -w fields | sed -n 's/"Revision" : //p')
  {{program}} compaction --physical "$rev"    # forget the old versions
  {{program}} defrag --cluster                # give their space back
  {{program}} alarm disarm                    # accept writes again
Or start the servers with a larger --quota-backend-bytes, and disarm.`

func userOf(cfg clientv3.Config) string { return cfg.Username }

// noAnswer says whether a request ended without a word from any server.
func noAnswer(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, clientv3.ErrNoAvailableEndpoints) {
		return true
	}
	code := status.Code(err)
	return code == codes.DeadlineExceeded || code == codes.Unavailable
}

// explainSilence knocks at each endpoint to learn why none answered.
func (a *app) explainSilence(ctx context.Context, cfg clientv3.Config, f *failure) *failure {
	var hints []string
	reached := false
	for _, endpoint := range cfg.Endpoints {
		hint, open := knock(ctx, endpoint, cfg.TLS, knockTime)
		if hint == "" {
			hint = fmt.Sprintf("%s takes connections but did not answer within %v. It may be overloaded, or without a leader: "+
				"try {{program}} endpoint status, or a longer --command-timeout.", endpoint, a.commandTimeout)
		}
		reached = reached || open
		hints = append(hints, hint)
	}
	if !reached {
		f.code = exitBadConnection
	}
	f.hint = strings.Join(hints, "\n")
	return f
}

// knockTime bounds each step of a knock: the request has failed already, and
// its user waits.
const knockTime = time.Second

// knock connects to an endpoint as the client would. It returns what stands in
// the way, if anything, and whether a gRPC client could get through. Each step
// may take as long as patience.
func knock(ctx context.Context, endpoint string, config *tls.Config, patience time.Duration) (hint string, open bool) {
	network, address, secure := target(endpoint)
	dialer := net.Dialer{Timeout: patience}
	conn, err := dialer.DialContext(ctx, network, address)
	if misspelt := (*net.AddrError)(nil); errors.As(err, &misspelt) {
		return fmt.Sprintf("%s is no address of a server: write HOST:PORT, http://HOST:PORT or https://HOST:PORT.", endpoint), false
	}
	if err != nil {
		return fmt.Sprintf("Cannot connect to %s: %v. Is the server running there? Name another with --endpoints.", endpoint, reason(err)), false
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", true
	}

	if secure || config != nil && !strings.HasPrefix(endpoint, "http://") && network == "tcp" {
		return knockTLS(ctx, endpoint, address, conn, config)
	}
	// Plain text was spoken. A server that completes a handshake, or refuses
	// it in TLS's own words, wanted TLS.
	server := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) // nothing is sent
	if err := server.HandshakeContext(ctx); err == nil || isAlert(err) {
		return fmt.Sprintf("The server at %s speaks TLS: use --endpoints=https://%s and add --cacert FILE (and --cert, --key if it asks for a client certificate).", endpoint, address), false
	}
	return "", true
}

func knockTLS(ctx context.Context, endpoint, address string, conn net.Conn, config *tls.Config) (string, bool) {
	if config == nil {
		config = &tls.Config{}
	}
	config = config.Clone()
	config.NextProtos = []string{"h2"}
	if config.ServerName == "" {
		if host, _, err := net.SplitHostPort(address); err == nil {
			config.ServerName = host
		}
	}
	client := tls.Client(conn, config)
	err := client.HandshakeContext(ctx)
	if err == nil {
		// With TLS 1.3 the verdict on the client's certificate comes only after
		// the handshake; a server content with it says hello or nothing.
		_, err = client.Read(make([]byte, 1))
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			err = nil
		}
	}
	var (
		plain     tls.RecordHeaderError
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
	)
	switch {
	case err == nil:
		return "", true
	case errors.As(err, &plain), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		// A plain HTTP/2 server hangs up on what looks like no preface to it.
		return fmt.Sprintf("The server at %s does not speak TLS: use http://%s and leave out --cacert, --cert and --key.", endpoint, address), false
	case errors.As(err, &authority):
		return fmt.Sprintf("The certificate of %s is signed by an authority unknown here: add --cacert FILE with that authority.", endpoint), false
	case errors.As(err, &name):
		return fmt.Sprintf("The certificate of %s is for other names (%v): use one of them in --endpoints.", endpoint, name), false
	case errors.As(err, &invalid):
		return fmt.Sprintf("The certificate of %s is not valid: %v.", endpoint, invalid), false
	case isAlert(err):
		return fmt.Sprintf("The server at %s refused the TLS handshake (%v): it probably wants a client certificate, add --cert FILE --key FILE.", endpoint, reason(err)), false
	}
	return fmt.Sprintf("The TLS handshake with %s failed: %v.", endpoint, err), false
}

// isAlert says whether the other side answered in TLS's own words. The type of
// an alert is not exported; the operation it is wrapped in is its mark.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// target splits an endpoint into what to dial and whether TLS is spoken there.
func target(endpoint string) (network, address string, secure bool) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" && u.Path == "" {
		return "tcp", endpoint, false
	}
	switch u.Scheme {
	case "unix", "unixs":
		return "unix", u.Host + u.Path, u.Scheme == "unixs"
	case "http", "https":
		return "tcp", u.Host, u.Scheme == "https"
	}
	return "tcp", endpoint, false
}

// reason is the innermost cause of a dial's error: "connection refused".
func reason(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
