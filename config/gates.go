package config

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
)

// Gate names a feature that may be switched on its own.
type Gate string

// The gates of etcd 3.7.
const (
	CompactHashCheck        Gate = "CompactHashCheck"
	FastLeaseKeepAlive      Gate = "FastLeaseKeepAlive"
	InitialCorruptCheck     Gate = "InitialCorruptCheck"
	LeaseCheckpoint         Gate = "LeaseCheckpoint"
	LeaseCheckpointPersist  Gate = "LeaseCheckpointPersist"
	PriorityRequest         Gate = "PriorityRequest"
	SetMemberLocalAddr      Gate = "SetMemberLocalAddr"
	StopGRPCServiceOnDefrag Gate = "StopGRPCServiceOnDefrag"
	TxnSharedBuffer         Gate = "TxnModeWriteWithSharedBuffer"

	allAlpha Gate = "AllAlpha"
	allBeta  Gate = "AllBeta"
)

// onByDefault holds every gate. What is off by default is alpha, what is on
// is beta.
var onByDefault = map[Gate]bool{
	CompactHashCheck:        false,
	FastLeaseKeepAlive:      true,
	InitialCorruptCheck:     false,
	LeaseCheckpoint:         false,
	LeaseCheckpointPersist:  false,
	PriorityRequest:         false,
	SetMemberLocalAddr:      false,
	StopGRPCServiceOnDefrag: false,
	TxnSharedBuffer:         true,
}

// Gates holds the switches that were touched.
type Gates map[Gate]bool

// Enabled tells whether a feature is on. A switch of its own counts more than
// AllAlpha or AllBeta, and those more than the default.
func (g Gates) Enabled(gate Gate) bool {
	if on, ok := g[gate]; ok {
		return on
	}
	stage := allAlpha
	if onByDefault[gate] {
		stage = allBeta
	}
	if on, ok := g[stage]; ok {
		return on
	}
	return onByDefault[gate]
}

// All yields every feature by name, its stage as etcd calls it, and whether it
// is on.
func (g Gates) All(yield func(gate Gate, stage string, on bool)) {
	for _, gate := range sortedKeys(onByDefault) {
		stage := "ALPHA"
		if onByDefault[gate] {
			stage = "BETA"
		}
		yield(gate, stage, g.Enabled(gate))
	}
}

// String returns the switches as the flag takes them, in order of name.
func (g Gates) String() string {
	var parts []string
	for _, gate := range sortedKeys(g) {
		parts = append(parts, fmt.Sprintf("%s=%t", gate, g[gate]))
	}
	return strings.Join(parts, ",")
}

func gates(field *Gates) value {
	return of(field, func(text string) (Gates, error) {
		all := make(Gates)
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part == "" {
				continue
			}
			name, word, _ := strings.Cut(part, "=")
			on, err := strconv.ParseBool(strings.TrimSpace(word))
			if err != nil {
				return nil, fmt.Errorf("%q: want Name=true or Name=false, parted by commas", part)
			}
			all[Gate(strings.TrimSpace(name))] = on
		}
		return all, nil
	}, func(g Gates) any { return g.String() })
}

// settleGates adds what older flags switched, and drops what is unknown: a
// manifest for a newer or older etcd should start, and say so.
func (p *parser) settleGates(s *Server) {
	for _, gate := range sortedKeys(p.gates) {
		if _, ok := s.FeatureGates[gate]; !ok {
			s.FeatureGates[gate] = p.gates[gate]
		}
	}
	for _, gate := range sortedKeys(s.FeatureGates) {
		if _, ok := onByDefault[gate]; !ok && gate != allAlpha && gate != allBeta {
			p.note(slog.LevelWarn, "--feature-gates: passed over %s, which is no feature%s", gate, suggest(string(gate), sortedKeys(onByDefault)))
			delete(s.FeatureGates, gate)
		}
	}
}

func (g Gates) check() error {
	if g.Enabled(LeaseCheckpointPersist) && !g.Enabled(LeaseCheckpoint) {
		return errors.New("config: --feature-gates: LeaseCheckpointPersist keeps what LeaseCheckpoint records: enable both or neither")
	}
	return nil
}
