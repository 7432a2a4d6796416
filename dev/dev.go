package dev

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kvorum/kvorum/node"
)

// Options describe a cluster; the zero value is one member on the usual port.
type Options struct {
	Nodes    int           // 1 to NodesMax; default 1
	Port     int           // of the first member, for clients; default DefaultPort
	DataDir  string        // default: a new directory, which Run removes at its end
	Settings []string      // flags of a server, given to each member
	Commands <-chan string // lines that the user types; nil: there are none
	Out      io.Writer     // for the user; default: nobody listens
	Program  string        // what the user calls this program; default "kvorum"
}

// Run runs a cluster until ctx ends, the user quits, or it cannot start. It
// returns once every member has ended.
func Run(ctx context.Context, o Options) (err error) {
	o.Nodes, o.Port = cmp.Or(o.Nodes, 1), cmp.Or(o.Port, DefaultPort)
	o.Program = cmp.Or(o.Program, "kvorum")
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.Nodes < 1 || o.Nodes > NodesMax {
		return fmt.Errorf("--nodes %d: a cluster has 1 to %d members here", o.Nodes, NodesMax)
	}
	all, err := addresses(o.Port, o.Nodes)
	if err == nil {
		err = free(all)
	}
	if err != nil {
		return err
	}

	c := &cluster{o: o, dir: o.DataDir, ended: make(chan ending)}
	if c.dir == "" {
		if c.dir, err = os.MkdirTemp("", "kvorum-dev-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(c.dir)) }()
	}
	if err := claim(c.dir, shape{o.Nodes, o.Port}); err != nil {
		return err
	}
	servers, err := settings(c.dir, all, o.Settings)
	if err != nil {
		return err
	}
	for i, s := range servers {
		m, err := newMember(i, s, url(all[i].client), filepath.Join(c.dir, s.Name+".log"))
		if err != nil {
			return errors.Join(err, c.close())
		}
		c.members = append(c.members, m)
	}
	return errors.Join(c.run(ctx), c.close())
}

// A cluster belongs to the goroutine of run, but for its members' clients.
type cluster struct {
	o       Options
	dir     string
	members []*member
	ended   chan ending

	greeted bool // the banner was shown
	leader  *member
	term    uint64
	quit    bool
}

// An ending is what became of a member.
type ending struct {
	member *member
	err    error
}

// run starts every member, and then does what the user says.
func (c *cluster) run(ctx context.Context) error {
	asking, stopAsking := context.WithCancel(ctx)
	looks := make(chan []look)
	go func() {
		defer close(looks)
		watch(asking, c.members, looks)
	}()
	defer func() {
		stopAsking()
		for range looks {
		}
	}()

	// Members end when they are told to, so that what the user reads is in order.
	members := context.WithoutCancel(ctx)
	for _, m := range c.members {
		m.start(members, c.ended)
	}
	var failed error
	commands := c.o.Commands
	for !c.quit && failed == nil {
		select {
		case <-ctx.Done():
			c.quit = true
		case e := <-c.ended:
			failed = c.mourn(members, e)
		case seen := <-looks:
			c.observe(seen)
		case line, open := <-commands:
			if !open {
				commands = nil // the cluster goes on without its user
				continue
			}
			c.obey(members, line)
		}
	}
	if c.greeted {
		c.say("stopping")
	}
	return errors.Join(failed, c.stopAll())
}

// mourn takes note of a member's end. A cluster that never came up does not
// outlive one.
func (c *cluster) mourn(ctx context.Context, e ending) error {
	m, asked := e.member, e.member.told
	m.gone()
	switch {
	case e.err != nil && !c.greeted:
		return fmt.Errorf("%s: %w", m.name, e.err)
	case e.err != nil:
		c.say("%s ended: %v (its log: %s)", m.name, e.err, m.logName)
	case asked == "":
		c.say("%s ended by itself (its log: %s)", m.name, m.logName)
	case m.again:
		c.say("%s is %s, and starts again", m.name, asked)
	default:
		c.say("%s is %s; start %d brings it back", m.name, asked, m.number)
	}
	if m.again {
		m.start(ctx, c.ended)
	}
	return nil
}

func (c *cluster) stopAll() (err error) {
	waiting := 0
	for _, m := range c.members {
		if m.running() {
			waiting++
			m.end("stopped", context.Canceled)
		}
	}
	for ; waiting > 0; waiting-- {
		e := <-c.ended
		e.member.gone()
		if e.err != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", e.member.name, e.err))
		}
	}
	return err
}

