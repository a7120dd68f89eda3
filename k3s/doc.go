// Package k3s knows K3s on a host: which configuration is in force and where
// each value comes from, what the install script laid down, what its uninstall
// script takes away, and how the same server is brought back with dual-stack
// settings.
//
// It stands above remote (the host) and plans (what is wanted) and below the
// steps. What it learns before the uninstall is an [Installation], kept with
// the facts; everything after the uninstall is computed from that and from the
// backup set, never from the host.
//
//   - config.go: the sources of configuration and their order, the edit that
//     makes them dual-stack
//   - installation.go: what is installed
//   - lifecycle.go: quiesce, uninstall, install, start
//   - paths.go: the files that a rebuild endangers
package k3s
