// Package dev runs a whole cluster in one process, for people who try things
// out: each member is a complete server with ports and a directory of its own,
// and can be killed and started again from the keyboard. What it tells about
// the members it asks them for, as any client would; it knows nothing that they
// do not say.
//
// It is no way to run anything that matters: whatever ends the process ends
// every member at once.
package dev
