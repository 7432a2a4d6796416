package listen

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"

	"github.com/kvorum/kvorum/test/port"
)

// shared serves gRPC health checks and an HTTP handler on one port, in clear
// text and under TLS.
type shared struct {
	at   string
	auth *Credentials
	s    *Splitter
}

// serveShared gives callers so much time to say what they speak.
func serveShared(t *testing.T, timeout time.Duration) shared {
	t.Helper()
	auth := serverCredentials(t)
	at := port.Free(t)
	l, err := Listen(t.Context(), parseURLs(t, "http://"+at, "https://"+at), Options{Credentials: auth})
	must(t, err)
	s := &Splitter{from: l, timeout: timeout}
	s.start()

	g := grpc.NewServer()
	healthpb.RegisterHealthServer(g, health.NewServer())
	h := HTTPServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s tls=%t %s", r.Method, r.Proto, r.TLS != nil, body)
	}))
	var running sync.WaitGroup
	running.Go(func() { g.Serve(s.GRPC()) })
	running.Go(func() { h.Serve(s.HTTP()) })
	t.Cleanup(func() {
		s.Close()
		g.Stop()
		h.Close()
		running.Wait()
	})
	return shared{at, auth, s}
}

func (s shared) grpcClient(t *testing.T, secure bool) *grpc.ClientConn {
	t.Helper()
	creds := insecure.NewCredentials()
	if secure {
		creds = credentials.NewTLS(s.auth.Client())
	}
	cc, err := grpc.NewClient(s.at, grpc.WithTransportCredentials(creds))
	must(t, err)
	t.Cleanup(func() { cc.Close() })
	return cc
}

func TestAllProtocolsOnOnePort(t *testing.T) {
	s := serveShared(t, patience)
	for _, secure := range []bool{false, true} {
		scheme := "http"
		if secure {
			scheme = "https"
		}
		t.Run(scheme+"/grpc", func(t *testing.T) {
			cc := s.grpcClient(t, secure)
			for range 3 {
				answer, err := healthpb.NewHealthClient(cc).Check(t.Context(), &healthpb.HealthCheckRequest{})
				must(t, err)
				if answer.Status != healthpb.HealthCheckResponse_SERVING {
					t.Error(answer.Status)
				}
			}
		})
		for _, v := range []string{"HTTP/1.1", "HTTP/2.0"} {
			t.Run(scheme+"/"+v, func(t *testing.T) {
				transport := &http.Transport{TLSClientConfig: s.auth.Client(), Protocols: new(http.Protocols)}
				defer transport.CloseIdleConnections()
				transport.Protocols.SetHTTP1(v == "HTTP/1.1")
				transport.Protocols.SetHTTP2(v == "HTTP/2.0")
				transport.Protocols.SetUnencryptedHTTP2(v == "HTTP/2.0")
				if v == "HTTP/1.1" {
					transport.TLSClientConfig.NextProtos = nil
				}
				client := &http.Client{Transport: transport}
				for _, size := range []int{0, 200_000} { // the second needs window updates
					resp, err := client.Post(scheme+"://"+s.at+"/v3/kv/range", "application/json", strings.NewReader(strings.Repeat("x", size)))
					must(t, err)
					body, err := io.ReadAll(resp.Body)
					must(t, err)
					resp.Body.Close()
					want := fmt.Sprintf("POST %s tls=%t %s", v, secure, strings.Repeat("x", size))
					if string(body) != want {
						t.Errorf("got %.60q, want %.60q", body, want)
					}
				}
			})
		}
	}
}

// Clients connect to every member ahead of need, and may ask nothing for
// hours; they still expect to be answered when they ping.
func TestIdleCallerMayStayAndPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := bufconn.Listen(64 << 10)
		s := Split(l)
		g := grpc.NewServer()
		healthpb.RegisterHealthServer(g, health.NewServer())
		var running sync.WaitGroup
		running.Go(func() { g.Serve(s.GRPC()) })
		defer running.Wait()
		defer g.Stop()
		defer s.Close()

		dial := func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }
		cc, err := grpc.NewClient("passthrough:///idle", grpc.WithContextDialer(dial),
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithIdleTimeout(0))
		must(t, err)
		defer cc.Close()
		cc.Connect()
		synctest.Wait()
		if state := cc.GetState(); state != connectivity.Ready {
			t.Fatalf("client is %v", state)
		}

		c, err := l.DialContext(t.Context())
		must(t, err)
		defer c.Close()
		fr := http2.NewFramer(c, c)
		io.WriteString(c, http2.ClientPreface)
		must(t, fr.WriteSettings())
		want := func(kind http2.FrameType) http2.Frame {
			t.Helper()
			f, err := fr.ReadFrame()
			must(t, err)
			if f.Header().Type != kind {
				t.Fatalf("got %v, want %v", f, kind)
			}
			return f
		}
		want(http2.FrameSettings)
		must(t, fr.WriteSettingsAck())
		for i := range 3 {
			time.Sleep(time.Hour) // of the bubble: this caller owes nothing
			must(t, fr.WritePing(false, [8]byte{byte(i)}))
			if f := want(http2.FramePing).(*http2.PingFrame); !f.IsAck() || f.Data[0] != byte(i) {
				t.Fatalf("got %v", f)
			}
		}

		if state := cc.GetState(); state != connectivity.Ready {
			t.Errorf("after hours the client is %v", state)
		}
		answer, err := healthpb.NewHealthClient(cc).Check(t.Context(), &healthpb.HealthCheckRequest{})
		must(t, err)
		if answer.Status != healthpb.HealthCheckResponse_SERVING {
			t.Error(answer.Status)
		}
	})
}

