package leader

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/kvorum/kvorum/state"
)

func TestDutiesAreDoneWhileThisMemberLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var office Office
		var log string
		duty := func(ctx context.Context, term state.Term) error {
			log += fmt.Sprintf("+%d ", term)
			<-ctx.Done()
			log += fmt.Sprintf("-%d ", term)
			return ctx.Err()
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- office.Run(ctx, duty) }()

		for _, step := range []struct {
			term state.Term
			want string
		}{
			{0, ""}, {3, "+3 "}, {3, ""}, {0, "-3 "}, {5, "+5 "}, {7, "-5 +7 "},
		} {
			log = ""
			office.Hold(step.term)
			synctest.Wait()
			if log != step.want {
				t.Errorf("term %d: %q, want %q", step.term, log, step.want)
			}
		}
		log = ""
		stop()
		if err := <-ended; err != nil || log != "-7 " {
			t.Errorf("at the end: %q, %v", log, err)
		}
	})
}

func TestADutyThatFailsEndsTheOthers(t *testing.T) {
	var office Office
	office.Hold(2)
	broken := errors.New("broken")
	err := office.Run(t.Context(),
		func(ctx context.Context, _ state.Term) error { <-ctx.Done(); return ctx.Err() },
		func(context.Context, state.Term) error { return broken })
	if err != broken {
		t.Errorf("got %v", err)
	}
}
