//go:build e2e

package e2e

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// initArgs are what a person gives to init for a lab: how it is reached, and what the lab
// cannot know of the world.
func initArgs(l *lab, file string) []string {
	args := []string{"init", "--host", l.User + "@" + l.Address, "--port", fmt.Sprint(l.Port), "--identity-file", l.IdentityFile,
		"--known-hosts", l.KnownHosts, "--ssh-config", "none", "-o", file, "--force"}
	if l.InstallScript != "" {
		args = append(args, "--install-script", l.InstallScript)
	}
	for _, u := range l.Internet.URLs {
		args = append(args, "--egress-url", u)
	}
	if l.OpenBao.Token != "" {
		args = append(args, "--openbao-token-file", l.OpenBao.Token, "--openbao-unseal-keys-file", l.OpenBao.Keys)
	}
	return args
}

// proposed runs init and returns the plan's file and its text.
func proposed(t testing.TB, l *lab) (file, plan string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "plan.yaml")
	r := migrate(t, initArgs(l, file)...)
	require.Zero(t, r.code, "%s", r)
	assert.Contains(t, r.stdout, "To fill in")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	return file, string(text)
}

// fillIn gives the plan its platform command and nothing else.
func fillIn(t testing.TB, l *lab, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(text), "command: []  # FILL IN"), "%s", text)
	require.Equal(t, 1, strings.Count(string(text), "FILL IN: "), "nothing else is left: %s", text)
	command := []string{"env"}
	for k, v := range l.PlatformEnvironment {
		command = append(command, k+"="+v)
	}
	filled := strings.Replace(string(text), "command: []", "command: ['"+strings.Join(append(command, l.Platform...), "', '")+"']", 1)
	require.NoError(t, os.WriteFile(file, []byte(filled), 0o600))
}

// files of the admin, by their name below /etc/rancher/k3s.
func adminFiles(t testing.TB, config string, drops map[string]string) []string {
	t.Helper()
	dir := t.TempDir()
	var args []string
	if config != "" {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(config), 0o600))
		args = append(args, "--config", filepath.Join(dir, "config.yaml"))
	}
	if len(drops) > 0 {
		require.NoError(t, os.Mkdir(filepath.Join(dir, "config.yaml.d"), 0o700))
		args = append(args, "--config-dir", filepath.Join(dir, "config.yaml.d"))
	}
	for name, text := range drops {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "config.yaml.d", name), []byte(text), 0o600))
	}
	return args
}

// script is a file with it.
func script(t testing.TB, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "prepare.sh")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

// disk is shell that makes a file system of its own, for fstab or unit to mount at a path.
func disk(at string) string {
	return "set -e\ntruncate -s 3G /srv/disk.img\nmkfs.ext4 -q /srv/disk.img\nmkdir -p " + at + "\n"
}

const mount = "systemctl daemon-reload\nsystemctl start \"$(systemd-escape --path --suffix=mount %[1]s)\"\nmountpoint %[1]s\n"

// fstab has it mounted by an entry of /etc/fstab.
func fstab(at string) string {
	return fmt.Sprintf("echo /srv/disk.img %[1]s ext4 loop,nofail 0 2 >>/etc/fstab\n"+mount, at)
}

// unit has it mounted by a unit of systemd's.
func unit(at string) string {
	return fmt.Sprintf(`name=$(systemd-escape --path --suffix=mount %[1]s)
printf '[Mount]\nWhat=/srv/disk.img\nWhere=%[1]s\nType=ext4\nOptions=loop\n[Install]\nWantedBy=local-fs.target\n' >/etc/systemd/system/"$name"
systemctl enable -q "$name"
`+mount, at)
}

// extraFiles are what an admin lays down beside the configuration.
const extraFiles = `set -e
mkdir -p /var/lib/rancher/k3s/server/manifests
chmod 0700 /var/lib/rancher/k3s/server
cat >/etc/rancher/k3s/audit.yaml <<'E'
apiVersion: audit.k8s.io/v1
kind: Policy
rules: [{level: None}]
E
cat >/var/lib/rancher/k3s/server/psa.yaml <<'E'
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {enforce: privileged, enforce-version: latest}
    exemptions: {namespaces: [kube-system]}
E
chmod 0600 /var/lib/rancher/k3s/server/psa.yaml
cat >/var/lib/rancher/k3s/server/manifests/ours.yaml <<'E'
apiVersion: v1
kind: ConfigMap
metadata: {name: ours, namespace: default}
data: {kept: "yes"}
E
touch /var/lib/rancher/k3s/server/manifests/metrics-server.yaml.skip
echo '  unused.example: {endpoint: ["https://mirror.example"]}' >>/etc/rancher/k3s/registries.yaml
echo K3S_KUBECONFIG_MODE=0640 >/etc/default/k3s
`

