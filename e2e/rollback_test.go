//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Paths of the lab's K3s on the host.
const (
	storage  = "/var/lib/rancher/k3s/storage"
	small    = storage + "/*_small-store-0" // a pattern that no copy beside it fits
	large    = storage + "/*_large-store-0"
	stateDir = "/var/lib/k3s-dualstack" // the product's own
)

// A migration that is taken back by choice: from every checkpoint, with either
// contents of the volumes, and migrated again. Whatever was between, the cluster is
// what it was.
func TestRollback(t *testing.T) {
	t.Parallel()
	// Installed by a configuration file, a drop-in, a flag and a token, and tuned by hand.
	dir := t.TempDir()
	config, drops := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "config.yaml.d")
	require.NoError(t, os.WriteFile(config, []byte("# ours\nwrite-kubeconfig-mode: \"0640\" # for the group\n"), 0o644))
	require.NoError(t, os.Mkdir(drops, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(drops, "10-names.yaml"), []byte("tls-san:\n  - lab.example # a name\n"), 0o600))
	l := up(t, "e2e-rollback", "--store-mib", "20", "--config", config, "--config-dir", drops, "--install-args", "--service-cidr=10.43.0.0/16", "--env", `K3S_TOKEN=it's "$ecret" `)
	l.on(t, "echo GODEBUG=http2debug=0 >>/etc/systemd/system/k3s.service.env")
	r := takeBack(t, l)

	r.round(t, "before any run there is nothing to roll back", func(t *testing.T) {
		got := migrate(t, "rollback", "-f", r.file, "--yes")
		assert.Equal(t, 1, got.code, "%s", got)
		assert.Contains(t, got.stderr, "nothing to roll back")
	})

	r.round(t, "from protect there is nothing to take back and K3s is not touched", func(t *testing.T) {
		service := l.on(t, "systemctl show -p InvocationID k3s")
		beats := r.beats(t)
		r.run(t, "--until", "protect")
		assert.Contains(t, r.rollback(t), "there is nothing to take back")
		assert.Equal(t, service, l.on(t, "systemctl show -p InvocationID k3s"))
		r.asBefore(t, beats)
	})

	r.round(t, "from seal K3s is started again", func(t *testing.T) {
		beats := r.stop(t)
		l.on(t, "touch /run/e2e-mark; sleep 1.1")
		stopped := l.on(t, untouched)
		got := migrate(t, "rollback", "-f", r.file, "--dry-run")
		require.Zero(t, got.code, "%s", got)
		for _, want := range []string{"to checkpoint protect", "$ systemctl enable", "Nothing is lost", "Nothing was changed"} {
			assert.Contains(t, got.stdout, want)
		}
		assert.Equal(t, stopped, l.on(t, untouched), "a dry run changes nothing")
		got = migrate(t, "rollback", "-f", r.file)
		assert.Equal(t, 5, got.code, "nobody is there to agree: %s", got)
		assert.Equal(t, "inactive", l.on(t, "systemctl is-active k3s || true"))
		got = migrate(t, "rollback", "-f", r.file, "--to", "verify", "--yes")
		assert.Equal(t, 2, got.code, "a checkpoint that was not reached: %s", got)

		// With its keys out of reach OpenBao stays sealed, and the way to unseal it is said.
		keys := l.OpenBao.Keys
		require.NoError(t, os.Rename(keys, keys+".away"))
		got = migrate(t, "rollback", "-f", r.file, "--yes")
		require.NoError(t, os.Rename(keys+".away", keys))
		assert.Equal(t, 4, got.code, "%s", got)
		unseal := "migrate openbao unseal -f " + r.file
		assert.Contains(t, got.stderr, unseal)
		assert.Contains(t, got.stdout, unseal)
		assert.True(t, openBao(t, l).sealed(t))
		got = migrate(t, "openbao", "unseal", "-f", r.file)
		assert.Zero(t, got.code, "%s", got)
		r.asBefore(t, beats)
		got = migrate(t, "rollback", "-f", r.file, "--yes")
		assert.Zero(t, got.code, "%s", got)
		assert.Contains(t, got.stdout, "the same objects", "it only compares once more")
		assert.NotContains(t, got.stderr, "taking back")
	})

	var beats string
	r.round(t, "after the uninstall, to seal: the old installation, stopped; run goes on from there to the end", func(t *testing.T) {
		beats = r.stop(t)
		const data = "cd /var/lib/rancher/k3s/server/db && sha256sum state.db state.db-wal"
		host, db := l.on(t, hostFiles), l.on(t, data)
		r.run(t, "--until", "install")
		require.NotEqual(t, host, l.on(t, hostFiles))
		r.rollback(t, "--to", "seal")
		assert.Equal(t, "disabled inactive", l.on(t, "echo $(systemctl is-enabled k3s) $(systemctl is-active k3s)"))
		assert.Equal(t, host, l.on(t, hostFiles))
		assert.Equal(t, db, l.on(t, data), "datastore")
		assert.Equal(t, r.before.volumes, l.on(t, volumes))
		assert.Equal(t, beats, r.beats(t))

		r.run(t)
		r.migrated(t, beats)
	})

	r.round(t, "from the finished migration only by name, and what was written there is kept aside", func(t *testing.T) {
		got := migrate(t, "rollback", "-f", r.file, "--yes")
		assert.Equal(t, 2, got.code, "%s", got)
		assert.Contains(t, got.stderr, "--to protect")

		l.on(t, "echo written >>$(ls "+large+"/segment-0000)")
		l.kubectl(t, "create", "configmap", "written-dual-stack", "-n", "data")
		got = migrate(t, "rollback", "-f", r.file, "--to", "protect", "--dry-run")
		require.Zero(t, got.code, "%s", got)
		for _, want := range []string{
			"taking back uninstall", "the like took", "To move: about", "What does not stay",
			"Objects that were created or changed", stateDir + "/replaced",
			"1 entries of volume data/large-store-0 were written since: they are kept beside it",
			"1 entries of volume data/small-store-0",
		} {
			assert.Contains(t, got.stdout, want)
		}

		r.rollback(t, "--to", "protect")
		r.asBefore(t, beats)
		assert.Equal(t, "written", l.on(t, "tail -c 8 "+large+".replaced-*/segment-0000"))
		assert.Greater(t, len(l.on(t, "cat "+small+".replaced-*/heartbeat.log")), len(beats), "what the store wrote meanwhile")
		assert.NotEmpty(t, l.on(t, "grep -la written-dual-stack "+stateDir+"/replaced/*/var/lib/rancher/k3s/server/db/state.db*"), "the dual-stack datastore")
	})

	r.round(t, "with --volumes present what was written stays", func(t *testing.T) {
		beats := r.stop(t)
		asides := l.on(t, "find "+storage+"/*.replaced-* | sort")
		r.run(t, "--until", "platform")
		require.Eventually(t, func() bool { return len(r.beats(t)) > len(beats) }, time.Minute, time.Second, "the store writes")
		l.on(t, "echo order-4711 >$(ls -d "+large+")/order")

		r.rollback(t, "--volumes", "present")
		assert.Equal(t, "order-4711", l.on(t, "cat "+large+"/order && rm "+large+"/order"))
		r.asBefore(t, beats)
		assert.Equal(t, asides, l.on(t, "find "+storage+"/*.replaced-* | sort"), "what the rollback before this one kept, and nothing new")

		_, report := reported(t, l, r.file)
		for _, want := range []string{"was rolled back: it is the IPv4-only cluster that it was", "| ↶ uninstall | Take back: Uninstall K3s |", "Earlier runs", "rolled back to protect", "Dual-stack, taken back"} {
			assert.Contains(t, report, want)
		}
	})

	r.round(t, "a new run goes through to the end, and the journals of those before are kept", func(t *testing.T) {
		kept := func() []string {
			found, err := filepath.Glob(filepath.Join(workDir(r.file), "journal.*.jsonl"))
			require.NoError(t, err)
			return found
		}
		before := kept()
		last, err := os.ReadFile(r.journal.path)
		require.NoError(t, err)
		beats := r.stop(t)
		r.run(t)
		r.migrated(t, beats)
		after := slices.DeleteFunc(kept(), func(file string) bool { return slices.Contains(before, file) })
		require.Len(t, after, 1)
		old, err := os.ReadFile(after[0])
		require.NoError(t, err)
		assert.Equal(t, string(last), string(old))
	})
}

