package config

import (
	"fmt"
	"io"
	"strings"
)

const helpWidth = 96

// Usage writes the help text of the server as it is called.
func Usage(w io.Writer, called string) error {
	var b strings.Builder
	fmt.Fprintf(&b, `Usage:

  %[1]s [flags]
    Start a server. Without flags it serves clients on localhost:2379 and keeps its data in
    the default directory.

  %[1]s --version
    Print the version.

  %[1]s --help
    Print this text.

  %[1]s --config-file FILE
    Read settings from a YAML file. Keys are the flags' names; etcd's files work unchanged.

A flag is written --name=value or --name value, with one dash or two; a bare flag that takes
true or false means true. Each may also be set by a variable, KVORUM_DATA_DIR for --data-dir,
or etcd's ETCD_DATA_DIR. A flag wins over a variable, a variable over the file.

`, called)
	for _, g := range settings(new(Server)) {
		fmt.Fprintf(&b, "%s:\n", g.title)
		for _, row := range g.settings {
			fmt.Fprintf(&b, "  --%s %s\n", row.name, row.shownDefault())
			wrap(&b, "    ", row.help)
			if row.name == "feature-gates" {
				for _, gate := range sortedKeys(onByDefault) {
					fmt.Fprintf(&b, "      %s (%t)\n", gate, onByDefault[gate])
				}
			}
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (row setting) shownDefault() string {
	if row.shown != "" {
		return "'" + row.shown + "'"
	}
	return "'" + row.def + "'"
}

// wrap writes words in lines of helpWidth.
func wrap(b *strings.Builder, indent, words string) {
	line := indent
	for word := range strings.FieldsSeq(words) {
		if len(line)+len(word) > helpWidth {
			b.WriteString(strings.TrimRight(line, " ") + "\n")
			line = indent
		}
		line += word + " "
	}
	b.WriteString(strings.TrimRight(line, " ") + "\n")
}
