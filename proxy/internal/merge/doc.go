// Package merge makes one of many: watchers of the same keys share one watcher
// of a member, and the keep-alives of all clients one stream.
//
//	watch.go   a client's stream of watchers
//	cursor.go  what is watched upstream, and who is told of it
//	lane.go    a stream of watchers upstream, renewed as often as it breaks
//	lease.go   keep-alives
//	outbox.go  what waits for a client
//
// What is merged was asked by the same user in the same way: a member judges
// each request by the token it comes with.
//
// M1: a watcher is told each event of its keys once, in the order of revisions,
// and all of one revision together unless it asked for fragments, whatever
// breaks upstream.
// M2: what is said of progress was said by a member behind the last event that
// the watchers concerned were told.
// M3: a client that does not read delays nobody, and costs a bounded amount of
// memory: it is left behind, and reads from a member again what it missed.
// M4: after Close returns, no goroutine is left.
package merge

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc/metadata"
)

// The metadata by which a member judges a stream.
const (
	tokenHeader         = "token"
	authorizationHeader = "authorization"
	leaderHeader        = "hasleader"
	versionHeader       = "client-api-version"
)

// identity returns what the caller is judged by, and the metadata to say it with.
func identity(ctx context.Context) (id string, say metadata.MD) {
	say = metadata.MD{}
	var parts []string
	for _, name := range []string{tokenHeader, authorizationHeader, leaderHeader} {
		if values := metadata.ValueFromIncomingContext(ctx, name); len(values) > 0 {
			say[name] = slices.Clone(values)
			parts = append(append(parts, name), values...)
		}
	}
	if values := metadata.ValueFromIncomingContext(ctx, versionHeader); len(values) > 0 {
		say[versionHeader] = slices.Clone(values)
	}
	return strings.Join(parts, "\x00"), say
}
