// Command firstcome shares a counter under a lock that everybody gets, in the
// order in which they asked. Each run reads the counter, thinks, and writes it
// back; the lock keeps another one from doing so in between.
//
// A lock that is held by a lease can be lost while its holder is asleep. So the
// write is itself made only if the lock is still held, in one transaction: that
// is what keeps the counter right, whatever happens.
//
//	firstcome -times 10 & firstcome -times 10 & wait    # counts to 20
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const counter = "counter"

func main() {
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "servers, separated by commas")
	times := flag.Int("times", 10, "how often to count")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	c, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(*endpoints, ",")})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	s, err := concurrency.NewSession(c, concurrency.WithTTL(10))
	if err != nil {
		log.Fatal(err)
	}
	for range *times {
		if err = count(ctx, c, s); err != nil {
			break
		}
	}
	s.Close() // also when counting failed: nobody should have to wait for the lease to run out
	if err != nil {
		log.Fatal(err)
	}
}

// count adds one to the counter.
func count(ctx context.Context, c *clientv3.Client, s *concurrency.Session) error {
	// Lock puts a key of our own below "turns" and waits until no older one is
	// left there. Each waits for the one before it alone, so that only one wakes
	// up when the lock is passed on.
	turn := concurrency.NewMutex(s, "turns")
	if err := turn.Lock(ctx); err != nil {
		return err
	}
	defer turn.Unlock(context.WithoutCancel(ctx))

	r, err := c.Get(ctx, counter)
	if err != nil {
		return err
	}
	n := 0
	if len(r.Kvs) > 0 {
		if n, err = strconv.Atoi(string(r.Kvs[0].Value)); err != nil {
			return err
		}
	}
	n++ // think

	w, err := c.Txn(ctx).
		If(turn.IsOwner()).
		Then(clientv3.OpPut(counter, strconv.Itoa(n))).
		Commit()
	if err != nil {
		return err
	}
	if !w.Succeeded {
		return fmt.Errorf("lost the lock before %d was written", n)
	}
	fmt.Println(n)
	return nil
}
