// Package examples holds a program for each of the things that people use such
// a store for, written against etcd's own client library. Its tests run them
// as they are, against a server.
package examples
