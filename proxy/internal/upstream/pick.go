package upstream

import (
	"context"
	"math/rand/v2"
	"sync/atomic"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
)

// The balancer keeps a connection to every address; which of them a call takes
// is decided here. grpc-go knows balancers by name, so that it is the same one
// for every Upstream: addresses bring their member along.
func init() {
	balancer.Register(base.NewBalancerBuilder("kvorum_members", builder{}, base.Config{}))
}

// memberKey finds the member among the attributes of an address.
type memberKey struct{}

// choice is how a call says to whom it wants to go, and hears where it went.
type choice struct {
	want   *member // nil: whoever is well
	member atomic.Pointer[member]
}

type choiceKey struct{}

// only returns a context whose calls go to m.
func only(ctx context.Context, m *member) context.Context {
	return context.WithValue(ctx, choiceKey{}, &choice{want: m})
}

type builder struct{}

// picker knows who is connected.
type picker struct {
	ready []connected
	turn  atomic.Uint32
}

type connected struct {
	*member
	conn balancer.SubConn
}

func (builder) Build(info base.PickerBuildInfo) balancer.Picker {
	p := new(picker)
	for conn, about := range info.ReadySCs {
		if m, ok := about.Address.Attributes.Value(memberKey{}).(*member); ok {
			p.ready = append(p.ready, connected{m, conn})
		}
	}
	p.turn.Store(rand.Uint32()) // many proxies do not begin with the same one
	return p
}

// Pick takes the next member that is well. Where none is, one that was given by
// the operator may say itself what it lacks.
func (p *picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	if len(p.ready) == 0 {
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
	}
	c, _ := info.Ctx.Value(choiceKey{}).(*choice)
	if c != nil && c.want != nil {
		for _, r := range p.ready {
			if r.member == c.want {
				return balancer.PickResult{SubConn: r.conn}, nil
			}
		}
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable // until it is connected
	}
	picked := p.next()
	if picked == nil {
		return balancer.PickResult{}, Nobody
	}
	if c != nil {
		c.member.Store(picked.member)
	}
	return balancer.PickResult{SubConn: picked.conn}, nil
}

func (p *picker) next() (picked *connected) {
	turn := int(p.turn.Add(1) % uint32(len(p.ready)))
	for i := range p.ready {
		r := &p.ready[(turn+i)%len(p.ready)]
		if r.is(well) {
			return r
		}
		if picked == nil && r.given.Load() && !r.is(stranger) {
			picked = r
		}
	}
	return picked
}
