package v2

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/kvorum/kvorum/state"
)

const hex = "0123456789abcdef"

// appendText appends a JSON string as clients have always got it: what could
// end a script element is escaped, bytes that are no text are replaced.
func appendText(b []byte, s string) []byte {
	b = append(b, '"')
	plain := 0 // all before it is written
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&' {
			i++
			continue
		}
		size := 1
		var escape string
		switch c {
		case '"':
			escape = `\"`
		case '\\':
			escape = `\\`
		case '\n':
			escape = `\n`
		case '\r':
			escape = `\r`
		case '\t':
			escape = `\t`
		default:
			if c < utf8.RuneSelf {
				b = append(b, s[plain:i]...)
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
				i++
				plain = i
				continue
			}
			var r rune
			r, size = utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && size == 1:
				escape = `\ufffd`
			case r == '\u2028':
				escape = `\u2028`
			case r == '\u2029':
				escape = `\u2029`
			default:
				i += size
				continue
			}
		}
		b = append(b, s[plain:i]...)
		b = append(b, escape...)
		i += size
		plain = i
	}
	b = append(b, s[plain:]...)
	return append(b, '"')
}

// encoder writes nodes as they are at one moment.
type encoder struct {
	now time.Time

	// told: what happened is told to those who watch. It may be long past, so
	// that what is left of a node's time is told only while there is any.
	told bool
}

// appendNode appends a node; gone: it is told of as what was removed, and shows
// no value.
func (e encoder) appendNode(b []byte, n *state.Node, gone bool) []byte {
	b = append(b, '{')
	if n.Path != "/" {
		b = append(b, `"key":`...)
		b = appendText(b, n.Path)
		b = append(b, ',')
	}
	if n.Dir {
		b = append(b, `"dir":true,`...)
	} else if !gone {
		b = append(b, `"value":`...)
		b = appendText(b, n.Value)
		b = append(b, ',')
	}
	if n.Deadline != 0 {
		end := time.Unix(0, n.Deadline).UTC()
		b = append(b, `"expiration":"`...)
		b = end.AppendFormat(b, time.RFC3339Nano)
		b = append(b, '"', ',')
		if left := secondsLeft(end.Sub(e.now)); left > 0 || left < 0 && !e.told {
			b = append(b, `"ttl":`...)
			b = strconv.AppendInt(b, left, 10)
			b = append(b, ',')
		}
	}
	if len(n.Nodes) > 0 {
		b = append(b, `"nodes":[`...)
		for i := range n.Nodes {
			b = e.appendNode(b, &n.Nodes[i], false)
			b = append(b, ',')
		}
		b = endWith(b, ']')
		b = append(b, ',')
	}
	b = appendIndex(b, `"modifiedIndex":`, n.Modified)
	b = appendIndex(b, `"createdIndex":`, n.Created)
	return endWith(b, '}')
}

func appendIndex(b []byte, name string, r state.Revision) []byte {
	if r == 0 {
		return b
	}
	b = append(b, name...)
	b = strconv.AppendInt(b, int64(r), 10)
	return append(b, ',')
}

// endWith puts end in the place of a comma that nothing follows.
func endWith(b []byte, end byte) []byte {
	b[len(b)-1] = end
	return b
}

// secondsLeft counts a second that has begun as a whole one.
func secondsLeft(d time.Duration) int64 {
	s := int64(d / time.Second)
	if d%time.Second > 0 {
		s++
	}
	return s
}

// appendChange appends what an operation did, as a line.
func (e encoder) appendChange(b []byte, c *state.NodeChange) []byte {
	b = append(b, `{"action":`...)
	b = appendText(b, c.Action)
	b = append(b, `,"node":`...)
	b = e.appendNode(b, c.Node, removes(c.Action))
	if c.Prev != nil {
		b = append(b, `,"prevNode":`...)
		b = e.appendNode(b, c.Prev, false)
	}
	return append(b, '}', '\n')
}
