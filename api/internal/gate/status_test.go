package gate

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvorum/kvorum/fault"
)

func TestNoWrappingHidesARefusal(t *testing.T) {
	for _, f := range fault.All {
		wrapped := fmt.Errorf("api: %w", fmt.Errorf("replica: %w", errors.Join(context.DeadlineExceeded, f)))
		for _, err := range []error{f, wrapped} {
			got := status.Convert(statusOf(err))
			if got.Code() != codes.Code(f.Code) || got.Message() != f.Text {
				t.Errorf("%v: %v %q", err, got.Code(), got.Message())
			}
		}
	}
}

func TestOtherErrorsAreToldAsTheyAre(t *testing.T) {
	for _, c := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{context.Canceled, codes.Canceled, "context canceled"},
		{fmt.Errorf("barrier: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "context deadline exceeded"},
		{errors.New("disk on fire"), codes.Unknown, "disk on fire"},
		{status.Error(codes.Unimplemented, "not here"), codes.Unimplemented, "not here"},
	} {
		if got := status.Convert(statusOf(c.err)); got.Code() != c.code || got.Message() != c.text {
			t.Errorf("%v: %v %q, want %v %q", c.err, got.Code(), got.Message(), c.code, c.text)
		}
	}
	if statusOf(nil) != nil {
		t.Error("no error became one")
	}
}
