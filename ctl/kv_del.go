package ctl

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/term"
)

// delFlags are the flags of a del, on the command line and in a transaction.
type delFlags struct {
	prefix, fromKey, isRange, prevKV bool
}

func (f *delFlags) register(fs *pflag.FlagSet) {
	fs.BoolVar(&f.prefix, "prefix", false, "all keys that begin with the key")
	fs.BoolVar(&f.fromKey, "from-key", false, "all keys from the key on, in byte order")
	fs.BoolVar(&f.isRange, "range", false, "a range is meant: do not wait before deleting it")
	fs.BoolVar(&f.prevKV, "prev-kv", false, "print the pairs that were deleted")
}

func (f *delFlags) op(args []string) (clientv3.Op, error) {
	if len(args) == 0 || len(args) > 2 {
		return clientv3.Op{}, badArgs("del command needs one argument as key and an optional argument as range_end")
	}
	key, opts, err := span(args, f.prefix, f.fromKey)
	if err != nil {
		return clientv3.Op{}, err
	}
	if f.prevKV {
		opts = append(opts, clientv3.WithPrevKV())
	}
	return clientv3.OpDelete(key, opts...), nil
}

// graceTime is how long a person may think about "del a b", which deletes a
// range though it looks like two keys.
const graceTime = 2 * time.Second

func (a *app) delCommand() *cobra.Command {
	var flags delFlags
	cmd := &cobra.Command{
		Use:     "del <key> [range_end]",
		Short:   "Delete a key, or a range of keys",
		GroupID: groupKV,
		Long: `Delete a key, or all keys from it up to, and without, range_end.

The number of keys deleted is printed. Deleting nothing is not an error.`,
		Example: `
{{program}} del greeting
{{program}} del config/ --prefix
{{program}} del a c --range          # a and b..., but not c
{{program}} del greeting --prev-kv   # and show what it was`,
		RunE: func(cmd *cobra.Command, args []string) error {
			op, err := flags.op(args)
			if err != nil {
				return err
			}
			if len(args) == 2 && !flags.isRange {
				fmt.Fprintf(cmd.ErrOrStderr(), "Warning: Keys between %q and %q will be deleted. Please interrupt the command within next 2 seconds to cancel. "+
					"You can provide `--range` flag to avoid the delay.\n", args[0], args[1])
				if err := grace(cmd.Context()); err != nil {
					return err
				}
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				r, err := c.Do(ctx, op)
				if err != nil {
					return err
				}
				return a.print(cmd, delAnswer((*pb.DeleteRangeResponse)(r.Del())))
			})
		},
	}
	flags.register(cmd.Flags())
	return cmd
}

// grace waits only where somebody can see the warning and interrupt.
func grace(ctx context.Context) error {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return nil
	}
	select {
	case <-time.After(graceTime):
		return nil
	case <-ctx.Done():
		return &failure{code: exitInterrupted, err: ctx.Err()}
	}
}