func TestSlowCallersAreCutOff(t *testing.T) {
	s := serveShared(t, 50*time.Millisecond)
	for name, text := range map[string]string{
		"silent":             "",
		"half a preface":     http2.ClientPreface[:10],
		"no settings":        http2.ClientPreface,
		"half a frame":       http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00",
		"half a header list": http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", s.at)
			must(t, err)
			defer c.Close()
			// The first byte comes at once, or the listener beneath would be
			// waiting, for longer than this test.
			io.WriteString(c, text)
			if text == "" {
				c.(*net.TCPConn).CloseWrite()
			}
			c.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("stayed")
			}
		})
	}
}

func TestGarbageGoesToHTTP(t *testing.T) {
	s := serveShared(t, patience)
	for _, text := range []string{"\x00\x01\x02\x03 is no request\r\n\r\n", "PRIMA HTTP/1.1\r\n\r\n", "nonsense and more of it\r\n\r\n"} {
		c, err := net.Dial("tcp", s.at)
		must(t, err)
		io.WriteString(c, text)
		c.SetReadDeadline(time.Now().Add(patience))
		got, err := io.ReadAll(c)
		if errors.Is(err, os.ErrDeadlineExceeded) || !bytes.Contains(got, []byte("400 Bad Request")) {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
		c.Close()
	}
}

func TestChurnLeavesNothingBehind(t *testing.T) {
	s := serveShared(t, patience)
	config := s.auth.Client()
	var running sync.WaitGroup
	for worker := range 4 {
		running.Go(func() {
			for i := range 250 {
				c, err := net.Dial("tcp", s.at)
				if err != nil {
					t.Error(err)
					return
				}
				switch (worker + i) % 5 {
				case 0: // leaves at once
				case 1:
					io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
					io.Copy(io.Discard, c)
				case 2:
					io.WriteString(c, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
				case 3:
					tls.Client(c, config).Handshake()
				case 4:
					io.WriteString(c, "\x16\x03")
				}
				c.Close()
			}
		})
	}
	running.Wait()
}

// Nobody accepts, callers wait at every stage, and Close still ends all.
func TestSplitterCloseEndsWhatIsUnderWay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := Split(l)
	for _, text := range []string{"", "PRI", "GET / HTTP/1.1\r\n\r\n", http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"} {
		c, err := net.Dial("tcp", s.GRPC().Addr().String())
		must(t, err)
		defer c.Close()
		io.WriteString(c, text)
	}
	s.Close()
	for _, side := range []net.Listener{s.GRPC(), s.HTTP()} {
		if _, err := side.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
}

// Callers who were greeted, and who ask while nobody serves them any more, or
// not at all, are told that nothing was made of what they asked.
func TestCallersAreTurnedAwayPolitely(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := Split(l)
	defer s.Close()
	var callers []*http2.Framer
	for range 2 {
		c, err := net.Dial("tcp", l.Addr().String())
		must(t, err)
		defer c.Close()
		must(t, c.SetDeadline(time.Now().Add(patience)))
		io.WriteString(c, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		fr := http2.NewFramer(c, c)
		if f, err := fr.ReadFrame(); err != nil || f.Header().Type != http2.FrameSettings {
			t.Fatalf("got %v, %v, want settings", f, err)
		}
		callers = append(callers, fr)
	}
	wantGoAway := func(fr *http2.Framer) {
		t.Helper()
		f, err := fr.ReadFrame()
		if away, ok := f.(*http2.GoAwayFrame); !ok || away.LastStreamID != 0 || away.ErrCode != http2.ErrCodeNo {
			t.Errorf("got %v, %v, want a farewell in peace", f, err)
		}
	}

	s.GRPC().Close()
	must(t, callers[0].WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block("application/grpc"), EndHeaders: true}))
	wantGoAway(callers[0])
	s.HTTP().Close()
	wantGoAway(callers[1])
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the listener is open without anybody to serve")
	}
}

func TestMembersAreToldFromHTTPByTheirFirstByte(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := SplitMembers(l, 0x8b)
	h := HTTPServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	var running sync.WaitGroup
	running.Go(func() { h.Serve(s.HTTP()) })
	defer running.Wait()
	defer h.Close()
	defer s.Close()

	answer, err := http.Get("http://" + l.Addr().String())
	must(t, err)
	defer answer.Body.Close()
	if body, _ := io.ReadAll(answer.Body); string(body) != "hello" {
		t.Errorf("HTTP got %q", body)
	}

	c, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	defer c.Close()
	_, err = c.Write([]byte("\x8bmember"))
	must(t, err)
	in, err := s.Members().Accept()
	must(t, err)
	defer in.Close()
	b := make([]byte, 7)
	if _, err := io.ReadFull(in, b); err != nil || string(b) != "\x8bmember" {
		t.Errorf("the member's side got %q, %v", b, err)
	}
}
