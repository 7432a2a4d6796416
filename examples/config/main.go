// Command config publishes configuration, and subscribes to it. A subscriber
// begins with the whole configuration as it is at one revision, and then
// follows the changes from there, so that what it holds is always what the
// store held at some moment. Settings that belong together are published in
// one transaction: no subscriber sees one without the other.
//
//	config colour=blue size=7    # publish
//	config                       # subscribe
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const settings = "config/"

func main() {
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "servers, separated by commas")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	c, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(*endpoints, ",")})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if flag.NArg() > 0 {
		err = publish(ctx, c, flag.Args())
	} else {
		err = subscribe(ctx, c)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// publish stores all assignments at one revision.
func publish(ctx context.Context, c *clientv3.Client, assignments []string) error {
	var puts []clientv3.Op
	for _, a := range assignments {
		name, value, ok := strings.Cut(a, "=")
		if !ok {
			return fmt.Errorf("%q is no NAME=VALUE", a)
		}
		puts = append(puts, clientv3.OpPut(settings+name, value))
	}
	r, err := c.Txn(ctx).Then(puts...).Commit()
	if err != nil {
		return err
	}
	fmt.Printf("published at revision %d\n", r.Header.Revision)
	return nil
}

// subscribe prints the configuration, now and after each change.
func subscribe(ctx context.Context, c *clientv3.Client) error {
	for ctx.Err() == nil {
		now, err := c.Get(ctx, settings, clientv3.WithPrefix())
		if err != nil {
			return err
		}
		config := map[string]string{}
		for _, kv := range now.Kvs {
			config[strings.TrimPrefix(string(kv.Key), settings)] = string(kv.Value)
		}
		show(now.Header.Revision, config)

		if err := follow(ctx, c, config, now.Header.Revision+1); err != rpctypes.ErrCompacted {
			return err
		}
		// We were away for so long that the history we missed is no longer kept:
		// begin again with the whole.
	}
	return nil
}

func follow(ctx context.Context, c *clientv3.Client, config map[string]string, from int64) error {
	for changes := range c.Watch(ctx, settings, clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if err := changes.Err(); err != nil {
			return err
		}
		// All changes of one revision come together.
		for _, e := range changes.Events {
			name := strings.TrimPrefix(string(e.Kv.Key), settings)
			if e.Type == clientv3.EventTypeDelete {
				delete(config, name)
			} else {
				config[name] = string(e.Kv.Value)
			}
		}
		show(changes.Header.Revision, config)
	}
	return nil
}

func show(revision int64, config map[string]string) {
	fmt.Printf("revision %d:", revision)
	for _, name := range slices.Sorted(maps.Keys(config)) {
		fmt.Printf(" %s=%s", name, config[name])
	}
	fmt.Println()
}
