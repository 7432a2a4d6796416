// Command queue is a queue that many fill and many empty. Items are ordered by
// the revision at which they were put; taking one is a transaction that deletes
// it if it is still there, so that nobody gets an item that another one has.
//
//	queue one two three    # put items
//	queue                  # take items, and wait for more
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const items = "queue/"

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
	for _, item := range flag.Args() {
		// The key only has to be new: the order is that of the revisions.
		if _, err := c.Put(ctx, items+rand.Text(), item); err != nil {
			log.Fatal(err)
		}
	}
	for flag.NArg() == 0 {
		item, err := take(ctx, c)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(item)
	}
}

// take takes the oldest item, and waits for one if there is none.
func take(ctx context.Context, c *clientv3.Client) (string, error) {
	for {
		r, err := c.Get(ctx, items, clientv3.WithPrefix(), clientv3.WithLimit(1),
			clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
		if err != nil {
			return "", err
		}
		if len(r.Kvs) == 0 {
			if err := await(ctx, c, r.Header.Revision+1); err != nil {
				return "", err
			}
			continue
		}
		oldest := r.Kvs[0]
		key := string(oldest.Key)
		taken, err := c.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", oldest.ModRevision)).
			Then(clientv3.OpDelete(key)).
			Commit()
		if err != nil {
			return "", err
		}
		if taken.Succeeded {
			return string(oldest.Value), nil
		}
		// Another one was faster: look again.
	}
}

// await returns when something was put at the revision or later.
func await(ctx context.Context, c *clientv3.Client, from int64) error {
	ctx, cancel := context.WithCancel(ctx) // ends the watch, too
	defer cancel()
	for r := range c.Watch(ctx, items, clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithFilterDelete()) {
		if err := r.Err(); err != nil {
			return err
		}
		if len(r.Events) > 0 {
			return nil
		}
	}
	return ctx.Err()
}
