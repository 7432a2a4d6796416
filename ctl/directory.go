package ctl

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The commands of this file see keys as files in directories. What a directory
// is, and what may be done to it, the server decides: they ask for /v2/keys,
// like curl.

// node is a file or directory as the server tells of it.
type node struct {
	Key           string `json:"key"`
	Value         string `json:"value"`
	Dir           bool   `json:"dir"`
	TTL           int64  `json:"ttl"` // seconds that are left; 0: no end
	ModifiedIndex uint64 `json:"modifiedIndex"`
	CreatedIndex  uint64 `json:"createdIndex"`
	Nodes         []node `json:"nodes"`
}

// name is the last part of the key; that of a directory ends with a slash.
func (n node) name() string {
	name := n.Key[strings.LastIndexByte(n.Key, '/')+1:]
	if n.Dir {
		name += "/"
	}
	return name
}

// path is the whole key; that of a directory ends with a slash.
func (n node) path() string {
	if n.Dir {
		return strings.TrimSuffix(n.Key, "/") + "/"
	}
	return n.Key
}

// refusal is the body of an answer that says no.
type refusal struct {
	Code    int    `json:"errorCode"`
	Message string `json:"message"`
	Cause   string `json:"cause"`
}

func (r *refusal) Error() string { return fmt.Sprintf("%s: %s", r.Message, r.Cause) }

const (
	keyNotFound       = 100
	notAFile          = 102
	directoryNotEmpty = 108
)

// directory asks for a key: parameters that choose in the query, those that
// are stored in the form.
func (a *app) directory(cmd *cobra.Command, method, key string, query, form url.Values) (node, json.RawMessage, error) {
	cfg, err := a.config(cmd)
	if err != nil {
		return node{}, nil, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), a.commandTimeout)
	defer cancel()
	var answered struct {
		Node node `json:"node"`
	}
	body, err := a.askForKeys(ctx, cfg, method, key, query, form)
	if err == nil {
		err = json.Unmarshal(body, &answered)
	}
	if err != nil {
		return node{}, nil, a.explainKeys(cmd.Context(), cfg, err)
	}
	return answered.Node, bytes.TrimSpace(body), nil
}

// askForKeys asks the first endpoint that can be reached. Another is tried only
// where nothing was sent, for a request may create something.
func (a *app) askForKeys(ctx context.Context, cfg clientv3.Config, method, key string, query, form url.Values) (body []byte, err error) {
	for _, endpoint := range cfg.Endpoints {
		if body, err = a.askEndpoint(ctx, cfg, endpoint, method, key, query, form); !unreached(err) {
			break
		}
	}
	return body, err
}

func unreached(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

func (a *app) askEndpoint(ctx context.Context, cfg clientv3.Config, endpoint, method, key string, query, form url.Values) ([]byte, error) {
	network, address, secure := target(endpoint)
	u := url.URL{Scheme: "http", Host: address, Path: "/v2/keys" + key, RawQuery: query.Encode()}
	if secure || cfg.TLS != nil && !strings.HasPrefix(endpoint, "http://") {
		u.Scheme = "https"
	}
	if network == "unix" {
		u.Host = "localhost"
	}
	r, err := http.NewRequestWithContext(ctx, method, u.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return nil, badArgs("%q: %w", key, err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if cfg.Username != "" {
		r.SetBasicAuth(cfg.Username, cfg.Password)
	}
	config := cfg.TLS
	if config == nil {
		config = &tls.Config{}
	}
	client := http.Client{Transport: &http.Transport{
		TLSClientConfig:   config,
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: a.dialTimeout}).DialContext(ctx, network, address)
		},
	}}
	resp, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < http.StatusBadRequest {
		return body, nil
	}
	refused := &refusal{}
	if err := json.Unmarshal(body, refused); err != nil || refused.Code == 0 {
		return nil, &failure{
			code: exitError,
			err:  fmt.Errorf("%s answers %s to /v2/keys", endpoint, resp.Status),
			hint: "Directories need the v2 API: start the server with --enable-v2.",
		}
	}
	return nil, refused
}

