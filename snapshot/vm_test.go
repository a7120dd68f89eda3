//go:build vm

// What the tests in virtual machines have in common. They boot those themselves: `make e2e-snapshot`. They need bin/lab.
package snapshot

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// guest is a virtual machine of the lab.
type guest struct {
	*remote.Host
	console string
}

// boot makes a virtual machine, which ends with the test. One that a killed test left makes way.
func boot(t *testing.T, layout string) *guest {
	t.Helper()
	begun := time.Now()
	name := "snapshot-" + layout
	lab(t, "vm", "down", "--name", name)
	t.Cleanup(func() { lab(t, "vm", "down", "--name", name) })
	var vm struct {
		Address, User, IdentityFile, KnownHosts, Console string
		Port                                             int
	}
	require.NoError(t, json.Unmarshal(lab(t, "vm", "up", "--name", name, "--layout", layout, "-o", "json"), &vm))
	h, err := remote.Dial(t.Context(), plans.Host{
		Name: "vm", Role: plans.RoleServer, Address: vm.Address, Port: vm.Port, User: vm.User, SSHConfig: "none",
		IdentityFiles: []string{vm.IdentityFile}, KnownHosts: []string{vm.KnownHosts},
	})
	require.NoError(t, err)
	t.Logf("the machine %s was up after %s", name, time.Since(begun).Round(time.Second))
	t.Cleanup(func() {
		h.Close()
		if t.Failed() {
			console, _ := os.ReadFile(vm.Console)
			t.Logf("the end of its console:\n%s", console[max(0, len(console)-6000):])
		}
	})
	m := &guest{h, vm.Console}
	m.hurry(t)
	return m
}

// hurry ends what the lab's machines start with: that they merge thick snapshots slowly.
func (m *guest) hurry(t *testing.T) {
	t.Helper()
	m.sh(t, "modprobe dm_snapshot; echo 100 >/sys/module/dm_snapshot/parameters/snapshot_copy_throttle")
}

// startDeadline is for how long a machine may take to answer after a restart: a minute on a busy computer, more than four where
// builds take nearly all of it, as for the lab's own start. One that hangs shows it on its console when systemd has waited for a
// device for 90 s.
const startDeadline = 10 * time.Minute

// restarted performs what starts the machine anew.
func restarted(t *testing.T, run func(context.Context) error) {
	t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), startDeadline)
	defer cancel()
	require.NoError(t, run(ctx), "the machine does not come up from its restart; its console shows why")
	t.Logf("restarted (%s)", time.Since(begun).Round(time.Second))
}

