// Package watch tells those who listen. A Cursor is one listener's place in
// the history of the store; the Hub moves the cursors that keep up, and those
// that fall behind read history until they meet the head. A slow listener
// costs a writer nothing.
//
// It is empty so far.
package watch
