package v2

import (
	"net/http"
	"strconv"

	"github.com/kvorum/kvorum/state"
)

// code is the number by which clients know what went wrong.
type code int

const (
	keyNotFound     code = 100
	compareFailed   code = 101
	notFile         code = 102
	notDirectory    code = 104
	nodeExists      code = 105
	rootReadOnly    code = 107
	directoryFilled code = 108

	prevValueRequired code = 201
	ttlNotNumber      code = 202
	indexNotNumber    code = 203
	invalidField      code = 209
	invalidForm       code = 210
	refreshWithValue  code = 211
	refreshWithoutTTL code = 212

	internal      code = 300
	historyLacked code = 401
)

// codes are the contract: numbers, texts and statuses. What is not named has
// the status 400.
var codes = map[code]struct {
	message string
	status  int
}{
	keyNotFound:     {"Key not found", http.StatusNotFound},
	compareFailed:   {"Compare failed", http.StatusPreconditionFailed},
	notFile:         {"Not a file", http.StatusForbidden},
	notDirectory:    {"Not a directory", http.StatusBadRequest},
	nodeExists:      {"Key already exists", http.StatusPreconditionFailed},
	rootReadOnly:    {"Root is read only", http.StatusBadRequest},
	directoryFilled: {"Directory not empty", http.StatusForbidden},

	prevValueRequired: {"PrevValue is Required in POST form", http.StatusBadRequest},
	ttlNotNumber:      {"The given TTL in POST form is not a number", http.StatusBadRequest},
	indexNotNumber:    {"The given index in POST form is not a number", http.StatusBadRequest},
	invalidField:      {"Invalid field", http.StatusBadRequest},
	invalidForm:       {"Invalid POST form", http.StatusBadRequest},
	refreshWithValue:  {"Value provided on refresh", http.StatusBadRequest},
	refreshWithoutTTL: {"A TTL must be provided on refresh", http.StatusBadRequest},

	internal:      {"Raft Internal Error", http.StatusInternalServerError},
	historyLacked: {"The event in requested index is outdated and cleared", http.StatusBadRequest},
}

// refusal is why a request for keys has failed.
type refusal struct {
	code  code
	cause string
	index state.Revision // of the store; 0 where it was not asked
}

func (r *refusal) status() int { return codes[r.code].status }

func (r *refusal) append(b []byte) []byte {
	b = append(b, `{"errorCode":`...)
	b = strconv.AppendInt(b, int64(r.code), 10)
	b = append(b, `,"message":`...)
	b = appendText(b, codes[r.code].message)
	if r.cause != "" {
		b = append(b, `,"cause":`...)
		b = appendText(b, r.cause)
	}
	b = append(b, `,"index":`...)
	b = strconv.AppendInt(b, int64(r.index), 10)
	return append(b, '}', '\n')
}
