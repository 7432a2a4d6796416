package v2

import (
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/kvorum/kvorum/state"
)

// tally counts requests by how they ended.
type tally struct{ success, fail atomic.Int64 }

func (t *tally) count(err error) {
	if err == nil {
		t.success.Add(1)
	} else {
		t.fail.Add(1)
	}
}

// counts are of what was asked of this member.
type counts struct {
	get, set, remove, update, create, swap, compareRemove tally

	watchers atomic.Int64 // that wait now
}

func (c *counts) of(op state.HierarchyOp) *tally {
	switch op {
	case state.NodeSet:
		return &c.set
	case state.NodeUpdate:
		return &c.update
	case state.NodeCompareAndSwap:
		return &c.swap
	case state.NodeDelete:
		return &c.remove
	case state.NodeCompareAndDelete:
		return &c.compareRemove
	}
	return &c.create
}

func (h *Handler) stats(w http.ResponseWriter, r *http.Request, which string) {
	var answer func(http.ResponseWriter)
	switch which {
	case "self":
		answer = h.selfStats
	case "leader":
		answer = h.leaderStats
	case "store":
		answer = h.storeStats
	default:
		http.NotFound(w, r)
		return
	}
	if allow(w, r, http.MethodGet) {
		answer(w)
	}
}

func (h *Handler) storeStats(w http.ResponseWriter) {
	b := []byte{'{'}
	add := func(name string, n int64) {
		b = append(b, '"')
		b = append(b, name...)
		b = append(b, '"', ':')
		b = strconv.AppendInt(b, n, 10)
		b = append(b, ',')
	}
	c := &h.counts
	for _, t := range []struct {
		name  string
		tally *tally
	}{
		{"gets", &c.get}, {"sets", &c.set}, {"delete", &c.remove}, {"update", &c.update}, {"create", &c.create},
		{"compareAndSwap", &c.swap}, {"compareAndDelete", &c.compareRemove},
	} {
		add(t.name+"Success", t.tally.success.Load())
		add(t.name+"Fail", t.tally.fail.Load())
	}
	add("expireCount", int64(h.expired.Value()))
	add("watchers", c.watchers.Load())
	writeBody(w, http.StatusOK, endWith(b, '}'))
}

// selfStats tells of this member. Rates are not measured, and left out as those
// are that are zero.
func (h *Handler) selfStats(w http.ResponseWriter) {
	type leader struct {
		Leader string    `json:"leader"`
		Uptime string    `json:"uptime"`
		Since  time.Time `json:"startTime"`
	}
	s, t, now := h.gate.Status(), h.backend.Traffic(), time.Now()
	self, _ := h.backend.View().Member(s.Member)
	answer := struct {
		Name     string    `json:"name"`
		ID       string    `json:"id"`
		State    string    `json:"state"`
		Started  time.Time `json:"startTime"`
		Leader   leader    `json:"leaderInfo"`
		Received uint64    `json:"recvAppendRequestCnt"`
		Sent     uint64    `json:"sendAppendRequestCnt"`
	}{
		Name: self.Name, ID: fmt.Sprintf("%x", uint64(s.Member)), State: "StateFollower", Started: h.started,
		Received: t.Received, Sent: t.Sent,
	}
	if s.Leader == s.Member {
		answer.State = "StateLeader"
	}
	if !t.LeaderSince.IsZero() {
		answer.Leader = leader{fmt.Sprintf("%x", uint64(s.Leader)), now.Sub(t.LeaderSince).String(), t.LeaderSince}
	}
	writeValue(w, answer)
}

func (h *Handler) leaderStats(w http.ResponseWriter) {
	s := h.gate.Status()
	if s.Leader != s.Member {
		writeMessage(w, http.StatusForbidden, "not current leader")
		return
	}
	type latency struct {
		Current   float64 `json:"current"`
		Average   float64 `json:"average"`
		Deviation float64 `json:"standardDeviation"`
		Minimum   float64 `json:"minimum"`
		Maximum   float64 `json:"maximum"`
	}
	type counts struct {
		Fail    uint64 `json:"fail"`
		Success uint64 `json:"success"`
	}
	type follower struct {
		Latency latency `json:"latency"`
		Counts  counts  `json:"counts"`
	}
	followers := map[string]follower{}
	for _, p := range h.backend.Traffic().Peers {
		milliseconds := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
		followers[fmt.Sprintf("%x", uint64(p.ID))] = follower{
			latency{milliseconds(p.Last), milliseconds(p.Mean), milliseconds(p.Deviation), milliseconds(p.Min), milliseconds(p.Max)},
			counts{p.Lost, p.Answered},
		}
	}
	writeValue(w, struct {
		Leader    string              `json:"leader"`
		Followers map[string]follower `json:"followers"`
	}{fmt.Sprintf("%x", uint64(s.Member)), followers})
}
