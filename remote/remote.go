// Package remote is a host over SSH: commands as root, streams, files, TCP through the connection, and jobs
// that outlive the connection.
//
// It stands at the bottom of the project, beside plans: k3s, cluster, backup and restore reach the host only
// through it, and it knows nothing of K3s. It owns the connection (keys, known_hosts, jump hosts,
// keepalives, reconnection), the one quoting function, and on the host the directory StateDir.
//
// Commands are scripts of a POSIX shell. A script stands in the host's process list and, with sudo, in its
// system log; secrets therefore go through standard input, a file, or a job's script, never into the text
// given to Run.
package remote

// StateDir is where everything lies that this product keeps on the host, mode 0700: outside of all that
// K3s's own uninstall script removes.
const StateDir = "/var/lib/k3s-dualstack"
