package ctl

import (
	"context"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a *app) memberCommand() *cobra.Command {
	return family(&cobra.Command{
		Use:     "member",
		Short:   "Members of the cluster: list",
		GroupID: groupCluster,
		Example: "{{program}} member list -w table",
	}, a.memberListCommand())
}

func (a *app) memberListCommand() *cobra.Command {
	var consistency string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the members with their names and addresses",
		Long: `List the members of the cluster. The columns of the simple format are those of
-w table. A member is "unstarted" until it has run for the first time.`,
		Example: `
{{program}} member list -w table
{{program}} member list --consistency=s   # what this server knows, even without quorum`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			serializable, err := parseConsistency(consistency)
			if err != nil {
				return err
			}
			var opts []clientv3.OpOption
			if serializable {
				opts = append(opts, clientv3.WithSerializable())
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				r, err := c.MemberList(ctx, opts...)
				if err != nil {
					return err
				}
				return a.print(cmd, memberListAnswer((*pb.MemberListResponse)(r), a.hex))
			})
		},
	}
	cmd.Flags().StringVar(&consistency, "consistency", "l", "l: what all agree on; s: what this server knows")
	completeValues(cmd, "consistency", "l", "s")
	return cmd
}
