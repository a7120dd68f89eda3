package index

import "strings"

// Script is a shell script with the functions of Shell that works in a scratch
// directory of its own, named after name below state. No failure is passed over,
// and what it writes on the host is for root alone.
func Script(state, name, body string) string {
	return "state=" + quote(state) + "\nrun=" + quote(state+"/run."+name) + "\n" + head + Shell + body
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

const head = `set -eu
umask 077
export LC_ALL=C
# A script that a lost connection left running loses its directory, and not
# the one of its successor.
rm -rf "$run".*
run=$run.$$
mkdir -p "$run"
chmod 700 "$state"
trap 'rm -rf "$run"' EXIT
trap 'exit 143' HUP INT TERM PIPE
`

// Shell defines POSIX shell functions for a host with GNU tools. They expect
// LC_ALL=C and a scratch directory in $run, as Script gives them, and work in the current directory.
// Each stage of a pipeline runs under "stage NAME", which keeps the stage's exit status
// in $run/rc.NAME: POSIX pipelines tell the last one's only.
const Shell = `
stage() { stage_name=$1; shift; stage_rc=0; "$@" || stage_rc=$?; echo "$stage_rc" >"$run/rc.$stage_name"; }

# failed NAME... prints the stages that failed or never ended.
failed() {
	for stage_name; do
		stage_rc=$(cat "$run/rc.$stage_name" 2>/dev/null) || stage_rc=killed
		[ "$stage_rc" = 0 ] || printf ' %s=%s' "$stage_name" "$stage_rc"
	done
}

# The order of records: "/" sorts before all other bytes, which the shift of
# the bytes below it makes so without changing their order.
to_order() { tr '\001-\057' '\002-\057\001'; }
from_order() { tr '\002-\057\001' '\001-\057'; }
in_order() { sort -z -T "$run"; }

# list_tree prints all entries of the current directory but sockets:
# path//ctime inode links type mode uid gid size mtime target
# With an argument, entries changed after that time (seconds since 1970) get "!" for their ctime.
# Sizes and link counts of directories belong to the file system and are left out.
list_tree() {
	dir='- %y %m %U %G - %T@ \0' file='%n %y %m %U %G %s %T@ \0' other='%n %y %m %U %G - %T@ %l\0'
	if [ $# -gt 0 ]; then
		find . -ignore_readdir_race -xdev -type s -o -newerct "@$1" \( \
			-type d -printf "%P//! %i $dir" -o -type f -printf "%P//! %i $file" -o -printf "%P//! %i $other" \
			\) -o -type d -printf "%P//%C@ %i $dir" -o -type f -printf "%P//%C@ %i $file" -o -printf "%P//%C@ %i $other"
	else
		find . -xdev -type s -o -type d -printf "%P//%C@ %i $dir" -o -type f -printf "%P//%C@ %i $file" -o -printf "%P//%C@ %i $other"
	fi
}

# list_links prints path//inode of all names of files that have several.
list_links() { find . -xdev ! -type d ! -type s -links +1 -printf '%i %P\0'; }
links_in_order() { sort -z -T "$run" -k1,1n; }
links_records() { sed -z 's|^\([0-9]*\) \(.*\)$|\2//\1|'; }
`
