package ctl

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// endpointHealth, endpointStatus and endpointHash are what one endpoint said;
// their JSON names are etcdctl's.
type endpointHealth struct {
	Endpoint string `json:"endpoint"`
	Health   bool   `json:"health"`
	Took     string `json:"took"`
	Error    string `json:"error,omitempty"`
}

type endpointStatus struct {
	Endpoint string             `json:"Endpoint"`
	Status   *pb.StatusResponse `json:"Status"`
}

type endpointHash struct {
	Endpoint string             `json:"Endpoint"`
	HashKV   *pb.HashKVResponse `json:"HashKV"`
}

// healthAnswer writes unhealthy endpoints of the simple format to stderr, where
// etcdctl has them.
func healthAnswer(all []endpointHealth, stderr io.Writer) answer {
	return answer{
		json: all,
		simple: func(p *printer) {
			for _, h := range all {
				if h.Error == "" {
					p.linef("%s is healthy: successfully committed proposal: took = %v", h.Endpoint, h.Took)
				} else {
					fmt.Fprintf(stderr, "%s is unhealthy: failed to commit proposal: %v\n", h.Endpoint, h.Error)
				}
			}
		},
		fields: func(p *printer) {
			for _, h := range all {
				p.quoted("Endpoint", h.Endpoint)
				p.field("Health", h.Health)
				p.field("Took", h.Took)
				p.field("Error", h.Error)
				p.linef("")
			}
		},
		table: func() (header []string, rows [][]string) {
			for _, h := range all {
				rows = append(rows, []string{h.Endpoint, strconv.FormatBool(h.Health), h.Took, h.Error})
			}
			return []string{"endpoint", "health", "took", "error"}, rows
		},
	}
}

func statusAnswer(all []endpointStatus) answer {
	table := func() (header []string, rows [][]string) {
		for _, e := range all {
			s := e.Status
			rows = append(rows, []string{
				e.Endpoint,
				hexID(s.GetHeader().GetMemberId()),
				s.GetVersion(),
				s.GetStorageVersion(),
				humanize.Bytes(uint64(s.GetDbSize())),
				humanize.Bytes(uint64(s.GetDbSizeInUse())),
				strconv.FormatInt(unusedPercent(s), 10) + "%",
				humanize.Bytes(uint64(s.GetDbSizeQuota())),
				strconv.FormatBool(s.GetLeader() == s.GetHeader().GetMemberId()),
				strconv.FormatBool(s.GetIsLearner()),
				strconv.FormatUint(s.GetRaftTerm(), 10),
				strconv.FormatUint(s.GetRaftIndex(), 10),
				strconv.FormatUint(s.GetRaftAppliedIndex(), 10),
				strings.Join(s.GetErrors(), ", "),
				s.GetDowngradeInfo().GetTargetVersion(),
				strconv.FormatBool(s.GetDowngradeInfo().GetEnabled()),
			})
		}
		return []string{
			"endpoint", "ID", "version", "storage version", "db size", "in use", "percentage not in use", "quota",
			"is leader", "is learner", "raft term", "raft index", "raft applied index", "errors",
			"downgrade target version", "downgrade enabled",
		}, rows
	}
	return answer{
		json:   all,
		simple: joined(table),
		fields: func(p *printer) {
			for _, e := range all {
				s := e.Status
				p.header(s.GetHeader())
				p.quoted("Version", s.GetVersion())
				p.quoted("StorageVersion", s.GetStorageVersion())
				p.field("DBSize", s.GetDbSize())
				p.field("DBSizeInUse", s.GetDbSizeInUse())
				p.field("DBSizeQuota", s.GetDbSizeQuota())
				p.field("Leader", s.GetLeader())
				p.field("IsLearner", s.GetIsLearner())
				p.field("RaftIndex", s.GetRaftIndex())
				p.field("RaftAppliedIndex", s.GetRaftAppliedIndex())
				p.field("Errors", s.GetErrors())
				p.quoted("Endpoint", e.Endpoint)
				p.quoted("DowngradeTargetVersion", s.GetDowngradeInfo().GetTargetVersion())
				p.field("DowngradeEnabled", s.GetDowngradeInfo().GetEnabled())
				p.linef("")
			}
		},
		table: table,
	}
}

func unusedPercent(s *pb.StatusResponse) int64 {
	if s.GetDbSize() <= 0 {
		return 0
	}
	return 100 - s.GetDbSizeInUse()*100/s.GetDbSize()
}

func hashAnswer(all []endpointHash) answer {
	table := func() (header []string, rows [][]string) {
		for _, e := range all {
			rows = append(rows, []string{
				e.Endpoint,
				strconv.FormatUint(uint64(e.HashKV.GetHash()), 10),
				strconv.FormatInt(e.HashKV.GetHashRevision(), 10),
			})
		}
		return []string{"endpoint", "hash", "hash revision"}, rows
	}
	return answer{
		json:   all,
		simple: joined(table),
		fields: func(p *printer) {
			for _, e := range all {
				p.header(e.HashKV.GetHeader())
				p.quoted("Endpoint", e.Endpoint)
				p.field("Hash", e.HashKV.GetHash())
				p.field("HashRevision", e.HashKV.GetHashRevision())
				p.linef("")
			}
		},
		table: table,
	}
}

