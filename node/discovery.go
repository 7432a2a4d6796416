package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/kvorum/kvorum/config"
)

// Members that are about to form a cluster can meet in another one, under a
// token: /_etcd/registry/TOKEN/_config/size says how many they shall be, and
// each writes name=URL to /_etcd/registry/TOKEN/members/ID. The first of them
// are the cluster.
const registry = "/_etcd/registry/"

const registryRest = time.Second // between two looks

// Errors that waiting does not heal. Their texts are etcd's.
var (
	errSizeNotFound = errors.New("discovery: size key not found")
	errSizeBad      = errors.New("discovery: size key is bad")
	errFull         = errors.New("discovery: cluster is full")
	errPeerURL      = errors.New("discovery: invalid peer URL")
)

// discover enters this member under its token, and returns the initial cluster
// once all of its members have done so.
func discover(ctx context.Context, s *config.Server, log *slog.Logger) (config.InitialCluster, error) {
	c, err := registryClient(s.Discovery)
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	defer c.Close()
	own := config.InitialCluster{{Name: s.Name, PeerURLs: s.InitialAdvertisePeerURLs.Strings()}}
	r := registration{
		kv: c, prefix: registry + s.Discovery.Token, timeout: s.Discovery.RequestTimeout,
		key:   registry + s.Discovery.Token + "/members/" + strconv.FormatUint(own[0].MemberID(s.Discovery.Token), 16),
		value: own.String(),
	}
	told := ""
	for {
		found, missing, err := r.attempt(ctx)
		switch {
		case err == nil && missing == 0:
			return found, nil
		case errors.Is(err, errSizeNotFound), errors.Is(err, errSizeBad), errors.Is(err, errFull), errors.Is(err, errPeerURL):
			return nil, err
		case err == nil:
			err = fmt.Errorf("%d members are missing", missing)
		}
		if reason := err.Error(); reason != told {
			told = reason
			log.Info("waiting for the other members", "discovery-token", s.Discovery.Token, "discovery-endpoints", s.Discovery.Endpoints, "reason", reason)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(registryRest):
		}
	}
}

func registryClient(d config.Discovery) (*clientv3.Client, error) {
	spec := &clientv3.ConfigSpec{
		Endpoints: d.Endpoints, RequestTimeout: d.RequestTimeout, DialTimeout: d.DialTimeout,
		KeepAliveTime: d.KeepAliveTime, KeepAliveTimeout: d.KeepAliveTimeout,
		Secure: &clientv3.SecureConfig{
			Cert: d.CertFile, Key: d.KeyFile, Cacert: d.CAFile,
			InsecureTransport: d.InsecureTransport, InsecureSkipVerify: d.InsecureSkipVerify,
		},
	}
	if d.User != "" {
		user, password, both := strings.Cut(d.User, ":")
		if !both {
			password = d.Password
		}
		spec.Auth = &clientv3.AuthConfig{Username: user, Password: password}
	}
	o, err := clientv3.NewClientConfig(spec, zap.NewNop())
	if err != nil {
		return nil, err
	}
	return clientv3.New(*o)
}

// registration is this member's entry.
type registration struct {
	kv         clientv3.KV
	prefix     string
	key, value string
	timeout    time.Duration
}

// attempt makes the entry where it is missing, and returns the cluster, or how
// many members it still lacks.
func (r registration) attempt(ctx context.Context) (found config.InitialCluster, missing int, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	look := []clientv3.Op{clientv3.OpGet(r.prefix + "/_config/size"), clientv3.OpGet(r.prefix+"/members/", clientv3.WithPrefix())}
	answer, err := r.kv.Txn(ctx).Then(look...).Commit()
	if err != nil {
		return nil, 0, err
	}
	size, entries, err := read(answer)
	if err != nil {
		return nil, 0, err
	}
	isOwn := func(kv *mvccpb.KeyValue) bool { return string(kv.Key) == r.key }
	if !slices.ContainsFunc(entries, isOwn) {
		if len(entries) >= size {
			return nil, 0, errFull
		}
		// Members enter at the same time; the one that was too late finds out.
		if _, err := r.kv.Put(ctx, r.key, r.value); err != nil {
			return nil, 0, err
		}
		return r.attempt(ctx)
	}
	if len(entries) < size {
		return nil, size - len(entries), nil
	}
	if entries = entries[:size]; !slices.ContainsFunc(entries, isOwn) {
		return nil, 0, errFull
	}
	var pairs []string
	for _, kv := range entries {
		pairs = append(pairs, string(kv.Value))
	}
	if found, err = config.ParseInitialCluster(strings.Join(pairs, ",")); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errPeerURL, err)
	}
	if len(found) != size {
		return nil, 0, fmt.Errorf("%w: two of the members %s have the same name", errPeerURL, strings.Join(pairs, ","))
	}
	return found, 0, nil
}

// read returns the size of the cluster, and the entries in the order in which
// they were made.
func read(answer *clientv3.TxnResponse) (size int, entries []*mvccpb.KeyValue, err error) {
	sizes := answer.Responses[0].GetResponseRange().Kvs
	if len(sizes) == 0 {
		return 0, nil, errSizeNotFound
	}
	if size, err = strconv.Atoi(string(sizes[0].Value)); err != nil || size <= 0 {
		return 0, nil, errSizeBad
	}
	for _, kv := range answer.Responses[1].GetResponseRange().Kvs {
		if strings.Contains(string(kv.Value), "=") {
			entries = append(entries, kv)
		}
	}
	slices.SortFunc(entries, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) })
	return size, entries, nil
}
