package ctl

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// getFlags are the flags of a get, on the command line and in a transaction.
type getFlags struct {
	prefix, fromKey              bool
	limit, rev                   int64
	order, sortBy                string
	consistency                  string
	keysOnly, countOnly          bool
	minModRev, maxModRev         int64
	minCreateRev, maxCreateRev   int64
	printValueOnly, stream, must bool
}

func (f *getFlags) register(fs *pflag.FlagSet) {
	fs.BoolVar(&f.prefix, "prefix", false, "all keys that begin with the key")
	fs.BoolVar(&f.fromKey, "from-key", false, "all keys from the key on, in byte order")
	fs.Int64Var(&f.limit, "limit", 0, "at most so many pairs (0: all)")
	fs.StringVar(&f.order, "order", "", "order of the pairs: ASCEND or DESCEND (default ASCEND)")
	fs.StringVar(&f.sortBy, "sort-by", "", "what to order by: KEY, VERSION, CREATE, MODIFY or VALUE (default KEY)")
	fs.Int64Var(&f.rev, "rev", 0, "as the store was at this revision (0: now)")
	fs.StringVar(&f.consistency, "consistency", "l", "l: what every client agrees on; s: what this server knows, perhaps old, without asking the others")
	fs.BoolVar(&f.keysOnly, "keys-only", false, "leave the values out")
	fs.BoolVar(&f.countOnly, "count-only", false, "only count the pairs")
	fs.BoolVar(&f.printValueOnly, "print-value-only", false, "print values without their keys (simple format)")
	fs.Int64Var(&f.minModRev, "min-mod-rev", 0, "only pairs changed at this revision or later")
	fs.Int64Var(&f.maxModRev, "max-mod-rev", 0, "only pairs last changed at this revision or earlier")
	fs.Int64Var(&f.minCreateRev, "min-create-rev", 0, "only pairs created at this revision or later")
	fs.Int64Var(&f.maxCreateRev, "max-create-rev", 0, "only pairs created at this revision or earlier")
	fs.BoolVar(&f.stream, "stream", false, "let the server send a long answer in pieces")
}

func (f *getFlags) op(args []string) (clientv3.Op, error) {
	key, opts, err := f.options(args)
	if err != nil {
		return clientv3.Op{}, err
	}
	return clientv3.OpGet(key, opts...), nil
}

