package watch

import (
	"context"
	"errors"
	"iter"

	"github.com/kvorum/kvorum/fault"
	"github.com/kvorum/kvorum/state"
)

// Follow yields the events of a span from a revision on, 0 for what comes next,
// as they happen. It ends with an error: that of ctx, fault.Compacted, or one
// of Next. It is for those inside the server who wait for something to happen
// to a key: read a view, and follow from its revision plus one.
func (h *Hub) Follow(ctx context.Context, span state.Span, from state.Revision) iter.Seq2[state.Event, error] {
	return func(yield func(state.Event, error) bool) {
		s := h.Open()
		defer s.Close()
		err := s.Watch(ctx, Request{Span: span, From: from})
		for err == nil {
			var m Message
			switch m, err = s.Next(ctx); {
			case err != nil:
			case m.Reason != "":
				err = errors.New(m.Reason)
			case m.Canceled:
				err = fault.Compacted
			}
			for _, e := range m.Events {
				if !yield(*e.Event, nil) {
					return
				}
			}
		}
		yield(state.Event{}, err)
	}
}
