package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchFlags are the flags of a watch, on the command line and in a line of
// watch -i.
type watchFlags struct {
	prefix, prevKV, progress bool
	rev                      int64
}

func (f *watchFlags) register(fs *pflag.FlagSet) {
	fs.BoolVar(&f.prefix, "prefix", false, "all keys that begin with the key")
	fs.Int64Var(&f.rev, "rev", 0, "begin with what happened at this revision (0: now)")
	fs.BoolVar(&f.prevKV, "prev-kv", false, "print each pair as it was before, too")
	fs.BoolVar(&f.progress, "progress-notify", false, "be told now and then how far the watch has come, when nothing happens")
}

// A watchOrder is what to watch, and what to run for each event.
type watchOrder struct {
	key     string
	opts    []clientv3.OpOption
	command []string
}

var errRangeAndPrefix = errors.New("`range_end` and `--prefix` are mutually exclusive")

// order reads the key and the end of a range, from args or from the
// environment, and the command behind the dash, which stands at args[dash]
// (-1: there is none).
func (f *watchFlags) order(args []string, dash int) (watchOrder, error) {
	var o watchOrder
	if dash >= 0 {
		args, o.command = args[:dash], args[dash:]
		if len(o.command) == 0 {
			return o, badArgs("bad number of arguments (found separator --, but no commands)")
		}
	}
	key, keyName := variable("WATCH_KEY")
	end, endName := variable("WATCH_RANGE_END")
	switch {
	case key == "" && end != "":
		return o, badArgs("%s is empty but got %s=%q", keyName, endName, end)
	case key != "" && len(args) > 0:
		return o, badArgs("bad number of arguments (found conflicting environment key)")
	case key != "" && end != "":
		args = []string{key, end}
	case key != "":
		args = []string{key}
	}
	switch {
	case len(args) == 0:
		return o, badArgs("bad number of arguments")
	case len(args) > 2:
		return o, badArgs("watch takes a key and the end of a range, not %d arguments; a command goes behind --", len(args))
	case len(args) == 2 && f.prefix:
		return o, badArgs("%w", errRangeAndPrefix)
	}
	key, opts, err := span(args, f.prefix, false)
	if err != nil {
		return o, err
	}
	o.key, o.opts = key, append(opts, clientv3.WithRev(f.rev))
	if f.prevKV {
		o.opts = append(o.opts, clientv3.WithPrevKV())
	}
	if f.progress {
		o.opts = append(o.opts, clientv3.WithProgressNotify())
	}
	return o, nil
}

func (a *app) watchCommand() *cobra.Command {
	var flags watchFlags
	var interactive bool
	cmd := &cobra.Command{
		Use:     "watch <key> [range_end] [-- command...]",
		Short:   "Print what happens to keys, as it happens",
		GroupID: groupKV,
		Long: `Print each change of a key, or of all keys from it up to, and without,
range_end, until interrupted. A connection that is lost is made again, and
nothing is missed.

A command behind -- is run for each event, and finds it in its environment:
ETCD_WATCH_EVENT_TYPE is "PUT" or "DELETE", ETCD_WATCH_KEY and ETCD_WATCH_VALUE
are quoted as Go strings, and ETCD_WATCH_REVISION is the store's. If it fails,
the watch ends.

The key and the end of the range may stand in ETCDCTL_WATCH_KEY and
ETCDCTL_WATCH_RANGE_END instead. With -i each line of standard input is
"watch" with its arguments, or "progress" to be told how far all have come.`,
		Example: `
{{program}} watch config/ --prefix
{{program}} watch config/ --prefix --prev-kv --rev=1   # all that ever happened, if it is kept
{{program}} watch greeting -w json
{{program}} watch greeting -- sh -c 'echo "$ETCD_WATCH_KEY is now $ETCD_WATCH_VALUE"'
{{program}} watch -i`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if interactive {
				return a.stay(cmd, func(ctx context.Context, c *clientv3.Client) error {
					return a.watchLines(cmd, clientv3.WithRequireLeader(ctx), c)
				})
			}
			order, err := flags.order(args, cmd.ArgsLenAtDash())
			if err != nil {
				return err
			}
			cfg, err := a.config(cmd)
			if err != nil {
				return err
			}
			return a.stayWith(cmd, cfg, func(ctx context.Context, c *clientv3.Client) error {
				w := watcher{app: a, cmd: cmd}
				refused, err := w.follow(ctx, c.Watch(clientv3.WithRequireLeader(ctx), order.key, order.opts...), order.command)
				if err != nil {
					return err
				}
				if ctx.Err() != nil {
					return interrupted()
				}
				f := a.explain(ctx, cfg, refused)
				f.err, f.etcdctl = errors.New("watch is canceled by the server"), exitInterrupted
				return f
			})
		},
	}
	flags.register(cmd.Flags())
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "read what to watch from standard input")
	return cmd
}

