// Package gateway answers HTTP and JSON by asking the gRPC services. It knows
// no service of its own: every call goes over a connection it is handed, so
// that limits, permissions and metrics are those of gRPC. What is its own is
// the shape of the JSON and of the errors, which scripts compare as text.
package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/internal/electionpb"
	"github.com/kvorum/kvorum/internal/lockpb"
)

// New returns the handler of all paths below /v3/. It reads at most
// bodyBytesMax of a request, or of each message if that is a WebSocket.
func New(conn grpc.ClientConnInterface, bodyBytesMax int64) (http.Handler, error) {
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &marshaler{JSONPb: runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
			UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true},
		}}),
		runtime.WithErrorHandler(refuse),
	)
	// The context ends streams of handlers that outlive the mux; ours end with
	// the requests that opened them.
	ctx := context.Background()
	for _, err := range []error{
		gw.RegisterKVHandlerClient(ctx, mux, pb.NewKVClient(conn)),
		gw.RegisterWatchHandlerClient(ctx, mux, pb.NewWatchClient(conn)),
		gw.RegisterLeaseHandlerClient(ctx, mux, pb.NewLeaseClient(conn)),
		gw.RegisterClusterHandlerClient(ctx, mux, pb.NewClusterClient(conn)),
		gw.RegisterMaintenanceHandlerClient(ctx, mux, pb.NewMaintenanceClient(conn)),
		gw.RegisterAuthHandlerClient(ctx, mux, pb.NewAuthClient(conn)),
		lockpb.RegisterLockHandlerClient(ctx, mux, lockpb.NewLockClient(conn)),
		electionpb.RegisterElectionHandlerClient(ctx, mux, electionpb.NewElectionClient(conn)),
	} {
		if err != nil {
			return nil, err
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if upgrades(r) {
			serveSocket(w, r, bodyBytesMax, mux)
			return
		}
		r.Body = limited{http.MaxBytesReader(w, r.Body, bodyBytesMax)}
		mux.ServeHTTP(w, r)
	}), nil
}

// limited names an oversized body by the text that gRPC clients get for an
// oversized request.
type limited struct{ io.ReadCloser }

func (l limited) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	var over *http.MaxBytesError
	if errors.As(err, &over) {
		err = fault.RequestTooLarge
	}
	return n, err
}

// refusal is the body of an error. Servers up to 3.5 sent "error" too and
// clients read it to this day; later ones send the rest.
type refusal struct {
	Error   string `json:"error"`
	Code    uint32 `json:"code"`
	Message string `json:"message"`
}

func refuse(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
	var direct *runtime.HTTPStatusError
	code := 0
	if errors.As(err, &direct) {
		code, err = direct.HTTPStatus, direct.Err
	}
	s := status.Convert(err)
	if code == 0 {
		code = runtime.HTTPStatusFromCode(s.Code())
	}
	w.Header().Del("Trailer")
	w.Header().Del("Transfer-Encoding")
	w.Header().Set("Content-Type", "application/json")
	if s.Code() == codes.Unauthenticated {
		w.Header().Set("WWW-Authenticate", s.Message())
	}
	w.WriteHeader(code)
	// A client that hung up does not read its error.
	_, _ = w.Write(compact(refusal{Error: s.Message(), Code: uint32(s.Code()), Message: s.Message()}))
}

// compact encodes v without the escapes that encoding/json adds for browsers.
func compact(v refusal) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("gateway: strings and numbers always encode: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// marshaler takes the white space out of protojson's output, which varies
// from build to build so that nobody relies on it: people do.
type marshaler struct{ runtime.JSONPb }

func (m *marshaler) Marshal(v any) ([]byte, error) {
	loose, err := m.JSONPb.Marshal(v)
	if err != nil {
		return nil, err
	}
	var tight bytes.Buffer
	tight.Grow(len(loose))
	if err := json.Compact(&tight, loose); err != nil {
		return nil, err
	}
	return tight.Bytes(), nil
}

func (m *marshaler) NewEncoder(w io.Writer) runtime.Encoder {
	return runtime.EncoderFunc(func(v any) error {
		b, err := m.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(append(b, '\n'))
		return err
	})
}

// Canonical maps the path that clients of 3.3 use to today's.
func Canonical(path string) string {
	if rest, old := strings.CutPrefix(path, "/v3beta/"); old {
		return "/v3/" + rest
	}
	return path
}
