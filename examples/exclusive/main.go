// Command exclusive does something that only one may do: who comes first has
// the lock, and everybody else is told who that is and goes away. It takes one
// transaction: put the key if it does not exist, else read it.
//
//	exclusive -name nightly -owner host-a -- sh -c 'echo working; sleep 9'
//	exclusive -name nightly -owner host-b -- echo never     # host-a has it
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func main() {
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "servers, separated by commas")
	name := flag.String("name", "job", "name of the lock")
	host, _ := os.Hostname()
	owner := flag.String("owner", host, "who takes it")
	flag.Parse()
	if flag.NArg() == 0 {
		log.Fatal("which command should run under the lock?")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	c, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(*endpoints, ",")})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := exclusively(ctx, c, "locks/"+*name, *owner, flag.Args()); err != nil {
		log.Fatal(err)
	}
}

// exclusively runs a command, unless somebody else holds the key.
func exclusively(ctx context.Context, c *clientv3.Client, key, owner string, command []string) error {
	// The lock hangs on a lease: it is free again 10 s after its owner has died.
	s, err := concurrency.NewSession(c, concurrency.WithTTL(10))
	if err != nil {
		return err
	}
	defer s.Close() // frees the lock, with all else on the lease

	r, err := c.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)). // it does not exist
		Then(clientv3.OpPut(key, owner, clientv3.WithLease(s.Lease()))).
		Else(clientv3.OpGet(key)).
		Commit()
	if err != nil {
		return err
	}
	if !r.Succeeded {
		fmt.Printf("%s has it\n", r.Responses[0].GetResponseRange().Kvs[0].Value)
		return nil
	}

	// Should the lease be lost while the command runs, somebody else may begin:
	// the command must not go on.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	run := exec.CommandContext(ctx, command[0], command[1:]...)
	run.Stdin, run.Stdout, run.Stderr = os.Stdin, os.Stdout, os.Stderr
	return run.Run()
}
