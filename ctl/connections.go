package ctl

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// connections are several clients of the same endpoints, over which many
// callers are spread.
type connections struct {
	app     *app
	cmd     *cobra.Command
	config  clientv3.Config
	dialled []*clientv3.Client
}

func (a *app) connect(cmd *cobra.Command, n int) (*connections, error) {
	cfg, err := a.config(cmd)
	if err != nil {
		return nil, err
	}
	cs := &connections{app: a, cmd: cmd, config: cfg}
	for range n {
		c, err := clientv3.New(cfg)
		if err != nil {
			cs.close()
			f := a.explain(cmd.Context(), cfg, err)
			if f.code == exitError {
				f.code = exitBadConnection
			}
			return nil, f
		}
		cs.dialled = append(cs.dialled, c)
	}
	return cs, nil
}

// of returns the client of a caller.
func (cs *connections) of(caller int) *clientv3.Client { return cs.dialled[caller%len(cs.dialled)] }

func (cs *connections) close() {
	for _, c := range cs.dialled {
		c.Close()
	}
}

// mustBeEmpty refuses to write under a prefix that has keys, for whatever has
// the prefix is deleted in the end. Being the first request, it also shows
// whether anybody answers.
func (cs *connections) mustBeEmpty(prefix, taken string) error {
	ctx, cancel := context.WithTimeout(cs.cmd.Context(), cs.app.commandTimeout)
	defer cancel()
	r, err := cs.of(0).Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	if err != nil {
		return cs.app.explain(cs.cmd.Context(), cs.config, err)
	}
	if len(r.Kvs) > 0 {
		return &failure{code: exitInvalidInput, err: errors.New(taken)}
	}
	return nil
}
