package node

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/kvorum/kvorum/listen"
)

// handshaken tells the gRPC server of a TLS handshake that listen has already made,
// so that handlers find the client's certificate in their peer.
type handshaken struct{}

func (handshaken) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	state, encrypted := listen.ConnectionState(conn)
	if !encrypted {
		return conn, nil, nil
	}
	return conn, credentials.TLSInfo{
		State:          state,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

func (handshaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("node: these credentials serve, they do not dial")
}

func (handshaken) Info() credentials.ProtocolInfo            { return credentials.ProtocolInfo{} }
func (h handshaken) Clone() credentials.TransportCredentials { return h }
func (handshaken) OverrideServerName(string) error           { return nil }
