package config

import (
	"fmt"
	"strings"
	"testing"
)

// The numbers were printed by etcd 3.7.3.
func TestIdentitiesAreEtcds(t *testing.T) {
	for _, tt := range []struct {
		cluster, name, token string
		member, id           string
	}{
		{"x=https://localhost:20001", "x", "new", "", "34c21a2d427db393"},
		{"x=http://127.0.0.1:31480", "x", "etcd-cluster", "b8f8292f9b0b44d0", "48e864a8070ac59e"},
		{"b=http://127.0.0.1:31482,a=http://127.0.0.1:31490,c=http://127.0.0.1:31485,b=http://127.0.0.1:31481", "b", "tok", "ab7f7d9e47868f7", "34d4731343de555d"},
	} {
		c, err := ParseInitialCluster(tt.cluster)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", c.ClusterID(tt.token)); got != tt.id {
			t.Errorf("%s under %s: cluster %s, want %s", tt.cluster, tt.token, got, tt.id)
		}
		seed, _ := c.Seed(tt.name)
		if got := fmt.Sprintf("%x", seed.MemberID(tt.token)); tt.member != "" && got != tt.member {
			t.Errorf("%s under %s: member %s, want %s", tt.cluster, tt.token, got, tt.member)
		}
	}
}

func TestBootstrapNeedsThisMemberInTheCluster(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--name=a --initial-cluster=a=http://127.0.0.1:1", ""},
		{"--name=a --initial-cluster=a=http://localhost:1 --initial-advertise-peer-urls=http://localhost:1", ""},
		{"--name=c --initial-cluster=a=http://127.0.0.1:1,b=http://127.0.0.1:2", "--name=c is not in --initial-cluster, which holds a, b"},
		{"--name=a --initial-cluster=a=http://127.0.0.1:1 --initial-advertise-peer-urls=http://127.0.0.1:2", "make both the same"},
		{"--name=a --initial-cluster=a=http://127.0.0.1:1 --initial-advertise-peer-urls=http://localhost:1", ""},
	} {
		s, _, err := Parse(strings.Fields(tt.args), nil, "etcd")
		if err != nil {
			t.Fatalf("%s: %v", tt.args, err)
		}
		err = s.CheckBootstrap(t.Context())
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", tt.args, err, tt.want)
		}
	}
}
