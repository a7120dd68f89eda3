//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// fingerprint describes every entry of the volumes' directories from outside the
// product: names, types, modes, owners, sizes, times, link targets, link counts,
// allocated blocks of sparse files aside; contents; ACLs and extended attributes.
// What the store's heartbeat appends to is left out, and OpenBao's volume, to which its raft log
// is appended whenever it starts: its secrets are read instead.
const fingerprint = `set -eu
cd /var/lib/rancher/k3s/storage
find . -mindepth 1 ! -name heartbeat.log ! -path '*_openbao_*' ! -path './*/.' \( -type d -printf '%y %m %U %G %p\0' -o -printf '%y %m %U %G %n %s %T@ %l %p\0' \) | sort -z | sha256sum
find . -type f ! -name heartbeat.log ! -path '*_openbao_*' -print0 | sort -z | xargs -0 sha256sum | sha256sum
find . -type f ! -name heartbeat.log ! -path '*_openbao_*' -print0 | sort -z | xargs -0 getfattr -d -m- -h --absolute-names 2>/dev/null | sha256sum
find . -type f ! -name heartbeat.log ! -path '*_openbao_*' -print0 | sort -z | xargs -0 getfacl -n -p 2>/dev/null | sha256sum
find . -type f ! -name heartbeat.log ! -path '*_openbao_*' -links +1 -printf '%i %p\0' | sort -z | awk 'BEGIN{RS="\0"} {i=$1; sub(/^[0-9]+ /,""); g[i]=g[i] "|" $0} END{for (i in g) print g[i]}' | sort | sha256sum`

// identity is by what clients recognise the cluster.
const identity = `cd /var/lib/rancher/k3s/server && sha256sum tls/server-ca.crt tls/client-ca.crt tls/request-header-ca.crt tls/service.key token; sha256sum /etc/rancher/node/password`

// untouched would show any trace that a dry run left on the host.
const untouched = `find /etc /usr/local/bin /root /var/lib/k3s-dualstack -xdev -newer /run/e2e-mark -not -path '*/server/*' 2>/dev/null; systemctl show -p InvocationID --value k3s; sysctl net.ipv6.conf.all.forwarding`

