// Command bench drives kvorum and a real etcd with the same loads, in turn, on
// the same machine in one run, and prints what each gave beside the other.
// README.md tells what is measured and how to read it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kvorum/kvorum/test/bench/floor"
)

// options are the command line.
type options struct {
	only    string
	rounds  int
	seconds float64
	conns   int
	streams int
	members int
	value   int
	keys    uint64
	big     uint64
	clients int
	kvorum  string
	etcd    string
	etcd34  string
	dir     string
	tls     bool
	json    bool
}

// floorCommand is the word by which this program calls itself to be the
// responder: in a process of its own, so that each side's CPU is told apart.
const floorCommand = "floor-responder"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends us at once

	var err error
	if len(os.Args) == 2 && os.Args[1] == floorCommand {
		err = respond(ctx)
	} else {
		err = bench(ctx, parse())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse() options {
	var o options
	quick := flag.Bool("quick", false, "a smoke run: one round of half a second, few keys")
	list := flag.Bool("list", false, "print the names of the loads and end")
	flag.StringVar(&o.only, "only", "", "comma-separated names of loads and groups, as --list tells; default all but groups "+longGroup+" and "+v2Group)
	flag.IntVar(&o.rounds, "rounds", 5, "turns that each server gets with each load")
	flag.Float64Var(&o.seconds, "seconds", 3, "measured seconds in a turn; a fifth of it is added for warming up")
	flag.IntVar(&o.conns, "conns", 8, "connections of the loads with many callers")
	flag.IntVar(&o.streams, "streams", 64, "callers on each of these connections")
	flag.IntVar(&o.members, "members", 1, "members of each cluster, of which the leader is driven; CPU is that of all; group "+longGroup+" is for one")
	flag.IntVar(&o.value, "value", 256, "bytes of a value")
	flag.Uint64Var(&o.keys, "keys", 100_000, "keys of the loads")
	flag.Uint64Var(&o.big, "big", 1_000_000, "keys of big, and revisions that a watcher is behind")
	flag.IntVar(&o.clients, "clients", 100_000, "watchers or leases of the loads with very many, and a tenth as many idle connections")
	flag.StringVar(&o.kvorum, "kvorum", "", "kvorum program; default: built from this checkout")
	flag.StringVar(&o.etcd, "etcd", "", "etcd program; default: built as pinned in test/bench/etcd")
	flag.StringVar(&o.etcd34, "etcd34", "etcd", "etcd 3.4 program, the last with the v2 API, for group "+v2Group)
	flag.StringVar(&o.dir, "dir", "", "where the data goes; default: the system's temporary directory")
	flag.BoolVar(&o.tls, "tls", false, "drive both over TLS")
	flag.BoolVar(&o.json, "json", false, "print JSON instead of tables")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "bench: unknown argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	if *list {
		for _, c := range comparisons(o) {
			fmt.Printf("%-15s %-8s %s\n", c.name, c.group(), c.what)
		}
		for _, s := range sections(o) {
			fmt.Printf("%-15s %-8s %s\n", s.Name, s.group(), s.What)
		}
		os.Exit(0)
	}
	if *quick {
		o.rounds, o.seconds, o.keys, o.big, o.clients = 1, 0.5, 10_000, 20_000, 2000
	}
	return o
}

// bench runs what was asked for and prints the report, also when a load failed.
func bench(ctx context.Context, o options) error {
	chosen, long, err := choose(o)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "kvorum-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	products, err := build(ctx, o, root, dir)
	if err != nil {
		return err
	}

	var r report
	if r.Machine, err = describe(root, dir, products[1]); err != nil {
		return err
	}
	r.Members = o.members
	r.Names = [2]string{products[0].name, products[1].name}
	progress("%v", r.Machine)
	if r.Floor, err = measureFloor(ctx, o); err != nil {
		return err
	}
	for _, c := range chosen {
		if ctx.Err() != nil {
			break
		}
		row, err := compare(ctx, o, c, products, dir)
		if err != nil {
			r.fail(c.name, err)
			continue
		}
		r.Loads = append(r.Loads, row)
	}
	for _, l := range long {
		if ctx.Err() != nil {
			break
		}
		if err := l.compare(ctx, o, products, dir); err != nil {
			r.fail(l.Name, err)
		}
		r.Sections = append(r.Sections, l)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}

	if o.json {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(r)
	} else {
		_, err = os.Stdout.WriteString(r.markdown())
	}
	return errors.Join(err, r.failures())
}

