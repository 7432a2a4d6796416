package ctl

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/version"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of the client and of the API it speaks",
		GroupID: groupUtility,
		Args:    cobra.NoArgs,
		Example: "{{program}} version",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.printVersions(cmd) },
	}
}

func (a *app) printVersions(cmd *cobra.Command) error {
	// etcdctl's two lines must say which etcdctl we stand in for: scripts
	// choose flags by them.
	release := version.Version
	if a.called != Etcdctl {
		release = buildVersion()
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s version: %s\nAPI version: %s\n", a.called, release, version.APIVersion)
	return err
}

// buildVersion is the version that the go command recorded in the binary.
func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:       "completion bash|zsh|fish|powershell",
		Short:     "Print a script that teaches your shell to complete commands",
		GroupID:   groupUtility,
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(cmd.ValidArgs, args[0]) {
				return &failure{code: exitUsage, err: errors.New("completion takes the name of a shell: bash, zsh, fish or powershell")}
			}
			return nil
		},
		Example: `
source <({{program}} completion bash)                                 # this shell
{{program}} completion bash > /etc/bash_completion.d/{{program}}      # every bash
{{program}} completion zsh > "${fpath[1]}/_{{program}}"               # every zsh
{{program}} completion fish > ~/.config/fish/completions/{{program}}.fish`,
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(out)
			}
			return root.GenBashCompletionV2(out, true)
		},
	}
}

// completeValues lets the shell complete a flag that has only these values.
func completeValues(cmd *cobra.Command, flag string, values ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(fmt.Sprintf("ctl: --%s of %s: %v", flag, cmd.Name(), err)) // the flag does not exist
	}
}
