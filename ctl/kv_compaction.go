package ctl

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a *app) compactionCommand() *cobra.Command {
	var physical bool
	cmd := &cobra.Command{
		Use:     "compaction <revision>",
		Aliases: []string{"compact"},
		Short:   "Forget the history before a revision",
		GroupID: groupKV,
		Long: `Forget every version of a key that was superseded before the revision.

What the keys hold now stays, and so does what they held at the revision;
reading or watching from an earlier one is refused from then on.`,
		Example: `
{{program}} compaction 4711
{{program}} compaction --physical 4711   # return when the space is free`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("compaction command needs 1 argument")
			}
			rev, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return &failure{code: exitError, err: err, hint: "The revision is a number: see \"Revision\" in the output of -w fields."}
			}
			var opts []clientv3.CompactOption
			if physical {
				opts = append(opts, clientv3.WithCompactPhysical())
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				if _, err := c.Compact(ctx, rev, opts...); err != nil {
					return err
				}
				// The same words in every format, as etcdctl has it.
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "compacted revision", rev)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&physical, "physical", false, "wait until the old versions are removed from disk")
	return cmd
}