// From a host that nobody has described, however it was installed, to a verified
// migration; nothing is written by hand but the platform's command.
func TestInit(t *testing.T) {
	t.Parallel()
	for _, way := range []struct {
		name    string
		args    []string
		config  string
		drops   map[string]string
		prepare string // the host, before the install
		data    string // data directory, where it is another than K3s's own
		// slow is one that -short leaves out.
		slow bool
		// same is shell whose output the migration does not change.
		same string
		// says are lines of the plan, blanks squeezed.
		says []string
	}{
		{
			name: "flags",
			slow: true,
			args: []string{"--install-args", "--cluster-cidr=10.52.0.0/16 --service-cidr 10.43.0.0/17 --write-kubeconfig-mode=0640 --cluster-dns=10.43.0.53"},
			says: []string{"- '10.52.0.0/16' # --cluster-cidr in /etc/systemd/system/k3s.service", "- '10.43.0.0/17' # --service-cidr in /etc/systemd/system/k3s.service", "- '10.43.0.53'", ":ffff::35'",
				"# write-kubeconfig-mode 0640 --write-kubeconfig-mode in /etc/systemd/system/k3s.service"},
		},
		{
			name:   "files",
			slow:   true,
			config: "# ours\nwrite-kubeconfig-mode: \"0640\"\ntls-san: [first.example]\n",
			drops: map[string]string{"10-names.yaml": "tls-san+:\n  - second.example\nservice-cidr: 10.43.64.0/18\n",
				"20-audit.yaml": "kube-apiserver-arg:\n  - audit-policy-file=/etc/rancher/k3s/config.yaml.d/audit.policy\n",
				"audit.policy":  "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None}]\n"},
			says: []string{"- '10.43.64.0/18' # /etc/rancher/k3s/config.yaml.d/10-names.yaml",
				"# tls-san first.example,second.example /etc/rancher/k3s/config.yaml.d/10-names.yaml", "# write-kubeconfig-mode 0640 /etc/rancher/k3s/config.yaml",
				"# /etc/rancher/k3s/config.yaml.d/audit.policy kube-apiserver-arg audit-policy-file kept and put back"},
		},
		{
			name: "environment",
			slow: true,
			args: []string{"--env", `K3S_TOKEN=it's "$ecret" `, "--env", "K3S_KUBECONFIG_MODE=0640", "--env", "K3S_NODE_NAME=sun"},
			says: []string{"- name: sun", "# token (secret) /etc/systemd/system/k3s.service.env", "# write-kubeconfig-mode 0640 /etc/systemd/system/k3s.service.env"},
		},
		{
			name:   "data-dir",
			slow:   true,
			config: "data-dir: /srv/k3s\n",
			data:   "/srv/k3s",
			says:   []string{"# data directory /srv/k3s (/etc/rancher/k3s/config.yaml)"},
			same:   "ls -A /var/lib/rancher",
		},
		{
			name:    "data-dir-disk", // the data directory is a file system of its own
			args:    []string{"--install-args", "--data-dir=/srv/disk"},
			prepare: disk("/srv/disk") + unit("/srv/disk"),
			data:    "/srv/disk",
			says:    []string{"# data directory /srv/disk (--data-dir in /etc/systemd/system/k3s.service)"},
			same:    "findmnt -n -o TARGET,UUID,FSTYPE -M /srv/disk; ls -A /var/lib/rancher",
		},
		{
			name:    "storage-disk", // the volumes are on a file system of their own
			prepare: disk(storage) + fstab(storage),
			// Nothing was brought back but what had never gone.
			same: "findmnt -n -o TARGET,UUID,FSTYPE -M " + storage + "; ls -di " + small + " " + large,
		},
		{
			name: "dns-and-extra-files",
			config: `cluster-dns: 10.43.0.53
kube-apiserver-arg:
  - audit-policy-file=/etc/rancher/k3s/audit.yaml
  - admission-control-config-file=/var/lib/rancher/k3s/server/psa.yaml
`,
			prepare: extraFiles,
			says: []string{"- '10.43.0.53'", ":ffff::35'", "/etc/rancher/k3s/audit.yaml kube-apiserver-arg audit-policy-file kept and put back",
				"/var/lib/rancher/k3s/server/psa.yaml kube-apiserver-arg admission-control-config-file kept and put back"},
			same: `set -e
cd /var/lib/rancher/k3s/server
sha256sum psa.yaml manifests/ours.yaml manifests/metrics-server.yaml.skip /etc/rancher/k3s/audit.yaml /etc/rancher/k3s/registries.yaml /etc/default/k3s
stat -c '%a %n' psa.yaml manifests/ours.yaml /etc/rancher/k3s/registries.yaml /etc/rancher/k3s/k3s.yaml
k3s kubectl get configmap -n default ours -o jsonpath='{.data}'
k3s kubectl get service -n kube-system kube-dns -o jsonpath='{.spec.clusterIP}'`,
		},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			if way.slow && testing.Short() {
				t.Skip("left out by -short: make e2e-full migrates such a host")
			}
			args := append(append([]string{"--store-mib", "1"}, adminFiles(t, way.config, way.drops)...), way.args...)
			if way.prepare != "" {
				args = append(args, "--prepare", script(t, way.prepare))
			}
			l := up(t, "e2e-init-"+way.name, args...)
			there := func(script string) string {
				return l.on(t, strings.Replace(script, "cd /var/lib/rancher/k3s/", "cd "+cmp.Or(way.data, "/var/lib/rancher/k3s")+"/", 1))
			}
			same := l.on(t, way.same)
			file, plan := proposed(t, l)
			squeezed := strings.Join(strings.Fields(plan), " ")
			for _, want := range append(way.says, "service: openbao", "- sunbeam.lab # certificate ingress/pingora-tls", "# data/small-store-0 local", "# "+l.Host.IPv6+"/64 eth0 static") {
				assert.Contains(t, squeezed, want)
			}
			assert.NotContains(t, plan, "$ecret")
			unfilled := migrate(t, "plan", "-f", file)
			assert.Equal(t, 2, unfilled.code)
			assert.Contains(t, unfilled.stderr, "missing platform command")
			fillIn(t, l, file)
			if t.Failed() {
				t.FailNow()
			}

			files, ca := there(fingerprint), there(identity)
			r := migrate(t, "plan", "-f", file)
			require.Zero(t, r.code, "%s", r)
			r = migrate(t, "run", "-f", file, "--yes")
			require.Zero(t, r.code, "%s", r)
			assert.Equal(t, files, there(fingerprint), "volumes")
			assert.Equal(t, ca, there(identity), "identity")
			assert.Equal(t, same, l.on(t, way.same), "what was to stay as it was")
			r = migrate(t, "verify", "-f", file)
			assert.Zero(t, r.code, "%s", r)
		})
	}
}

