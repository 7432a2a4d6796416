// Package ctl is the command line of the client: a file for each family of
// commands, and one place for everything that is printed. It speaks to a
// server only through clientv3 and never imports a package of the server, so
// that whatever it can do, any other client can do too.
//
// The same commands answer to two names. As sub-commands of kvorum they are at
// their friendliest; under the name etcdctl their output and exit codes are
// those of etcdctl 3.7.3, byte for byte, wherever etcdctl gives an answer. (One
// exception: "put key some words" is refused, not cut to its first word.)
//
// C1: standard output carries data and nothing else.
// C2: an error names the remedy when there is one.
// C3: a flag wins over the environment, and the environment over the default,
// without a word.
package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// Etcdctl is the name under which the commands imitate etcdctl.
const Etcdctl = "etcdctl"

// app is what all commands of one root share.
type app struct {
	called string // the name of the program, as help texts show it
	globals
}

// New returns a root command with every client command below it. called is
// the name the program was called by: Etcdctl, or the program's own name, in
// which case the caller may add commands of its own to the root.
func New(called string) *cobra.Command {
	a := &app{called: called}
	var version bool
	root := &cobra.Command{
		Use:           called,
		Short:         "Client for an etcd-compatible key-value store",
		SilenceErrors: true, // Run prints them, with their remedy
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs, // an unknown command is ours to explain
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case version:
				return a.printVersions(cmd)
			case len(args) == 0:
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	// Scripts written for etcdctl shorten its commands: "etcdctl comp 5".
	cobra.EnablePrefixMatching = called == Etcdctl

	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &failure{code: exitUsage, err: err, hint: fmt.Sprintf("Run '%s --help' for its flags.", cmd.CommandPath())}
	})
	a.globals.register(root.PersistentFlags())
	hideGlobals(root)

	root.AddGroup(groups[0])
	if called != Etcdctl {
		root.AddGroup(&cobra.Group{ID: groupDirectories, Title: "Directory commands:"})
	}
	root.AddGroup(groups[1:]...)
	root.SetHelpCommandGroupID(groupUtility)
	root.AddCommand(
		a.putCommand(), a.getCommand(), a.delCommand(), a.txnCommand(), a.compactionCommand(), a.watchCommand(), a.leaseCommand(),
		a.lockCommand(), a.electCommand(),
		a.endpointCommand(), a.memberCommand(), a.moveLeaderCommand(), a.alarmCommand(), a.defragCommand(),
		a.checkCommand(), a.completionCommand(), a.optionsCommand(), a.versionCommand(),
	)
	if called != Etcdctl {
		root.AddCommand(a.lsCommand(), a.treeCommand(), a.mkCommand(), a.rmCommand(), a.statusCommand(), a.benchCommand())
		// Cobra would take a template for it, which has the linker keep every
		// exported method of the program.
		root.Flags().BoolVarP(&version, "version", "v", false, "version for "+called)
	}
	nameExamples(root, called)
	return root
}

const (
	groupKV          = "kv"
	groupDirectories = "directories"
	groupLocks       = "locks"
	groupCluster     = "cluster"
	groupUtility     = "utility"
)

var groups = []*cobra.Group{
	{ID: groupKV, Title: "Key-value commands:"},
	{ID: groupLocks, Title: "Concurrency commands:"},
	{ID: groupCluster, Title: "Cluster maintenance commands:"},
	{ID: groupUtility, Title: "Utility commands:"},
}

// Run executes root, prints its error if it has one, and returns the exit code
// for the process.
func Run(ctx context.Context, root *cobra.Command) int {
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return int(exitOK)
	}
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{code: exitError, err: err}
	}
	if f.err != nil {
		fmt.Fprintln(cmd.ErrOrStderr(), "Error:", f.err)
	}
	if f.hint == "" && f.code == exitBadArgs && cmd.HasParent() {
		f.hint = fmt.Sprintf("Run '%s --help' to see how it is used.", cmd.CommandPath())
	}
	if f.hint != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), strings.ReplaceAll(f.hint, program, root.Name()))
	}
	return f.exitCode(root.Name())
}

// program stands for the name of the program in examples and hints.
const program = "{{program}}"

func nameExamples(cmd *cobra.Command, called string) {
	cmd.Example = indent(strings.ReplaceAll(cmd.Example, program, called))
	cmd.Long = strings.ReplaceAll(cmd.Long, program, called)
	for _, sub := range cmd.Commands() {
		nameExamples(sub, called)
	}
}

func indent(text string) string {
	text = strings.Trim(text, "\n")
	if text == "" {
		return ""
	}
	return "  " + strings.ReplaceAll(text, "\n", "\n  ")
}

// family makes cmd a parent of sub-commands that names the unknown ones.
func family(cmd *cobra.Command, subs ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(subs...)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknownCommand(cmd, args[0])
	}
	return cmd
}

func unknownCommand(cmd *cobra.Command, name string) *failure {
	// Cobra sets this only where it reports the unknown command itself.
	if cmd.SuggestionsMinimumDistance == 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	hint := fmt.Sprintf("Run '%s --help' for usage.", cmd.CommandPath())
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		hint = fmt.Sprintf("Did you mean %s? %s", strings.Join(near, " or "), hint)
	}
	return &failure{
		code: exitUsage,
		err:  fmt.Errorf("unknown command %q for %q", name, cmd.CommandPath()),
		hint: hint,
	}
}