func memberListAnswer(r *pb.MemberListResponse, hex bool) answer {
	table := func() (header []string, rows [][]string) {
		for _, m := range r.GetMembers() {
			status := "started"
			if m.GetName() == "" {
				status = "unstarted" // a member tells its name when it first runs
			}
			rows = append(rows, []string{
				hexID(m.GetID()), status, m.GetName(),
				strings.Join(m.GetPeerURLs(), ","), strings.Join(m.GetClientURLs(), ","),
				strconv.FormatBool(m.GetIsLearner()),
			})
		}
		return []string{"ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner"}, rows
	}
	ans := answer{
		message: r,
		simple:  joined(table),
		fields: func(p *printer) {
			p.header(r.GetHeader())
			for _, m := range r.GetMembers() {
				p.id("ID", m.GetID())
				p.quoted("Name", m.GetName())
				for _, u := range m.GetPeerURLs() {
					p.quoted("PeerURL", u)
				}
				for _, u := range m.GetClientURLs() {
					p.quoted("ClientURL", u)
				}
				p.field("IsLearner", m.GetIsLearner())
				p.linef("")
			}
		},
		table: table,
	}
	if hex {
		ans.json = hexMembers(r)
	}
	return ans
}

// memberAddAnswer says how to start the new member, too.
func memberAddAnswer(r *pb.MemberAddResponse, name string) answer {
	return answer{
		message: r,
		simple: func(p *printer) {
			what := "added to"
			if r.GetMember().GetIsLearner() {
				what = "added as learner to"
			}
			p.changed(r.GetHeader(), r.GetMember().GetID(), what)
			var cluster []string
			for _, m := range r.GetMembers() {
				called := m.GetName()
				if m.GetID() == r.GetMember().GetID() {
					called = name
				}
				for _, u := range m.GetPeerURLs() {
					cluster = append(cluster, called+"="+u)
				}
			}
			p.linef("")
			p.linef("ETCD_NAME=%q", name)
			p.linef("ETCD_INITIAL_CLUSTER=%q", strings.Join(cluster, ","))
			p.linef("ETCD_INITIAL_ADVERTISE_PEER_URLS=%q", strings.Join(r.GetMember().GetPeerURLs(), ","))
			p.linef("ETCD_INITIAL_CLUSTER_STATE=\"existing\"")
		},
	}
}

func memberChangeAnswer[M interface {
	proto.Message
	GetHeader() *pb.ResponseHeader
}](r M, id uint64, what string) answer {
	return answer{message: r, simple: func(p *printer) { p.changed(r.GetHeader(), id, what) }}
}

func (p *printer) changed(h *pb.ResponseHeader, id uint64, what string) {
	p.linef("Member %16x %s cluster %16x", id, what, h.GetClusterId())
}

func moveLeaderAnswer(r *pb.MoveLeaderResponse, from, to uint64) answer {
	return answer{message: r, simple: func(p *printer) {
		p.linef("Leadership transferred from %s to %s", hexID(from), hexID(to))
	}}
}

// hexMembers is the one JSON answer in which etcdctl heeds --hex.
func hexMembers(r *pb.MemberListResponse) any {
	type header struct {
		ClusterID string `json:"cluster_id"`
		MemberID  string `json:"member_id"`
		Revision  int64  `json:"revision,omitempty"`
		RaftTerm  uint64 `json:"raft_term,omitempty"`
	}
	type member struct {
		ID         string   `json:"ID"`
		Name       string   `json:"name,omitempty"`
		PeerURLs   []string `json:"peerURLs,omitempty"`
		ClientURLs []string `json:"clientURLs,omitempty"`
		IsLearner  bool     `json:"isLearner,omitempty"`
	}
	h := r.GetHeader()
	members := []member{}
	for _, m := range r.GetMembers() {
		members = append(members, member{hexID(m.GetID()), m.GetName(), m.GetPeerURLs(), m.GetClientURLs(), m.GetIsLearner()})
	}
	return struct {
		Header  header   `json:"header"`
		Members []member `json:"members"`
	}{
		header{hexID(h.GetClusterId()), hexID(h.GetMemberId()), h.GetRevision(), h.GetRaftTerm()},
		members,
	}
}

func alarmAnswer(r *pb.AlarmResponse) answer {
	return answer{
		message: r,
		simple: func(p *printer) {
			for _, alarm := range r.GetAlarms() {
				p.linef("%s", prototext.MarshalOptions{}.Format(alarm))
			}
		},
		fields: func(p *printer) {
			p.header(r.GetHeader())
			for _, alarm := range r.GetAlarms() {
				p.id("MemberID", alarm.GetMemberID())
				p.field("AlarmType", alarm.GetAlarm())
				p.linef("")
			}
		},
		table: func() (header []string, rows [][]string) {
			for _, alarm := range r.GetAlarms() {
				rows = append(rows, []string{hexID(alarm.GetMemberID()), alarm.GetAlarm().String()})
			}
			return []string{"member", "alarm"}, rows
		},
	}
}

// joined is the simple form of what is a table otherwise.
func joined(table func() ([]string, [][]string)) func(*printer) {
	return func(p *printer) {
		_, rows := table()
		for _, row := range rows {
			p.linef("%s", strings.Join(row, ", "))
		}
	}
}
