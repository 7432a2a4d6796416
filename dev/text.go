package dev

import (
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
)

const commands = `kill N      end a member at once: nothing is handed over, nobody waited for
stop N      end it as an operator would
start N     run it again, on the data it had
restart N   stop, then start
status      how the members are
quit        end all, as Ctrl-C does

N is the number of a member, or "leader".`

func (c *cluster) help() { fmt.Fprintf(c.o.Out, "\n%s\n\n", indent(commands)) }

func (c *cluster) banner() {
	var b strings.Builder
	fate := "removed at the end; --data-dir DIR keeps it"
	if c.o.DataDir != "" {
		fate = "kept"
	}
	count := fmt.Sprintf("%d members are", len(c.members))
	if len(c.members) == 1 {
		count = "1 member is"
	}
	fmt.Fprintf(&b, "\n%s ready. Data and logs: %s (%s)\n\n", count, c.dir, fate)
	var endpoints []string
	for _, m := range c.members {
		fmt.Fprintf(&b, "  %s\n", m.line(c.leader))
		endpoints = append(endpoints, m.settings.ListenClientURLs[0].Host)
	}
	first := c.members[0].url
	fmt.Fprintf(&b, `
Try, in another terminal:

  export ETCDCTL_ENDPOINTS=%[1]s
  %[2]s put greeting hello
  %[2]s get greeting
  %[2]s status

  etcdctl get greeting                    # etcd's own client, if it is here
  curl %[3]s/health
  curl %[3]s/v3/kv/range -d '{"key":"Z3JlZXRpbmc="}'    # "greeting" in base64

`, strings.Join(endpoints, ","), c.o.Program, first)
	if c.o.Commands != nil {
		if len(c.members) > 1 {
			b.WriteString("Type \"kill leader\" to see another one take over; help lists what else there is.\n")
		} else {
			b.WriteString("Type help for what can be done to it from here.\n")
		}
	}
	b.WriteString("Ctrl-C ends it all.\n\n")
	fmt.Fprint(c.o.Out, b.String())
}

func (c *cluster) status() {
	for _, m := range c.members {
		fmt.Fprintf(c.o.Out, "  %s\n", m.line(c.leader))
	}
}

// line is a member in one line.
func (m *member) line(leader *member) string {
	line := fmt.Sprintf("%s  %-23s", m.name, m.url)
	switch {
	case m.told != "":
		return line + "  ends"
	case !m.running() && m.last == "":
		return line + "  ended by itself"
	case !m.running():
		return line + "  " + m.last
	case m.seen.err != nil:
		return line + "  starts"
	}
	role := "follows"
	switch {
	case m == leader:
		role = "leads"
	case m.seen.leader == 0:
		role = "waits for a leader"
	}
	return line + fmt.Sprintf("  %-7s  revision %d, %s", role, m.seen.revision, humanize.IBytes(uint64(m.seen.size)))
}

func indent(text string) string { return "  " + strings.ReplaceAll(text, "\n", "\n  ") }
