// Command progress lets workers report how far they are. A report hangs on the
// worker's lease until the work is done: a worker that dies leaves no report
// that pretends otherwise. The last report is made without the lease, and
// stays.
//
//	progress -work build -steps 20    # a worker
//	progress                          # all reports, as they come
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
	"go.etcd.io/etcd/client/v3/concurrency"
)

const reports = "progress/"

func main() {
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "servers, separated by commas")
	task := flag.String("work", "", "task to work on")
	steps := flag.Int("steps", 10, "steps that the task takes")
	pace := flag.Duration("pace", time.Second, "time that a step takes")
	ttl := flag.Int("ttl", 5, "seconds after which a worker that says nothing counts as dead")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	c, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(*endpoints, ",")})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if *task != "" {
		err = work(ctx, c, *task, *steps, *pace, *ttl)
	} else {
		err = look(ctx, c)
	}
	if err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

// work does the steps of a task, and reports each.
func work(ctx context.Context, c *clientv3.Client, task string, steps int, pace time.Duration, ttl int) error {
	s, err := concurrency.NewSession(c, concurrency.WithTTL(ttl))
	if err != nil {
		return err
	}
	defer s.Close()
	step := time.NewTicker(pace)
	defer step.Stop()
	for i := range steps {
		if _, err := c.Put(ctx, reports+task, fmt.Sprintf("%d of %d", i, steps), clientv3.WithLease(s.Lease())); err != nil {
			return err
		}
		select { // the work itself
		case <-ctx.Done():
			return nil
		case <-s.Done():
			return fmt.Errorf("lost the lease: others believe that nobody works on %s", task)
		case <-step.C:
		}
	}
	_, err = c.Put(ctx, reports+task, "done")
	return err
}

// look prints the reports that there are, and those that come.
func look(ctx context.Context, c *clientv3.Client) error {
	now, err := c.Get(ctx, reports, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, kv := range now.Kvs {
		fmt.Printf("%s: %s\n", strings.TrimPrefix(string(kv.Key), reports), kv.Value)
	}
	watch := c.Watch(ctx, reports, clientv3.WithPrefix(), clientv3.WithRev(now.Header.Revision+1))
	for changes := range watch {
		if err := changes.Err(); err != nil {
			return err
		}
		for _, e := range changes.Events {
			task := strings.TrimPrefix(string(e.Kv.Key), reports)
			if e.Type == clientv3.EventTypeDelete {
				fmt.Printf("%s: given up\n", task)
			} else {
				fmt.Printf("%s: %s\n", task, e.Kv.Value)
			}
		}
	}
	return nil
}
