//go:build tools

// Package kine pins the datastore shim of K3s (etcd's API over SQLite) for the
// lab's node: `go build github.com/k3s-io/kine` in this module builds it. Its
// etcd and gRPC versions differ from Kubernetes's, hence a module of its own.
package kine

import _ "github.com/k3s-io/kine"
