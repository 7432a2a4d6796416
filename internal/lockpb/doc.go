// Package lockpb is the wire shape of the service Lock, which the module of
// etcd's other messages leaves out. Its names and numbers are those that
// clients of etcd use.
package lockpb
