package k3s

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"sunbeam.pt/k3s-dualstack/remote"
)

// Files are what the install script laid down and the admin configured, the
// server directory aside: all of it is removed by the uninstall or silently read
// again by the next install (K3s leaves /etc/default/k3s in place).
func (i *Installation) Files() []string {
	out := []string{i.Binary, i.Unit, "/etc/rancher"}
	for _, l := range i.Links {
		out = append(out, path.Join(path.Dir(i.Binary), l))
	}
	for _, f := range append([]string{i.Killall, i.Uninstall}, append(slices.Clone(i.EnvFiles), i.Config...)...) {
		if f != "" && !strings.HasPrefix(f, "/etc/rancher/") && !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return append(out, i.AgentFiles...)
}

// Database is the SQLite datastore; its write-ahead log lies beside it with
// "-wal" appended.
func (i *Installation) Database() string { return path.Join(i.DataDir, "server/db/state.db") }

// ServerDir holds token, CAs, credentials and manifests beside the datastore.
func (i *Installation) ServerDir() string { return path.Join(i.DataDir, "server") }

// StatePaths lists what a stopped server keeps in its data directory beside the
// datastore: token, CAs, credentials, node passwords, manifests and any file
// the admin put there for the configuration to name.
func (i *Installation) StatePaths(ctx context.Context, h *remote.Host) ([]string, error) {
	out, err := h.Output(ctx, fmt.Sprintf(`cd %s && for f in * .[!.]*; do [ -e "$f" ] || [ -L "$f" ] && [ "$f" != db ] && echo "$f"; done; true`, remote.Quote(i.ServerDir())))
	if err != nil {
		return nil, fmt.Errorf("host %s: listing %s: %w", h.Name(), i.ServerDir(), err)
	}
	var paths []string
	for name := range strings.SplitSeq(out, "\n") {
		if name != "" {
			paths = append(paths, path.Join(i.ServerDir(), name))
		}
	}
	if !slices.Contains(paths, path.Join(i.ServerDir(), "token")) {
		return nil, fmt.Errorf("host %s: %s has no token file: without it the datastore's bootstrap data cannot be decrypted (k3s #4640); nothing was removed", h.Name(), i.ServerDir())
	}
	return paths, nil
}

// identityFiles, relative to the server directory, are reused by a new server
// that finds them before its first start (K3s: "Using Custom CA Certificates"):
// the CAs, the key that signs ServiceAccount tokens, the token and the password
// file that it is derived from. Leaf certificates are left out: K3s refuses
// ones that are newer than its datastore (k3s #5714).
var identityFiles = []string{
	"tls/server-ca.crt", "tls/server-ca.key",
	"tls/client-ca.crt", "tls/client-ca.key",
	"tls/request-header-ca.crt", "tls/request-header-ca.key",
	"tls/service.key",
	"tls/etcd/server-ca.crt", "tls/etcd/server-ca.key",
	"tls/etcd/peer-ca.crt", "tls/etcd/peer-ca.key",
	"cred/passwd", "token", "agent-token", "node-token",
}

// IdentityPaths are the files by which clients recognise the cluster. Not every
// installation has all of them.
func (i *Installation) IdentityPaths() []string {
	var out []string
	for _, f := range identityFiles {
		out = append(out, path.Join(i.ServerDir(), f))
	}
	return out
}

// NamedFiles are files below the server directory that the configuration names
// (an audit policy, psa.yaml): the API server does not start without them.
func (i *Installation) NamedFiles() []string {
	var out []string
	for _, s := range i.Settings {
		for _, v := range s.Values {
			if at := strings.Index(v, i.ServerDir()+"/"); at >= 0 && !slices.Contains(out, v[at:]) {
				out = append(out, v[at:])
			}
		}
	}
	slices.Sort(out)
	return out
}

// Skips are the admin's *.skip files: they keep K3s from applying a manifest
// and must be there before the first start. The other manifests of the admin
// come back with the platform.
func (i *Installation) Skips() (skips, manifests []string) {
	for _, m := range i.Manifests {
		if strings.HasSuffix(m, ".skip") {
			skips = append(skips, m)
		} else {
			manifests = append(manifests, m)
		}
	}
	return skips, manifests
}
