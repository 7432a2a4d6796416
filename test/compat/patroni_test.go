package compat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvorum/kvorum/test/compat/process"
	"github.com/kvorum/kvorum/test/port"
)

// TestKeysFromPython runs python3-etcd, a client of the v2 API.
func TestKeysFromPython(t *testing.T) {
	needClients(t)
	if err := exec.Command(python, "-c", "import etcd").Run(); err != nil {
		t.Skip("python-etcd is not installed: apt-get install python3-etcd")
	}
	s := process.Start(t, process.Options{Flags: []string{"--enable-v2=true"}})
	out, err := exec.CommandContext(deadline(t), python, filepath.Join("testdata", "foreign", "keys.py"), s.ClientAddr).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestPatroni keeps a PostgreSQL cluster by what it stores here, kills the
// primary, and sees the other take over with all that was committed. Patroni
// knows two ways to ask: the v2 API, and v3 over JSON.
func TestPatroni(t *testing.T) {
	needClients(t)
	patroni := program(t, "patroni")
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		t.Skip("PostgreSQL is not installed: apt-get install postgresql")
	}
	for _, api := range []string{"etcd", "etcd3"} {
		t.Run(api, func(t *testing.T) {
			s := process.Start(t, process.Options{Flags: []string{"--enable-v2=true"}})
			c := &databases{t: t, patroni: patroni, programs: filepath.Dir(found[0]), owner: unprivileged(t), store: api + ":\n  host: " + s.ClientAddr}
			first, second := c.start("p1"), c.start("p2")
			primary, standby := c.elect(first, second)
			c.sql(primary, "create table kept as select generate_series(1, 1000) as n")
			c.await(primary, "select count(*) = 1 from pg_stat_replication where replay_lsn >= pg_current_wal_lsn()")
			primary.kill()
			if next, _ := c.elect(standby); next != standby {
				t.Fatal("nobody took over")
			}
			if got := c.sql(standby, "select count(*) from kept"); got != "1000" {
				t.Errorf("%s rows are left", got)
			}
			c.await(standby, "select not pg_is_in_recovery()") // its promotion is under way
			c.sql(standby, "insert into kept values (0)")
		})
	}
}

// unprivileged is who runs PostgreSQL, which refuses to be root.
func unprivileged(t *testing.T) *syscall.Credential {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Skip("there is no user postgres, and root must not run it")
	}
	uid, err := strconv.Atoi(u.Uid)
	want(t, err)
	gid, err := strconv.Atoi(u.Gid)
	want(t, err)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// databases are the nodes of a PostgreSQL cluster.
type databases struct {
	t                 *testing.T
	patroni, programs string
	owner             *syscall.Credential
	store             string // where patroni finds us
}

type database struct {
	rest, sql string // addresses
	cmd       *exec.Cmd
	log       string
}

const patroniConfig = `
scope: kept
name: %[1]s
restapi: {listen: "%[2]s", connect_address: "%[2]s"}
%[3]s
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 1
    retry_timeout: 3
    postgresql: {use_pg_rewind: false, parameters: {max_connections: 10, shared_buffers: 16MB}}
  initdb: [{encoding: UTF8}, {auth-local: trust}, {auth-host: trust}]
postgresql:
  listen: "%[4]s"
  connect_address: "%[4]s"
  data_dir: %[5]s/data
  bin_dir: %[6]s
  pgpass: %[5]s/pgpass
  parameters: {unix_socket_directories: "%[5]s"}
  pg_hba: ["local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"]
  authentication:
    superuser: {username: postgres}
    replication: {username: replicator, password: x}
`

func (c *databases) start(name string) *database {
	dir, err := os.MkdirTemp("", "kvorum-patroni") // the test's own directories are closed to others
	want(c.t, err)
	c.t.Cleanup(func() { os.RemoveAll(dir) })
	d := &database{rest: port.Free(c.t), sql: port.Free(c.t), log: filepath.Join(dir, "log")}
	config := filepath.Join(dir, "patroni.yml")
	want(c.t, os.WriteFile(config, fmt.Appendf(nil, patroniConfig, name, d.rest, c.store, d.sql, dir, c.programs), 0o644))
	log, err := os.Create(d.log)
	want(c.t, err)
	defer log.Close()
	d.cmd = exec.Command(c.patroni, config)
	d.cmd.Dir = dir
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.owner}
	if c.owner != nil {
		want(c.t, os.Chown(dir, int(c.owner.Uid), int(c.owner.Gid)))
	}
	want(c.t, d.cmd.Start())
	c.t.Cleanup(func() {
		d.kill()
		if c.t.Failed() {
			said, _ := os.ReadFile(d.log)
			c.t.Logf("%s:\n%s", name, said)
		}
	})
	return d
}

// kill ends a node and its database as a power cut would. PostgreSQL is in a
// process group of its own.
func (d *database) kill() {
	if d.cmd.ProcessState != nil {
		return
	}
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
	pid, err := os.ReadFile(filepath.Join(d.cmd.Dir, "data", "postmaster.pid"))
	if err != nil {
		return
	}
	first, _, _ := strings.Cut(string(pid), "\n")
	if n, err := strconv.Atoi(first); err == nil {
		_ = syscall.Kill(n, syscall.SIGKILL)
	}
}

// elect waits until one of the nodes is primary and the others follow it. A
// second node, if there is one, comes back as the other.
func (c *databases) elect(nodes ...*database) (primary, standby *database) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 3*time.Minute) // patroni gives no leader less than 20 s
	defer cancel()
	for ctx.Err() == nil {
		primary, standby = nil, nil
		ready := 0
		for _, d := range nodes {
			switch d.answers("/primary") {
			case http.StatusOK:
				primary = d
				ready++
			default:
				if d.answers("/replica") == http.StatusOK {
					standby = d
					ready++
				}
			}
		}
		if primary != nil && ready == len(nodes) {
			return primary, standby
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	c.t.Fatal("no primary")
	return nil, nil
}

func (d *database) answers(path string) int {
	r, err := http.Get("http://" + d.rest + path)
	if err != nil {
		return 0
	}
	defer r.Body.Close()
	return r.StatusCode
}

// await returns once a question is answered by yes: nothing tells when it is.
func (c *databases) await(d *database, question string) {
	c.t.Helper()
	for ctx := deadline(c.t); c.sql(d, question) != "t"; time.Sleep(100 * time.Millisecond) {
		if ctx.Err() != nil {
			c.t.Fatalf("not in time: %s", question)
		}
	}
}

func (c *databases) sql(d *database, statement string) string {
	c.t.Helper()
	host, p, err := net.SplitHostPort(d.sql)
	want(c.t, err)
	out, err := exec.CommandContext(deadline(c.t), filepath.Join(c.programs, "psql"), "-h", host, "-p", p, "-U", "postgres", "-d", "postgres", "-tAqc", statement).Output()
	if err != nil {
		var ended *exec.ExitError
		if errors.As(err, &ended) {
			err = errors.New(string(ended.Stderr))
		}
		c.t.Fatalf("%s: %v", statement, err)
	}
	return strings.TrimSpace(string(out))
}
