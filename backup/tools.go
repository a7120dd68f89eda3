package backup

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/hashicorp/go-multierror"

	"sunbeam.pt/k3s-dualstack/remote"
)

// tools are what volumes need on a host, each with a trial and the package that has it.
var tools = []struct{ name, trial, pkg string }{
	{"GNU tar 1.28 or newer with ACLs and extended attributes", `tar --create --file=/dev/null --sort=name --acls --xattrs --xattrs-include='*' --sparse --files-from=/dev/null`, "tar"},
	{"GNU find", `find / -maxdepth 0 -ignore_readdir_race -newerct @0 -printf '%P//%C@ %i %n %y %m %U %G %s %T@ %l\0'`, "findutils"},
	{"xargs", `printf 'x\0' | xargs -0 -r echo`, "findutils"},
	{"GNU sort (with -z)", `printf 'b\0a\0' | sort -z`, "coreutils"},
	{"GNU comm (with -z)", `comm -z -13 /dev/null /dev/null`, "coreutils"},
	{"GNU join (with -z)", `join -z /dev/null /dev/null`, "coreutils"},
	{"sha256sum (with -z)", `sha256sum -z /dev/null`, "coreutils"},
	{"sync (with -f)", `sync -f /`, "coreutils"},
	{"tee, mkfifo, stat, cut", `command -v tee mkfifo stat cut`, "coreutils"},
	{"GNU sed", `printf 'a\0' | sed -z 's|^|./|'`, "sed"},
	{"awk", `awk 'BEGIN { exit 0 }'`, "gawk"},
	{"gzip", `command -v gzip`, "gzip"},
}

// HostTools checks that the host has what taking and restoring volumes needs.
// All that is missing is named together with the packages to install.
func HostTools(ctx context.Context, host *remote.Host) error {
	var b strings.Builder
	b.WriteString("export LC_ALL=C\n")
	for i, t := range tools {
		fmt.Fprintf(&b, "{ %s; } >/dev/null 2>&1 </dev/null || echo %d\n", t.trial, i)
	}
	out, err := host.Output(ctx, b.String())
	if err != nil {
		return fmt.Errorf("host %s: looking for tools: %w", host.Name(), err)
	}
	var all *multierror.Error
	for _, f := range strings.Fields(out) {
		i, err := strconv.Atoi(f)
		if err != nil || i < 0 || i >= len(tools) {
			return fmt.Errorf("host %s: looking for tools: unexpected answer %.80q", host.Name(), out)
		}
		all = multierror.Append(all, fmt.Errorf("host %s: %s is missing; install the package %s", host.Name(), tools[i].name, tools[i].pkg))
	}
	return all.ErrorOrNil()
}

// Measure tells how many bytes the directories take on the host's disk, holes
// and further names of hard links not counted, and how many entries they have.
func Measure(ctx context.Context, host *remote.Host, paths []string) (bytes, entries int64, err error) {
	if len(paths) == 0 {
		return 0, 0, nil
	}
	q := remote.Quote(paths...)
	// Files that vanish meanwhile make du and find fail, which changes nothing in an estimate.
	out, err := host.Output(ctx, `for dir in `+q+`; do [ -d "$dir" ] || { echo "$dir is not a directory" >&2; exit 1; }; done
{ du -s -x -c --block-size=1 -- `+q+` 2>/dev/null || true; } | tail -n 1 | cut -f 1
for dir in `+q+`; do find "$dir" -xdev -printf x 2>/dev/null || true; done | wc -c`)
	if err != nil {
		return 0, 0, fmt.Errorf("host %s: measuring directories: %w", host.Name(), err)
	}
	if n, err := fmt.Sscan(out, &bytes, &entries); n != 2 {
		return 0, 0, fmt.Errorf("host %s: measuring directories: unexpected answer %.80q: %w", host.Name(), out, err)
	}
	return bytes, entries, nil
}
