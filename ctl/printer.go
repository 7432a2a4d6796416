package ctl

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/olekukonko/tablewriter"
	"github.com/olekukonko/tablewriter/tw"
	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// An answer is what a command found out, able to say it in each output format.
// A form left nil is one in which this answer cannot be given.
type answer struct {
	simple  func(*printer)
	fields  func(*printer)
	json    any           // default: message
	message proto.Message // the form for protobuf
	table   func() (header []string, rows [][]string)
}

// A printer writes answers in the format that was asked for.
type printer struct {
	*bufio.Writer
	hex       bool
	valueOnly bool // simple: leave the keys out
}

// Formats of --write-out.
const (
	formatSimple   = "simple"
	formatFields   = "fields"
	formatJSON     = "json"
	formatProtobuf = "protobuf"
	formatTable    = "table"
)

func (g *globals) format() (string, error) {
	switch g.writeOut {
	case formatSimple, formatFields, formatJSON, formatProtobuf, formatTable:
		return g.writeOut, nil
	}
	return "", &failure{
		code: exitBadFeature,
		err:  fmt.Errorf("unsupported output format"),
		hint: fmt.Sprintf("--write-out is simple, fields, json, protobuf or table, not %q.", g.writeOut),
	}
}

// noTable refuses a table before anything is done, for what has none.
func (g *globals) noTable() error {
	if g.writeOut == formatTable {
		return unsupported(formatTable)
	}
	return nil
}

func unsupported(format string) error {
	return badFeature("%s not supported as output format", format)
}

func (a *app) print(cmd *cobra.Command, ans answer) error {
	return a.printTo(cmd.OutOrStdout(), ans, false)
}

func (a *app) printTo(w io.Writer, ans answer, valueOnly bool) error {
	format, err := a.format()
	if err != nil {
		return err
	}
	p := &printer{Writer: bufio.NewWriter(w), hex: a.hex, valueOnly: valueOnly}
	switch {
	case format == formatSimple && ans.simple != nil:
		ans.simple(p)
	case format == formatFields && ans.fields != nil:
		ans.fields(p)
	case format == formatJSON && (ans.json != nil || ans.message != nil):
		err = p.json(ans)
	case format == formatProtobuf && ans.message != nil:
		var b []byte
		if b, err = proto.Marshal(ans.message); err == nil {
			_, err = p.Write(b)
		}
	case format == formatTable && ans.table != nil:
		err = p.table(ans.table())
	default:
		return unsupported(format)
	}
	if flushErr := p.Flush(); err == nil {
		err = flushErr
	}
	if err != nil {
		return &failure{code: exitIO, err: fmt.Errorf("writing the answer: %w", err)}
	}
	return nil
}

// json writes the message as encoding/json sees the generated struct: numbers
// as numbers, bytes in base64. Scripts written for etcdctl depend on it.
func (p *printer) json(ans answer) error {
	var v any = ans.message
	if ans.json != nil {
		v = ans.json
	}
	return json.NewEncoder(p).Encode(v)
}

func (p *printer) table(header []string, rows [][]string) error {
	config := tablewriter.NewConfigBuilder().WithRowAlignment(tw.AlignRight).WithHeaderAutoFormat(tw.Off).Build()
	table := tablewriter.NewTable(p.Writer, tablewriter.WithConfig(config))
	for i, title := range header {
		header[i] = strings.ToUpper(title)
	}
	table.Header(header)
	if err := table.Bulk(rows); err != nil {
		return err
	}
	return table.Render()
}

func (p *printer) linef(format string, args ...any) {
	fmt.Fprintf(p, format, args...)
	p.WriteByte('\n')
}

// field writes one line of the fields format.
func (p *printer) field(name string, value any) { p.linef("%q : %v", name, value) }

func (p *printer) quoted(name, value string) { p.linef("%q : %q", name, value) }

// id writes a cluster's or member's id.
func (p *printer) id(name string, id uint64) {
	if p.hex {
		p.field(name, hexID(id))
		return
	}
	p.field(name, id)
}

func hexID(id uint64) string { return fmt.Sprintf("%x", id) }

func (p *printer) header(h *pb.ResponseHeader) {
	p.id("ClusterID", h.GetClusterId())
	p.id("MemberID", h.GetMemberId())
	// Answers about the cluster carry no revision.
	if h.GetRevision() > 0 {
		p.field("Revision", h.GetRevision())
	}
	p.field("RaftTerm", h.GetRaftTerm())
}

func (p *printer) pair(kv *mvccpb.KeyValue) {
	if !p.valueOnly {
		p.linef("%s", p.bytes(kv.GetKey()))
	}
	p.linef("%s", p.bytes(kv.GetValue()))
}

func (p *printer) pairFields(prefix string, kv *mvccpb.KeyValue) {
	p.quoted(prefix+"Key", string(kv.GetKey()))
	p.field(prefix+"CreateRevision", kv.GetCreateRevision())
	p.field(prefix+"ModRevision", kv.GetModRevision())
	p.field(prefix+"Version", kv.GetVersion())
	p.quoted(prefix+"Value", string(kv.GetValue()))
	if p.hex {
		p.linef("%q : %016x", prefix+"Lease", kv.GetLease())
		return
	}
	p.field(prefix+"Lease", kv.GetLease())
}

// bytes renders a key or value: raw, or with --hex as \x66\x6f\x6f.
func (p *printer) bytes(b []byte) string {
	if !p.hex {
		return string(b)
	}
	return hexBytes(b)
}

func hexBytes(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		s.WriteString(`\x`)
		s.WriteString(hex.EncodeToString([]byte{c}))
	}
	return s.String()
}
