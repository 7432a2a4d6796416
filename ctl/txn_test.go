package ctl

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cockroachdb/datadriven"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestTxnGrammar(t *testing.T) {
	datadriven.RunTest(t, "testdata/grammar/txn", func(t *testing.T, d *datadriven.TestData) string {
		var out strings.Builder
		for line := range strings.Lines(d.Input) {
			line = strings.TrimSpace(line)
			switch d.Cmd {
			case "words":
				words, err := splitWords(line)
				if err != nil {
					fmt.Fprintln(&out, "error:", err)
					continue
				}
				fmt.Fprintf(&out, "%q\n", words)
			case "compare":
				cmp, err := parseCompare(line)
				if err != nil {
					fmt.Fprintln(&out, "error:", err)
					continue
				}
				fmt.Fprintln(&out, showCompare(cmp))
			case "request":
				op, err := parseRequest(line)
				if err != nil {
					fmt.Fprintln(&out, "error:", err)
					continue
				}
				fmt.Fprintln(&out, showOp(op))
			default:
				d.Fatalf(t, "unknown command %s", d.Cmd)
			}
		}
		return out.String()
	})
}

func showCompare(cmp clientv3.Cmp) string {
	c := cmp.GetCompare()
	value := fmt.Sprint(c.GetVersion() + c.GetCreateRevision() + c.GetModRevision() + c.GetLease())
	if c.GetTarget() == pb.Compare_VALUE {
		value = fmt.Sprintf("%q", c.GetValue())
	}
	return fmt.Sprintf("%s of %q %s %s", c.GetTarget(), c.GetKey(), c.GetResult(), value)
}

func showOp(op clientv3.Op) string {
	kind := "get"
	if op.IsPut() {
		kind = "put"
	} else if op.IsDelete() {
		kind = "del"
	}
	return fmt.Sprintf("%s %q..%q value %q rev %d", kind, op.KeyBytes(), op.RangeBytes(), op.ValueBytes(), op.Rev())
}

func TestReadTxn(t *testing.T) {
	const text = "ver(\"a\") = \"1\"\n\nput a 1\nget a\n\ndel a\n\n"
	txn, err := readTxn(strings.NewReader(text), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if len(txn.compares) != 1 || len(txn.success) != 2 || len(txn.failure) != 1 {
		t.Errorf("got %d comparisons, %d and %d requests", len(txn.compares), len(txn.success), len(txn.failure))
	}
	// What is cut short must never be taken for a whole transaction.
	for end := range len(text) - 1 {
		if _, err := readTxn(strings.NewReader(text[:end]), func(string) {}); err == nil {
			t.Errorf("accepted the first %d bytes: %q", end, text[:end])
		}
	}
}

// FuzzReadTxn: no text crashes the parser, and what it accepts has operators
// and operations that clientv3 accepts (it panics on others).
func FuzzReadTxn(f *testing.F) {
	f.Add("mod(\"a\") > \"0\"\n\nput a \"b c\" --prev-kv\n\nget 'a' --prefix\n\n")
	f.Add("lease(\"\\x00\") != \"694d81417acd4754\"\n\ndel a b\n\nput -- -1 -2\n\n")
	f.Add("val(\"k\")=\"\"\n\n\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		txn, err := readTxn(strings.NewReader(text), func(string) {})
		if err != nil {
			if !isFailure(err) {
				t.Errorf("%q: an error without an exit code: %v", text, err)
			}
			return
		}
		for _, op := range append(txn.success, txn.failure...) {
			if !op.IsGet() && !op.IsPut() && !op.IsDelete() {
				t.Errorf("%q: an operation of no kind", text)
			}
		}
	})
}

// FuzzSplitWords: what is quoted comes back as it was.
func FuzzSplitWords(f *testing.F) {
	f.Add("a", "b c")
	f.Add("\"", "\n\x00")
	f.Fuzz(func(t *testing.T, a, b string) {
		if !utf8.ValidString(a) || !utf8.ValidString(b) {
			return
		}
		words, err := splitWords(fmt.Sprintf("put %q %q", a, b))
		if err != nil || len(words) != 3 || words[1] != a || words[2] != b {
			t.Errorf("%q %q became %q, %v", a, b, words, err)
		}
	})
}

func TestCell(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                 "plain",
		"tab\there":             `"tab\there"`,
		"\xff\x00":              `"\xff\x00"`,
		strings.Repeat("é", 99): strings.Repeat("é", 59) + "…",
	} {
		if got := cell([]byte(in)); got != want {
			t.Errorf("cell(%q) = %s, want %s", in, got, want)
		}
	}
}
