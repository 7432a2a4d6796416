package ctl

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a *app) leaseCommand() *cobra.Command {
	return family(&cobra.Command{
		Use:     "lease",
		Short:   "Leases: grant, revoke, timetolive, list, keep-alive",
		GroupID: groupKV,
		Long: `A lease lives for some seconds, and longer if it is kept alive. Keys can be put
on it (put --lease), and are deleted all at once when it ends.`,
		Example: `
{{program}} lease grant 60
{{program}} put --lease=694d81417acd4754 host/a up
{{program}} lease keep-alive 694d81417acd4754`,
	}, a.leaseGrantCommand(), a.leaseRevokeCommand(), a.leaseTimeToLiveCommand(), a.leaseListCommand(), a.leaseKeepAliveCommand())
}

func (a *app) leaseGrantCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "grant <seconds>",
		Short:   "Create a lease that ends after some seconds",
		Example: "{{program}} lease grant 60",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("lease grant command needs TTL argument")
			}
			ttl, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return badArgs("bad TTL (%w)", err)
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				if err := a.noTable(); err != nil {
					return err
				}
				r, err := c.Grant(ctx, ttl)
				if err != nil {
					return fmt.Errorf("failed to grant lease (%w)", err)
				}
				return a.print(cmd, leaseGrantAnswer(r))
			})
		},
	}
}

func (a *app) leaseRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke <id>",
		Short:   "End a lease, and delete the keys on it",
		Example: "{{program}} lease revoke 694d81417acd4754",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("lease revoke command needs 1 argument")
			}
			id, err := leaseID(args[0])
			if err != nil {
				return err
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				if err := a.noTable(); err != nil {
					return err
				}
				r, err := c.Revoke(ctx, id)
				if err != nil {
					return fmt.Errorf("failed to revoke lease (%w)", err)
				}
				return a.print(cmd, leaseRevokeAnswer(id, r))
			})
		},
	}
}

func (a *app) leaseTimeToLiveCommand() *cobra.Command {
	var keys bool
	cmd := &cobra.Command{
		Use:   "timetolive <id>",
		Short: "Tell how long a lease has to live",
		Example: `
{{program}} lease timetolive 694d81417acd4754
{{program}} lease timetolive --keys 694d81417acd4754   # and what it takes along`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("lease timetolive command needs lease ID as argument")
			}
			id, err := leaseID(args[0])
			if err != nil {
				return err
			}
			var options []clientv3.LeaseOption
			if keys {
				options = append(options, clientv3.WithAttachedKeys())
			}
			return a.askLeases(cmd, func(ctx context.Context, c *clientv3.Client) error {
				r, err := c.TimeToLive(ctx, id, options...)
				if err != nil {
					return err
				}
				return a.print(cmd, leaseTimeToLiveAnswer(r, keys))
			})
		},
	}
	cmd.Flags().BoolVar(&keys, "keys", false, "also the keys on the lease")
	return cmd
}

func (a *app) leaseListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List all leases",
		Example: "{{program}} lease list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.askLeases(cmd, func(ctx context.Context, c *clientv3.Client) error {
				r, err := c.Leases(ctx)
				if err != nil {
					return err
				}
				return a.print(cmd, leaseListAnswer(r))
			})
		},
	}
}

func (a *app) leaseKeepAliveCommand() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "keep-alive <id>",
		Short: "Keep a lease alive until interrupted",
		Long: `Keep a lease alive, and print a line each time that it was renewed, until the
command is interrupted or the lease has ended.`,
		Example: `
{{program}} lease keep-alive 694d81417acd4754
{{program}} lease keep-alive --once 694d81417acd4754`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("lease keep-alive command needs lease ID as argument")
			}
			id, err := leaseID(args[0])
			if err != nil {
				return err
			}
			if once {
				return a.askLeases(cmd, func(ctx context.Context, c *clientv3.Client) error {
					r, err := c.KeepAliveOnce(ctx, id)
					if errors.Is(err, rpctypes.ErrLeaseNotFound) {
						return &failure{code: exitNotFound, err: err}
					}
					if err != nil {
						return err
					}
					return a.print(cmd, leaseKeepAliveAnswer(r))
				})
			}
			return a.stay(cmd, func(ctx context.Context, c *clientv3.Client) error {
				renewals, err := c.KeepAlive(ctx, id)
				if err != nil {
					return err
				}
				for r := range renewals {
					if err := a.print(cmd, leaseKeepAliveAnswer(r)); err != nil {
						return err
					}
				}
				if ctx.Err() != nil {
					return interrupted()
				}
				if a.writeOut == formatSimple {
					fmt.Fprintf(cmd.OutOrStdout(), "lease %016x expired or revoked.\n", id)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "renew the lease once and exit")
	return cmd
}

// askLeases is call for those commands that etcdctl, when their request fails,
// ends with the code of a bad connection.
func (a *app) askLeases(cmd *cobra.Command, do func(context.Context, *clientv3.Client) error) error {
	err := a.call(cmd, do)
	var f *failure
	if errors.As(err, &f) {
		switch f.code {
		case exitError, exitBadConnection, exitNotFound, exitPermission:
			f.etcdctl = exitBadConnection
		}
	}
	return err
}

func leaseID(text string) (clientv3.LeaseID, error) {
	id, err := strconv.ParseInt(text, 16, 64)
	if err != nil {
		return 0, badArgs("bad lease ID arg (%w), expecting ID in Hex", err)
	}
	return clientv3.LeaseID(id), nil
}
