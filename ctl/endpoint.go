package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a *app) endpointCommand() *cobra.Command {
	var cluster bool
	cmd := &cobra.Command{
		Use:     "endpoint",
		Short:   "Ask each endpoint how it is: health, status, hashkv",
		GroupID: groupCluster,
		Example: `
{{program}} endpoint health
{{program}} endpoint status --cluster -w table`,
	}
	cmd.PersistentFlags().BoolVar(&cluster, "cluster", false, "ask every member of the cluster, not only --endpoints")
	return family(cmd, a.healthCommand(&cluster), a.endpointStatusCommand(&cluster), a.hashCommand(&cluster))
}

// endpointsOf returns the endpoints to visit: those that were named, or with
// --cluster those that the members advertise.
func (a *app) endpointsOf(cmd *cobra.Command, cfg clientv3.Config, cluster bool) ([]string, error) {
	if !cluster {
		return cfg.Endpoints, nil
	}
	var endpoints []string
	err := a.callWith(cmd, cfg, func(ctx context.Context, c *clientv3.Client) error {
		members, err := c.MemberList(ctx)
		if err != nil {
			return fmt.Errorf("failed to fetch endpoints from etcd cluster member list: %w", err)
		}
		for _, m := range members.Members {
			endpoints = append(endpoints, m.ClientURLs...)
		}
		return nil
	})
	return endpoints, err
}

// visit asks each endpoint in turn. An endpoint that fails is told on standard
// error at once, and the others are asked all the same.
func (a *app) visit(cmd *cobra.Command, cluster bool, complaint string, ask func(context.Context, *clientv3.Client, string) error) (failed error, err error) {
	cfg, err := a.config(cmd)
	if err != nil {
		return nil, err
	}
	endpoints, err := a.endpointsOf(cmd, cfg, cluster)
	if err != nil {
		return nil, err
	}
	for _, endpoint := range endpoints {
		one := cfg
		one.Endpoints = []string{endpoint}
		err := a.callWith(cmd, one, func(ctx context.Context, c *clientv3.Client) error {
			return ask(ctx, c, endpoint)
		})
		if err != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), complaint, endpoint, err)
			failed = err
		}
	}
	return failed, nil
}

func (a *app) healthCommand(cluster *bool) *cobra.Command {
	return &cobra.Command{
		Use:   "health",
		Short: "Check that each endpoint can serve a read that all agree on",
		Long: `Read a key through each endpoint, and list the alarms. An endpoint is healthy
if the read succeeds, or only permission for it is missing, and no alarm is
raised. The exit code is 1 if one endpoint is not.`,
		Example: `
{{program}} endpoint health
{{program}} --endpoints=10.0.0.1:2379,10.0.0.2:2379 endpoint health -w table`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config(cmd)
			if err != nil {
				return err
			}
			endpoints, err := a.endpointsOf(cmd, cfg, *cluster)
			if err != nil {
				return err
			}
			all := make([]endpointHealth, len(endpoints))
			var asking sync.WaitGroup
			for i, endpoint := range endpoints {
				one := cfg
				one.Endpoints = []string{endpoint}
				asking.Go(func() { all[i] = a.health(cmd.Context(), one, endpoint) })
			}
			asking.Wait()
			if err := a.print(cmd, healthAnswer(all, cmd.ErrOrStderr())); err != nil {
				return err
			}
			for _, h := range all {
				if h.Error != "" {
					return &failure{code: exitError, err: errors.New("unhealthy cluster")}
				}
			}
			return nil
		},
	}
}

func (a *app) health(ctx context.Context, cfg clientv3.Config, endpoint string) endpointHealth {
	h := endpointHealth{Endpoint: endpoint}
	c, err := clientv3.New(cfg)
	if err != nil {
		h.Error = err.Error()
		return h
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, a.commandTimeout)
	defer cancel()

	start := time.Now()
	_, err = c.Get(ctx, "health")
	h.Took = time.Since(start).String()
	// To refuse permission the server had to ask the others, which is health enough.
	if err != nil && !errors.Is(err, rpctypes.ErrPermissionDenied) {
		h.Error = err.Error()
		return h
	}
	alarms, err := c.AlarmList(ctx)
	switch {
	case err != nil:
		h.Error = "Unable to fetch the alarm list"
	case len(alarms.Alarms) > 0:
		h.Error = "Active Alarm(s): " + alarmNames(alarms.Alarms)
	default:
		h.Health = true
	}
	return h
}

// alarmNames lists the alarms with a space behind each, as etcdctl does.
func alarmNames(alarms []*pb.AlarmMember) string {
	var names strings.Builder
	for _, alarm := range alarms {
		switch alarm.GetAlarm() {
		case pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT:
			names.WriteString(alarm.GetAlarm().String() + " ")
		default:
			names.WriteString("UNKNOWN ")
		}
	}
	return names.String()
}

func (a *app) endpointStatusCommand(cluster *bool) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Print version, size, leader and log position of each endpoint",
		Long: `Print, for each endpoint, what it knows of itself. The columns of the simple
format are those of -w table.`,
		Example: `
{{program}} endpoint status -w table
{{program}} endpoint status --cluster -w json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []endpointStatus
			failed, err := a.visit(cmd, *cluster, "Failed to get the status of endpoint %s (%v)\n",
				func(ctx context.Context, c *clientv3.Client, endpoint string) error {
					r, err := c.Status(ctx, endpoint)
					if err == nil {
						all = append(all, endpointStatus{endpoint, (*pb.StatusResponse)(r)})
					}
					return err
				})
			if err != nil {
				return err
			}
			if err := a.print(cmd, statusAnswer(all)); err != nil {
				return err
			}
			return untold(failed)
		},
	}
}

func (a *app) hashCommand(cluster *bool) *cobra.Command {
	var rev int64
	cmd := &cobra.Command{
		Use:   "hashkv",
		Short: "Print a hash of the whole history, equal on all members",
		Long: `Print a hash of all keys and their history up to a revision. Members that
have the same revision compacted must have the same hash; if not, one of them
is corrupt.`,
		Example: `
{{program}} endpoint hashkv --cluster
{{program}} endpoint hashkv --cluster --rev=4711`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []endpointHash
			failed, err := a.visit(cmd, *cluster, "Failed to get the hash of endpoint %s (%v)\n",
				func(ctx context.Context, c *clientv3.Client, endpoint string) error {
					r, err := c.HashKV(ctx, endpoint, rev)
					if err == nil {
						all = append(all, endpointHash{endpoint, (*pb.HashKVResponse)(r)})
					}
					return err
				})
			if err != nil {
				return err
			}
			if err := a.print(cmd, hashAnswer(all)); err != nil {
				return err
			}
			return failed
		},
	}
	cmd.Flags().Int64Var(&rev, "rev", 0, "hash the history up to this revision (0: the latest)")
	return cmd
}
