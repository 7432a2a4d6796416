package ctl

import (
	"errors"
	"fmt"
)

// An exit is the exit code of the process. The first seven and exitBadArgs are
// etcdctl's; the others are additions that do not collide with them.
type exit int

const (
	exitOK            exit = 0
	exitError         exit = 1
	exitBadConnection exit = 2
	exitInvalidInput  exit = 3 // what was read from standard input makes no sense
	exitBadFeature    exit = 4 // a flag's value that is not supported
	exitInterrupted   exit = 5
	exitUnhealthy     exit = 5 // etcdctl, too, has one number for both
	exitIO            exit = 6
	exitNotFound      exit = 7 // get --must-exist, lease keep-alive --once, ls, rm
	exitPermission    exit = 10
	exitSignal        exit = 130 // what a shell says of a program that an interrupt ended
	exitUsage         exit = 256 // unknown command or flag: 128, but 1 for etcdctl
	exitBadArgs       exit = 128
)

const exitCodesHelp = `0    done
1    the server refused, or another error
2    no connection to any endpoint
3    invalid input (the text of a transaction)
4    a value that the flag does not support
5    interrupted; or the cluster is not healthy (status --exit-code)
6    reading or writing a file failed
7    the key (get --must-exist), lease (lease keep-alive --once) or directory does not exist
10   permission denied
128  bad arguments`

// A failure is an error with the exit code it deserves and, where somebody can
// do something about it, a hint that says what.
type failure struct {
	code    exit
	etcdctl exit  // what etcdctl ends with, where exitCode cannot know it
	err     error // nil: it was already told
	hint    string
}

func (f *failure) Error() string {
	if f.err == nil {
		return "failed"
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// exitCode folds our additions into 1 for scripts that expect etcdctl, which
// ends with 1 whatever a request ran into.
func (f *failure) exitCode(called string) int {
	switch {
	case f.code == exitUsage && called != Etcdctl:
		return int(exitBadArgs)
	case called != Etcdctl:
		return int(f.code)
	case f.etcdctl != exitOK:
		return int(f.etcdctl)
	}
	switch f.code {
	case exitBadConnection, exitUnhealthy, exitNotFound, exitPermission, exitUsage:
		return int(exitError)
	}
	return int(f.code)
}

func badArgs(format string, args ...any) error {
	return &failure{code: exitBadArgs, err: fmt.Errorf(format, args...)}
}

func badFeature(format string, args ...any) error {
	return &failure{code: exitBadFeature, err: fmt.Errorf(format, args...)}
}

func invalidInput(format string, args ...any) error {
	return &failure{code: exitInvalidInput, err: fmt.Errorf(format, args...)}
}

// untold is what is left of a failure once its text was printed: its code, and
// its hint.
func untold(err error) error {
	var f *failure
	if errors.As(err, &f) {
		return &failure{code: f.code, etcdctl: f.etcdctl, hint: f.hint}
	}
	return err
}

func isFailure(err error) bool {
	var f *failure
	return errors.As(err, &f)
}