func (c *cluster) close() (err error) {
	for _, m := range c.members {
		err = errors.Join(err, m.close())
	}
	return err
}

// obey does what the user typed.
func (c *cluster) obey(ctx context.Context, line string) {
	words := strings.Fields(line)
	if len(words) == 0 {
		return
	}
	switch verb := words[0]; verb {
	case "help", "?":
		c.help()
	case "status":
		c.status()
	case "quit", "exit":
		c.quit = true
	case "kill", "stop", "start", "restart":
		m, err := c.find(words[1:])
		if err != nil {
			c.say("%s: %v", verb, err)
			return
		}
		c.order(ctx, m, verb)
	default:
		c.say("%q is no command; help lists them", verb)
	}
}

func (c *cluster) order(ctx context.Context, m *member, verb string) {
	switch {
	case (verb == "start" || verb == "restart") && m.told != "":
		m.again = true // as soon as it is gone
	case (verb == "start" || verb == "restart") && !m.running():
		m.start(ctx, c.ended)
	case verb == "start":
		c.say("%s runs already", m.name)
	case !m.running() || m.told != "":
		c.say("%s does not run", m.name)
	case verb == "kill":
		m.end("killed", node.ErrKilled)
	default:
		m.again = verb == "restart"
		m.end("stopped", context.Canceled)
	}
}

// find returns the member that is meant: by number, by name, or as the leader.
func (c *cluster) find(words []string) (*member, error) {
	if len(words) != 1 {
		return nil, fmt.Errorf("which member? 1 to %d, or leader", len(c.members))
	}
	if words[0] == "leader" {
		if c.leader == nil {
			return nil, errors.New("nobody leads now")
		}
		return c.leader, nil
	}
	n, err := strconv.Atoi(strings.TrimPrefix(words[0], "infra"))
	if err != nil || n < 1 || n > len(c.members) {
		return nil, fmt.Errorf("there is no member %s: they are 1 to %d", words[0], len(c.members))
	}
	return c.members[n-1], nil
}

// observe tells the user what has changed among the members.
func (c *cluster) observe(seen []look) {
	var leader *member
	var term uint64
	all := true
	for i, l := range seen {
		m := c.members[i]
		m.seen = l
		// A member that is on its way out may answer still.
		if l.err != nil || !m.running() || m.told != "" {
			all = false
			continue
		}
		if l.leads() && l.term > term {
			leader, term = m, l.term
		}
		if c.greeted && !m.serves && l.serves() {
			m.serves = true
			c.say("%s serves", m.name)
		}
		all = all && l.serves()
	}
	switch {
	case !c.greeted:
		if !all || leader == nil {
			return
		}
		c.greeted, c.leader, c.term = true, leader, term
		for _, m := range c.members {
			m.serves = true
		}
		c.banner()
	case leader == nil && c.leader != nil:
		c.leader = nil
		if running := c.running(); running <= len(c.members)/2 {
			c.say("nobody leads: %d of %d run, %d are needed to write", running, len(c.members), len(c.members)/2+1)
		} else {
			c.say("nobody leads: the others elect a leader")
		}
	case leader != nil && (leader != c.leader || term != c.term):
		c.leader, c.term = leader, term
		c.say("%s leads, term %d", leader.name, term)
	}
}

func (c *cluster) running() int {
	n := 0
	for _, m := range c.members {
		if m.running() && m.told == "" {
			n++
		}
	}
	return n
}

func (c *cluster) say(format string, args ...any) {
	fmt.Fprintf(c.o.Out, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
