//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// snapshots is what a provider's command would be: it keeps all that the host's K3s lies on, taken while every process
// of the host is frozen, and puts it back with a restart. It answers like one, too: with a secret.
const snapshots = `#!/bin/bash
set -eu
what=$1 container=$2 file=$3
echo "provider: token hunter2"
case $what in
create)
	[ ! -e "$file.refuse" ] || exit 7
	root=/proc/$(docker inspect -f '{{.State.Pid}}' "$container")/root
	docker pause "$container" >/dev/null
	trap 'docker unpause "$container" >/dev/null' EXIT
	tar -C "$root" --one-file-system --numeric-owner --format=posix --sparse --xattrs --xattrs-include='*' --acls -cpf "$file.new" etc usr/local/bin var/lib/rancher var/lib/kubelet var/lib/k3s-dualstack 2> >(grep -v 'socket ignored' >&2) || [ $? = 1 ]
	mv "$file.new" "$file" ;;
status) [ -e "$file" ] ;;
restore)
	[ ! -e "$file.slow" ] || sleep 300
	docker exec "$container" bash -c 'cd /; find etc usr/local/bin var/lib/rancher var/lib/kubelet var/lib/k3s-dualstack -xdev -depth -mindepth 1 -delete 2>/dev/null; true'
	sleep 12 # so that the run looks for its lock meanwhile
	docker exec -i "$container" tar -C / --numeric-owner --xattrs --xattrs-include='*' --acls --overwrite -xpf - <"$file" || [ $? = 2 ] # files that the engine has mounted
	docker restart "$container" >/dev/null
	until docker exec "$container" systemctl is-active -q ssh; do sleep 0.2; done ;;
delete) rm -f "$file" ;;
esac
`

// A migration with a snapshot by the plan's own commands, taken back by it from far behind the uninstall: the whole host
// is what it was, what was written since is gone, and the run can be made again.
func TestBySnapshot(t *testing.T) {
	t.Parallel()
	l := up(t, "e2e-snapshot", "--store-mib", "20")
	r := takeBack(t, l)
	dir := t.TempDir()
	program, kept := filepath.Join(dir, "provider"), filepath.Join(dir, "kept")
	require.NoError(t, os.WriteFile(program, []byte(snapshots), 0o755))
	command := func(what string) []string { return []string{program, what, l.Container, kept} }
	r.file = l.plan(t, func(spec object) {
		spec["snapshot"] = object{"method": "command", "command": object{
			"create": command("create"), "status": command("status"), "restore": command("restore"), "delete": command("delete"),
		}}
	})
	r.journal = journalOf(r.file)

	r.round(t, "it is in the plan, and a provider that refuses stops the run before the backup", func(t *testing.T) {
		got := migrate(t, "plan", "-f", r.file)
		require.Zero(t, got.code, "%s", got)
		assert.Contains(t, got.stdout, program+" create "+l.Container)
		require.NoError(t, os.WriteFile(kept+".refuse", nil, 0o600))
		got = migrate(t, "run", "-f", r.file, "--yes", "--until", "protect")
		require.Equal(t, 1, got.code, "%s", got)
		assert.Contains(t, got.stderr, "spec.snapshot.command.create: laptop: exit status 7")
		require.NoError(t, os.Remove(kept+".refuse"))
		assert.NoDirExists(t, filepath.Join(workDir(r.file), "backup"))
	})

	var beats string
	r.round(t, "a rollback by a snapshot that is gone is refused before anything is stopped", func(t *testing.T) {
		beats = r.beats(t)
		r.run(t, "--until", "start")
		require.NoError(t, os.Rename(kept, kept+".away"))
		defer func() { require.NoError(t, os.Rename(kept+".away", kept)) }()
		got := migrate(t, "rollback", "-f", r.file, "--yes", "--via", "snapshot")
		require.Equal(t, 1, got.code, "%s", got)
		assert.Contains(t, got.stderr, "roll back by way of the snapshot")
		assert.Contains(t, got.stderr, "nothing was done")
		assert.Contains(t, got.stderr, "--via backup")
		assert.Equal(t, "active", l.on(t, "systemctl is-active k3s"))
	})

	r.round(t, "killed while it returns, the rollback is completed by the same command without --via", func(t *testing.T) {
		l.on(t, "echo new >/etc/rancher/since; echo new >"+strings.TrimSuffix(stateDir, "/")+"/since")
		got := migrate(t, "rollback", "-f", r.file, "--dry-run", "--via", "snapshot")
		require.Zero(t, got.code, "%s", got)
		for _, want := range []string{"by way of the snapshot", program + " restore", "Everything that was written to the host's disks since"} {
			assert.Contains(t, got.stdout, want)
		}
		require.NoError(t, os.WriteFile(kept+".slow", nil, 0o600))
		from := len(r.journal.now(t))
		p := start(t, nil, bin("migrate"), "rollback", "-f", r.file, "--yes", "--via", "snapshot")
		r.journal.await(t, p, from, ".*/restore/undoing")
		time.Sleep(time.Second)
		require.NoError(t, p.Kill())
		p.wait(t, time.Minute)
		require.NoError(t, os.Remove(kept+".slow"))
		got = migrate(t, "run", "-f", r.file, "--yes")
		assert.Equal(t, 1, got.code, "a rollback is under way: %s", got)

		said := r.rollback(t)
		assert.Contains(t, said, "the program of spec.snapshot.command.delete", "what is left of the snapshot is named")
		r.asBefore(t, beats)
		assert.Equal(t, "gone", l.on(t, "[ -e /etc/rancher/since ] || [ -e "+stateDir+"/since ] || echo gone"))
		assert.Equal(t, "gone", l.on(t, "[ -e "+stateDir+"/lock ] || echo gone"), "the lock that the snapshot brought back")
		lines, err := os.ReadFile(filepath.Join(workDir(r.file), "journal.jsonl"))
		require.NoError(t, err)
		assert.NotContains(t, string(lines), "hunter2")
		assert.Equal(t, strings.TrimSpace(string(lines)), l.on(t, "cat "+stateDir+"/journal.jsonl"), "the journal's copy")
	})

	r.round(t, "the migration is made again, where the earlier snapshot is out of the way, and removes its own when it is complete", func(t *testing.T) {
		got := migrate(t, "run", "-f", r.file, "--yes", "--until", "snapshot")
		require.Equal(t, 1, got.code, "%s", got)
		assert.Contains(t, got.stderr, "a snapshot is there already, of an earlier run")
		require.NoError(t, os.Rename(kept, kept+".earlier"))
		beats := r.beats(t)
		r.run(t)
		r.migrated(t, beats)
		assert.NoFileExists(t, kept)
		assert.FileExists(t, kept+".earlier")
		got = migrate(t, "rollback", "-f", r.file, "--yes", "--to", "protect", "--via", "snapshot")
		require.Equal(t, 1, got.code, "%s", got)
		assert.Contains(t, got.stderr, "spec.snapshot.keep")
	})
}
