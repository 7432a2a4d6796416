package metric

import (
	"slices"
	"strings"
	"sync"
)

// Family holds metrics of one name that are told apart by labels. A member
// is made when it is first asked for; who counts often keeps it.
type Family[M any] struct {
	// Immutable after NewFamily.
	labels []string
	make   func() *M

	mu struct {
		sync.RWMutex
		members map[string]*M // by the values of the labels
	}
}

// NewFamily returns a family without members. Its labels are told apart in
// the order given.
func NewFamily[M any](make func() *M, labels ...string) *Family[M] {
	f := &Family[M]{labels: labels, make: make}
	f.mu.members = map[string]*M{}
	return f
}

// separator cannot occur in text, so that no two lists of values join to one.
const separator = "\xff"

// Labels returns the names of the labels.
func (f *Family[M]) Labels() []string { return f.labels }

// With returns the member with these values, one for each label.
func (f *Family[M]) With(values ...string) *M {
	if f == nil {
		return nil
	}
	key := strings.Join(values, separator)
	f.mu.RLock()
	m := f.mu.members[key]
	f.mu.RUnlock()
	if m != nil {
		return m
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.mu.members[key]; m != nil {
		return m
	}
	m = f.make()
	f.mu.members[key] = m
	return m
}

// Drop forgets the member with these values: what it spoke of is gone.
func (f *Family[M]) Drop(values ...string) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mu.members, strings.Join(values, separator))
}

// Each calls yield with every member, in the order of their values.
func (f *Family[M]) Each(yield func(values []string, m *M)) {
	if f == nil {
		return
	}
	f.mu.RLock()
	keys := make([]string, 0, len(f.mu.members))
	members := make(map[string]*M, len(f.mu.members))
	for key, m := range f.mu.members {
		keys = append(keys, key)
		members[key] = m
	}
	f.mu.RUnlock()

	slices.Sort(keys)
	for _, key := range keys {
		yield(strings.Split(key, separator), members[key])
	}
}

// NewCounter returns a counter at zero, for a family to make its members with.
func NewCounter() *Counter { return new(Counter) }

// NewGauge returns a gauge at zero, for a family to make its members with.
func NewGauge() *Gauge { return new(Gauge) }
