package listen

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvorum/kvorum/test/leak"
	"github.com/kvorum/kvorum/test/port"
)

func TestMain(m *testing.M) { leak.Main(m) }

// serverCredentials ask nothing of callers.
func serverCredentials(t *testing.T) *Credentials {
	t.Helper()
	c, err := TLS{AutoDir: t.TempDir(), AutoHosts: []string{"localhost", "127.0.0.1"}}.Load()
	must(t, err)
	return c
}

// hello accepts callers and greets them until the listener is closed.
func hello(t *testing.T, l *Listener) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, secure := ConnectionState(c)
			fmt.Fprintf(c, "hello secure=%t", secure)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

func TestPlainAndSecureOnOnePort(t *testing.T) {
	c := serverCredentials(t)
	at := port.Free(t)
	l, err := Listen(t.Context(), parseURLs(t, "http://"+at, "https://"+at), Options{Credentials: c})
	must(t, err)
	if n := len(l.Addrs()); n != 1 {
		t.Fatalf("%d sockets for one address", n)
	}
	hello(t, l)

	secure, err := c.Dial(t.Context(), "tcp", at)
	must(t, err)
	if got, _ := io.ReadAll(secure); string(got) != "hello secure=true" {
		t.Errorf("got %q", got)
	}
	secure.Close()
	plain, err := net.Dial("tcp", at)
	must(t, err)
	plain.Write([]byte("G"))
	if got, _ := io.ReadAll(plain); string(got) != "hello secure=false" {
		t.Errorf("got %q", got)
	}
	plain.Close()
}

func TestUnixAddresses(t *testing.T) {
	t.Chdir(t.TempDir())
	c := serverCredentials(t)
	absolute := filepath.Join(t.TempDir(), "s")
	l, err := Listen(t.Context(), parseURLs(t, "unix://localhost:20000", "unixs://"+absolute), Options{Credentials: c})
	must(t, err)
	hello(t, l)

	plain, err := net.Dial("unix", "localhost:20000")
	must(t, err)
	if got, _ := io.ReadAll(plain); string(got) != "hello secure=false" {
		t.Errorf("got %q", got)
	}
	plain.Close()
	secure, err := c.Dial(t.Context(), "unix", absolute)
	must(t, err)
	if got, _ := io.ReadAll(secure); string(got) != "hello secure=true" {
		t.Errorf("got %q", got)
	}
	secure.Close()

	if _, err := Listen(t.Context(), parseURLs(t, "unix://localhost:20000"), Options{}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a socket that is answered was taken over: %v", err)
	}
	must(t, os.WriteFile("file", nil, 0o600))
	if _, err := Listen(t.Context(), parseURLs(t, "unix://file"), Options{}); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file was taken for a socket: %v", err)
	}
}

func TestSocketOfAKilledProcessIsReplaced(t *testing.T) {
	t.Chdir(t.TempDir())
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: "s", Net: "unix"})
	must(t, err)
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := Listen(t.Context(), parseURLs(t, "unix://s"), Options{})
	must(t, err)
	hello(t, l)
}

func TestPortInUseNamesTheHolder(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	at := taken.Addr().String()
	_, err = Listen(t.Context(), parseURLs(t, "http://"+at), Options{})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), at+" is in use") {
		t.Fatalf("got %v", err)
	}
	if runtime.GOOS == "linux" && !strings.Contains(err.Error(), fmt.Sprintf("by pid %d (listen.test)", os.Getpid())) {
		t.Errorf("the holder is not named: %v", err)
	}
}

func TestReusePort(t *testing.T) {
	first, err := Listen(t.Context(), parseURLs(t, "http://127.0.0.1:0"), Options{ReusePort: true, ReuseAddress: true})
	must(t, err)
	defer first.Close()
	second, err := Listen(t.Context(), parseURLs(t, "http://"+first.Addr().String()), Options{ReusePort: true})
	must(t, err)
	second.Close()
}

// silent lets a listener with so much time for handshakes be called, by many
// who say nothing.
func silent(t *testing.T, c *Credentials, timeout time.Duration) (callers []net.Conn, at string, why *reasons) {
	t.Helper()
	why = &reasons{heard: make(chan error, 100)}
	l, err := Listen(t.Context(), parseURLs(t, "https://127.0.0.1:0"), Options{Credentials: c, Rejected: why.add, HandshakeTimeout: timeout})
	must(t, err)
	hello(t, l)
	at = l.Addr().String()
	for range 20 {
		s, err := net.Dial("tcp", at)
		must(t, err)
		t.Cleanup(func() { s.Close() })
		callers = append(callers, s)
	}
	return callers, at, why
}

func TestSilentCallersDelayNobody(t *testing.T) {
	c := serverCredentials(t)
	_, at, why := silent(t, c, patience)
	good, err := c.Dial(t.Context(), "tcp", at)
	must(t, err)
	if _, err := io.ReadAll(good); err != nil {
		t.Error(err)
	}
	good.Close()
	if n := len(why.heard); n > 0 {
		t.Errorf("waited until %d silent callers were cut off", n)
	}
}

func TestSilentCallersAreCutOff(t *testing.T) {
	callers, _, why := silent(t, serverCredentials(t), 50*time.Millisecond)
	for _, s := range callers {
		s.SetReadDeadline(time.Now().Add(patience))
		if _, err := s.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a silent caller stayed")
		}
		why.want(t, "context deadline exceeded")
	}
}

func TestOneAddressCannotTakeAllHandshakes(t *testing.T) {
	c := serverCredentials(t)
	why := &reasons{heard: make(chan error, 100)}
	l, err := Listen(t.Context(), parseURLs(t, "https://127.0.0.1:0"), Options{Credentials: c, Rejected: why.add, PendingMax: 4})
	must(t, err)
	hello(t, l)
	for range 3 {
		s, err := net.Dial("tcp", l.Addr().String())
		must(t, err)
		defer s.Close()
	}
	why.want(t, "too many handshakes")
	elsewhere := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}, Config: c.Client()}
	good, err := elsewhere.DialContext(t.Context(), "tcp", l.Addr().String())
	must(t, err)
	good.Close()
}

func TestPlainRequestOnSecurePortIsToldSo(t *testing.T) {
	why := &reasons{heard: make(chan error, 100)}
	l, err := Listen(t.Context(), parseURLs(t, "https://127.0.0.1:0"), Options{Credentials: serverCredentials(t), Rejected: why.add})
	must(t, err)
	hello(t, l)
	resp, err := http.Get("http://" + l.Addr().String())
	must(t, err)
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "speaks https") {
		t.Errorf("got %s %q", resp.Status, body)
	}
	why.want(t, "first record does not look like a TLS handshake")
	http.DefaultClient.CloseIdleConnections()
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	l, err := Listen(t.Context(), parseURLs(t, "https://127.0.0.1:0", "http://127.0.0.1:0"), Options{Credentials: serverCredentials(t)})
	must(t, err)
	for _, a := range l.Addrs() { // nobody accepts
		c, err := net.Dial("tcp", a.String())
		must(t, err)
		defer c.Close()
	}
	must(t, l.Close())
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
