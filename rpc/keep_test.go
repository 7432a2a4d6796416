package rpc_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/rpc"
)

func TestGracefulStopLetsCallsEnd(t *testing.T) {
	client, s, server := ready(t, rpc.Options{})
	ended := make(chan error, 1)
	go func() {
		_, err := client.EmptyCall(wants(t.Context(), "wait", "1"), &grpc_testing.Empty{})
		ended <- err
	}()
	await(t, s.entered)
	stopped := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(stopped)
	}()

	// Soon nobody gets in any more, while the call goes on.
	for {
		_, err := client.EmptyCall(within(t, patience), &grpc_testing.Empty{})
		if status.Code(err) == codes.Unavailable {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-stopped:
		t.Fatal("stopped before the call had ended")
	case err := <-ended:
		t.Fatal("the call ended with", err)
	default:
	}
	close(s.release)
	if err := await(t, ended); err != nil {
		t.Error(err)
	}
	await(t, stopped)
	if err := server.Serve(&net.TCPListener{}); !errors.Is(err, rpc.ErrStopped) {
		t.Error(err)
	}
}

func TestStopEndsCalls(t *testing.T) {
	client, s, server := ready(t, rpc.Options{})
	ended := make(chan error, 2)
	go func() {
		_, err := client.EmptyCall(wants(t.Context(), "wait", "1"), &grpc_testing.Empty{})
		ended <- err
	}()
	go func() {
		stream, err := client.FullDuplexCall(t.Context())
		if err == nil {
			_, err = stream.Recv()
		}
		ended <- err
	}()
	await(t, s.entered)
	graceful := make(chan struct{})
	go func() {
		server.GracefulStop() // would wait for ever
		close(graceful)
	}()
	server.Stop()
	if got := await(t, s.entered); got != "context canceled" {
		t.Error("the handler was told", got)
	}
	for range 2 {
		if err := await(t, ended); status.Code(err) != codes.Unavailable {
			t.Error(err)
		}
	}
	await(t, graceful)
}

func TestStopReachesThoseWhoSaidNothing(t *testing.T) {
	for name, stop := range map[string]func(*rpc.Server){"stop": (*rpc.Server).Stop, "graceful": (*rpc.Server).GracefulStop} {
		t.Run(name, func(t *testing.T) {
			s := rpc.New(rpc.Options{})
			addr := start(t, s)
			silent, idle := rawDial(t, addr), greeted(t, addr)
			for range 2 { // settings, and that they were acknowledged
				if _, err := idle.ReadFrame(); err != nil {
					t.Fatal(err)
				}
			}
			go func() {
				for {
					f, err := idle.next()
					if p, ok := f.(*http2.PingFrame); ok {
						idle.WritePing(true, p.Data)
					}
					if err != nil {
						idle.nc.Close()
						return
					}
				}
			}()
			done := make(chan struct{})
			go func() {
				stop(s)
				close(done)
			}()
			await(t, done)
			silent.nc.SetDeadline(time.Now().Add(patience))
			for {
				if _, err := silent.ReadFrame(); err != nil {
					if got := say(nil, err); got == "silence" {
						t.Error(got)
					}
					return
				}
			}
		})
	}
}

// TestAge also shows the two steps of leaving: calls that were under way
// count, until the client has said that it knows.
func TestAge(t *testing.T) {
	s := &service{}
	timed(t, rpc.Options{ConnectionAgeMax: time.Hour}, s, func(t *testing.T, w *wire) {
		s.entered, s.release = make(chan string, 10), make(chan struct{})
		w.greet()
		w.ask(1, false, append(usual(emptyCall), "wait", "1")...)
		w.WriteData(1, true, nothing)
		w.wants("goaway NO_ERROR max_age")
		ping, err := w.next()
		if err != nil {
			t.Fatal(err)
		}
		w.ask(3, false, usual(emptyCall)...)
		w.WriteData(3, true, nothing)
		w.wants(answered(3)...)
		w.WritePing(true, ping.(*http2.PingFrame).Data)
		w.wants("goaway NO_ERROR ")
		w.ask(5, false, usual(emptyCall)...)
		w.WriteData(5, true, nothing) // nobody cares
		close(s.release)
		w.wants(answered(1)...)
		w.wants("closed")
	})
}

func TestAgeHasAGrace(t *testing.T) {
	s := &service{}
	timed(t, rpc.Options{ConnectionAgeMax: time.Hour, ConnectionAgeGrace: time.Second}, s, func(t *testing.T, w *wire) {
		s.entered = make(chan string, 10)
		w.greet()
		w.ask(1, false, append(usual(emptyCall), "wait", "1")...)
		w.WriteData(1, true, nothing)
		w.wants("goaway NO_ERROR max_age", "ping ack=false")
		w.wantsAfter(time.Second, "closed")
		if <-s.entered; <-s.entered != "context canceled" {
			t.Error("the handler was told something else")
		}
	})
}

func TestIdleness(t *testing.T) {
	s := &service{}
	timed(t, rpc.Options{ConnectionIdleMax: time.Minute}, s, func(t *testing.T, w *wire) {
		s.entered, s.release = make(chan string, 10), make(chan struct{})
		w.greet()
		w.ask(1, false, append(usual(emptyCall), "wait", "1")...)
		w.WriteData(1, true, nothing)
		w.nc.SetReadDeadline(time.Now().Add(time.Hour))
		w.wants("silence") // it is not idle
		w.nc.SetReadDeadline(time.Time{})
		close(s.release)
		w.wants(answered(1)...)
		w.wantsAfter(time.Minute, "goaway NO_ERROR max_idle")
	})
}

func TestKeepalive(t *testing.T) {
	timed(t, rpc.Options{KeepaliveInterval: time.Minute, KeepaliveTimeout: time.Second}, &service{}, func(t *testing.T, w *wire) {
		w.greet()
		for range 3 { // as long as it shows life it may stay
			w.wantsAfter(time.Minute, "ping ack=false")
			time.Sleep(time.Millisecond) // of the bubble: the answer comes after the question
			w.WritePing(true, [8]byte{})
		}
		w.wantsAfter(time.Minute, "ping ack=false")
		w.wantsAfter(time.Second, "closed")
	})
}

func TestPingsMayBeAllowed(t *testing.T) {
	w := greeted(t, start(t, rpc.New(rpc.Options{PingIntervalMin: time.Nanosecond, PingWithoutStream: true}), testService(&service{})))
	for range 20 {
		w.WritePing(false, [8]byte{})
		w.wants("ping ack=true")
	}

	// Answers give new patience.
	w = greeted(t, start(t, rpc.New(rpc.Options{}), testService(&service{})))
	for id := 1; id < 20; id += 2 {
		w.WritePing(false, [8]byte{})
		w.WritePing(false, [8]byte{})
		w.wants("ping ack=true", "ping ack=true")
		w.ask(uint32(id), false, usual(emptyCall)...)
		w.WriteData(uint32(id), true, nothing)
		w.wants(answered(id)...)
	}
	for range 4 {
		w.WritePing(false, [8]byte{})
		w.wants("ping ack=true")
	}
	w.wants("goaway ENHANCE_YOUR_CALM too_many_pings")
}

func TestHandshakeTakesNoLongerThanItMay(t *testing.T) {
	timed(t, rpc.Options{HandshakeTimeout: time.Second}, &service{}, func(t *testing.T, w *wire) {
		w.wantsAfter(time.Second, "closed")
	})
}
