package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a *app) txnCommand() *cobra.Command {
	var interactive bool
	cmd := &cobra.Command{
		Use:     "txn",
		Short:   "Compare, then do one of two lists of requests, as one step",
		GroupID: groupKV,
		Long: `Read three blocks from standard input, each closed by an empty line:
comparisons, the requests for when all of them hold, and the requests for when
one does not. What is chosen happens at one revision, or not at all.

A comparison is  TARGET("key") OPERATOR "value":
  TARGET    ver, create, mod, val or lease
  OPERATOR  =, !=, < or >
A key that does not exist has version, revisions and lease 0.

A request is a put, get or del with the flags of that command. Words in double
quotes are Go strings ("\n" is a newline), words in single quotes are taken as
they are.`,
		Example: `
{{program}} txn -i                 # asks for the three blocks

{{program}} txn <<'END'            # take the lock only if nobody has it
create("lock") = "0"

put lock me

get lock

END`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 0 {
				return badArgs("txn command does not accept argument")
			}
			prompt := func(text string) {
				if interactive {
					fmt.Fprintln(cmd.OutOrStdout(), text)
				}
			}
			txn, err := readTxn(cmd.InOrStdin(), prompt)
			if err != nil {
				return err
			}
			return a.call(cmd, func(ctx context.Context, c *clientv3.Client) error {
				r, err := c.Txn(ctx).If(txn.compares...).Then(txn.success...).Else(txn.failure...).Commit()
				if err != nil {
					return err
				}
				return a.print(cmd, txnAnswer((*pb.TxnResponse)(r)))
			})
		},
	}
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "print what is asked for")
	return cmd
}

type txnText struct {
	compares         []clientv3.Cmp
	success, failure []clientv3.Op
}

func readTxn(r io.Reader, prompt func(string)) (txnText, error) {
	var txn txnText
	lines := bufio.NewReader(r)
	prompt("compares:")
	err := readBlock(lines, "compares", func(line string) error {
		cmp, err := parseCompare(line)
		txn.compares = append(txn.compares, cmp)
		return err
	})
	for _, block := range []struct {
		name string
		ops  *[]clientv3.Op
	}{{"success requests", &txn.success}, {"failure requests", &txn.failure}} {
		if err != nil {
			return txnText{}, err
		}
		prompt(block.name + " (get, put, del):")
		err = readBlock(lines, block.name, func(line string) error {
			op, err := parseRequest(line)
			*block.ops = append(*block.ops, op)
			return err
		})
	}
	if err != nil {
		return txnText{}, err
	}
	return txn, nil
}

// readBlock hands the lines before the next empty one to each. The end of the
// input closes no block: a transaction cut short by whatever writes it must
// not be taken for a complete one.
func readBlock(r *bufio.Reader, name string, each func(string) error) error {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			f := &failure{code: exitInvalidInput, err: err}
			if errors.Is(err, io.EOF) {
				f.hint = fmt.Sprintf("The input ended within the %s: close each of the three blocks with an empty line.", name)
			}
			return f
		}
		line = strings.TrimSpace(line)
		if line == "" {
			return nil
		}
		if err := each(line); err != nil {
			return invalidInput("%w", err)
		}
	}
}

