package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvorum/kvorum/ctl/internal/load"
)

// What check asks of a cluster, and the words of its verdicts, are etcdctl's.

// perfLoad is what "check perf" writes: callers together, at a rate.
type perfLoad struct {
	callers  int
	rate     float64 // writes per second
	duration time.Duration
}

var perfLoads = map[string]perfLoad{
	"s":  {callers: 50, rate: 150, duration: time.Minute},
	"m":  {callers: 200, rate: 1000, duration: time.Minute},
	"l":  {callers: 500, rate: 8000, duration: time.Minute},
	"xl": {callers: 1000, rate: 15000, duration: time.Minute},
}

// A cluster passes if it keeps these.
const (
	perfRateShare    = 0.9
	perfSlowestMax   = 500 * time.Millisecond
	perfDeviationMax = 100 * time.Millisecond
)

// scaleLoad is what "check datascale" stores.
type scaleLoad struct {
	callers int
	keys    int64
}

var scaleLoads = map[string]scaleLoad{
	"s":  {callers: 50, keys: 10_000},
	"m":  {callers: 200, keys: 100_000},
	"l":  {callers: 500, keys: 1_000_000},
	"xl": {callers: 1000, keys: 3_000_000},
}

const (
	checkKeyBytes   = 256 // beside the prefix
	checkValueBytes = 1024
)

var loadNames = map[string]string{
	"s": "s", "small": "s", "m": "m", "medium": "m", "l": "l", "large": "l", "xl": "xl", "xLarge": "xl",
}

func loadNamed[L any](name string, loads map[string]L) (L, error) {
	l, ok := loads[loadNames[name]]
	if !ok {
		return l, badFeature("unknown load option %s", name)
	}
	return l, nil
}

// afterCheck is what to do when the keys of a check are gone.
type afterCheck struct{ compact, defrag bool }

func (a *app) checkCommand() *cobra.Command {
	return family(&cobra.Command{
		Use:     "check",
		Short:   "Try whether a cluster is fast enough, or what its data costs: perf, datascale",
		GroupID: groupUtility,
		Example: `
{{program}} check perf
{{program}} check perf --load=m --auto-compact --auto-defrag`,
	}, a.perfCommand(), a.datascaleCommand())
}

// checkFlags are those that both checks have.
func checkFlags(cmd *cobra.Command, size, prefix *string, then *afterCheck) {
	name := cmd.Name()
	fs := cmd.Flags()
	fs.StringVar(size, "load", "s", "how much to ask: s, m, l or xl")
	fs.StringVar(prefix, "prefix", "/etcdctl-check-"+name+"/", "prefix of the keys to write; no key may have it")
	fs.BoolVar(&then.compact, "auto-compact", false, "compact the store when the keys are deleted again")
	fs.BoolVar(&then.defrag, "auto-defrag", false, "defragment the endpoints at the end")
	completeValues(cmd, "load", "s", "m", "l", "xl")
}

func (a *app) perfCommand() *cobra.Command {
	var size, prefix string
	var then afterCheck
	cmd := &cobra.Command{
		Use:   "perf",
		Short: "Write at a given rate for a minute, and judge how the cluster kept up",
		Long: `Write keys of 256 bytes and values of 1 KiB for a minute, and delete them again.

  load  clients  writes/s
  s          50       150
  m         200      1000
  l         500      8000
  xl       1000     15000

The cluster passes if it took 90 % of the rate, no write took longer than half
a second, and the times of the writes have a standard deviation below a tenth.
The exit code is 1 if it fails.`,
		Example: `
{{program}} check perf
{{program}} check perf --load=l --auto-compact --auto-defrag`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := loadNamed(size, perfLoads)
			if err != nil {
				return err
			}
			return a.perf(cmd, l, prefix, then)
		},
	}
	checkFlags(cmd, &size, &prefix, &then)
	return cmd
}

