package config

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// value is one field of a Server seen from outside: it is set from text and
// shown as what it is.
type value struct {
	set     func(text string) error
	setList func(items []string) error // nil: not a list
	show    func() any
	isBool  bool // a bare flag means true
	nanos   bool // a bare number in a file counts nanoseconds
}

func of[T any](field *T, parse func(string) (T, error), show func(T) any) value {
	return value{
		set: func(text string) error {
			v, err := parse(text)
			if err != nil {
				return err
			}
			*field = v
			return nil
		},
		show: func() any { return show(*field) },
	}
}

func same[T any](v T) any { return v }

func text(field *string) value {
	return of(field, func(text string) (string, error) { return text, nil }, same)
}

func truth(field *bool) value {
	v := of(field, func(text string) (bool, error) {
		b, err := strconv.ParseBool(text)
		if err != nil {
			return false, errors.New("want true or false")
		}
		return b, nil
	}, same)
	v.isBool = true
	return v
}

// number accepts whole numbers in [least, most].
func number[T int | int64 | uint32 | uint64](field *T, least, most T) value {
	return of(field, func(text string) (T, error) {
		var n T
		var err error
		if least < 0 {
			var i int64
			i, err = strconv.ParseInt(text, 10, 64)
			n = T(i)
		} else {
			var u uint64
			u, err = strconv.ParseUint(text, 10, 64)
			if n = T(u); uint64(n) != u {
				err = strconv.ErrRange
			}
		}
		if err != nil || n < least || n > most {
			if uint64(most) >= math.MaxInt64 {
				return 0, fmt.Errorf("want a whole number of at least %d", least)
			}
			return 0, fmt.Errorf("want a whole number from %d to %d", least, most)
		}
		return n, nil
	}, same)
}

// size accepts bytes, plain or with a unit: 2147483648, 2GiB, 1.5MB.
func size(field *int64, least int64) value {
	return of(field, func(text string) (int64, error) {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			var u uint64
			if u, err = humanize.ParseBytes(text); u > math.MaxInt64 {
				err = strconv.ErrRange
			}
			n = int64(u)
		}
		if err != nil {
			return 0, errors.New("want bytes, such as 2147483648 or 2GiB")
		}
		if n < least {
			return 0, fmt.Errorf("want at least %d bytes", least)
		}
		return n, nil
	}, same)
}

func showDuration(d time.Duration) any { return d.String() }

// duration accepts 10s, 1m30s and the like. A bare number would not say what
// it counts, except in a file, where etcd counts nanoseconds.
func duration(field *time.Duration, least time.Duration) value {
	v := of(field, func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if err != nil {
			return 0, errors.New("want a duration with its unit, such as 500ms, 10s or 2h")
		}
		if d < least {
			return 0, fmt.Errorf("want at least %v", least)
		}
		return d, nil
	}, showDuration)
	v.nanos = true
	return v
}

// counted accepts a duration, or a bare number that counts units.
func counted(field *time.Duration, unit, least time.Duration) value {
	return of(field, func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if n, ierr := strconv.ParseInt(text, 10, 64); ierr == nil {
			if n > int64(math.MaxInt64/unit) || n < 0 {
				return 0, fmt.Errorf("want less than %v", time.Duration(math.MaxInt64))
			}
			d, err = time.Duration(n)*unit, nil
		}
		if err != nil {
			return 0, fmt.Errorf("want a duration such as %v, or a number that counts units of %v", 100*unit, unit)
		}
		if d < least {
			return 0, fmt.Errorf("want at least %v", least)
		}
		return d, nil
	}, showDuration)
}

// oneOf accepts a word of a fixed list.
func oneOf(field *string, words ...string) value {
	return of(field, func(text string) (string, error) {
		if !slices.Contains(words, text) {
			return "", fmt.Errorf("invalid value %q, want one of %s", text, strings.Join(words, ", "))
		}
		return text, nil
	}, same)
}

// list accepts words parted by commas; a file may also give a real list,
// whose items may then hold commas.
func list(field *[]string) value {
	v := value{show: func() any { return append([]string{}, *field...) }}
	v.setList = func(items []string) error {
		*field = nil
		for _, item := range items {
			if item = strings.TrimSpace(item); item != "" {
				*field = append(*field, item)
			}
		}
		return nil
	}
	v.set = func(text string) error { return v.setList(strings.Split(text, ",")) }
	return v
}

// URLs are addresses to listen on or to be reached at, sorted and without
// repetition, as etcd keeps them.
type URLs []url.URL

// Strings returns the addresses as text.
func (u URLs) Strings() []string {
	all := make([]string, len(u))
	for i := range u {
		all[i] = u[i].String()
	}
	return all
}

// String returns the addresses parted by commas.
func (u URLs) String() string { return strings.Join(u.Strings(), ",") }

func urls(field *URLs) value {
	v := value{show: func() any { return field.Strings() }}
	v.setList = func(items []string) error {
		parsed, err := ParseURLs(items)
		if err == nil {
			*field = parsed
		}
		return err
	}
	v.set = func(text string) error { return v.setList(strings.Split(text, ",")) }
	return v
}

