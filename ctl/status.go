package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// clusterStatus is the cluster at a glance. Ids are hexadecimal text, since
// JSON readers round numbers of 64 bits.
type clusterStatus struct {
	ClusterID string         `json:"cluster_id"`
	Healthy   bool           `json:"healthy"`
	Leader    string         `json:"leader,omitempty"`
	Revision  int64          `json:"revision"`
	RaftTerm  uint64         `json:"raft_term"`
	Alarms    []string       `json:"alarms"`
	Members   []memberStatus `json:"members"`
}

type memberStatus struct {
	ID          string   `json:"id"`
	Name        string   `json:"name"`
	Endpoint    string   `json:"endpoint"`
	Role        string   `json:"role"` // leader, follower, learner, or unreachable
	Version     string   `json:"version,omitempty"`
	DBSize      int64    `json:"db_size"`
	DBSizeInUse int64    `json:"db_size_in_use"`
	DBSizeQuota int64    `json:"db_size_quota"`
	RaftIndex   uint64   `json:"raft_index"`
	RaftApplied uint64   `json:"raft_applied_index"`
	Errors      []string `json:"errors"`
}

func (a *app) statusCommand() *cobra.Command {
	var exitCode bool
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the cluster at a glance",
		GroupID: groupCluster,
		Long: `Ask one endpoint who the members are, then each member how it is, and show
it together: members, leader, revision, sizes, alarms. The endpoint that was
named need not be reachable under the address that its member advertises.`,
		Example: `
{{program}} status
{{program}} status -w table
{{program}} status -w json
{{program}} status --exit-code || page-somebody   # 5 unless all is well`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config(cmd)
			if err != nil {
				return err
			}
			var status clusterStatus
			err = a.callWith(cmd, cfg, func(ctx context.Context, c *clientv3.Client) (err error) {
				status, err = a.glance(ctx, c, cfg)
				return err
			})
			if err != nil {
				return err
			}
			if err := a.print(cmd, status.answer()); err != nil {
				return err
			}
			if exitCode && !status.Healthy {
				return &failure{code: exitUnhealthy} // the answer said why
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "end with exit code 5 unless every member answers, one leads and no alarm is raised")
	return cmd
}

func (a *app) glance(ctx context.Context, c *clientv3.Client, cfg clientv3.Config) (clusterStatus, error) {
	// Without quorum is when a glance is wanted most: ask only this member.
	members, err := c.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return clusterStatus{}, err
	}
	status := clusterStatus{
		ClusterID: hexID(members.Header.GetClusterId()),
		Alarms:    []string{},
		Members:   make([]memberStatus, len(members.Members)),
	}
	answers := make([]*pb.StatusResponse, len(members.Members))
	var asking sync.WaitGroup
	for i, m := range members.Members {
		asking.Go(func() { answers[i], status.Members[i] = a.look(ctx, cfg, m) })
	}
	asking.Wait()

	leader := ""
	for i, r := range answers {
		if r == nil {
			continue
		}
		status.Revision = max(status.Revision, r.GetHeader().GetRevision())
		if r.GetRaftTerm() >= status.RaftTerm && r.GetLeader() != 0 {
			status.RaftTerm, leader = r.GetRaftTerm(), hexID(r.GetLeader())
		}
		if r.GetLeader() == r.GetHeader().GetMemberId() {
			status.Members[i].Role = "leader"
		}
	}
	status.Leader = leader

	alarms, err := c.AlarmList(ctx)
	if err != nil {
		status.Alarms = append(status.Alarms, "unknown: "+err.Error())
	} else {
		for _, alarm := range alarms.Alarms {
			status.Alarms = append(status.Alarms, fmt.Sprintf("%s on %s", alarm.GetAlarm(), hexID(alarm.GetMemberID())))
		}
	}
	status.Healthy = leader != "" && len(status.Alarms) == 0
	for _, m := range status.Members {
		status.Healthy = status.Healthy && m.Role != "unreachable" && len(m.Errors) == 0
	}
	return status, nil
}