// A migration that fails halfway, each time at another place and for good, is taken
// back; and a rollback that is itself cut off is continued by the same command.
func TestRollbackAfterFailures(t *testing.T) {
	t.Parallel()
	l := up(t, "e2e-failed", "--store-mib", "20")
	r := takeBack(t, l)
	stop := func(t *testing.T) string {
		l.on(t, "rm -rf "+storage+"/*.replaced-*") // nobody needs what the round before set aside
		return r.stop(t)
	}

	r.round(t, "killed in the uninstall, which stays half done", func(t *testing.T) {
		beats := stop(t)
		r.halt(t, "uninstall", "! [ -e "+small+"/identity.json ] || ! [ -e "+large+"/identity.json ]")
		assert.Equal(t, "half", l.on(t, "[ -e /usr/local/bin/k3s ] && [ -e "+stateDir+"/uninstalling ] && ! [ -e /var/lib/rancher/k3s/server/token ] && [ -n \"$(ls "+storage+")\" ] && echo half"))
		r.rollback(t)
		r.asBefore(t, beats)
	})

	r.round(t, "killed in the install, which stays half done", func(t *testing.T) {
		beats := stop(t)
		r.halt(t, "install", "[ -e /etc/systemd/system/k3s.service.env ]")
		r.rollback(t)
		r.asBefore(t, beats)
	})

	r.round(t, "killed while volumes are restored; in the rollback the host is restarted twice, and a person interrupts", func(t *testing.T) {
		beats := stop(t)
		r.on(t, "touch /run/e2e-mark")
		run := start(t, nil, bin("migrate"), "run", "-f", r.file, "--yes")
		r.restoring(t)
		require.NoError(t, run.Kill())
		run.wait(t, time.Minute)
		assert.Equal(t, "half", l.on(t, "[ -e "+small+" ] || echo half"))

		goOn := "To continue: migrate rollback -f " + r.file
		back := func() *process { return start(t, nil, bin("migrate"), "rollback", "-f", r.file, "--yes") }

		from := len(r.journal.now(t))
		p := back()
		// Between two commands a rollback connects anew and goes on by itself: here the
		// laptop goes with the host.
		r.journal.await(t, p, from, "uninstall/datastore back/undone")
		require.NoError(t, p.Kill())
		p.wait(t, time.Minute)
		restart(t, l, p)

		got := migrate(t, "run", "-f", r.file, "--yes")
		assert.Equal(t, 1, got.code, "a rollback is under way: %s", got)
		assert.Contains(t, got.stderr, "migrate rollback -f "+r.file)

		r.on(t, "touch /run/e2e-mark")
		p = back()
		r.restoring(t)
		restart(t, l, p)
		require.Equal(t, 1, p.wait(t, time.Minute), "%s", &p.printed)
		assert.Contains(t, p.printed.String(), goOn)
		assert.Equal(t, "inactive", l.on(t, "systemctl is-active k3s || true"), "a restart starts nothing that is half there")

		from = len(r.journal.now(t))
		p = back()
		r.journal.await(t, p, from, "quiesce/start again/undoing")
		time.Sleep(300 * time.Millisecond)
		require.NoError(t, p.Signal(os.Interrupt))
		require.Equal(t, 130, p.wait(t, 20*time.Second), "%s", &p.printed)
		assert.Contains(t, p.printed.String(), goOn)

		r.rollback(t)
		r.asBefore(t, beats)
	})

	r.round(t, "killed while the new K3s starts; the rollback is killed before and after every record of its journal", func(t *testing.T) {
		beats := stop(t)
		begun := len(r.journal.now(t))
		run := start(t, nil, bin("migrate"), "run", "-f", r.file, "--yes")
		r.journal.await(t, run, begun, "start/start/intent")
		time.Sleep(time.Second)
		require.NoError(t, run.Kill())
		run.wait(t, time.Minute)
		l.on(t, "echo written >>$(ls "+large+"/segment-0000)")
		began := time.Now()
		calls := filepath.Join(t.TempDir(), "calls")
		before, after := map[string]bool{}, map[string]bool{}
		from := r.journal.now(t)
		after[from[len(from)-1].String()] = true // it is the run's
		for deadline := time.Now().Add(10 * time.Minute); ; {
			require.True(t, time.Now().Before(deadline), "the rollback does not end; killed %d times", len(before)+len(after))
			require.NoError(t, os.RemoveAll(calls))
			run := start(t, nil, "strace", "-D", "-f", "-qq", "--seccomp-bpf", "-e", "signal=none", "-s", "1048576", "-o", calls,
				"-P", r.journal.path, "-e", "trace=write", "-e", fmt.Sprintf("inject=write:delay_enter=%d", held.Microseconds()),
				bin("migrate"), "rollback", "-f", r.file, "--yes")
			if !killAtRecord(t, run, r.journal, calls, before, after) {
				require.Zero(t, run.wait(t, time.Second), "after %d kills: %s", len(before)+len(after), &run.printed)
				break
			}
		}
		t.Logf("killed %d times before a record's write and %d times after it, and continued, in %s", len(before), len(after)-1, time.Since(began).Round(time.Second))
		killedAt(t, r.journal.now(t)[len(from):], before, after)
		r.asBefore(t, beats)
		assert.Equal(t, "written", l.on(t, "tail -qc 8 "+large+".replaced-*/segment-0000"), "what was set aside, once")
	})

	r.round(t, "killed before an uninstall that was intended: nothing is restored over what is there", func(t *testing.T) {
		beats := stop(t)
		from := len(r.journal.now(t))
		// Each record is followed by a pause, so that the intent is all there is.
		run := start(t, nil, "strace", "-D", "-f", "-qq", "--seccomp-bpf", "-e", "signal=none", "-o", "/dev/null",
			"-P", r.journal.path, "-e", "trace=write", "-e", fmt.Sprintf("inject=write:delay_exit=%d", held.Microseconds()),
			bin("migrate"), "run", "-f", r.file, "--yes")
		r.journal.await(t, run, from, "uninstall/uninstall/intent")
		require.NoError(t, run.Kill())
		run.wait(t, time.Minute)
		require.Equal(t, "nothing began", l.on(t, "[ -e "+stateDir+"/uninstalling ] || echo nothing began"))

		l.on(t, "echo newer than the backup >$(ls -d "+large+")/newer")
		const inodes = "ls -di " + storage + "/* " + storage + "/*/* /var/lib/rancher/k3s/server/db/state.db /usr/local/bin/k3s /etc/rancher/k3s"
		replaced := l.on(t, "ls "+stateDir+"/replaced")
		files := l.on(t, inodes)
		r.rollback(t)
		assert.Equal(t, files, l.on(t, inodes))
		assert.Equal(t, replaced, l.on(t, "ls "+stateDir+"/replaced"))
		assert.Equal(t, "newer than the backup", l.on(t, "cat "+large+"/newer && rm "+large+"/newer"))
		r.asBefore(t, beats)
	})

	r.round(t, "the runbook, executed by hand", func(t *testing.T) {
		beats := stop(t)
		r.run(t, "--until", "volumes")
		book := migrate(t, "runbook", "-f", r.file)
		require.Zero(t, book.code, "%s", book)
		script := filepath.Join(t.TempDir(), "rollback.sh")
		require.NoError(t, os.WriteFile(script, []byte(book.stdout), 0o600))
		path := "PATH=" + filepath.Dir(bin("migrate")) + string(os.PathListSeparator) + os.Getenv("PATH")
		began := time.Now()
		got := execute(t, []string{path}, "sh", "-x", script)
		require.Zero(t, got.code, "%s", got)
		t.Logf("the runbook took %s", time.Since(began).Round(time.Second))
		r.asBefore(t, beats)
	})
}

