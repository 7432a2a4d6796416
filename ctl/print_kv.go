package ctl

import (
	"fmt"
	"strconv"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

func putAnswer(r *pb.PutResponse) answer {
	return answer{
		message: r,
		simple: func(p *printer) {
			p.linef("OK")
			if r.GetPrevKv() != nil {
				p.pair(r.GetPrevKv())
			}
		},
		fields: func(p *printer) {
			p.header(r.GetHeader())
			if r.GetPrevKv() != nil {
				p.pairFields("Prev", r.GetPrevKv())
			}
		},
		table: func() ([]string, [][]string) { return pairTable(r.GetPrevKv()) },
	}
}

// getAnswer renders a range; with countOnly the simple form is the count, for
// which etcdctl has no words.
func getAnswer(r *pb.RangeResponse, countOnly bool) answer {
	return answer{
		message: r,
		simple: func(p *printer) {
			if countOnly {
				p.linef("%d", r.GetCount())
			}
			for _, kv := range r.GetKvs() {
				p.pair(kv)
			}
		},
		fields: func(p *printer) {
			p.header(r.GetHeader())
			for _, kv := range r.GetKvs() {
				p.pairFields("", kv)
			}
			p.field("More", r.GetMore())
			p.field("Count", r.GetCount())
		},
		table: func() ([]string, [][]string) { return pairTable(r.GetKvs()...) },
	}
}

func delAnswer(r *pb.DeleteRangeResponse) answer {
	return answer{
		message: r,
		simple: func(p *printer) {
			p.linef("%d", r.GetDeleted())
			for _, kv := range r.GetPrevKvs() {
				p.pair(kv)
			}
		},
		fields: func(p *printer) {
			p.header(r.GetHeader())
			p.field("Deleted", r.GetDeleted())
			for _, kv := range r.GetPrevKvs() {
				p.pairFields("Prev", kv)
			}
		},
		table: func() ([]string, [][]string) { return pairTable(r.GetPrevKvs()...) },
	}
}

func txnAnswer(r *pb.TxnResponse) answer {
	return answer{
		message: r,
		json:    txnJSON(r),
		simple: func(p *printer) {
			if r.GetSucceeded() {
				p.linef("SUCCESS")
			} else {
				p.linef("FAILURE")
			}
			for _, op := range r.GetResponses() {
				p.linef("")
				opAnswer(op).simple(p)
			}
		},
		fields: func(p *printer) {
			p.header(r.GetHeader())
			p.field("Succeeded", r.GetSucceeded())
			for _, op := range r.GetResponses() {
				opAnswer(op).fields(p)
			}
		},
	}
}

func opAnswer(op *pb.ResponseOp) answer {
	switch {
	case op.GetResponseRange() != nil:
		return getAnswer(op.GetResponseRange(), false)
	case op.GetResponsePut() != nil:
		return putAnswer(op.GetResponsePut())
	case op.GetResponseDeleteRange() != nil:
		return delAnswer(op.GetResponseDeleteRange())
	default:
		return txnAnswer(op.GetResponseTxn())
	}
}

// txnMessage and opMessage name the branches of a transaction's answer, whose
// generated type encoding/json cannot see into.
type txnMessage struct {
	Header    *pb.ResponseHeader `json:"header,omitempty"`
	Succeeded bool               `json:"succeeded,omitempty"`
	Responses []opMessage        `json:"responses,omitempty"`
}

type opMessage struct {
	Response struct {
		Range       *pb.RangeResponse       `json:"response_range,omitempty"`
		Put         *pb.PutResponse         `json:"response_put,omitempty"`
		DeleteRange *pb.DeleteRangeResponse `json:"response_delete_range,omitempty"`
		Txn         *txnMessage             `json:"response_txn,omitempty"`
	}
}

func txnJSON(r *pb.TxnResponse) *txnMessage {
	m := &txnMessage{Header: r.GetHeader(), Succeeded: r.GetSucceeded()}
	for _, op := range r.GetResponses() {
		var o opMessage
		o.Response.Range = op.GetResponseRange()
		o.Response.Put = op.GetResponsePut()
		o.Response.DeleteRange = op.GetResponseDeleteRange()
		if nested := op.GetResponseTxn(); nested != nil {
			o.Response.Txn = txnJSON(nested)
		}
		m.Responses = append(m.Responses, o)
	}
	return m
}

func pairTable(kvs ...*mvccpb.KeyValue) (header []string, rows [][]string) {
	header = []string{"key", "value", "version", "created", "modified", "lease"}
	for _, kv := range kvs {
		if kv == nil {
			continue
		}
		lease := ""
		if kv.GetLease() != 0 {
			lease = fmt.Sprintf("%016x", kv.GetLease())
		}
		rows = append(rows, []string{
			cell(kv.GetKey()), cell(kv.GetValue()),
			strconv.FormatInt(kv.GetVersion(), 10),
			strconv.FormatInt(kv.GetCreateRevision(), 10),
			strconv.FormatInt(kv.GetModRevision(), 10),
			lease,
		})
	}
	return header, rows
}

// cell fits bytes into a table: quoted when they would break it, and cut to
// what a screen can show, since a table is for reading.
func cell(b []byte) string {
	const most = 60
	s := string(b)
	quoted := strconv.Quote(s)
	if !utf8.ValidString(s) || quoted != `"`+s+`"` {
		s = quoted
	}
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return s
}