func (a *app) perf(cmd *cobra.Command, l perfLoad, prefix string, then afterCheck) error {
	cs, err := a.connect(cmd, l.callers)
	if err != nil {
		return err
	}
	defer cs.close()
	taken := fmt.Sprintf("prefix %q has keys. Delete with 'etcdctl del --prefix %s' first", prefix, prefix)
	if err := cs.mustBeEmpty(prefix, taken); err != nil {
		return err
	}

	bar := a.bar(cmd, "writing", int64(l.duration/time.Millisecond), "")
	result := load.Run(cmd.Context(), load.Options{
		Callers: l.callers, Rate: l.rate, Duration: l.duration,
		Progress: func(_ int64, elapsed time.Duration) { bar.at(int64(elapsed / time.Millisecond)) },
	}, cs.writeAnywhere(prefix))
	bar.finish()

	out := cmd.OutOrStdout()
	ctx := context.WithoutCancel(cmd.Context()) // an interrupt must not leave the keys behind
	if err := cs.clearCheck(ctx, out, prefix, then); err != nil {
		return err
	}
	if cmd.Context().Err() != nil {
		return &failure{code: exitInterrupted, err: errors.New("interrupted; the keys are deleted")}
	}
	if !judge(out, l, result) {
		fmt.Fprintln(out, "FAIL")
		return &failure{code: exitError} // the lines above said why
	}
	fmt.Fprintln(out, "PASS")
	return nil
}

// judge prints a line for each thing that is asked of a cluster.
func judge(out io.Writer, l perfLoad, r load.Result) (passed bool) {
	passed = true
	s := written(r)
	if s.Failed > 0 {
		tellErrors(out, s)
		passed = false
	}
	rate := float64(s.Latency.Count()) / r.Elapsed.Seconds()
	if rate/l.rate <= perfRateShare {
		fmt.Fprintf(out, "FAIL: Throughput too low: %d writes/s\n", int(rate)+1)
		passed = false
	} else {
		fmt.Fprintf(out, "PASS: Throughput is %d writes/s\n", int(rate)+1)
	}
	if slowest := s.Latency.Max(); slowest > perfSlowestMax {
		fmt.Fprintf(out, "Slowest request took too long: %fs\n", slowest.Seconds())
		passed = false
	} else {
		fmt.Fprintf(out, "PASS: Slowest request took %fs\n", slowest.Seconds())
	}
	if deviation := s.Latency.Deviation(); deviation > perfDeviationMax {
		fmt.Fprintf(out, "Stddev too high: %fs\n", deviation.Seconds())
		passed = false
	} else {
		fmt.Fprintf(out, "PASS: Stddev is %fs\n", deviation.Seconds())
	}
	return passed
}

func tellErrors(out io.Writer, s *load.Stats) {
	fmt.Fprintln(out, "FAIL: too many errors")
	for _, text := range slices.Sorted(maps.Keys(s.Errors)) {
		fmt.Fprintf(out, "FAIL: ERROR(%s) -> %d\n", text, s.Errors[text])
	}
}

func (a *app) datascaleCommand() *cobra.Command {
	var size, prefix string
	var then afterCheck
	cmd := &cobra.Command{
		Use:   "datascale",
		Short: "Store many keys, and tell how much more memory the server has then",
		Long: `Store keys with values of 1 KiB, read from the first endpoint's /metrics how
much its resident memory has grown, and delete the keys again.

  load  clients       keys
  s          50     10 000
  m         200    100 000
  l         500  1 000 000
  xl       1000  3 000 000`,
		Example: `
{{program}} check datascale
{{program}} check datascale --load=m --auto-compact --auto-defrag`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := loadNamed(size, scaleLoads)
			if err != nil {
				return err
			}
			return a.datascale(cmd, l, prefix, then)
		},
	}
	checkFlags(cmd, &size, &prefix, &then)
	return cmd
}

func (a *app) datascale(cmd *cobra.Command, l scaleLoad, prefix string, then afterCheck) error {
	cs, err := a.connect(cmd, l.callers)
	if err != nil {
		return err
	}
	defer cs.close()
	taken := fmt.Sprintf("prefix %q has keys. Delete with etcdctl del --prefix %s first", prefix, prefix)
	if err := cs.mustBeEmpty(prefix, taken); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	before, err := cs.residentMemory(cmd.Context())
	if err != nil {
		fmt.Fprintln(out, "FAIL: Could not read process_resident_memory_bytes before the put operations.")
		return err
	}

	fmt.Fprintf(out, "Start data scale check for work load [%v key-value pairs, %v bytes per key-value, %v concurrent clients].\n",
		l.keys, checkValueBytes, l.callers)
	bar := a.bar(cmd, "writing", l.keys, "keys")
	result := load.Run(cmd.Context(), load.Options{
		Callers: l.callers, Total: l.keys,
		Progress: func(done int64, _ time.Duration) { bar.at(done) },
	}, cs.writeAnywhere(prefix))
	bar.finish()

	ctx := context.WithoutCancel(cmd.Context())
	after, memoryErr := cs.residentMemory(ctx)
	if err := cs.clearCheck(ctx, out, prefix, then); err != nil {
		return err
	}
	s := written(result)
	switch {
	case cmd.Context().Err() != nil:
		return &failure{code: exitInterrupted, err: errors.New("interrupted; the keys are deleted")}
	case memoryErr != nil:
		fmt.Fprintln(out, "FAIL: Could not read process_resident_memory_bytes after the put operations.")
		return memoryErr
	case s.Failed > 0:
		tellErrors(out, s)
		return &failure{code: exitError}
	}
	fmt.Fprintf(out, "PASS: Approximate system memory used : %.2f MB.\n", (after-before)/(1<<20))
	return nil
}