// takenBack is a lab whose migration is taken back again and again.
type takenBack struct {
	*lab
	file    string
	journal *journal
	before  picture
	secrets map[string]string // OpenBao's
}

// picture is a cluster and its host from outside the product.
type picture struct{ objects, host, identity, volumes string }

// takeBack prepares a lab for it and takes the picture to which it has to return.
func takeBack(t testing.TB, l *lab) *takenBack {
	t.Helper()
	file := l.plan(t, nil)
	r := &takenBack{lab: l, file: file, journal: journalOf(file)}
	r.before = r.now(t)
	r.secrets = openBao(t, l).secrets(t)
	require.Contains(t, r.before.host, "net.ipv6.conf.all.forwarding = 0", "the lab's host does not forward IPv6 yet, so that it shows when it is left on")
	return r
}

// round is a subtest on which those after it depend.
func (r *takenBack) round(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	if !t.Run(name, f) {
		t.FailNow()
	}
}

// hostFiles lists what K3s has on the host beside datastore and volumes, with types,
// modes, owners, link targets and SHA-256; whether its unit is enabled; and the
// network's settings.
const hostFiles = `set -eu
cd /
where() { find etc/rancher etc/systemd/system/k3s* usr/local/bin etc/sysctl.d var/lib/rancher/k3s/server -path var/lib/rancher/k3s/server/db -prune -o "$@"; }
where -printf '%y %m %U %G %l %p\n' | sort
stat -c '%a %u %g %n' var/lib/rancher var/lib/rancher/k3s var/lib/rancher/k3s/storage || true # what is there of them
where -type f -print0 | sort -z | xargs -0 sha256sum
systemctl is-enabled k3s || true
sysctl net.ipv4.ip_forward net.ipv6.conf.{all,default,eth0}.{forwarding,accept_ra}`