func (a *app) explainKeys(ctx context.Context, cfg clientv3.Config, err error) error {
	var refused *refusal
	switch {
	case errors.As(err, &refused):
		f := &failure{code: exitError, err: refused}
		switch refused.Code {
		case keyNotFound:
			f.code = exitNotFound
		case notAFile, directoryNotEmpty:
			f.hint = "It is a directory: rm --dir removes an empty one, rm --recursive one with all that is in it."
		}
		return f
	case isFailure(err):
		return err
	case ctx.Err() != nil:
		return &failure{code: exitInterrupted, err: ctx.Err()}
	}
	return a.explainSilence(ctx, cfg, &failure{code: exitError, err: err})
}

// rooted returns a path from the root, as people may leave its slash out.
func rooted(args []string) string {
	if len(args) == 0 {
		return "/"
	}
	return path.Clean("/" + args[0])
}

func (a *app) lsCommand() *cobra.Command {
	var recursive, long bool
	cmd := &cobra.Command{
		Use:     "ls [path]",
		Short:   "List a directory",
		GroupID: groupDirectories,
		Args:    atMost(1),
		Long: `List what a directory holds, a path in each line. Directories end with a slash.

Keys that any client has stored are files: the key /config/app/colour is the
file colour in the directory /config/app. Names that begin with "_" are hidden:
they are not listed, but can be named.`,
		Example: `
{{program}} ls
{{program}} ls -r /config        # and all that is below
{{program}} ls -l /services      # with index, seconds left and size`,
		RunE: func(cmd *cobra.Command, args []string) error {
			query := url.Values{"sorted": {"true"}, "quorum": {"true"}}
			if recursive {
				query.Set("recursive", "true")
			}
			n, raw, err := a.directory(cmd, http.MethodGet, rooted(args), query, nil)
			if err != nil {
				return err
			}
			return a.print(cmd, answer{
				json:   raw,
				simple: func(p *printer) { p.list(n, long) },
				table: func() ([]string, [][]string) {
					return []string{"path", "modified index", "ttl", "size"}, listed(n, nil)
				},
			})
		},
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "all levels, not just one")
	cmd.Flags().BoolVarP(&long, "long", "l", false, "modified index, seconds left and size as well")
	return cmd
}

func listed(n node, rows [][]string) [][]string {
	nodes := n.Nodes
	if !n.Dir {
		nodes = []node{n}
	}
	for _, child := range nodes {
		ttl, size := "", ""
		if child.TTL != 0 {
			ttl = strconv.FormatInt(child.TTL, 10)
		}
		if !child.Dir {
			size = strconv.Itoa(len(child.Value))
		}
		rows = append(rows, []string{child.path(), strconv.FormatUint(child.ModifiedIndex, 10), ttl, size})
		if child.Dir {
			rows = listed(child, rows)
		}
	}
	return rows
}

func (p *printer) list(n node, long bool) {
	for _, row := range listed(n, nil) {
		if long {
			p.linef("%10s %6s %8s  %s", row[1], row[2], row[3], row[0])
		} else {
			p.linef("%s", row[0])
		}
	}
}

func (a *app) treeCommand() *cobra.Command {
	var values bool
	cmd := &cobra.Command{
		Use:     "tree [path]",
		Short:   "Draw a directory and all that is below it",
		GroupID: groupDirectories,
		Args:    atMost(1),
		Example: `
{{program}} tree
{{program}} tree --values /config     # and what the files hold`,
		RunE: func(cmd *cobra.Command, args []string) error {
			n, raw, err := a.directory(cmd, http.MethodGet, rooted(args), url.Values{"recursive": {"true"}, "sorted": {"true"}, "quorum": {"true"}}, nil)
			if err != nil {
				return err
			}
			return a.print(cmd, answer{json: raw, simple: func(p *printer) {
				p.linef("%s", rooted(args))
				directories, files := p.tree(n.Nodes, "", values)
				p.linef("\n%s, %s", plural(directories, "directory", "directories"), plural(files, "file", "files"))
			}})
		},
	}
	cmd.Flags().BoolVar(&values, "values", false, "show what the files hold")
	return cmd
}

