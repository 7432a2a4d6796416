package ctl

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a *app) alarmCommand() *cobra.Command {
	list := &cobra.Command{
		Use:     "list",
		Short:   "List the alarms that are raised",
		Example: "{{program}} alarm list",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 0 {
				return badArgs("alarm list command accepts no arguments")
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				r, err := c.AlarmList(ctx)
				if err != nil {
					return err
				}
				return a.print(cmd, alarmAnswer((*pb.AlarmResponse)(r)))
			})
		},
	}
	disarm := &cobra.Command{
		Use:   "disarm",
		Short: "Lower every alarm",
		Long: `Lower every alarm, and print those that were raised. Remove the cause first:
an alarm for space comes back with the next write if there is still none.`,
		Example: "{{program}} alarm disarm",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 0 {
				return badArgs("alarm disarm command accepts no arguments")
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				r, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{})
				if err != nil {
					return err
				}
				return a.print(cmd, alarmAnswer((*pb.AlarmResponse)(r)))
			})
		},
	}
	return family(&cobra.Command{
		Use:     "alarm",
		Short:   "Alarms of the cluster: list, disarm",
		GroupID: groupCluster,
		Example: "{{program}} alarm list",
	}, list, disarm)
}

func (a *app) defragCommand() *cobra.Command {
	var cluster bool
	cmd := &cobra.Command{
		Use:     "defrag",
		Short:   "Give the space of forgotten history back to the file system",
		GroupID: groupCluster,
		Example: `
{{program}} defrag
{{program}} defrag --cluster --command-timeout=1m`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config(cmd)
			if err != nil {
				return err
			}
			endpoints, err := a.endpointsOf(cmd, cfg, cluster)
			if err != nil {
				return err
			}
			var failed error
			for _, endpoint := range endpoints {
				one := cfg
				one.Endpoints = []string{endpoint}
				start := time.Now()
				err := a.callWith(cmd, one, func(ctx context.Context, c *clientv3.Client) error {
					_, err := c.Defragment(ctx, endpoint)
					return err
				})
				took := time.Since(start)
				if err != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "Failed to defragment etcd member[%s]. took %s. (%v)\n", endpoint, took, err)
					failed = err
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "Finished defragmenting etcd member[%s]. took %s\n", endpoint, took)
			}
			return untold(failed)
		},
	}
	cmd.Flags().BoolVar(&cluster, "cluster", false, "every member of the cluster, not only --endpoints")
	return cmd
}
