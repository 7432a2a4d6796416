package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func (a *app) lockCommand() *cobra.Command {
	var ttl int64
	cmd := &cobra.Command{
		Use:     "lock <name> [command...]",
		Short:   "Hold a lock, until interrupted or while a command runs",
		GroupID: groupLocks,
		Long: `Wait for a lock, and hold it: until interrupted, or for as long as a command
runs, whose exit code is then this one's. Without a command the key that stands
for the lock is printed.

A holder that vanishes loses the lock after --ttl seconds. What the lock
protects should therefore check for itself who may change it: the command finds
its key in ETCD_LOCK_KEY and, in ETCD_LOCK_REV, a number that grows from each
holder to the next.

A command that has flags of its own goes behind --.`,
		Example: `
{{program}} lock backup                       # until ^C
{{program}} lock backup ./backup.sh           # one at a time, on whatever machine
{{program}} lock backup --ttl=60 -- rsync -a /data host:`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return badArgs("lock takes a lock name argument and an optional command to execute")
			}
			if ttl <= 0 {
				return badArgs("--ttl is a number of seconds, and more than none")
			}
			return a.inSession(cmd, ttl, func(ctx context.Context, s *concurrency.Session) error {
				m := concurrency.NewMutex(s, args[0])
				if err := m.Lock(ctx); err != nil {
					return err
				}
				if len(args) > 1 {
					return runLocked(cmd, m, args[1:])
				}
				return a.hold(ctx, cmd, s, m.Key(), "session expired")
			})
		},
	}
	cmd.Flags().Int64Var(&ttl, "ttl", 10, "seconds after which a holder that has vanished loses the lock")
	return cmd
}

// runLocked runs a command to its end: it is not for an interrupt to release
// the lock while the command is still at work.
func runLocked(cmd *cobra.Command, m *concurrency.Mutex, command []string) error {
	run := exec.Command(command[0], command[1:]...)
	run.Env = append(os.Environ(),
		"ETCD_LOCK_KEY="+m.Key(),
		fmt.Sprintf("ETCD_LOCK_REV=%d", m.Header().GetRevision()))
	run.Stdin, run.Stdout, run.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	err := run.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		code := exit(ended.ExitCode() & 0xff) // 255 when a signal ended it
		return &failure{code: code, etcdctl: code, err: err}
	}
	if err != nil {
		return &failure{code: exitError, err: err}
	}
	return nil
}

func (a *app) electCommand() *cobra.Command {
	var listen bool
	cmd := &cobra.Command{
		Use:     "elect <name> [proposal]",
		Short:   "Lead, or with --listen see who leads",
		GroupID: groupLocks,
		Long: `Stand for election: wait until nobody else leads, then lead until interrupted,
with the proposal as the value that listeners see. With --listen print each
leader's proposal as leaders come and go.`,
		Example: `
{{program}} elect primary "$(hostname)"
{{program}} elect primary --listen`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) != 1 && len(args) != 2:
				return badArgs("elect takes one election name argument and an optional proposal argument")
			case listen && len(args) == 2:
				return badArgs("proposal given but -l is set")
			case !listen && len(args) == 1:
				return badArgs("no proposal argument but -l not set")
			}
			const ttl = 60 // seconds
			return a.inSession(cmd, ttl, func(ctx context.Context, s *concurrency.Session) error {
				e := concurrency.NewElection(s, args[0])
				if listen {
					return a.observe(ctx, cmd, e)
				}
				if err := e.Campaign(ctx, args[1]); err != nil {
					return err
				}
				return a.hold(ctx, cmd, s, e.Key(), "elect: session expired")
			})
		},
	}
	cmd.Flags().BoolVarP(&listen, "listen", "l", false, "only see who leads")
	return cmd
}

func (a *app) observe(ctx context.Context, cmd *cobra.Command, e *concurrency.Election) error {
	for r := range e.Observe(ctx) {
		if err := a.print(cmd, holderAnswer(r)); err != nil {
			return err
		}
	}
	if ctx.Err() == nil {
		return &failure{code: exitError, err: errors.New("elect: observer lost")}
	}
	return nil
}

// inSession does something in a session, and ends the session: whatever was
// held in it is free at once.
func (a *app) inSession(cmd *cobra.Command, ttl int64, do func(context.Context, *concurrency.Session) error) error {
	return a.stay(cmd, func(ctx context.Context, c *clientv3.Client) error {
		if err := a.noTable(); err != nil {
			return err
		}
		granting, cancel := context.WithTimeout(ctx, a.commandTimeout)
		defer cancel()
		lease, err := c.Grant(granting, ttl)
		if err != nil {
			return err
		}
		s, err := concurrency.NewSession(c, concurrency.WithLease(lease.ID))
		if err != nil {
			return err
		}
		if err := do(ctx, s); err != nil {
			_ = s.Close() // the lease runs out by itself; what went wrong before is the news
			return err
		}
		return s.Close()
	})
}

// hold shows what is held under key until it is interrupted, or lost.
func (a *app) hold(ctx context.Context, cmd *cobra.Command, s *concurrency.Session, key, lost string) error {
	r, err := s.Client().Get(ctx, key)
	if err != nil {
		return err
	}
	if len(r.Kvs) > 0 {
		if err := a.print(cmd, holderAnswer(r)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.Done():
		}
	}
	return &failure{code: exitError, err: errors.New(lost)}
}

// holderAnswer is a get of the key that stands for a lock or a leader.
func holderAnswer(r *clientv3.GetResponse) answer {
	ans := getAnswer((*pb.RangeResponse)(r), false)
	ans.table = nil // as with etcdctl
	return ans
}
