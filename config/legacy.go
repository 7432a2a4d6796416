package config

import (
	"log/slog"
	"strconv"
)

// legacy is a flag of an older etcd. At most one of its heirs is set.
type legacy struct {
	isBool bool
	flag   string // the flag that took over
	gate   Gate   // the feature gate that took over
	why    string // nothing took over
}

// The removed server modes and the v2 discovery service have no heir.
const (
	noProxy     = "the proxy mode is gone"
	noDiscovery = "the v2 discovery service is gone: use --discovery-endpoints with --discovery-token, or --discovery-srv"
	ignoredEver = "nothing has read it since etcd 2"
)

var legacies = map[string]legacy{
	"experimental-initial-corrupt-check":                {isBool: true, gate: InitialCorruptCheck},
	"experimental-compact-hash-check-enabled":           {isBool: true, gate: CompactHashCheck},
	"experimental-enable-lease-checkpoint":              {isBool: true, gate: LeaseCheckpoint},
	"experimental-enable-lease-checkpoint-persist":      {isBool: true, gate: LeaseCheckpointPersist},
	"experimental-txn-mode-write-with-shared-buffer":    {isBool: true, gate: TxnSharedBuffer},
	"experimental-stop-grpc-service-on-defrag":          {isBool: true, gate: StopGRPCServiceOnDefrag},
	"experimental-set-member-localaddr":                 {isBool: true, gate: SetMemberLocalAddr},
	"experimental-corrupt-check-time":                   {flag: "corrupt-check-time"},
	"experimental-compact-hash-check-time":              {flag: "compact-hash-check-time"},
	"experimental-compaction-batch-limit":               {flag: "compaction-batch-limit"},
	"experimental-compaction-sleep-interval":            {flag: "compaction-sleep-interval"},
	"experimental-watch-progress-notify-interval":       {flag: "watch-progress-notify-interval"},
	"experimental-warning-apply-duration":               {flag: "warning-apply-duration"},
	"experimental-warning-unary-request-duration":       {flag: "warning-unary-request-duration"},
	"experimental-bootstrap-defrag-threshold-megabytes": {flag: "bootstrap-defrag-threshold-megabytes"},
	"experimental-max-learners":                         {flag: "max-learners"},
	"experimental-downgrade-check-time":                 {flag: "downgrade-check-time"},
	"experimental-snapshot-catchup-entries":             {flag: "snapshot-catchup-entries"},
	"experimental-memory-mlock":                         {isBool: true, flag: "memory-mlock"},
	"experimental-peer-skip-client-san-verification":    {isBool: true, flag: "peer-skip-client-san-verification"},
	"experimental-backend-bbolt-freelist-type":          {flag: "backend-bbolt-freelist-type"},
	"experimental-enable-distributed-tracing":           {isBool: true, flag: "enable-distributed-tracing"},
	"experimental-distributed-tracing-address":          {flag: "distributed-tracing-address"},
	"experimental-distributed-tracing-service-name":     {flag: "distributed-tracing-service-name"},
	"experimental-distributed-tracing-instance-id":      {flag: "distributed-tracing-instance-id"},
	"experimental-distributed-tracing-sampling-rate":    {flag: "distributed-tracing-sampling-rate"},
	"experimental-enable-v2v3":                          {why: "v2 keys always live in the v3 store"},
	"experimental-wait-cluster-ready-timeout":           {why: "a member is ready when it can serve"},
	"log-output":              {flag: "log-outputs"},
	"debug":                   {isBool: true, why: "use --log-level=debug"},
	"log-package-levels":      {why: "use --log-level"},
	"discovery":               {why: noDiscovery},
	"discovery-proxy":         {why: noDiscovery},
	"discovery-fallback":      {why: noDiscovery},
	"proxy":                   {why: noProxy},
	"proxy-failure-wait":      {why: noProxy},
	"proxy-refresh-interval":  {why: noProxy},
	"proxy-dial-timeout":      {why: noProxy},
	"proxy-write-timeout":     {why: noProxy},
	"proxy-read-timeout":      {why: noProxy},
	"peers":                   {why: ignoredEver},
	"peers-file":              {why: ignoredEver},
	"cluster-active-size":     {isBool: true, why: ignoredEver},
	"cluster-remove-delay":    {isBool: true, why: ignoredEver},
	"cluster-sync-interval":   {isBool: true, why: ignoredEver},
	"config":                  {isBool: true, why: "use --config-file"},
	"force":                   {isBool: true, why: ignoredEver},
	"max-result-buffer":       {isBool: true, why: ignoredEver},
	"max-retry-attempts":      {isBool: true, why: ignoredEver},
	"peer-heartbeat-interval": {isBool: true, why: ignoredEver},
	"peer-election-timeout":   {isBool: true, why: ignoredEver},
	"retry-interval":          {isBool: true, why: ignoredEver},
	"snapshot":                {isBool: true, why: ignoredEver},
	"v":                       {isBool: true, why: "use --log-level=debug"},
	"vv":                      {isBool: true, why: "use --log-level=debug"},
}

// translate returns the name of the setting that g means today. It returns
// false when there is none, or when a feature gate took its place.
func (p *parser) translate(g given) (string, given, bool) {
	old, ok := legacies[g.name]
	if !ok {
		return g.name, g, g.name != "config-file"
	}
	if old.flag != "" {
		p.note(slog.LevelWarn, "%s is now --%s", g.from, old.flag)
		return old.flag, g, true
	}
	if old.gate == "" {
		// Samples set the dead to their defaults; only who turns one on has something to learn.
		if off, err := strconv.ParseBool(g.text); g.text != "off" && (err != nil || off) {
			p.note(slog.LevelWarn, "%s has no effect: %s", g.from, old.why)
		}
		return "", g, false
	}
	on, err := strconv.ParseBool(g.text)
	if err != nil {
		p.note(slog.LevelWarn, "%s: want true or false, not %q; passed over", g.from, g.text)
		return "", g, false
	}
	p.note(slog.LevelWarn, "%s is now --feature-gates=%s=%t", g.from, old.gate, on)
	p.gates[old.gate] = on
	return "", g, false
}