const kindPut = "put"

// written is what the puts met, if there were any.
func written(r load.Result) *load.Stats {
	if s := r.Kinds[kindPut]; s != nil {
		return s
	}
	return &load.Stats{}
}

// writeAnywhere puts what a check puts, under keys that nobody else chose.
func (cs *connections) writeAnywhere(prefix string) load.Ask {
	value := string(make([]byte, checkValueBytes))
	return func(ctx context.Context, r load.Request) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, cs.app.commandTimeout)
		defer cancel()
		key := fmt.Sprintf("%s%0*x", prefix, checkKeyBytes, rand.Uint64())
		_, err := cs.of(r.Caller).Put(ctx, key, value)
		return kindPut, err
	}
}

// clearTime bounds each step of tidying up, as etcdctl does.
const clearTime = 30 * time.Second

// clearCheck deletes the keys of a check, and what --auto-compact and
// --auto-defrag add.
func (cs *connections) clearCheck(ctx context.Context, out io.Writer, prefix string, then afterCheck) error {
	c := cs.of(0)
	step := func(do func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, clearTime)
		defer cancel()
		return do(ctx)
	}
	var rev int64
	err := step(func(ctx context.Context) error {
		r, err := c.Delete(ctx, prefix, clientv3.WithPrefix())
		if err == nil {
			rev = r.Header.GetRevision()
		}
		return err
	})
	if err != nil {
		fmt.Fprintf(out, "FAIL: Cleanup failed during key deletion: ERROR(%v)\n", err)
	} else if then.compact {
		fmt.Fprintf(out, "Compacting with revision %d\n", rev)
		if err := step(func(ctx context.Context) error {
			_, err := c.Compact(ctx, rev, clientv3.WithCompactPhysical())
			return err
		}); err != nil {
			return cs.app.explain(ctx, cs.config, err)
		}
		fmt.Fprintf(out, "Compacted with revision %d\n", rev)
	}
	if !then.defrag {
		return nil
	}
	for _, endpoint := range c.Endpoints() {
		fmt.Fprintf(out, "Defragmenting %q\n", endpoint)
		if err := step(func(ctx context.Context) error {
			_, err := c.Defragment(ctx, endpoint)
			return err
		}); err != nil {
			return cs.app.explain(ctx, cs.config, err)
		}
		fmt.Fprintf(out, "Defragmented %q\n", endpoint)
	}
	return nil
}

// residentMemory asks the first endpoint how many bytes its process occupies.
func (cs *connections) residentMemory(ctx context.Context) (float64, error) {
	const name = "process_resident_memory_bytes"
	ctx, cancel := context.WithTimeout(ctx, cs.app.commandTimeout)
	defer cancel()
	host := cs.config.Endpoints[0]
	if !strings.Contains(host, "://") {
		host = "http://" + host
		if cs.config.TLS != nil {
			host = "https://" + strings.TrimPrefix(host, "http://")
		}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, host+"/metrics", nil)
	if err != nil {
		return 0, fmt.Errorf("reading metrics: %w", err)
	}
	transport := &http.Transport{TLSClientConfig: cs.config.TLS}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return 0, fmt.Errorf("reading metrics: %w", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, fmt.Errorf("reading metrics: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			bytes, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				return 0, fmt.Errorf("reading metrics: %w", err)
			}
			return bytes, nil
		}
	}
	return 0, fmt.Errorf("%s/metrics does not tell %s", host, name)
}