func (p *printer) tree(nodes []node, indent string, values bool) (directories, files int) {
	for i, n := range nodes {
		branch, below := "├── ", "│   "
		if i == len(nodes)-1 {
			branch, below = "└── ", "    "
		}
		if !n.Dir {
			files++
			value := ""
			if values {
				value = fmt.Sprintf(" = %q", n.Value)
			}
			p.linef("%s%s%s%s", indent, branch, n.name(), value)
			continue
		}
		directories++
		p.linef("%s%s%s", indent, branch, n.name())
		d, f := p.tree(n.Nodes, indent+below, values)
		directories, files = directories+d, files+f
	}
	return directories, files
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (a *app) mkCommand() *cobra.Command {
	var (
		directory, inOrder bool
		ttl                int64
	)
	cmd := &cobra.Command{
		Use:     "mk <path> [value]",
		Short:   "Make a file or a directory that does not exist yet",
		GroupID: groupDirectories,
		Long: `Make a file or, if the path ends with a slash, a directory. The directories
above it are made as well. That there is one already is an error, so that of
several who make the same file one succeeds.

The path is printed.`,
		Example: `
{{program}} mk /config/app/colour blue
{{program}} mk /services/web/                          # a directory
{{program}} mk --ttl=30 /services/web/n1 10.0.0.1:80   # for 30 seconds
{{program}} mk --in-order /queue "resize 1.jpg"        # under a name that comes after all others in /queue
{{program}} mk /config/app/settings < settings.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 2 {
				return badArgs("mk takes a path, and the value of a file")
			}
			form := url.Values{}
			directory = directory || strings.HasSuffix(args[0], "/") && !inOrder
			switch {
			case directory && (len(args) == 2 || inOrder):
				return badArgs("a directory has neither a value nor a place in order")
			case directory:
				form.Set("dir", "true")
			case len(args) == 2:
				form.Set("value", args[1])
			default:
				value, err := readValue(cmd, "PATH")
				if err != nil {
					return err
				}
				form.Set("value", value)
			}
			if cmd.Flags().Changed("ttl") {
				if ttl <= 0 {
					return badArgs("--ttl is a number of seconds, and more than none")
				}
				form.Set("ttl", strconv.FormatInt(ttl, 10))
			}
			method, query := http.MethodPut, url.Values{"prevExist": {"false"}}
			if inOrder {
				method, query = http.MethodPost, nil
			}
			n, raw, err := a.directory(cmd, method, rooted(args), query, form)
			if err != nil {
				return err
			}
			return a.print(cmd, answer{json: raw, simple: func(p *printer) { p.linef("%s", n.path()) }})
		},
	}
	cmd.Flags().BoolVar(&directory, "dir", false, "make a directory, also where the path ends without a slash")
	cmd.Flags().BoolVar(&inOrder, "in-order", false, "make a file in the directory <path>, with a name that comes after all others")
	cmd.Flags().Int64Var(&ttl, "ttl", 0, "seconds after which it goes, unless it is written again (default: never)")
	return cmd
}

func (a *app) rmCommand() *cobra.Command {
	var directory, recursive, force bool
	cmd := &cobra.Command{
		Use:     "rm <path>",
		Short:   "Remove a file or a directory",
		GroupID: groupDirectories,
		Example: `
{{program}} rm /config/app/colour
{{program}} rm --dir /services/web     # an empty directory
{{program}} rm -r /services            # a directory with all that is in it`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return badArgs("rm takes one path")
			}
			query := url.Values{}
			if recursive {
				query.Set("recursive", "true")
			}
			if directory {
				query.Set("dir", "true")
			}
			n, raw, err := a.directory(cmd, http.MethodDelete, rooted(args), query, nil)
			if refused := (*refusal)(nil); force && errors.As(err, &refused) && refused.Code == keyNotFound {
				return nil
			}
			if err != nil {
				return err
			}
			return a.print(cmd, answer{json: raw, simple: func(p *printer) { p.linef("%s", n.path()) }})
		},
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "a directory with all that is in it")
	cmd.Flags().BoolVar(&directory, "dir", false, "an empty directory")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "that it does not exist is no error")
	return cmd
}

// atMost is cobra's, with our exit code.
func atMost(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > n {
			return badArgs("%s takes at most %d argument, got %d", cmd.Name(), n, len(args))
		}
		return nil
	}
}