func (f *getFlags) options(args []string) (key string, opts []clientv3.OpOption, err error) {
	switch {
	case len(args) == 0:
		return "", nil, badArgs("get command needs one argument as key and an optional argument as range_end")
	case len(args) > 2:
		return "", nil, badArgs("get takes a key and the end of a range, not %d arguments", len(args))
	case f.keysOnly && f.countOnly:
		return "", nil, badArgs("`--keys-only` and `--count-only` cannot be set at the same time, choose one")
	}
	key, opts, err = span(args, f.prefix, f.fromKey)
	if err != nil {
		return "", nil, err
	}
	serializable, err := parseConsistency(f.consistency)
	if err != nil {
		return "", nil, err
	}
	if serializable {
		opts = append(opts, clientv3.WithSerializable())
	}
	target, order, err := f.sort()
	if err != nil {
		return "", nil, err
	}
	opts = append(opts, clientv3.WithSort(target, order), clientv3.WithLimit(f.limit))
	if f.rev > 0 {
		opts = append(opts, clientv3.WithRev(f.rev))
	}
	if f.keysOnly {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	if f.countOnly {
		opts = append(opts, clientv3.WithCountOnly())
	}
	if f.maxModRev > 0 && f.minModRev > f.maxModRev {
		return "", nil, badFeature("--min-mod-rev=%d is after --max-mod-rev=%d", f.minModRev, f.maxModRev)
	}
	if f.maxCreateRev > 0 && f.minCreateRev > f.maxCreateRev {
		return "", nil, badFeature("--min-create-rev=%d is after --max-create-rev=%d", f.minCreateRev, f.maxCreateRev)
	}
	for _, bound := range []struct {
		rev    int64
		option func(int64) clientv3.OpOption
	}{
		{f.minModRev, clientv3.WithMinModRev}, {f.maxModRev, clientv3.WithMaxModRev},
		{f.minCreateRev, clientv3.WithMinCreateRev}, {f.maxCreateRev, clientv3.WithMaxCreateRev},
	} {
		if bound.rev > 0 {
			opts = append(opts, bound.option(bound.rev))
		}
	}
	return key, opts, nil
}

var (
	sortOrders = map[string]clientv3.SortOrder{
		"": clientv3.SortNone, "ASCEND": clientv3.SortAscend, "DESCEND": clientv3.SortDescend,
	}
	sortTargets = map[string]clientv3.SortTarget{
		"": clientv3.SortByKey, "KEY": clientv3.SortByKey, "VERSION": clientv3.SortByVersion,
		"CREATE": clientv3.SortByCreateRevision, "MODIFY": clientv3.SortByModRevision, "VALUE": clientv3.SortByValue,
	}
)

func (f *getFlags) sort() (clientv3.SortTarget, clientv3.SortOrder, error) {
	order, ok := sortOrders[strings.ToUpper(f.order)]
	if !ok {
		return 0, 0, &failure{code: exitBadFeature, err: fmt.Errorf("bad sort order %v", f.order), hint: "--order is ASCEND or DESCEND."}
	}
	target, ok := sortTargets[strings.ToUpper(f.sortBy)]
	if !ok {
		return 0, 0, &failure{code: exitBadFeature, err: fmt.Errorf("bad sort target %v", f.sortBy), hint: "--sort-by is KEY, VERSION, CREATE, MODIFY or VALUE."}
	}
	return target, order, nil
}

// span reads the key, and the range it begins, from arguments and flags.
func span(args []string, prefix, fromKey bool) (key string, opts []clientv3.OpOption, err error) {
	key = args[0]
	switch {
	case prefix && fromKey:
		return "", nil, badArgs("`--prefix` and `--from-key` cannot be set at the same time, choose one")
	case len(args) > 1 && (prefix || fromKey):
		return "", nil, badArgs("too many arguments, only accept one argument when `--prefix` or `--from-key` is set")
	case len(args) > 1:
		return key, []clientv3.OpOption{clientv3.WithRange(args[1])}, nil
	case (prefix || fromKey) && key == "":
		return "\x00", []clientv3.OpOption{clientv3.WithFromKey()}, nil // every key
	case prefix:
		return key, []clientv3.OpOption{clientv3.WithPrefix()}, nil
	case fromKey:
		return key, []clientv3.OpOption{clientv3.WithFromKey()}, nil
	}
	return key, nil, nil
}

func parseConsistency(s string) (serializable bool, err error) {
	switch s {
	case "l":
		return false, nil
	case "s":
		return true, nil
	}
	return false, &failure{code: exitBadFeature, err: fmt.Errorf("unknown consistency flag %q", s), hint: "--consistency is l (what all agree on) or s (what this server knows)."}
}

func (a *app) getCommand() *cobra.Command {
	var flags getFlags
	cmd := &cobra.Command{
		Use:     "get <key> [range_end]",
		Short:   "Read a key, or a range of keys",
		GroupID: groupKV,
		Long: `Read a key, or all keys from it up to, and without, range_end.

Each pair is printed as its key and its value, a line each. A key that does
not exist prints nothing and is not an error, unless --must-exist is given.`,
		Example: `
{{program}} get greeting
{{program}} get config/ --prefix                    # a directory, so to speak
{{program}} get a c                                 # a and b..., but not c
{{program}} get "" --from-key --keys-only           # every key there is
{{program}} get greeting --rev=41                   # as it was
{{program}} get config/ --prefix --count-only -w fields
{{program}} get config/ --prefix --sort-by=MODIFY --order=DESCEND --limit=5
{{program}} get greeting --print-value-only         # for scripts
{{program}} get greeting -w json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			key, opts, err := flags.options(args)
			if err != nil {
				return err
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				r, err := flags.get(ctx, c, key, opts)
				if err != nil {
					return err
				}
				if flags.printValueOnly && a.writeOut != formatSimple {
					return badArgs("print-value-only is only for `--write-out=simple`")
				}
				if err := a.printTo(cmd.OutOrStdout(), getAnswer(r, flags.countOnly), flags.printValueOnly); err != nil {
					return err
				}
				if flags.must && r.GetCount() == 0 {
					return &failure{code: exitNotFound, err: fmt.Errorf("no such key: %q", key)}
				}
				return nil
			})
		},
	}
	flags.register(cmd.Flags())
	cmd.Flags().BoolVar(&flags.must, "must-exist", false, "end with exit code 7 when there is no such key")
	completeValues(cmd, "order", "ASCEND", "DESCEND")
	completeValues(cmd, "sort-by", "KEY", "VERSION", "CREATE", "MODIFY", "VALUE")
	completeValues(cmd, "consistency", "l", "s")
	return cmd
}

func (f *getFlags) get(ctx context.Context, c *clientv3.Client, key string, opts []clientv3.OpOption) (*pb.RangeResponse, error) {
	if !f.stream {
		r, err := c.Get(ctx, key, opts...)
		return (*pb.RangeResponse)(r), err
	}
	pieces, err := c.GetStream(ctx, key, opts...)
	if err != nil {
		return nil, err
	}
	r, err := clientv3.GetStreamToGetResponse(pieces)
	return (*pb.RangeResponse)(r), err
}