// ParseURLs accepts http, https, unix and unixs addresses. Those of the first
// two kinds name a host and a port and nothing else.
func ParseURLs(items []string) (URLs, error) {
	var all URLs
	for _, item := range items {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		u, err := url.Parse(item)
		if host, port, split := net.SplitHostPort(item); err != nil && split == nil && host != "" && port != "" {
			return nil, fmt.Errorf("%w: want http://%s or https://%s", err, item, item)
		}
		if err != nil {
			return nil, err
		}
		switch u.Scheme {
		case "http", "https":
			if _, port, err := net.SplitHostPort(u.Host); err != nil || port == "" {
				return nil, fmt.Errorf("%s names no port: want %s://HOST:PORT", item, u.Scheme)
			}
			if u.Path == "/" {
				u.Path = ""
			}
			if u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
				return nil, fmt.Errorf("%s holds more than a host and a port: want %s://%s", item, u.Scheme, u.Host)
			}
		case "unix", "unixs":
			if u.Host+u.Path == "" {
				return nil, fmt.Errorf("%s names no file: want %s:///path/to/socket", item, u.Scheme)
			}
		default:
			return nil, fmt.Errorf("%s must start with http://, https://, unix:// or unixs://", item)
		}
		all = append(all, *u)
	}
	slices.SortFunc(all, func(a, b url.URL) int { return strings.Compare(a.String(), b.String()) })
	return slices.CompactFunc(all, func(a, b url.URL) bool { return a.String() == b.String() }), nil
}

// TLSVersion is a version of the protocol by Go's number; 0 leaves the choice
// to Go.
type TLSVersion uint16

var tlsVersions = map[string]TLSVersion{
	"":       0,
	"TLS1.2": tls.VersionTLS12,
	"TLS1.3": tls.VersionTLS13,
}

// String returns the name the flags use.
func (v TLSVersion) String() string {
	for name, number := range tlsVersions {
		if number == v {
			return name
		}
	}
	return fmt.Sprintf("TLSVersion(%#x)", uint16(v))
}

func tlsVersion(field *TLSVersion) value {
	return of(field, func(text string) (TLSVersion, error) {
		v, ok := tlsVersions[text]
		if !ok {
			return 0, errors.New("want TLS1.2 or TLS1.3; older versions are broken")
		}
		return v, nil
	}, func(v TLSVersion) any { return v.String() })
}

// years accepts a whole number of years, and shows it as one.
func years(field *time.Duration) value {
	const year = 365 * 24 * time.Hour
	return of(field, func(text string) (time.Duration, error) {
		n, err := strconv.ParseUint(text, 10, 8)
		if err != nil || n == 0 || n > 100 {
			return 0, errors.New("want a whole number of years from 1 to 100")
		}
		return time.Duration(n) * year, nil
	}, func(d time.Duration) any { return int64(d / year) })
}

func rotation(field *Rotation) value {
	return of(field, func(text string) (Rotation, error) {
		r := Rotation{MaxMegabytes: 100}
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return r, fmt.Errorf(`want JSON such as {"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}: %v`, err)
		}
		if r.MaxMegabytes < 0 || r.MaxAgeDays < 0 || r.MaxBackups < 0 {
			return r, errors.New("want no number below zero")
		}
		return r, nil
	}, same)
}

// AuthToken tells how tokens are made: random words that each member
// remembers, or signed claims that any holder of the key can check.
type AuthToken struct {
	Kind           string // "simple" or "jwt"
	SignMethod     string
	PublicKeyFile  string
	PrivateKeyFile string        // "": this member only verifies
	TTL            time.Duration // of a jwt
}

// String returns the flag that makes this token kind.
func (t AuthToken) String() string {
	if t.Kind != "jwt" {
		return t.Kind
	}
	parts := []string{"jwt"}
	for _, o := range []struct{ key, value string }{
		{"sign-method", t.SignMethod}, {"pub-key", t.PublicKeyFile}, {"priv-key", t.PrivateKeyFile}, {"ttl", t.TTL.String()},
	} {
		if o.value != "" {
			parts = append(parts, o.key+"="+o.value)
		}
	}
	return strings.Join(parts, ",")
}

func authToken(field *AuthToken) value {
	return of(field, parseAuthToken, func(t AuthToken) any { return t.String() })
}

func parseAuthToken(text string) (AuthToken, error) {
	kind, rest, more := strings.Cut(text, ",")
	if kind == "simple" || kind == "" {
		return AuthToken{Kind: "simple"}, nil
	}
	t := AuthToken{Kind: kind, TTL: 5 * time.Minute}
	if kind != "jwt" {
		return t, fmt.Errorf("invalid value %q, want simple, or jwt with its options", kind)
	}
	for more {
		var option string
		option, rest, more = strings.Cut(rest, ",")
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "sign-method":
			t.SignMethod = value
		case "pub-key":
			t.PublicKeyFile = value
		case "priv-key":
			t.PrivateKeyFile = value
		case "ttl":
			ttl, err := time.ParseDuration(value)
			if err != nil || ttl <= 0 {
				return t, fmt.Errorf("ttl=%s: want a duration with its unit, such as 5m", value)
			}
			t.TTL = ttl
		default:
			return t, fmt.Errorf("jwt knows no option %q, only sign-method, pub-key, priv-key and ttl", key)
		}
	}
	if t.SignMethod == "" {
		return t, errors.New("jwt needs sign-method, such as sign-method=RS256")
	}
	if t.PublicKeyFile == "" && t.PrivateKeyFile == "" {
		return t, errors.New("jwt needs priv-key to sign, or pub-key to verify only")
	}
	return t, nil
}

// enforced accepts one of words and keeps the first: the choice is history,
// a wrong word still a mistake.
func enforced(field *string, words ...string) value {
	v := oneOf(new(string), words...)
	accept := v.set
	v.set = func(text string) error {
		*field = words[0]
		return accept(text)
	}
	v.show = func() any { return *field }
	return v
}
