package ctl

import (
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// A bar shows on a terminal how far a long command has come. Elsewhere it is
// silent, and its zero value is as well.
type bar struct{ shown *progressbar.ProgressBar }

// bar begins one that is full at end, on standard error: standard output is
// for the result. unit is what it counts, or "" for no count.
func (a *app) bar(cmd *cobra.Command, doing string, end int64, unit string) bar {
	file, ok := cmd.ErrOrStderr().(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return bar{}
	}
	options := []progressbar.Option{
		progressbar.OptionSetWriter(file),
		progressbar.OptionSetDescription(doing),
		progressbar.OptionFullWidth(),
		progressbar.OptionThrottle(50 * time.Millisecond),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionClearOnFinish(),
	}
	if unit != "" {
		options = append(options, progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString(unit))
	}
	return bar{progressbar.NewOptions64(end, options...)}
}

// at moves the bar. What it cannot draw is not worth ending a command for.
func (b bar) at(n int64) {
	if b.shown != nil {
		_ = b.shown.Set64(min(n, b.shown.GetMax64()))
	}
}

func (b bar) finish() {
	if b.shown != nil {
		_ = b.shown.Finish()
	}
}
