// Command leader elects one of several candidates, and another one when that
// one is gone. All campaign, one leads; an interrupt makes the leader resign,
// and its place is taken at once. If it is killed, its lease has to run out
// first.
//
//	leader -name a    # in one terminal
//	leader -name b    # in another one: interrupt or kill either
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

func main() {
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "servers, separated by commas")
	name := flag.String("name", "somebody", "name of the candidate")
	ttl := flag.Int("ttl", 5, "seconds after which a leader that has died is replaced")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	c, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(*endpoints, ",")})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	s, err := concurrency.NewSession(c, concurrency.WithTTL(*ttl))
	if err != nil {
		log.Fatal(err)
	}
	election := concurrency.NewElection(s, "election")
	go observe(ctx, election)
	err = lead(ctx, s, election, *name)
	s.Close()
	if err != nil {
		log.Fatal(err)
	}
}

// observe prints who leads, whenever that changes.
func observe(ctx context.Context, election *concurrency.Election) {
	for r := range election.Observe(ctx) {
		fmt.Printf("%s leads since revision %d\n", r.Kvs[0].Value, r.Kvs[0].CreateRevision)
	}
}

// lead campaigns, leads until ctx ends, and resigns.
func lead(ctx context.Context, s *concurrency.Session, election *concurrency.Election, name string) error {
	// Campaign returns once no older candidate is left.
	err := election.Campaign(ctx, name)
	if ctx.Err() != nil {
		return nil // interrupted while it waited; the session takes its key along
	}
	if err != nil {
		return err
	}
	// The revision at which a leader came grows from each to the next. Who is
	// told to do something by a leader can refuse those that are out of date.
	fmt.Printf("I lead, at revision %d\n", election.Rev())

	select {
	case <-ctx.Done():
		resigning, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return election.Resign(resigning)
	case <-s.Done():
		// We were silent for too long: another one may lead already.
		return fmt.Errorf("%s leads no longer: its lease ran out", name)
	}
}