// longGroup is what takes too long to be among the default, v2Group what needs
// an etcd that is not built here.
const (
	longGroup = "long"
	v2Group   = "v2"
)

func sections(o options) []*section {
	return []*section{bigSection(o), watchIdle(o), watchBehind(o), leaseExpiry(o), idleConnections(o), flat(o), longPolls(o)}
}

func (s *section) group() string {
	if s.v2 {
		return v2Group
	}
	return longGroup
}

// group is by what a load is chosen together with others.
func (c comparison) group() string {
	switch {
	case c.v2:
		return v2Group
	case c.members > 0:
		return "cluster"
	case c.secure:
		return "tls"
	case strings.HasPrefix(c.name, "watch-"):
		return "watch"
	case strings.HasPrefix(c.name, "lease-"):
		return "lease"
	}
	return "kv"
}

// choose picks what is named, by itself or by its group.
func choose(o options) (chosen []comparison, long []*section, err error) {
	all, alsoLong := comparisons(o), sections(o)
	if o.only == "" {
		return slices.DeleteFunc(all, func(c comparison) bool { return c.v2 }), nil, nil
	}
	for name := range strings.SplitSeq(o.only, ",") {
		known := false
		for _, c := range all {
			if c.name == name || c.group() == name {
				chosen, known = append(chosen, c), true
			}
		}
		for _, s := range alsoLong {
			if s.Name != name && s.group() != name {
				continue
			}
			if o.members > 1 {
				return nil, nil, fmt.Errorf("%s is for clusters of one member", s.Name)
			}
			long, known = append(long, s), true
		}
		if !known {
			return nil, nil, fmt.Errorf("no load is called %q; --list names them", name)
		}
	}
	return chosen, long, nil
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	file := strings.TrimSpace(string(out))
	if filepath.Base(file) != "go.mod" {
		return "", errors.New("run this inside the checkout")
	}
	return filepath.Dir(file), nil
}

// build makes the programs that were not given.
func build(ctx context.Context, o options, root, dir string) ([2]product, error) {
	products := [2]product{{name: "kvorum", binary: o.kvorum}, {name: "etcd", binary: o.etcd}}
	secure, err := newCertificate(dir)
	if err != nil {
		return products, err
	}
	products[0].secure, products[1].secure = secure, secure // taken away again where nobody asks for it
	for i, from := range [2]struct{ folder, source string }{
		{root, "./cmd/kvorum"},
		{filepath.Join(root, "test", "bench", "etcd"), "go.etcd.io/etcd/server/v3"},
	} {
		p := &products[i]
		if p.binary != "" {
			if _, err := exec.LookPath(p.binary); err != nil {
				return products, err
			}
			continue
		}
		progress("building %s", p.name)
		p.binary = filepath.Join(dir, p.name)
		command := exec.CommandContext(ctx, "go", "build", "-o", p.binary, from.source)
		command.Dir = from.folder
		command.Stdout, command.Stderr = os.Stderr, os.Stderr
		if err := command.Run(); err != nil {
			return products, fmt.Errorf("build %s: %w", p.name, err)
		}
	}
	return products, nil
}

// respond is the floor's responder: it prints its address and answers until it
// is stopped.
func respond(ctx context.Context) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	return floor.Responder{}.Serve(ctx, listener)
}

// progress tells the one who waits; the report alone goes to standard output.
func progress(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, arguments...))
}
