package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/kvorum/kvorum/config"
)

// NodesMax bounds the members of a cluster.
const NodesMax = 9

// DefaultPort is where clients find the first member.
const DefaultPort = 2379

// An address is where one member listens.
type address struct{ client, peer int }

// addresses returns the ports of n members. The first three of the default are
// those of etcd's own Procfile: 2379, 22379 and 32379 for clients, 12380, 22380
// and 32380 among members. The others follow the third, a hundred apart.
func addresses(port, n int) ([]address, error) {
	all := []address{{port, port + 10001}, {port + 20000, port + 20001}}
	for i := range NodesMax - 2 {
		client := port + 30000 + 100*i
		all = append(all, address{client, client + 1})
	}
	all = all[:n]
	if last := all[n-1].peer; port < 1 || last > 65535 {
		return nil, fmt.Errorf("--port %d: the ports of %d members would go from there to %d: choose one from 1 to %d", port, n, last, port+65535-last)
	}
	return all, nil
}

// free returns an error if somebody listens there already. The members would
// find out themselves, but not before that somebody has been taken for one.
func free(all []address) error {
	for _, at := range all {
		for _, port := range []int{at.client, at.peer} {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return fmt.Errorf("%w: if another cluster runs there, --port N puts this one beside it", err)
			}
			l.Close()
		}
	}
	return nil
}

func url(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }

// shape is what a directory was made for: its members know each other's ports.
type shape struct {
	Nodes int `json:"nodes"`
	Port  int `json:"port"`
}

// claim makes dir the directory of a cluster of this shape, unless it is one
// of another.
func claim(dir string, want shape) error {
	name := filepath.Join(dir, "dev.json")
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("--data-dir: %w", err)
		}
		text, _ = json.Marshal(want) // two numbers
		return os.WriteFile(name, append(text, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	var have shape
	if err := json.Unmarshal(text, &have); err != nil {
		return fmt.Errorf("--data-dir: read %s: %w", name, err)
	}
	if have != want {
		return fmt.Errorf("%s holds a cluster made with --nodes %d --port %d: give these, or another --data-dir", dir, have.Nodes, have.Port)
	}
	return nil
}

// settings returns what each member is started with.
func settings(dir string, all []address, extra []string) ([]*config.Server, error) {
	var cluster []string
	for i, at := range all {
		cluster = append(cluster, nameOf(i)+"="+url(at.peer))
	}
	servers := make([]*config.Server, len(all))
	for i, at := range all {
		args := []string{
			"--name=" + nameOf(i),
			"--data-dir=" + filepath.Join(dir, nameOf(i)),
			"--listen-client-urls=" + url(at.client),
			"--advertise-client-urls=" + url(at.client),
			"--listen-peer-urls=" + url(at.peer),
			"--initial-advertise-peer-urls=" + url(at.peer),
			"--initial-cluster=" + strings.Join(cluster, ","),
			"--value-cache-bytes=64MiB", // of each of them, on a machine that has other work
		}
		s, _, err := config.Parse(append(args, extra...), nil, "kvorum")
		if err != nil {
			return nil, err
		}
		servers[i] = s
	}
	return servers, nil
}

func nameOf(i int) string { return fmt.Sprintf("infra%d", i+1) }