// look asks one member for its status, under the addresses it advertises. A
// cluster of one is asked where the user reached it as well.
func (a *app) look(ctx context.Context, cfg clientv3.Config, m *pb.Member) (*pb.StatusResponse, memberStatus) {
	s := memberStatus{ID: hexID(m.GetID()), Name: m.GetName(), Role: "unreachable", Errors: []string{}}
	endpoints := append(append([]string{}, cfg.Endpoints...), m.GetClientURLs()...)
	var last error
	for _, endpoint := range endpoints {
		r, err := a.statusOf(ctx, cfg, endpoint)
		if err != nil {
			last = err
			continue
		}
		if r.GetHeader().GetMemberId() != m.GetID() {
			continue // that endpoint leads to another member
		}
		s.Endpoint, s.Version = endpoint, r.GetVersion()
		s.DBSize, s.DBSizeInUse, s.DBSizeQuota = r.GetDbSize(), r.GetDbSizeInUse(), r.GetDbSizeQuota()
		s.RaftIndex, s.RaftApplied = r.GetRaftIndex(), r.GetRaftAppliedIndex()
		s.Errors = append(s.Errors, r.GetErrors()...)
		s.Role = "follower"
		if r.GetIsLearner() {
			s.Role = "learner"
		}
		return r, s
	}
	s.Endpoint = strings.Join(m.GetClientURLs(), ",")
	if last == nil {
		last = errors.New("advertises no client URL")
	}
	s.Errors = append(s.Errors, last.Error())
	return nil, s
}

func (a *app) statusOf(ctx context.Context, cfg clientv3.Config, endpoint string) (*pb.StatusResponse, error) {
	cfg.Endpoints = []string{endpoint}
	c, err := clientv3.New(cfg)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	// A member that is down must leave time for the others' answers.
	ctx, cancel := context.WithTimeout(ctx, min(a.dialTimeout, a.commandTimeout/2))
	defer cancel()
	r, err := c.Status(ctx, endpoint)
	return (*pb.StatusResponse)(r), err
}

func (s clusterStatus) answer() answer {
	return answer{
		json:   s,
		simple: s.simple,
		table:  s.table,
	}
}

func (s clusterStatus) table() (header []string, rows [][]string) {
	for _, m := range s.Members {
		rows = append(rows, []string{
			m.ID, m.Name, m.Endpoint, m.Role, m.Version,
			humanize.IBytes(uint64(m.DBSize)), humanize.IBytes(uint64(m.DBSizeInUse)),
			strconv.FormatUint(m.RaftApplied, 10), strings.Join(m.Errors, ", "),
		})
	}
	return []string{"id", "name", "endpoint", "role", "version", "db size", "in use", "applied", "errors"}, rows
}

func (s clusterStatus) simple(p *printer) {
	verdict := "healthy"
	if !s.Healthy {
		verdict = "NOT healthy"
	}
	p.linef("cluster   %s, %s", s.ClusterID, verdict)
	p.linef("leader    %s", s.leaderName())
	p.linef("revision  %d", s.Revision)
	if len(s.Alarms) > 0 {
		p.linef("alarms    %s", strings.Join(s.Alarms, ", "))
	} else {
		p.linef("alarms    none")
	}
	p.linef("members   %d", len(s.Members))
	for _, m := range s.Members {
		m.line(p)
	}
}

func (s clusterStatus) leaderName() string {
	if s.Leader == "" {
		return "none"
	}
	name := s.Leader
	for _, m := range s.Members {
		if m.ID == s.Leader {
			name = m.Name + " (" + m.ID + ")"
		}
	}
	return fmt.Sprintf("%s, term %d", name, s.RaftTerm)
}

func (m memberStatus) line(w io.Writer) {
	name := m.Name
	if name == "" {
		name = m.ID + " (not started)"
	}
	fmt.Fprintf(w, "  %-12s %-11s %s", name, m.Role, m.Endpoint)
	if m.Role != "unreachable" {
		fmt.Fprintf(w, "  %s, %s of %s in use", m.Version, humanize.IBytes(uint64(m.DBSizeInUse)), humanize.IBytes(uint64(m.DBSize)))
		if m.DBSizeQuota > 0 {
			fmt.Fprintf(w, ", quota %s", humanize.IBytes(uint64(m.DBSizeQuota)))
		}
	}
	for _, e := range m.Errors {
		fmt.Fprintf(w, "\n    %s", e)
	}
	fmt.Fprintln(w)
}
