package web

import (
	"bytes"
	"path"
	"strings"
)

// verdict is what is to be done about what was read.
type verdict int

const (
	whole   verdict = iota // it is a request
	partial                // it may become one
	foreign                // it is for others
)

// parse reads a request from the beginning of b, and tells how long it is. Of a
// partial one that is as long as it will be, or 0 where that is not known.
// Nothing is tolerated: what could be understood in two ways is foreign.
func parse(b []byte, r *Request, takes func(path string) bool) (v verdict, size int) {
	line, rest, ok := cutLine(b)
	method, target, version, v := requestLine(line, ok)
	if v == foreign {
		return foreign, 0
	}
	if !ok {
		return partial, 0
	}
	if string(version) != "HTTP/1.1" {
		return foreign, 0
	}
	if !plain(target, isQuery) {
		return foreign, 0
	}
	p, query, _ := strings.Cut(string(target), "?")
	if !plain(target[:len(p)], isPath) || !takes(p) || !clean(p) {
		return foreign, 0
	}
	*r = Request{Method: method, Path: p, Query: query}

	hosts, types, length := 0, 0, -1
	for {
		if line, rest, ok = cutLine(rest); !ok {
			if bytes.IndexByte(line, '\n') >= 0 {
				return foreign, 0
			}
			return partial, 0
		}
		if len(line) == 0 {
			break
		}
		colon := bytes.IndexByte(line, ':')
		if colon <= 0 || !plain(line[:colon], isToken) || !plain(line[colon+1:], isValue) {
			return foreign, 0
		}
		value := bytes.Trim(line[colon+1:], " \t")
		var name [longestName]byte
		if colon > len(name) {
			continue // nothing hangs on it
		}
		for i, c := range line[:colon] {
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			name[i] = c
		}
		switch string(name[:colon]) {
		case "host":
			hosts++
			if len(value) == 0 || !plain(value, isHost) {
				return foreign, 0
			}
		case "content-length":
			if length >= 0 || len(value) == 0 || len(value) > 7 {
				return foreign, 0
			}
			length = 0
			for _, c := range value {
				if c < '0' || c > '9' {
					return foreign, 0
				}
				length = 10*length + int(c-'0')
			}
		case "content-type":
			if types++; types > 1 {
				return foreign, 0
			}
			r.ContentType = string(value)
		case "connection":
			if !strings.EqualFold(string(value), "keep-alive") {
				return foreign, 0
			}
		case "transfer-encoding", "expect", "upgrade", "trailer", "te", "http2-settings", "authorization", "origin":
			return foreign, 0
		}
	}
	if hosts != 1 {
		return foreign, 0
	}
	length = max(0, length)
	size = len(b) - len(rest) + length
	if len(rest) < length {
		return partial, size
	}
	r.Body = rest[:length:length]
	return whole, size
}

// longestName is the length of the longest name of a header that is looked at.
const longestName = len("transfer-encoding")

// cutLine cuts off a line that has come to its end. One that ends in another way
// than it should, or has not ended, stays whole.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	end := bytes.IndexByte(b, '\n')
	if end < 1 || b[end-1] != '\r' {
		return b, nil, false
	}
	return b[:end-1], b[end+1:], true
}

// requestLine takes a line apart, or its beginning where it is not complete.
func requestLine(line []byte, complete bool) (method string, target, version []byte, v verdict) {
	first, rest, ok := bytes.Cut(line, []byte(" "))
	for _, known := range [...]string{"GET", "PUT", "POST", "DELETE"} {
		if string(first) == known || !ok && !complete && strings.HasPrefix(known, string(first)) {
			method = known
			break
		}
	}
	if method == "" || bytes.IndexByte(line, '\n') >= 0 {
		return "", nil, nil, foreign
	}
	target, version, ok = bytes.Cut(rest, []byte(" "))
	if complete && !ok {
		return "", nil, nil, foreign
	}
	return method, target, version, whole
}

// clean tells whether a path is as routers want it: it has neither dots nor
// empty segments.
func clean(p string) bool {
	c := path.Clean(p)
	return strings.HasPrefix(p, "/") && (p == c || p == c+"/" && c != "/")
}

// What a byte may be part of. A path holds no escape, a query anything that can
// be seen but a fragment.
const (
	isToken byte = 1 << iota
	isPath
	isQuery
	isValue
	isHost
)

var class = func() (t [256]byte) {
	for c := range t {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if letter || strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0 {
			t[c] |= isToken
		}
		if letter || strings.IndexByte("/-._~!$&'()*+,;=:@", byte(c)) >= 0 {
			t[c] |= isPath
		}
		if '!' <= c && c <= '~' && c != '#' {
			t[c] |= isQuery
		}
		if c == '\t' || ' ' <= c && c != 0x7f {
			t[c] |= isValue
		}
		if letter || strings.IndexByte("-._:[]", byte(c)) >= 0 {
			t[c] |= isHost
		}
	}
	return t
}()

func plain(b []byte, kind byte) bool {
	for _, c := range b {
		if class[c]&kind == 0 {
			return false
		}
	}
	return true
}