// volumes is the fingerprint of the volumes without what was set aside beside them.
var volumes = strings.ReplaceAll(fingerprint, "! -name heartbeat.log", "! -name heartbeat.log ! -path '*.replaced-*'")

// now takes the picture.
func (r *takenBack) now(t testing.TB) picture {
	t.Helper()
	return picture{r.objects(t), r.on(t, hostFiles), r.on(t, identity), r.on(t, volumes)}
}

// objects lists all objects of the API, a line each: UID and all that was asked for,
// and of Nodes the addresses. Left out are those that come and go in a cluster that
// nobody touches, status, and versions.
func (r *takenBack) objects(t testing.TB) string {
	t.Helper()
	var kinds []string
	for kind := range strings.FieldsSeq(r.kubectl(t, "api-resources", "--verbs=list", "-o", "name")) {
		switch resource, _, _ := strings.Cut(kind, "."); resource {
		case "events", "leases", "pods", "endpoints", "endpointslices", "componentstatuses":
		default:
			kinds = append(kinds, kind)
		}
	}
	var list struct{ Items []object }
	require.NoError(t, json.Unmarshal([]byte(r.kubectl(t, "get", strings.Join(kinds, ","), "-A", "-o", "json")), &list))
	var lines []string
	for _, o := range list.Items {
		meta := o["metadata"].(object)
		delete(meta, "resourceVersion")
		delete(meta, "managedFields")
		status, _ := o["status"].(object)
		delete(o, "status")
		if o["kind"] == "Node" {
			o["addresses"] = status["addresses"]
		}
		text, err := json.Marshal(o)
		require.NoError(t, err)
		lines = append(lines, fmt.Sprintf("%s %v/%v: %s", o["kind"], meta["namespace"], meta["name"], text))
	}
	require.Greater(t, len(lines), 200)
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// beats is the store's log.
func (r *takenBack) beats(t testing.TB) string {
	t.Helper()
	return r.on(t, "cat "+small+"/heartbeat.log") + "\n"
}

// run runs the migration, or continues it.
func (r *takenBack) run(t testing.TB, flags ...string) {
	t.Helper()
	began := time.Now()
	got := migrate(t, append([]string{"run", "-f", r.file, "--yes"}, flags...)...)
	require.Zero(t, got.code, "%s", got)
	t.Logf("run %s took %s", strings.Join(flags, " "), time.Since(began).Round(time.Second))
}

// stop runs the migration until the cluster is stopped and backed up, and returns
// what the store had written until then.
func (r *takenBack) stop(t testing.TB) string {
	t.Helper()
	r.run(t, "--until", "seal")
	return r.beats(t)
}

// rollback takes the run back and returns what that printed.
func (r *takenBack) rollback(t testing.TB, flags ...string) string {
	t.Helper()
	began := time.Now()
	got := migrate(t, append([]string{"rollback", "-f", r.file, "--yes"}, flags...)...)
	require.Zero(t, got.code, "%s", got)
	t.Logf("the rollback took %s", time.Since(began).Round(time.Second))
	return got.stdout + got.stderr
}

// halt runs the migration, stops its job on the host at the moment at which the
// condition, shell, comes true there, and then kills both with SIGKILL.
func (r *takenBack) halt(t testing.TB, job, condition string) {
	t.Helper()
	run := start(t, nil, bin("migrate"), "run", "-f", r.file, "--yes")
	job = stateDir + "/jobs/" + job
	group := r.on(t, `late() { [ $SECONDS -gt 60 ]; }
until [ -s `+job+`/pid ] || late; do sleep 0.01; done
read -r pid _ <`+job+`/pid
until `+condition+` || late; do :; done
kill -STOP -- -$pid && echo $pid`)
	require.NoError(t, run.Kill())
	run.wait(t, time.Minute)
	r.on(t, "kill -KILL -- -"+group)
	require.Equal(t, "cut off", r.on(t, "[ -e "+job+"/rc ] || echo cut off"), "%s", &run.printed)
}

// restoring waits until a volume is being extracted that was not when /run/e2e-mark was made.
func (r *takenBack) restoring(t testing.TB) {
	t.Helper()
	r.on(t, "until [ "+small+".migrate-restoring -nt /run/e2e-mark ] && compgen -G '"+small+".migrate-restoring/*' >/dev/null; do sleep 0.01; [ $SECONDS -lt 60 ]; done")
}

// asBefore asserts that the cluster is what it was before any migration: the same
// objects, files and volumes; that its workloads answer; and that the store's log goes
// on after beats.
func (r *takenBack) asBefore(t testing.TB, beats string) {
	t.Helper()
	now := r.now(t)
	// A node that has just become Ready bears the taint of one that is not for some seconds more.
	for deadline := time.Now().Add(20 * time.Second); now.objects != r.before.objects && time.Now().Before(deadline); now.objects = r.objects(t) {
		time.Sleep(time.Second)
	}
	assert.Equal(t, r.before.objects, now.objects, "objects")
	assert.Equal(t, r.before.host, now.host, "host")
	assert.Equal(t, r.before.identity, now.identity, "identity")
	assert.Equal(t, r.before.volumes, now.volumes, "volumes")
	assert.Equal(t, "active", r.on(t, "systemctl is-active k3s"))
	sameSecrets(t, r.secrets, openBao(t, r.lab).secrets(t))
	r.answers(t)
	r.goesOn(t, beats)
	got := migrate(t, "verify", "-f", r.file)
	assert.Equal(t, 4, got.code, "%s", got)
	assert.Contains(t, got.stdout, "is not dual-stack yet")
	assert.Equal(t, r.before.objects, r.objects(t), "objects after verify")
}

// answers asserts that every Service of the platform's answers a pod at once.
func (r *takenBack) answers(t testing.TB) {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Namespace string }
			Spec     struct {
				ClusterIP string
				Selector  map[string]string
				Ports     []struct{ Port int }
			}
		}
	}
	require.NoError(t, json.Unmarshal([]byte(r.kubectl(t, "get", "services", "-A", "-o", "json")), &list))
	curl, in := "set -e", inPod(t, r.lab, "client")
	for _, s := range list.Items {
		if s.Metadata.Namespace != "kube-system" && len(s.Spec.Selector) > 0 && s.Spec.ClusterIP != "None" {
			curl += fmt.Sprintf("; %s curl -sS -o /dev/null --max-time 5 http://%s:%d/", in, s.Spec.ClusterIP, s.Spec.Ports[0].Port)
		}
	}
	require.Greater(t, strings.Count(curl, "curl"), 4)
	r.on(t, curl)
}

// goesOn asserts that the store writes to its log, after all that it had written.
func (r *takenBack) goesOn(t testing.TB, beats string) {
	t.Helper()
	require.Eventually(t, func() bool { return len(r.beats(t)) > len(beats) }, time.Minute, time.Second, "the store writes")
	after := r.beats(t)
	require.Equal(t, beats, after[:len(beats)], "the store's log goes on where it ended")
	ended := strings.Count(beats, "\n")
	assert.True(t, strings.HasPrefix(after[len(beats):], fmt.Sprintf("%d ", ended+1)), "with the next line")
}

// migrated asserts that the cluster is dual-stack and has what it had.
func (r *takenBack) migrated(t testing.TB, beats string) {
	t.Helper()
	assert.Contains(t, r.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDRs}"), "fd42:")
	assert.Equal(t, r.before.volumes, r.on(t, volumes), "volumes")
	assert.Equal(t, r.before.identity, r.on(t, identity), "identity")
	sameSecrets(t, r.secrets, openBao(t, r.lab).secrets(t))
	r.goesOn(t, beats)
	got := migrate(t, "verify", "-f", r.file)
	assert.Zero(t, got.code, "%s", got)
	assert.Contains(t, got.stdout, "is dual-stack")
}
