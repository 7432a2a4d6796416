package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// NewLogger returns a logger of JSON lines in the shape that tools which read
// etcd's logs expect: level, ts, caller, msg, then the attributes.
func NewLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{
		AddSource:   true,
		Level:       level,
		ReplaceAttr: etcdShape,
	}))
}

func etcdShape(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return a
	}
	switch a.Key {
	case slog.TimeKey:
		return slog.String("ts", a.Value.Time().Format("2006-01-02T15:04:05.000000Z0700"))
	case slog.LevelKey:
		return slog.String("level", strings.ToLower(a.Value.String()))
	case slog.SourceKey:
		source, ok := a.Value.Any().(*slog.Source)
		if !ok {
			return a
		}
		folder, file := filepath.Split(source.File)
		return slog.String("caller", fmt.Sprintf("%s/%s:%d", filepath.Base(folder), file, source.Line))
	}
	if err, ok := a.Value.Any().(error); ok && err != nil {
		return slog.String(a.Key, err.Error())
	}
	return a
}

// NewTerminalLogger returns a logger for people: the time, what happened, and
// the attributes behind it. Only what is not as it should be names its level.
func NewTerminalLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(&terminal{w: w, level: level, mu: new(sync.Mutex)})
}

type terminal struct {
	level slog.Leveler
	attrs []slog.Attr

	mu *sync.Mutex // held while writing to w
	w  io.Writer
}

func (t *terminal) Enabled(_ context.Context, level slog.Level) bool { return level >= t.level.Level() }

func (t *terminal) Handle(_ context.Context, r slog.Record) error {
	b := r.Time.AppendFormat(nil, "15:04:05 ")
	if r.Level != slog.LevelInfo {
		b = fmt.Appendf(b, "%s: ", strings.ToLower(r.Level.String()))
	}
	b = append(b, r.Message...)
	add := func(a slog.Attr) bool {
		if text := a.Value.Resolve().String(); strings.ContainsAny(text, " \t\n\"") && a.Key != "error" {
			b = fmt.Appendf(b, "  %s=%q", a.Key, text)
		} else {
			b = fmt.Appendf(b, "  %s=%s", a.Key, text)
		}
		return true
	}
	for _, a := range t.attrs {
		add(a)
	}
	r.Attrs(add)
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := t.w.Write(append(b, '\n'))
	return err
}

func (t *terminal) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *t
	with.attrs = append(slices.Clone(t.attrs), attrs...)
	return &with
}

func (t *terminal) WithGroup(string) slog.Handler { return t }
