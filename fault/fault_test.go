package fault

import (
	"fmt"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
)

// TestTextsAreThoseClientsKnow asks the reference client's own table: it maps
// a text to the error that programs compare with.
func TestTextsAreThoseClientsKnow(t *testing.T) {
	unknownToClients := map[*Fault]bool{
		Malformed:        true, // our own
		NodeRefused:      true,
		InvalidClientAPI: true, TimeoutWaitAppliedIndex: true, // the table lacks them
		WatchCanceled: true, RequestCanceled: true, RequestDeadline: true, PermissionNotGiven: true,
		StreamSort: true, StreamRevisions: true, NotPrimary: true, NoPasswordUser: true,
		NoElectionLeader: true, NotElected: true, LeaderMissing: true, SessionExpired: true,
	}
	// Their code on the wire is not the one in the client's table.
	wireCode := map[*Fault]bool{NotEnoughStarted: true, TooManyRequests: true}

	for _, f := range All {
		known, ok := rpctypes.Error(fmt.Errorf("%w", f)).(rpctypes.EtcdError)
		if ok == unknownToClients[f] {
			t.Errorf("%q: known to clients: %v", f.Text, ok)
			continue
		}
		if ok && !wireCode[f] && known.Code() != codes.Code(f.Code) {
			t.Errorf("%q: code %v, clients expect %v", f.Text, codes.Code(f.Code), known.Code())
		}
	}
}

func TestRowsAreDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range All {
		if seen[f.Text] {
			t.Errorf("%q: two rows", f.Text)
		}
		seen[f.Text] = true
	}
}

func TestOfLooksThroughWrapping(t *testing.T) {
	if got := Of(fmt.Errorf("step: %w", fmt.Errorf("deeper: %w", Compacted))); got != Compacted {
		t.Errorf("got %v", got)
	}
	if got := Of(fmt.Errorf("no refusal")); got != nil {
		t.Errorf("got %v", got)
	}
}