func TestMigration(t *testing.T) {
	t.Parallel()
	l := up(t, "e2e-main")
	uidOf := []string{"get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"}
	broken, told := filepath.Join(t.TempDir(), "broken"), filepath.Join(t.TempDir(), "told")
	require.NoError(t, os.WriteFile(broken, nil, 0o600))
	file := l.plan(t, func(spec object) {
		// A platform command that fails as long as a file is there.
		p := spec["platform"].(object)
		argv := []any{"sh", "-c", `if [ -e "$0" ]; then echo "the platform is out of order"; exit 7; fi; exec "$@"`, broken}
		p["command"] = append(argv, p["command"].([]any)...)
		cluster := func(word string) []string {
			return append([]string{"sh", "-c", `word=$1; shift; echo "$word $("$@")" >>"$0"`, told, word, l.Kubectl}, uidOf...)
		}
		service := func(word string) []string {
			return []string{"sh", "-c", `echo "$0 $(hostname) $(systemctl is-active k3s)" >>/root/told`, word}
		}
		spec["hooks"] = []object{
			{"name": "revived", "after": "start", "on": "host", "command": service("it's up")},
			{"name": "answers", "after": "start", "command": cluster("answers")},
			{"name": "closing", "before": "quiesce", "command": cluster("closing")},
			{"name": "running", "before": "quiesce", "on": "host", "command": service("running")},
			{"name": "stopped", "after": "quiesce", "on": "host", "command": service("stopped")},
		}
	})

	files, ca := l.on(t, fingerprint), l.on(t, identity)
	tls := l.kubectl(t, "get", "secret", "-n", "ingress", "pingora-tls", "-o", "jsonpath={.type} {.data} {.metadata.annotations}")
	claims := l.kubectl(t, "get", "pvc", "-A", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.volumeName}{"\n"}{end}`)
	volumes := l.kubectl(t, "get", "pv", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.persistentVolumeReclaimPolicy}{"\n"}{end}`)
	uid := l.kubectl(t, uidOf...)
	beats := heartbeats(t, l)
	secrets := openBao(t, l).secrets(t)

	t.Run("verify before shows what is missing", func(t *testing.T) {
		r := migrate(t, "verify", "-f", file)
		assert.Equal(t, 4, r.code, "%s", r)
		assert.Contains(t, r.stdout, "is not dual-stack yet")
		var report struct {
			Checks []struct{ ID, Status, Detail string }
		}
		r = migrate(t, "verify", "-f", file, "-o", "json")
		assert.Equal(t, 4, r.code)
		require.NoError(t, json.Unmarshal([]byte(r.stdout), &report))
		status := map[string]map[string]int{}
		for _, c := range report.Checks {
			if status[c.ID] == nil {
				status[c.ID] = map[string]int{}
			}
			status[c.ID][c.Status]++
		}
		assert.NotZero(t, status["egress.ipv6"]["fail"], "%v", status)
		assert.NotZero(t, status["egress.ipv4"]["pass"], "%v", status)
		assert.Zero(t, status["egress.ipv4"]["fail"], "%v", status)
	})

	t.Run("what forbids the run", func(t *testing.T) {
		small := t.TempDir()
		require.Zero(t, execute(t, nil, "mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", small).code)
		defer execute(t, nil, "umount", small)
		l.on(t, "mkdir -p /var/lib/k3s-dualstack && mount -t tmpfs -o size=16m tmpfs /var/lib/k3s-dualstack")
		defer l.on(t, "umount /var/lib/k3s-dualstack && rmdir /var/lib/k3s-dualstack")
		own := netip.PrefixFrom(netip.MustParseAddr(l.Host.IPv6), 64).Masked().String()
		file := l.plan(t, func(spec object) {
			spec["workDir"] = filepath.Join(small, "work")
			spec["network"] = object{"clusterCIDR": []string{"10.42.0.0/16", own}}
		})
		for _, command := range [][]string{{"plan", "-f", file}, {"run", "-f", file, "--yes"}} {
			r := migrate(t, command...)
			assert.Equal(t, 3, r.code, "%s", r)
			for _, want := range []string{"network.overlap", "spec.network.clusterCIDR[1] " + own, "laptop.space", small, "host.space", "/var/lib/k3s-dualstack"} {
				assert.Contains(t, r.stdout+r.stderr, want)
			}
		}
		assert.Empty(t, l.on(t, "ls -A /var/lib/k3s-dualstack"), "nothing was written to the host")

		// A plan that was mended is looked at anew.
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(string(text), own, "fd42::/48")), 0o600))
		r := migrate(t, "run", "-f", file, "--yes")
		assert.Equal(t, 3, r.code, "%s", r)
		assert.NotContains(t, r.stderr, "network.overlap")
	})

	t.Run("plan changes nothing", func(t *testing.T) {
		l.on(t, "touch /run/e2e-mark; sleep 1.1")
		before := l.on(t, untouched)
		r := migrate(t, "plan", "-f", file)
		require.Zero(t, r.code, "%s", r)
		for _, want := range []string{"10.42.0.0/16,fd42::/48", "data/", "k3s-uninstall.sh", "Nothing was changed", "matrix/tuwunel-fixed", "raft storage, 3 of 5 keys", "team/apps/", "Hook stopped, after"} {
			assert.Contains(t, r.stdout, want)
		}
		r = migrate(t, "plan", "-f", file, "-o", "json")
		require.Zero(t, r.code, "%s", r)
		var p struct {
			Steps []struct {
				Name    string
				Actions []struct{ Name, Command string }
			}
		}
		require.NoError(t, json.Unmarshal([]byte(r.stdout), &p))
		assert.Greater(t, len(p.Steps), 10)
		assert.Equal(t, before, l.on(t, untouched))
		assert.NoDirExists(t, filepath.Join(filepath.Dir(file), "work"))
	})

	saved := filepath.Join(t.TempDir(), "saved")
	t.Run("a saved plan is run as it was, or not at all", func(t *testing.T) {
		r := migrate(t, "plan", "-f", file, "--out", saved)
		require.Zero(t, r.code, "%s", r)
		assert.Contains(t, r.stderr, "migrate run "+saved)
		l.kubectl(t, "create", "service", "clusterip", "late", "--tcp=80:80")
		r = migrate(t, "run", saved, "--yes")
		assert.Equal(t, 1, r.code, "%s", r)
		assert.Contains(t, r.stderr, "Service default/late is new: ClusterIP IPv4")
		assert.NoDirExists(t, filepath.Join(filepath.Dir(file), "work"), "nothing was written")
		l.kubectl(t, "delete", "service", "late")
	})

	t.Run("until the gate the cluster runs", func(t *testing.T) {
		r := migrate(t, "run", saved, "--until", "gate")
		require.Zero(t, r.code, "%s", r)
		assert.Equal(t, "active", l.on(t, "systemctl is-active k3s"))
		assert.Contains(t, migrate(t, "status", "-f", file).stdout, "protect")
	})

	t.Run("a run goes on with what it began with alone", func(t *testing.T) {
		before := l.on(t, "systemctl show -p InvocationID --value k3s")
		refused := func(wants ...string) {
			t.Helper()
			r := migrate(t, "run", "-f", file, "--yes")
			assert.Equal(t, 1, r.code, "%s", r)
			for _, want := range wants {
				assert.Contains(t, r.stderr, want)
			}
			assert.Equal(t, before, l.on(t, "systemctl show -p InvocationID --value k3s"), "K3s runs as before")
		}

		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var p object
		require.NoError(t, yaml.Unmarshal(text, &p))
		p["spec"].(object)["network"] = object{"serviceCIDR": []string{"10.43.0.0/16", "fd99::/108"}}
		other, err := yaml.Marshal(p)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, other, 0o600))
		refused("spec.network", "fd43::/108", "fd99::/108", "nothing was done")
		require.NoError(t, os.WriteFile(file, text, 0o600))

		volume := filepath.Join(t.TempDir(), "pv.yaml")
		require.NoError(t, os.WriteFile(volume, []byte(`{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":"late"},
"spec":{"capacity":{"storage":"1Mi"},"accessModes":["ReadWriteOnce"],"hostPath":{"path":"/srv/late"}}}`), 0o600))
		l.on(t, "mkdir /srv/late")
		l.kubectl(t, "create", "-f", volume)
		refused("volume late", "at /srv/late", "is new")
		l.kubectl(t, "delete", "pv", "late")
		l.on(t, "rmdir /srv/late")

		id := l.on(t, "cat /etc/machine-id")
		l.on(t, "echo 0123456789abcdef0123456789abcdef >/etc/machine-id")
		refused("machine-id", id, "0123456789abcdef0123456789abcdef")
		l.on(t, "echo "+id+" >/etc/machine-id")

		r := migrate(t, "run", "-f", file, "--until", "gate")
		assert.Zero(t, r.code, "all is as it was: %s", r)
	})

	t.Run("nobody at the gate declines", func(t *testing.T) {
		r := migrate(t, "run", saved)
		assert.Equal(t, 5, r.code, "%s", r)
		assert.Equal(t, "active", l.on(t, "systemctl is-active k3s"))
	})

	// As people outside reach them: the API's port, and the platform's web proxy.
	over4, over6 := "https://"+l.Host.IPv4+":6443/livez", "https://["+l.Host.IPv6+"]:6443/livez"
	web4, web6 := "http://"+l.Host.IPv4+"/", "http://["+l.Host.IPv6+"]/"
	outside := outages(t, over4, over6, web4, web6)

	t.Run("a failing platform command stops the run, and the next continues", func(t *testing.T) {
		run := exec.Command(bin("migrate"), "run", "-f", file, "--yes")
		var out strings.Builder
		run.Stdout, run.Stderr = &out, &out
		require.NoError(t, run.Start())
		time.Sleep(3 * time.Second)
		second := migrate(t, "run", "-f", file, "--yes")
		assert.Equal(t, 1, second.code, "%s", second)
		assert.Contains(t, second.stderr, fmt.Sprint(run.Process.Pid), "it names the holder")
		err := run.Wait()
		require.Error(t, err)
		require.Equal(t, 1, run.ProcessState.ExitCode(), out.String())
		assert.Contains(t, out.String(), "the platform is out of order")
		assert.Contains(t, out.String(), "To continue: migrate run")

		require.NoError(t, os.Remove(broken))
		r := migrate(t, "run", "-f", file, "--yes")
		require.Zero(t, r.code, "%s", r)
		assert.NotContains(t, r.stderr, "Uninstall K3s", "what is done is not done again")
		assert.Contains(t, r.stdout, "FIRST AWAY")
	})
	away := outside()
	if t.Failed() {
		t.FailNow()
	}

	t.Run("the cluster is dual-stack", func(t *testing.T) {
		nodes := l.kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.podCIDRs}{"\n"}{end}`)
		assert.Contains(t, nodes, "10.42.")
		assert.Contains(t, nodes, "fd42:")
		addresses := l.kubectl(t, "get", "nodes", "-o", `jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`)
		assert.Equal(t, l.Host.IPv4+" "+l.Host.IPv6, addresses)
		for _, pod := range pods(t, l) {
			if !pod.hostNetwork {
				assert.Len(t, pod.ips, 2, pod.name)
			}
		}
		assert.NotEqual(t, uid, l.kubectl(t, uidOf...), "it is another cluster")
	})

	t.Run("hooks ran once each, in order, where they belong", func(t *testing.T) {
		data, err := os.ReadFile(told)
		require.NoError(t, err)
		assert.Equal(t, "closing "+uid+"\nanswers "+l.kubectl(t, uidOf...)+"\n", string(data), "each saw the cluster of its time")
		host := l.on(t, "hostname")
		assert.Equal(t, "running "+host+" active\nstopped "+host+" inactive\nit's up "+host+" active", l.on(t, "cat /root/told"))
	})

	t.Run("Services have both families and answer", func(t *testing.T) {
		type service struct {
			Metadata struct{ Namespace, Name string }
			Spec     struct {
				Type       string
				ClusterIPs []string
				IPFamilies []string
				Selector   map[string]string
				Ports      []struct {
					Port     int
					Protocol string
				}
			}
		}
		var list struct{ Items []service }
		require.NoError(t, json.Unmarshal([]byte(l.kubectl(t, "get", "services", "-A", "-o", "json")), &list))
		eligible := 0
		for _, s := range list.Items {
			name := s.Metadata.Namespace + "/" + s.Metadata.Name
			switch {
			case name == "default/kubernetes", s.Spec.Type == "ExternalName", len(s.Spec.Selector) == 0:
				continue
			}
			eligible++
			assert.Equal(t, []string{"IPv4", "IPv6"}, s.Spec.IPFamilies, name)
			if s.Spec.ClusterIPs[0] == "None" {
				continue
			}
			if assert.Len(t, s.Spec.ClusterIPs, 2, name) && s.Metadata.Namespace != "kube-system" {
				for _, ip := range s.Spec.ClusterIPs {
					a := netip.MustParseAddr(ip)
					url := "http://" + netip.AddrPortFrom(a, uint16(s.Spec.Ports[0].Port)).String() + "/"
					l.on(t, inPod(t, l, "client")+" curl -sS -o /dev/null --max-time 5 "+url)
				}
			}
		}
		assert.Greater(t, eligible, 5)
	})

	t.Run("egress of both families leaves with the host's address", func(t *testing.T) {
		in := inPod(t, l, "client")
		assert.Contains(t, l.on(t, in+" curl -sS -4 --max-time 5 http://"+l.Internet.IPv4+"/"), l.Host.IPv4)
		assert.Contains(t, l.on(t, in+" curl -sS -6 -g --max-time 5 'http://["+l.Internet.IPv6+"]/'"), l.Host.IPv6)
	})

	t.Run("nothing was lost", func(t *testing.T) {
		assert.Equal(t, files, l.on(t, fingerprint), "volumes")
		sameSecrets(t, secrets, openBao(t, l).secrets(t))
		journal, err := os.ReadFile(journalOf(file).path)
		require.NoError(t, err)
		assert.Contains(t, string(journal), `"unsealed":["openbao/openbao-0"]`)
		assert.NotContains(t, string(journal), `"restored":`, "OpenBao came back out of its volume")
		assert.Equal(t, ca, l.on(t, identity), "identity")
		assert.Equal(t, tls, l.kubectl(t, "get", "secret", "-n", "ingress", "pingora-tls", "-o", "jsonpath={.type} {.data} {.metadata.annotations}"))
		assert.Equal(t, claims, l.kubectl(t, "get", "pvc", "-A", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.volumeName}{"\n"}{end}`))
		assert.Equal(t, volumes, l.kubectl(t, "get", "pv", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.persistentVolumeReclaimPolicy}{"\n"}{end}`))
		after := heartbeats(t, l)
		assert.True(t, strings.HasPrefix(after, beats), "the store's log goes on where it ended")
		assert.Greater(t, len(after), len(beats))
	})

	t.Run("verify after is content, and status says so", func(t *testing.T) {
		r := migrate(t, "verify", "-f", file)
		assert.Zero(t, r.code, "%s", r)
		assert.Contains(t, r.stdout, "is dual-stack")
		r = migrate(t, "status", "-f", file, "-o", "json")
		var state struct {
			Finished     bool
			Availability []availability
		}
		require.NoError(t, json.Unmarshal([]byte(r.stdout), &state))
		assert.True(t, state.Finished)
		sameOutage(t, state.Availability, "API", "IPv4", away[over4])
		sameOutage(t, state.Availability, "API", "IPv6", away[over6])
		sameOutage(t, state.Availability, web4, "IPv4", away[web4])
		sameOutage(t, state.Availability, web6, "IPv6", away[web6])
		r = migrate(t, "run", "-f", file, "--yes")
		assert.Zero(t, r.code, "a finished run has nothing to do: %s", r)
	})

	t.Run("the report tells of it", func(t *testing.T) {
		html, markdown := reported(t, l, file)
		reportedSums(t, file, html)
		addresses := l.kubectl(t, "get", "services", "-n", "media", "-o", `jsonpath={range .items[*]}{.spec.clusterIPs[1]} {end}`)
		for _, want := range append(strings.Fields(addresses), "is dual-stack.", l.Host.IPv4+", "+l.Host.IPv6, "fd42:", "✕ failed", "--to protect", "raft-snapshot") {
			assert.True(t, strings.Contains(html, want), want)
			assert.True(t, strings.Contains(markdown, want), want)
		}
		assert.NotContains(t, markdown, "\nthe platform is out of order", "what commands print is theirs")
	})

	t.Run("no secret lies in the clear on the laptop", func(t *testing.T) {
		token := l.on(t, "cat /var/lib/rancher/k3s/server/token")
		secret := token[strings.LastIndex(token, ":")+1:]
		require.NotEmpty(t, secret)
		work := filepath.Join(filepath.Dir(file), "work")
		require.NoError(t, filepath.WalkDir(work, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if d.IsDir() {
				assert.Zero(t, info.Mode().Perm()&0o077, path)
				return nil
			}
			assert.Zero(t, info.Mode().Perm()&0o077, path)
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			assert.NotContains(t, string(data), secret, path)
			assert.NotContains(t, string(data), "PRIVATE KEY", path)
			return nil
		}))
	})

	t.Run("it holds over a reboot", func(t *testing.T) {
		execute(t, nil, "docker", "restart", l.Container)
		require.Eventually(t, func() bool {
			r := execute(t, []string{"KUBECONFIG=" + l.Kubeconfig}, l.Kubectl, "get", "nodes", "--no-headers")
			return r.code == 0 && strings.Contains(r.stdout, " Ready ")
		}, 3*time.Minute, time.Second)
		assert.Equal(t, "1", l.on(t, "sysctl -n net.ipv6.conf.all.forwarding"))
		assert.Equal(t, "2", l.on(t, "sysctl -n net.ipv6.conf.$(ip -6 route show default | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p' | head -1).accept_ra"))
	})
}

// heartbeats is what the store has written, a line a second.
func heartbeats(t testing.TB, l *lab) string {
	return l.on(t, "cat /var/lib/rancher/k3s/storage/*/heartbeat.log")
}

type pod struct {
	namespace, name, uid string
	hostNetwork          bool
	ips                  []string
}

func pods(t testing.TB, l *lab) []pod {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Namespace, Name, UID string }
			Spec     struct{ HostNetwork bool }
			Status   struct {
				Phase  string
				PodIPs []struct{ IP string }
			}
		}
	}
	require.NoError(t, json.Unmarshal([]byte(l.kubectl(t, "get", "pods", "-A", "-o", "json")), &list))
	var out []pod
	for _, p := range list.Items {
		if p.Status.Phase != "Running" {
			continue
		}
		x := pod{namespace: p.Metadata.Namespace, name: p.Metadata.Name, uid: p.Metadata.UID, hostNetwork: p.Spec.HostNetwork}
		for _, ip := range p.Status.PodIPs {
			x.ips = append(x.ips, ip.IP)
		}
		out = append(out, x)
	}
	require.NotEmpty(t, out)
	return out
}

// inPod is the beginning of a command line that runs in the network namespace
// of the first pod whose name starts so.
func inPod(t testing.TB, l *lab, name string) string {
	t.Helper()
	for _, p := range pods(t, l) {
		if strings.HasPrefix(p.name, name) && !p.hostNetwork {
			pid := l.on(t, fmt.Sprintf("grep -lE '%s|%s' /proc/[0-9]*/cgroup | head -1 | cut -d/ -f3", p.uid, strings.ReplaceAll(p.uid, "-", "_")))
			require.NotEmpty(t, pid, p.name)
			return "nsenter -t " + pid + " -n"
		}
	}
	t.Fatalf("no running pod named %s…", name)
	return ""
}