// lab runs bin/lab.
func lab(t *testing.T, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	var said strings.Builder
	cmd := exec.CommandContext(ctx, filepath.Join("..", "bin", "lab"), args...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	require.NoError(t, err, "lab %s: %s", strings.Join(args, " "), said.String())
	return out
}

// sh runs a script as root.
func (m *guest) sh(t *testing.T, script string) string {
	t.Helper()
	out, err := m.Output(t.Context(), script)
	require.NoError(t, err, "%s", script)
	return out
}

const token = "/var/lib/rancher/k3s/server/token"

var (
	rootPaths = []string{"/etc/rancher", "/usr/local/bin"}
	allPaths  = append([]string{"/var/lib/rancher"}, rootPaths...)
)

// furnish lays down what a K3s host has, and more for the changes.
func (m *guest) furnish(t *testing.T) {
	t.Helper()
	m.sh(t, `set -e
mkdir -p /var/lib/rancher/k3s/server/db /etc/rancher/k3s
echo K10token >`+token+`
shred -n1 -s 40M - >/var/lib/rancher/k3s/server/db/state.db
echo 'cluster-cidr: 10.42.0.0/16' >/etc/rancher/k3s/config.yaml
printf '#!/bin/sh\necho old\n' >/usr/local/bin/k3s; chmod 755 /usr/local/bin/k3s
ln -s k3s /usr/local/bin/kubectl
sync`)
}

// change does what a rebuild does, on a large scale: files of every directory are changed, deleted and made.
func (m *guest) change(t *testing.T) {
	t.Helper()
	m.sh(t, `set -e
echo 'cluster-cidr: 10.42.0.0/16,fd42::/48' >/etc/rancher/k3s/config.yaml
shred -n1 /var/lib/rancher/k3s/server/db/state.db; sync
rm -rf /var/lib/rancher/k3s
mkdir -p /var/lib/rancher/k3s/server/db
echo K10other >`+token+`
shred -n1 -s 40M - >/var/lib/rancher/k3s/server/db/state.db
shred -n1 -s 60M - >/usr/local/bin/k3s
rm /usr/local/bin/kubectl
echo new >/etc/rancher/k3s/registries.yaml; echo new >/usr/local/bin/new; echo new >/var/lib/rancher/new
chmod 700 /etc/rancher; chown 1000:1000 /usr/local/bin/k3s
sync`)
}

// everything prints all of what a rebuild touches, below the working directory: every file's kind, mode, owner, time, size, link
// and contents. LVM's own notes below /etc/lvm are left out, since it writes them with every snapshot, and so are the times
// of directories, which the lab's keys change with every start.
const everything = `for dir in etc usr/local var/lib/rancher root; do
  find $dir \( -path etc/lvm/archive -o -path etc/lvm/backup \) -prune -o -type d -printf '%p %y %m %U %G\n' -o -printf '%p %y %m %U %G %T@ %s %l\n' | sort
  find $dir \( -path etc/lvm/archive -o -path etc/lvm/backup \) -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
done`

func (m *guest) tree(t *testing.T) string {
	t.Helper()
	return m.sh(t, "cd / && "+everything)
}

// look surveys the machine.
func (m *guest) look(t *testing.T, paths []string) Storage {
	t.Helper()
	s, err := Look(t.Context(), m.Host, paths, "/var/lib/rancher/k3s/agent")
	require.NoError(t, err)
	return s
}

// ask is what a method is made for with what a survey found, as a new process would have it.
func (m *guest) ask(s Storage, plan plans.Snapshot) Ask {
	return Ask{
		Host: func(context.Context) (*remote.Host, error) { return m.Host, nil },
		Plan: &plan, Name: "trial", Storage: s, Proof: token,
	}
}

// performAll performs operations in turn, and every one of them as often as a run that is cut off may: what is not known to be done is done
// anew.
func performAll(t *testing.T, operations []Operation) {
	t.Helper()
	for _, o := range operations {
		begun := time.Now()
		require.NoError(t, o.Run(t.Context()), "%s: %s", o.Name, o.Command)
		t.Logf("%s (%s)", o.Name, time.Since(begun).Round(100*time.Millisecond))
		if o.Done == nil {
			require.NoError(t, o.Run(t.Context()), "%s again: %s", o.Name, o.Command)
		} else {
			assert.True(t, done(t, o), "%s has been performed", o.Name)
		}
	}
}

func done(t *testing.T, o Operation) bool {
	t.Helper()
	ok, err := o.Done(t.Context())
	require.NoError(t, err, o.Name)
	return ok
}

// split finds the restart in a return: what comes before, itself, and what comes after.
func split(t *testing.T, list []Operation) (before []Operation, restart Operation, after []Operation) {
	t.Helper()
	for i, o := range list {
		if o.Name == "restart" {
			return list[:i], o, list[i+1:]
		}
	}
	require.Fail(t, "the return has no restart")
	return nil, Operation{}, nil
}

func operationNames(list []Operation) []string {
	var out []string
	for _, o := range list {
		out = append(out, o.Name)
	}
	return out
}

// powerFailure is what a shell does to have one.
const powerFailure = "echo b >/proc/sysrq-trigger; sleep 60"

// crash restarts the machine as a power failure does.
func (m *guest) crash(t *testing.T) {
	t.Helper()
	m.crashes(t, func(ctx context.Context) error {
		return m.Run(ctx, "(sleep 0.5; "+powerFailure+") >/dev/null 2>&1 &")
	})
}

// crashes performs what ends in a power failure, whatever it says about that.
func (m *guest) crashes(t *testing.T, run func(context.Context) error) {
	t.Helper()
	before := m.sh(t, bootID)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // to get there, not for the line that hangs then
	defer cancel()
	_ = run(ctx)
	restarted(t, func(ctx context.Context) error {
		return answers(ctx, m.ask(Storage{}, plans.Snapshot{}), func(now string) bool { return now != before })
	})
}

func details(problems []Problem) string {
	var out []string
	for _, p := range problems {
		out = append(out, p.Field+": "+p.Detail+" -> "+p.Remedy)
	}
	return strings.Join(out, "\n")
}
