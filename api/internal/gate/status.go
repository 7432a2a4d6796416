package gate

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/fault"
)

// statusOf turns what a handler returned into what the wire carries. A refusal
// keeps its code and text however deep it is wrapped: clients match on them.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if f := fault.Of(err); f != nil {
		return status.Error(codes.Code(f.Code), f.Text)
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	// A deadline or a cancellation often comes wrapped in the step that it
	// interrupted; clients know only the bare texts.
	for _, bare := range []error{context.DeadlineExceeded, context.Canceled} {
		if errors.Is(err, bare) {
			return status.FromContextError(bare).Err()
		}
	}
	return status.Error(codes.Unknown, err.Error())
}
