package ctl

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a *app) memberCommand() *cobra.Command {
	return family(&cobra.Command{
		Use:     "member",
		Short:   "Members of the cluster: list, add, promote, update, remove",
		GroupID: groupCluster,
		Example: "{{program}} member list -w table",
	}, a.memberListCommand(), a.memberAddCommand(), a.memberPromoteCommand(), a.memberUpdateCommand(), a.memberRemoveCommand())
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

func (a *app) memberAddCommand() *cobra.Command {
	var peerURLs string
	var learner bool
	cmd := &cobra.Command{
		Use:   "add <name>",
		Short: "Let a new member join, and print how to start it",
		Long: `Add a member to the cluster, and print the settings with which it has to be
started, on an empty data directory. It counts for the quorum from now on, so
start it soon; or add it with --learner, without a vote, and promote it when it
has caught up.`,
		Example: `
{{program}} member add m4 --peer-urls=http://10.0.0.4:2380 --learner
{{program}} member promote 8e9e05c52164694d`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) < 1:
				return badArgs("member name not provided")
			case len(args) > 1:
				complaint := "too many arguments"
				for _, arg := range args {
					if strings.HasPrefix(arg, "http") {
						complaint += fmt.Sprintf(", did you mean --peer-urls=%s", arg)
					}
				}
				return badArgs("%s", complaint)
			case peerURLs == "":
				return badArgs("member peer urls not provided")
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				add := c.MemberAdd
				if learner {
					add = c.MemberAddAsLearner
				}
				r, err := add(ctx, strings.Split(peerURLs, ","))
				if err != nil {
					return err
				}
				return a.print(cmd, memberAddAnswer((*pb.MemberAddResponse)(r), args[0]))
			})
		},
	}
	cmd.Flags().StringVar(&peerURLs, "peer-urls", "", "where the other members find the new one, separated by commas")
	cmd.Flags().BoolVar(&learner, "learner", false, "without a vote until it is promoted")
	return cmd
}

func (a *app) memberPromoteCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "promote <id>",
		Short:   "Give a learner its vote",
		Long:    `Give a learner its vote. It is refused until the learner has caught up.`,
		Example: "{{program}} member promote 8e9e05c52164694d",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := memberID(args)
			if err != nil {
				return err
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				r, err := c.MemberPromote(ctx, id)
				if err != nil {
					return err
				}
				return a.print(cmd, memberChangeAnswer((*pb.MemberPromoteResponse)(r), id, "promoted in"))
			})
		},
	}
}

func (a *app) memberUpdateCommand() *cobra.Command {
	var peerURLs string
	cmd := &cobra.Command{
		Use:     "update <id>",
		Short:   "Change where the other members find one",
		Example: "{{program}} member update 8e9e05c52164694d --peer-urls=http://10.0.0.5:2380",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := memberID(args)
			if err != nil {
				return err
			}
			if peerURLs == "" {
				return badArgs("member peer urls not provided")
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				r, err := c.MemberUpdate(ctx, id, strings.Split(peerURLs, ","))
				if err != nil {
					return err
				}
				return a.print(cmd, memberChangeAnswer((*pb.MemberUpdateResponse)(r), id, "updated in"))
			})
		},
	}
	cmd.Flags().StringVar(&peerURLs, "peer-urls", "", "its new addresses, separated by commas")
	return cmd
}

func (a *app) memberRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove <id>",
		Short: "Remove a member for good",
		Long: `Remove a member. It ends by itself, and can never come back: to replace it, add a
new one with an empty data directory.`,
		Example: "{{program}} member remove 8e9e05c52164694d",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := memberID(args)
			if err != nil {
				return err
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				r, err := c.MemberRemove(ctx, id)
				if err != nil {
					return err
				}
				return a.print(cmd, memberChangeAnswer((*pb.MemberRemoveResponse)(r), id, "removed from"))
			})
		},
	}
}

func memberID(args []string) (uint64, error) {
	if len(args) != 1 {
		return 0, badArgs("member ID is not provided")
	}
	id, err := strconv.ParseUint(args[0], 16, 64)
	if err != nil {
		return 0, badArgs("bad member ID arg (%v), expecting ID in Hex", err)
	}
	return id, nil
}

func (a *app) moveLeaderCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "move-leader <id>",
		Short:   "Have another member lead",
		Long:    `Hand leadership to a member. The present leader must be among the endpoints.`,
		GroupID: groupCluster,
		Example: "{{program}} move-leader 8e9e05c52164694d --endpoints=10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("move-leader command needs 1 argument")
			}
			to, err := strconv.ParseUint(args[0], 16, 64)
			if err != nil {
				return badArgs("%v", err)
			}
			cfg, err := a.config(cmd)
			if err != nil {
				return err
			}
			for _, endpoint := range cfg.Endpoints {
				one := cfg
				one.Endpoints = []string{endpoint}
				found := false
				err := a.callWith(cmd, one, func(ctx context.Context, c *clientv3.Client) error {
					s, err := c.Status(ctx, endpoint)
					if err != nil || s.Leader != s.Header.MemberId {
						return err
					}
					found = true
					r, err := c.MoveLeader(ctx, to)
					if err != nil {
						return err
					}
					return a.print(cmd, moveLeaderAnswer((*pb.MoveLeaderResponse)(r), s.Leader, to))
				})
				if err != nil || found {
					return err
				}
			}
			return badArgs("no leader endpoint given at %v", cfg.Endpoints)
		},
	}
}
