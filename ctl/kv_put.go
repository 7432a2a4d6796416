package ctl

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// putFlags are the flags of a put, on the command line and in a transaction.
type putFlags struct {
	lease                            string
	prevKV, ignoreValue, ignoreLease bool
}

func (f *putFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.lease, "lease", "0", "lease to attach to the key, in hexadecimal; the key goes when the lease ends")
	fs.BoolVar(&f.prevKV, "prev-kv", false, "print the pair as it was before")
	fs.BoolVar(&f.ignoreValue, "ignore-value", false, "keep the value the key has, to change its lease alone")
	fs.BoolVar(&f.ignoreLease, "ignore-lease", false, "keep the lease the key has, to change its value alone")
}

// op makes the operation; value is asked for the value when args lack it.
func (f *putFlags) op(args []string, value func() (string, error)) (clientv3.Op, error) {
	var op clientv3.Op
	if len(args) == 0 || len(args) > 2 {
		return op, badArgs("put command needs 1 argument and input from stdin or 2 arguments")
	}
	if f.ignoreValue && len(args) > 1 {
		return op, badArgs("put command needs only 1 argument when 'ignore-value' is set")
	}
	var val string
	switch {
	case f.ignoreValue:
	case len(args) == 2:
		val = args[1]
	default:
		var err error
		if val, err = value(); err != nil {
			return op, err
		}
	}
	lease, err := strconv.ParseInt(f.lease, 16, 64)
	if err != nil {
		return op, badArgs("bad lease ID (%w), expecting ID in Hex", err)
	}

	var opts []clientv3.OpOption
	if lease != 0 {
		opts = append(opts, clientv3.WithLease(clientv3.LeaseID(lease)))
	}
	if f.prevKV {
		opts = append(opts, clientv3.WithPrevKV())
	}
	if f.ignoreValue {
		opts = append(opts, clientv3.WithIgnoreValue())
	}
	if f.ignoreLease {
		opts = append(opts, clientv3.WithIgnoreLease())
	}
	return clientv3.OpPut(args[0], val, opts...), nil
}

func (a *app) putCommand() *cobra.Command {
	var flags putFlags
	cmd := &cobra.Command{
		Use:     "put <key> [value]",
		Short:   "Store a value under a key",
		GroupID: groupKV,
		Long: `Store a value under a key, whether or not the key exists.

Without a value on the command line it is read from standard input, to the
last byte: a newline at its end is stored as well. A key or value that begins
with a dash goes behind "--".`,
		Example: `
{{program}} put greeting hello
{{program}} put config/app < app.yaml          # the value from a file
{{program}} put --prev-kv greeting bye         # and show what it replaced
{{program}} put --lease=694d81417acd4754 a b   # a goes when the lease ends
{{program}} put -- -5 minus-five               # the key is "-5"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			op, err := flags.op(args, func() (string, error) { return readValue(cmd, "KEY") })
			if err != nil {
				return err
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				r, err := c.Do(ctx, op)
				if err != nil {
					return err
				}
				return a.print(cmd, putAnswer((*pb.PutResponse)(r.Put())))
			})
		},
	}
	flags.register(cmd.Flags())
	return cmd
}

func readValue(cmd *cobra.Command, key string) (string, error) {
	b, err := io.ReadAll(cmd.InOrStdin())
	if err != nil {
		return "", &failure{code: exitIO, err: fmt.Errorf("reading the value: %w", err)}
	}
	if len(b) == 0 {
		// An empty pipe is more often a command that failed than a wish.
		return "", &failure{
			code: exitBadArgs,
			err:  fmt.Errorf("%s command needs 1 argument and input from stdin or 2 arguments", cmd.Name()),
			hint: fmt.Sprintf(`To store an empty value, say so: %s %s ""`, cmd.Name(), key),
		}
	}
	return string(b), nil
}
