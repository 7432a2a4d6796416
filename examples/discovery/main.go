// Command discovery is service registration and discovery. An instance
// registers its address under a lease and keeps the lease alive: that is its
// heartbeat. When it ends it takes its address back; when it dies, or is cut
// off, the lease runs out and the address goes by itself.
//
//	discovery -register web-1=10.0.0.1:80    # an instance
//	discovery                                # who is there, and who comes and goes
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const services = "services/"

func main() {
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "servers, separated by commas")
	instance := flag.String("register", "", "NAME=ADDRESS of an instance to register")
	ttl := flag.Int64("ttl", 5, "seconds after which an instance that has died is gone")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	c, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(*endpoints, ",")})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if name, address, ok := strings.Cut(*instance, "="); ok {
		err = register(ctx, c, name, address, *ttl)
	} else {
		err = discover(ctx, c)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// register keeps an address registered until ctx ends.
func register(ctx context.Context, c *clientv3.Client, name, address string, ttl int64) error {
	for ctx.Err() == nil {
		lease, err := c.Grant(ctx, ttl)
		if err != nil {
			return err
		}
		if _, err := c.Put(ctx, services+name, address, clientv3.WithLease(lease.ID)); err != nil {
			return err
		}
		fmt.Printf("%s is registered\n", name)

		// The client sends a heartbeat every third of the TTL. The channel closes
		// when ctx ends, or when we were silent for too long and the lease is gone:
		// then we register again.
		heartbeats, err := c.KeepAlive(ctx, lease.ID)
		if err != nil {
			return err
		}
		for range heartbeats {
		}
		if ctx.Err() != nil {
			// Nobody should have to wait for the lease to run out.
			goodbye, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_, err := c.Revoke(goodbye, lease.ID)
			return err
		}
	}
	return nil
}

// discover prints who is there, then who comes and goes.
func discover(ctx context.Context, c *clientv3.Client) error {
	now, err := c.Get(ctx, services, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, kv := range now.Kvs {
		fmt.Printf("%s is at %s\n", strings.TrimPrefix(string(kv.Key), services), kv.Value)
	}
	// From the revision behind the one that was read: nothing is missed between.
	from := now.Header.Revision + 1
	for changes := range c.Watch(ctx, services, clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if err := changes.Err(); err != nil {
			return err
		}
		for _, e := range changes.Events {
			name := strings.TrimPrefix(string(e.Kv.Key), services)
			if e.Type == clientv3.EventTypeDelete {
				fmt.Printf("%s is gone\n", name)
			} else {
				fmt.Printf("%s is at %s\n", name, e.Kv.Value)
			}
		}
	}
	return nil
}
