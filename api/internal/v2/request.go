package v2

import (
	"errors"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// request is what a client asks of a key. Its fields are named as the
// parameters are.
type request struct {
	value, prevValue     string
	ttl                  uint64
	prevIndex, waitIndex uint64
	prevExist            bool

	dir, recursive, sorted, quorum     bool
	wait, stream                       bool
	refresh, noValueOnSuccess          bool
	hasTTL, hasPrevExist, hasPrevValue bool
}

// conditional tells whether something of the node is compared.
func (q *request) conditional() bool { return q.hasPrevValue || q.prevIndex > 0 }

// parse reads all parameters, those too that mean nothing for the method. The
// first that is wrong in the order below is what the client is told of.
func parse(method, query, contentType string, body []byte) (request, *refusal) {
	var q request
	f, err := readForm(method, query, contentType, body)
	if err != nil {
		return q, &refusal{code: invalidForm, cause: err.Error()}
	}
	for _, p := range [...]struct {
		name string
		to   *uint64
	}{{"prevIndex", &q.prevIndex}, {"waitIndex", &q.waitIndex}} {
		if text, ok := f.get(p.name); ok {
			if *p.to, err = strconv.ParseUint(text, 10, 64); err != nil {
				return q, &refusal{code: indexNotNumber, cause: `invalid value for "` + p.name + `"`}
			}
		}
	}
	for _, p := range [...]struct {
		name string
		to   *bool
	}{{"recursive", &q.recursive}, {"sorted", &q.sorted}, {"wait", &q.wait}, {"dir", &q.dir}, {"quorum", &q.quorum}, {"stream", &q.stream}} {
		if *p.to, err = f.truth(p.name); err != nil {
			return q, &refusal{code: invalidField, cause: `invalid value for "` + p.name + `"`}
		}
	}
	if q.wait && method != http.MethodGet {
		return q, &refusal{code: invalidField, cause: `"wait" can only be used with GET requests`}
	}
	if q.prevValue, q.hasPrevValue = f.get("prevValue"); q.hasPrevValue && q.prevValue == "" {
		return q, &refusal{code: prevValueRequired, cause: `"prevValue" cannot be empty`}
	}
	if q.noValueOnSuccess, err = f.truth("noValueOnSuccess"); err != nil {
		return q, &refusal{code: invalidField, cause: `invalid value for "noValueOnSuccess"`}
	}
	if text, _ := f.get("ttl"); text != "" {
		if q.ttl, err = strconv.ParseUint(text, 10, 64); err != nil {
			return q, &refusal{code: ttlNotNumber, cause: `invalid value for "ttl"`}
		}
		q.hasTTL = true
	}
	_, q.hasPrevExist = f.get("prevExist")
	if q.prevExist, err = f.truth("prevExist"); err != nil {
		return q, &refusal{code: invalidField, cause: "invalid value for prevExist"}
	}
	if q.refresh, err = f.truth("refresh"); err != nil {
		return q, &refusal{code: invalidField, cause: "invalid value for refresh"}
	}
	q.value, _ = f.get("value")
	switch {
	case q.refresh && q.value != "":
		return q, &refusal{code: refreshWithValue, cause: "A value was provided on a refresh"}
	case q.refresh && !q.hasTTL:
		return q, &refusal{code: refreshWithoutTTL, cause: "No TTL value set"}
	}
	return q, nil
}

// form is the parameters that have a meaning, those of the body first: the
// first of a name counts.
type form []parameter

type parameter struct{ name, value string }

func (f form) get(name string) (value string, ok bool) {
	for _, p := range f {
		if p.name == name {
			return p.value, true
		}
	}
	return "", false
}

func (f form) truth(name string) (bool, error) {
	text, ok := f.get(name)
	if !ok {
		return false, nil
	}
	return strconv.ParseBool(text)
}

const formType = "application/x-www-form-urlencoded"

// readForm reads the query and, where the method has one that is a form, the
// body. A body of any other type is ignored, as if it were empty.
func readForm(method, query, contentType string, body []byte) (form, error) {
	f := make(form, 0, 4)
	var err error
	if (method == http.MethodPut || method == http.MethodPost) && contentType != "" {
		if contentType != formType {
			contentType, _, err = mime.ParseMediaType(contentType)
		}
		if contentType == formType {
			var wrong error
			if f, wrong = f.read(string(body)); err == nil {
				err = wrong
			}
		}
	}
	f, wrong := f.read(query)
	if err == nil {
		err = wrong
	}
	return f, err
}

// known are the names of all parameters; others are ignored.
func known(name string) bool {
	switch name {
	case "value", "ttl", "dir", "prevExist", "prevValue", "prevIndex", "refresh", "noValueOnSuccess",
		"recursive", "sorted", "quorum", "wait", "waitIndex", "stream":
		return true
	}
	return false
}

var errSemicolon = errors.New("invalid semicolon separator in query")

// read appends the parameters of an encoded form. What is wrong in one of them
// does not keep it from reading the rest; of several errors, the last semicolon
// is told, or else the first.
func (f form) read(text string) (form, error) {
	var told error
	for text != "" {
		var pair string
		pair, text, _ = strings.Cut(text, "&")
		if pair == "" {
			continue
		}
		name, value, err := readPair(pair)
		switch {
		case err != nil:
			if told == nil || err == errSemicolon {
				told = err
			}
		case known(name):
			f = append(f, parameter{name, value})
		}
	}
	return f, told
}

func readPair(pair string) (name, value string, err error) {
	if strings.Contains(pair, ";") {
		return "", "", errSemicolon
	}
	name, value, _ = strings.Cut(pair, "=")
	if name, err = url.QueryUnescape(name); err != nil {
		return "", "", err
	}
	value, err = url.QueryUnescape(value)
	return name, value, err
}
