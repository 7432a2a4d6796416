package node

import (
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
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

// NewTerminalLogger returns a logger for people: time, level, message, and
// the attributes as key=value.
func NewTerminalLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.String(slog.TimeKey, a.Value.Time().Format("15:04:05.000"))
			}
			return a
		},
	}))
}