// A watcher prints what its watches see, one answer at a time.
type watcher struct {
	app *app
	cmd *cobra.Command
	mu  sync.Mutex // held while printing, and while a command runs
}

// follow prints what happens until the watch ends, and returns why the server
// has ended it, if it said so.
func (w *watcher) follow(ctx context.Context, watch clientv3.WatchChan, command []string) (refused, err error) {
	for r := range watch {
		if r.Canceled {
			refused = r.Err()
		}
		if err := w.show(ctx, r, command); err != nil {
			return refused, err
		}
	}
	return refused, nil
}

func (w *watcher) show(ctx context.Context, r clientv3.WatchResponse, command []string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.Canceled {
		fmt.Fprintf(w.cmd.ErrOrStderr(), "watch was canceled (%v)\n", r.Err())
	}
	if r.IsProgressNotify() {
		fmt.Fprintf(w.cmd.OutOrStdout(), "progress notify: %d\n", r.Header.Revision)
	}
	if err := w.app.print(w.cmd, watchAnswer(r)); err != nil || len(command) == 0 {
		return err
	}
	for _, e := range r.Events {
		run := exec.CommandContext(ctx, command[0], command[1:]...)
		run.Env = append(os.Environ(),
			fmt.Sprintf("ETCD_WATCH_REVISION=%d", r.Header.Revision),
			fmt.Sprintf("ETCD_WATCH_EVENT_TYPE=%q", e.Type),
			fmt.Sprintf("ETCD_WATCH_KEY=%q", e.Kv.Key),
			fmt.Sprintf("ETCD_WATCH_VALUE=%q", e.Kv.Value),
		)
		run.Stdout, run.Stderr = w.cmd.OutOrStdout(), w.cmd.ErrOrStderr()
		if err := run.Run(); err != nil && ctx.Err() == nil {
			fmt.Fprintf(w.cmd.ErrOrStderr(), "command %q error (%v)\n", command, err)
			return &failure{code: exitError} // told
		}
	}
	return nil
}

// watchLines reads what to watch from standard input, until it ends.
func (a *app) watchLines(cmd *cobra.Command, ctx context.Context, c *clientv3.Client) (err error) {
	w := &watcher{app: a, cmd: cmd}
	ctx, cancel := context.WithCancelCause(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel(nil)
	invalid := func(line, why string) { fmt.Fprintf(cmd.ErrOrStderr(), "Invalid command %s (%s)\n", line, why) }

	lines := readLines(ctx, cmd.InOrStdin())
	for {
		var l textLine
		select {
		case l = <-lines:
		case <-ctx.Done():
			if cause := context.Cause(ctx); isFailure(cause) {
				return cause // a command failed
			}
			return interrupted()
		}
		if l.err != nil {
			return invalidInput("error reading watch request line: %w", l.err)
		}
		line := strings.TrimSuffix(l.text, "\n")
		words, err := splitWords(line)
		switch {
		case err != nil:
			invalid(line, err.Error())
			continue
		case len(words) == 0:
			fmt.Fprintf(cmd.ErrOrStderr(), "Invalid command: %s (watch and progress supported)\n", line)
			continue
		case words[0] == "progress":
			if err := c.RequestProgress(ctx); err != nil {
				return err
			}
			continue
		case words[0] != "watch":
			invalid(line, "only support watch")
			continue
		}
		var flags watchFlags
		fs := pflag.NewFlagSet("watch", pflag.ContinueOnError)
		fs.SetOutput(io.Discard)
		flags.register(fs)
		if err := fs.Parse(words[1:]); err != nil {
			return badArgs("%w", err)
		}
		if key, _ := variable("WATCH_KEY"); key == "" && fs.NArg() == 0 {
			invalid(line, "command type or key is not provided")
			continue
		}
		order, err := flags.order(fs.Args(), fs.ArgsLenAtDash())
		switch {
		case errors.Is(err, errRangeAndPrefix):
			invalid(line, err.Error())
			continue
		case err != nil:
			return err
		}
		watch := c.Watch(ctx, order.key, order.opts...) // before the next line is read
		following.Go(func() {
			if _, err := w.follow(ctx, watch, order.command); err != nil {
				cancel(err)
			}
		})
	}
}

type textLine struct {
	text string
	err  error
}

// readLines reads in a goroutine of its own, which nobody waits for: a read
// from a terminal ends with the process.
func readLines(ctx context.Context, r io.Reader) <-chan textLine {
	lines := make(chan textLine)
	go func() {
		for in := bufio.NewReader(r); ; {
			text, err := in.ReadString('\n')
			select {
			case lines <- textLine{text, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return lines
}
