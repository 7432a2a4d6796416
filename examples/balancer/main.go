// Command balancer spreads requests over the nodes that are alive. Each node
// keeps its name in a table under a lease; the balancer holds a copy of the
// table in memory, which a watch keeps up to date. To choose a node costs no
// round trip, and a node that dies is out of the table when its lease ends.
//
//	balancer -node a          # a node; another one: balancer -node b
//	yes | head -9 | balancer  # each line is a request
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const nodes = "nodes/"

func main() {
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "servers, separated by commas")
	node := flag.String("node", "", "be the node of this name")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	c, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(*endpoints, ",")})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if *node != "" {
		err = serve(ctx, c, *node)
	} else {
		err = balance(ctx, c)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// serve stays in the table until ctx ends.
func serve(ctx context.Context, c *clientv3.Client, name string) error {
	// A session is a lease that is kept alive, and revoked by Close.
	s, err := concurrency.NewSession(c, concurrency.WithTTL(5))
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := c.Put(ctx, nodes+name, "", clientv3.WithLease(s.Lease())); err != nil {
		return err
	}
	fmt.Printf("%s is in the table\n", name)
	select {
	case <-ctx.Done():
		return nil
	case <-s.Done():
		return fmt.Errorf("%s was silent for too long, and is out of the table", name)
	}
}

// A table is the set of nodes that are alive.
type table struct {
	mu     sync.Mutex
	served map[string]int // requests, by node
}

// next returns the node that has served least.
func (t *table) next() (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	best, found := "", false
	for _, name := range slices.Sorted(maps.Keys(t.served)) {
		if !found || t.served[name] < t.served[best] {
			best, found = name, true
		}
	}
	if found {
		t.served[best]++
	}
	return best, found
}

func (t *table) set(key []byte, alive bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := strings.TrimPrefix(string(key), nodes)
	if alive {
		t.served[name] = 0
	} else {
		delete(t.served, name)
	}
	fmt.Printf("alive: %s\n", strings.Join(slices.Sorted(maps.Keys(t.served)), " "))
}

func balance(ctx context.Context, c *clientv3.Client) error {
	t := &table{served: map[string]int{}}
	now, err := c.Get(ctx, nodes, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, kv := range now.Kvs {
		t.set(kv.Key, true)
	}
	go func() {
		for changes := range c.Watch(ctx, nodes, clientv3.WithPrefix(), clientv3.WithRev(now.Header.Revision+1)) {
			for _, e := range changes.Events {
				t.set(e.Kv.Key, e.Type == clientv3.EventTypePut)
			}
		}
	}()
	for requests := bufio.NewScanner(os.Stdin); requests.Scan(); {
		if node, ok := t.next(); ok {
			fmt.Printf("%s goes to %s\n", requests.Text(), node)
		} else {
			fmt.Printf("%s is refused: no node is alive\n", requests.Text())
		}
	}
	return nil
}
