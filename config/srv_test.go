package config

import (
	"context"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// zone is what a name server knows: "SRV name" to "target:port", "A name" to
// addresses.
type zone map[string][]string

// serve answers for the zone, and returns a resolver that asks there.
func (z zone) serve(t *testing.T) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if answer, err := z.answer(b[:n]); err == nil {
				_, _ = conn.WriteTo(answer, from) // the resolver asks again
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func (z zone) answer(ask []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(ask); err != nil {
		return nil, err
	}
	q := m.Questions[0]
	m.Header.Response, m.Additionals = true, nil
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
	name := strings.TrimSuffix(q.Name.String(), ".")
	known := false
	for _, kind := range []string{"SRV ", "A "} {
		for _, data := range z[kind+name] {
			known = true
			switch {
			case kind == "SRV " && q.Type == dnsmessage.TypeSRV:
				host, port, _ := net.SplitHostPort(data)
				number, err := net.LookupPort("udp", port)
				if err != nil {
					return nil, err
				}
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.SRVResource{
					Priority: 1, Weight: 1, Port: uint16(number), Target: dnsmessage.MustNewName(host + "."),
				}})
			case kind == "A " && q.Type == dnsmessage.TypeA:
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: [4]byte(net.ParseIP(data).To4())}})
			}
		}
	}
	if !known {
		m.Header.RCode = dnsmessage.RCodeNameError
	}
	return m.Pack()
}

func TestInitialClusterFromSRVRecords(t *testing.T) {
	resolver := zone{
		"A m1.example.com":                         {"10.0.0.1"},
		"A m2.example.com":                         {"10.0.0.2"},
		"A alias.example.com":                      {"10.0.0.2"},
		"SRV _etcd-server._tcp.example.com":        {"m2.example.com:2380", "m3.example.com:2380", "m1.example.com:2380"},
		"SRV _etcd-server-ssl._tcp.both.com":       {"m1.example.com:2380", "m2.example.com:2380"},
		"SRV _etcd-server._tcp.both.com":           {"m1.example.com:2379"},
		"SRV _etcd-server-ssl-east._tcp.named.com": {"m1.example.com:2380"},
		"SRV _etcd-server-ssl._tcp.secure.com":     {"m1.example.com:2380"},
	}.serve(t)
	for _, tt := range []struct {
		story, domain, service, own string
		want                        string // the cluster, or part of the error behind "error: "
	}{
		{"by name; who has no address yet belongs to it too", "example.com", "", "http://m1.example.com:2380",
			"0=http://m2.example.com:2380,1=http://m3.example.com:2380,me=http://m1.example.com:2380"},
		{"by address", "example.com", "", "http://10.0.0.2:2380",
			"0=http://m1.example.com:2380,1=http://m3.example.com:2380,me=http://m2.example.com:2380"},
		{"by another name of the address", "example.com", "", "http://alias.example.com:2380",
			"0=http://m1.example.com:2380,1=http://m3.example.com:2380,me=http://m2.example.com:2380"},
		{"TLS before clear text", "both.com", "", "https://m1.example.com:2380",
			"0=https://m2.example.com:2380,me=https://m1.example.com:2380"},
		{"clear text where this member is there alone", "both.com", "", "http://m1.example.com:2379", "me=http://m1.example.com:2379"},
		{"a service of its own name", "named.com", "east", "https://m1.example.com:2380", "me=https://m1.example.com:2380"},
		{"another port", "example.com", "", "http://m1.example.com:2381", `error: cannot find local etcd member "me" in SRV records`},
		{"clear text for who is known under TLS", "secure.com", "", "http://m1.example.com:2380",
			"error: bootstrap at https://m1.example.com:2380 from DNS for etcd-server-ssl has scheme mismatch with expected peer http://m1.example.com:2380"},
		{"no records", "nowhere.com", "x", "http://m1.example.com:2380", "error: error querying DNS SRV records for _etcd-server-x"},
	} {
		s, _, err := Parse([]string{"--name=me", "--discovery-srv=" + tt.domain, "--discovery-srv-name=" + tt.service, "--initial-advertise-peer-urls=" + tt.own}, nil, "etcd")
		if err != nil {
			t.Fatalf("%s: %v", tt.story, err)
		}
		c, err := s.LookupSRV(t.Context(), resolver)
		want, wantErr := strings.CutPrefix(tt.want, "error: ")
		if wantErr && (err == nil || !strings.Contains(err.Error(), want)) || !wantErr && (err != nil || c.String() != want) {
			t.Errorf("%s: got %s, %v, want %s", tt.story, c, err, tt.want)
		}
	}
}
