//go:build tools

// Package localpath pins K3s's default volume provisioner for the lab's node:
// `go build github.com/rancher/local-path-provisioner` in this module builds it.
package localpath

import _ "github.com/rancher/local-path-provisioner"