// parseCompare reads a line such as: mod("key") > "0"
func parseCompare(line string) (clientv3.Cmp, error) {
	malformed := func(why string) (clientv3.Cmp, error) {
		return clientv3.Cmp{}, fmt.Errorf("malformed comparison: %s (%s)", line, why)
	}
	target, rest, ok := strings.Cut(line, "(")
	if !ok {
		return malformed(`expected TARGET("key")`)
	}
	key, rest, err := cutQuoted(rest)
	if err != nil {
		return malformed("the key must be in double quotes")
	}
	rest, ok = strings.CutPrefix(strings.TrimSpace(rest), ")")
	if !ok {
		return malformed("expected ) after the key")
	}
	rest = strings.TrimSpace(rest)
	operator := rest[:len(rest)-len(strings.TrimLeft(rest, "=!<>"))]
	switch operator {
	case "=", "!=", "<", ">":
	default:
		return malformed("the operator is =, !=, < or >")
	}
	value, rest, err := cutQuoted(strings.TrimSpace(rest[len(operator):]))
	if err != nil || strings.TrimSpace(rest) != "" {
		return malformed("expected one value in double quotes after the operator")
	}

	number := func(base int, of func(string) clientv3.Cmp) (clientv3.Cmp, error) {
		n, err := strconv.ParseInt(value, base, 64)
		if err != nil {
			return malformed(fmt.Sprintf("%q is not a number", value))
		}
		return clientv3.Compare(of(key), operator, n), nil
	}
	switch strings.TrimSpace(target) {
	case "ver", "version":
		return number(10, clientv3.Version)
	case "c", "create":
		return number(10, clientv3.CreateRevision)
	case "m", "mod":
		return number(10, clientv3.ModRevision)
	case "lease":
		return number(16, func(key string) clientv3.Cmp { return clientv3.LeaseValue(key) })
	case "val", "value":
		return clientv3.Compare(clientv3.Value(key), operator, value), nil
	}
	return malformed("unknown target " + target)
}

func cutQuoted(s string) (value, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		return "", "", strconv.ErrSyntax
	}
	quoted, err := strconv.QuotedPrefix(s)
	if err != nil {
		return "", "", err
	}
	value, err = strconv.Unquote(quoted)
	return value, s[len(quoted):], err
}

// parseRequest reads a line such as: put key "some value" --lease=123
func parseRequest(line string) (clientv3.Op, error) {
	wrong := func(err error) (clientv3.Op, error) {
		return clientv3.Op{}, fmt.Errorf("invalid txn request: %s (%w)", line, err)
	}
	words, err := splitWords(line)
	if err != nil {
		return wrong(err)
	}
	if len(words) < 2 {
		return wrong(errors.New("expected put, get or del, and a key"))
	}

	fs := pflag.NewFlagSet(words[0], pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	var make func(args []string) (clientv3.Op, error)
	switch words[0] {
	case "put":
		var flags putFlags
		flags.register(fs)
		make = func(args []string) (clientv3.Op, error) {
			return flags.op(args, func() (string, error) { return "", errors.New("the value is missing") })
		}
	case "get":
		var flags getFlags
		flags.register(fs)
		make = flags.op
	case "del":
		var flags delFlags
		flags.register(fs)
		make = flags.op
	default:
		return wrong(fmt.Errorf("%q is none of put, get and del", words[0]))
	}
	if err := fs.Parse(words[1:]); err != nil {
		return wrong(err)
	}
	op, err := make(fs.Args())
	if err != nil {
		return wrong(err)
	}
	return op, nil
}

// splitWords cuts a line at white space. A word that begins with a double
// quote is a Go string, one that begins with a single quote is taken as it
// stands; a quote within a word is an ordinary character.
func splitWords(line string) ([]string, error) {
	var words []string
	for {
		line = strings.TrimLeft(line, " \t\r\n\v\f")
		if line == "" {
			return words, nil
		}
		switch line[0] {
		case '"':
			value, rest, err := cutQuoted(line)
			if err != nil {
				return nil, fmt.Errorf("bad double-quoted string at %s", line)
			}
			words, line = append(words, value), rest
		case '\'':
			end := strings.IndexByte(line[1:], '\'')
			if end < 0 {
				return nil, fmt.Errorf("the single quote is not closed at %s", line)
			}
			words, line = append(words, line[1:1+end]), line[2+end:]
		default:
			end := strings.IndexAny(line, " \t\r\n\v\f")
			if end < 0 {
				end = len(line)
			}
			words, line = append(words, line[:end]), line[end:]
		}
	}
}