// inhabitants are a Helm release, an Ingress and a definition of Argo CD's objects.
const inhabitants = `
apiVersion: v1
kind: Secret
type: helm.sh/release.v1
metadata: {name: sh.helm.release.v1.db.v1, namespace: data, labels: {owner: helm, status: deployed, name: db, version: "1"}}
stringData: {release: unlisted}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: data}
spec:
  rules:
  - {host: sunbeam.lab, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: store, port: {number: 80}}}}]}}
  - {host: nowhere.lab, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: store, port: {number: 80}}}}]}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: applications.argoproj.io}
spec:
  group: argoproj.io
  scope: Namespaced
  names: {plural: applications, singular: application, kind: Application}
  versions:
  - {name: v1alpha1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
`

const brokenAPIs = `
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec: {group: metrics.k8s.io, version: v1beta1, groupPriorityMinimum: 100, versionPriority: 100, insecureSkipTLSVerify: true, service: {name: nobody, namespace: default}}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.cert-manager.io}
spec: {group: cert-manager.io, version: v1, groupPriorityMinimum: 100, versionPriority: 100, insecureSkipTLSVerify: true, service: {name: nobody, namespace: default}}
`

// A host of which something cannot be found out gets a plan that says so; one that a
// plan would be wrong for gets none.
func TestInitSaysWhatItCannotFindOut(t *testing.T) {
	l := up(t, "e2e-init-gaps", "--store-mib", "1")
	dir := t.TempDir()
	file := filepath.Join(dir, "plan.yaml")

	t.Run("who put the workloads there", func(t *testing.T) {
		objects := filepath.Join(dir, "objects.yaml")
		require.NoError(t, os.WriteFile(objects, []byte(inhabitants), 0o600))
		l.kubectl(t, "apply", "-f", objects)
		l.kubectl(t, "wait", "--for=condition=Established", "crd/applications.argoproj.io")
		application := filepath.Join(dir, "application.yaml")
		require.NoError(t, os.WriteFile(application, []byte("{apiVersion: argoproj.io/v1alpha1, kind: Application, metadata: {name: shop, namespace: data}}"), 0o600))
		l.kubectl(t, "apply", "-f", application)
		_, plan := proposed(t, l)
		squeezed := strings.Join(strings.Fields(plan), " ")
		for _, want := range []string{"# Helm releases data/db", "# Argo CD: Applications data/shop", "- sunbeam.lab # Ingress data/web, certificate ingress/pingora-tls",
			"# nowhere.lab no address Ingress data/web"} {
			assert.Contains(t, squeezed, want)
		}
		assert.NotContains(t, plan, "unlisted", "what a release holds")
		assert.NotContains(t, plan, "Not found out")
	})

	gap := func(name, break_, mend string, wants ...string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			l.on(t, break_)
			defer l.on(t, mend)
			r := migrate(t, initArgs(l, file)...)
			require.Zero(t, r.code, "%s", r)
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			all := strings.Join(strings.Fields(r.stdout+string(text)), " ")
			for _, want := range wants {
				assert.Contains(t, all, want)
			}
		})
	}
	// APIs of others that nobody serves: one that a plan has no use for, and cert-manager's.
	broken := filepath.Join(dir, "broken.yaml")
	require.NoError(t, os.WriteFile(broken, []byte(brokenAPIs), 0o600))
	t.Run("half of the cluster is dead", func(t *testing.T) {
		l.kubectl(t, "apply", "-f", broken)
		l.kubectl(t, "wait", "--for=condition=Available=False", "--timeout=30s", "apiservice/v1.cert-manager.io")
		defer l.kubectl(t, "delete", "-f", broken)
		_, plan := proposed(t, l)
		squeezed := strings.Join(strings.Fields(plan), " ")
		for _, want := range []string{"- TLS secrets: listing cert-manager's issuers", "- certificates of cert-manager: ", "FILL IN: TLS secrets were not found out",
			"# data/small-store-0 local", "Services that become dual-stack", "service: openbao", "FILL IN: not all host names were found out", "- sunbeam.lab # Ingress data/web"} {
			assert.Contains(t, squeezed, want)
		}
		assert.NotContains(t, plan, "metrics.k8s.io")
		r := migrate(t, "check", "-f", l.plan(t, nil))
		assert.Equal(t, 1, r.code, "a run wants all of it: %s", r)
		assert.Contains(t, r.stderr, "cert-manager")
	})
	gap("the kubeconfig is missing", "mv /etc/rancher/k3s/k3s.yaml /root/away", "mv /root/away /etc/rancher/k3s/k3s.yaml",
		"Not found out", "its kubeconfig /etc/rancher/k3s/k3s.yaml is missing", "volumes were not found out", "fd30:")
	const server = "ss -ltnpH sport = :6443 | grep -o 'pid=[0-9]*' | cut -d= -f2 | sort -u"
	gap("the API does not answer", "kill -STOP $("+server+")", "kill -CONT $("+server+")",
		"Not found out", "the API server")
	gap("the host has no IPv6", "ip -6 route show default >/root/route; ip -6 route del default", "ip -6 route add $(cat /root/route)",
		"no lasting address with a default route", "FILL IN: no lasting IPv6 address", "To fill in")
	gap("DNS does not answer", "cp /etc/resolv.conf /root/resolv; echo nameserver 192.0.2.1 >/etc/resolv.conf", "cat /root/resolv >/etc/resolv.conf",
		"Not found out", "whether the host names resolve", "/etc/resolv.conf", "sunbeam.lab")
	gap("K3s does not run", "systemctl stop k3s", "systemctl start k3s",
		"Not found out", "K3s is installed and not running", "systemctl start k3s")
	require.NoError(t, os.Remove(file))

	refused := func(name string, l *lab, wants ...string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			r := migrate(t, initArgs(l, file)...)
			assert.Equal(t, 1, r.code, "%s", r)
			for _, want := range wants {
				assert.Contains(t, r.stderr, want)
			}
			assert.Empty(t, r.stdout)
			assert.NoFileExists(t, file)
		})
	}
	l.on(t, "echo 'a: [' >/etc/rancher/k3s/config.yaml")
	refused("a configuration that does not parse", l, "/etc/rancher/k3s/config.yaml")
	unknown := *l
	unknown.KnownHosts = filepath.Join(dir, "known_hosts")
	require.NoError(t, os.WriteFile(unknown.KnownHosts, nil, 0o600))
	refused("a host key that is not known", &unknown, "is not known", "ssh-keyscan -p")
	refused("no K3s", up(t, "e2e-init-bare", "--no-k3s", "--user", "admin"), "K3s is not installed there")
	refused("an agent", up(t, "e2e-init-agent", "--agent", "--platform", "none"), "is a K3s agent", "--host")
	refused("sudo asks for a password", up(t, "e2e-init-sudo", "--no-k3s", "--user", "admin", "--sudo=false"), "cannot run commands as root", "NOPASSWD")
}
