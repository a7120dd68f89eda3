//go:build e2e

package e2e

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// found runs `migrate check` and returns the exit status, and what is said under each ID.
func found(t *testing.T, file string, more ...string) (code int, details map[string]string) {
	t.Helper()
	return read(t, migrate(t, append([]string{"check", "-f", file, "-o", "json"}, more...)...))
}

// read reads what `migrate check -o json` said.
func read(t *testing.T, r result) (code int, details map[string]string) {
	t.Helper()
	var report struct {
		Inhibited bool
		Findings  []struct{ ID, Severity, Detail, Why, Source, Remedy, Waived string }
	}
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &report), "%s", r)
	assert.Equal(t, r.code == 3, report.Inhibited, "%s", r)
	details = map[string]string{}
	for _, f := range report.Findings {
		details[f.ID] += f.Detail + "\n"
		assert.NotEmpty(t, f.Why, f.ID)
		assert.NotEmpty(t, f.Source, f.ID)
		assert.NotEmpty(t, f.Remedy, f.ID)
	}
	return r.code, details
}

// Real faults, planted on one host: each alone, then many together; none is found before, and
// each while it is there.
func TestCheck(t *testing.T) {
	t.Parallel()
	l := up(t, "e2e-check", "--store-mib", "1")

	code, details := found(t, l.plan(t, nil))
	assert.Zero(t, code)
	// The lab's OpenBao has a Kubernetes auth method, of which it says too little, and
	// its names are known to host and pods alone.
	delete(details, "openbao.kubernetes")
	delete(details, "dns.name")
	assert.Empty(t, details, "the host as it was made")

	t.Run("one by one", func(t *testing.T) { plantOneByOne(t, l) })
	t.Run("names", func(t *testing.T) { askNames(t, l) })
	t.Run("drift", func(t *testing.T) { followDrift(t, l) })
	t.Run("together", func(t *testing.T) { plantTogether(t, l) })
}

// together are planted at once, and what is said of each.
var together = map[string]string{
	"host.mounts":          "/var/lib/kubelet/share is a mount point (devpts",
	"volumes.stray":        "/storage/disk lies in",
	"k3s.envfiles":         "/etc/default/k3s sets K3S_NODE_NAME\n",
	"host.ipv6off":         "disable_ipv6 is 1",
	"host.firewall":        "inet mine forward",
	"network.overlap":      "route to fd42:0:0:7::/64 via eth0",
	"k3s.units":            "k3s-old.service",
	"cluster.nodes":        "the cluster has 2 nodes",
	"volumes.missing":      "/srv/no-such-directory is not there",
	"volumes.reclaim":      "nas (nfs)",
	"volumes.released":     "faults/gone (released) is Released",
	"volumes.kind":         "driver.longhorn.io",
	"claims.unbound":       "faults/waits is Pending",
	"services.owner":       "faults/chart",
	"workloads.jobs":       "faults/long",
	"workloads.pods":       "faults/never: Pending",
	"workloads.images":     "no-such/image:1 of pod faults/never",
	"workloads.hostpath":   "/var/lib/rancher/k3s/mine",
	"certificates.ready":   "faults/web is not Ready",
	"certificates.renewal": "faults/old is renewed at 2020-01-01",
	"certificates.limit":   "faults/old was requested 4 times",
}

func plantTogether(t *testing.T, l *lab) {
	file := l.plan(t, nil)
	manifest := filepath.Join(t.TempDir(), "faults.yaml")
	require.NoError(t, os.WriteFile(manifest, []byte(faults), 0o600))
	r := execute(t, []string{"KUBECONFIG=" + l.Kubeconfig}, l.Kubectl, "apply", "-f", manifest)
	require.Zero(t, r.code, "%s", r)
	l.kubectl(t, "wait", "--for=condition=Established", "--timeout=60s", "crd/certificates.cert-manager.io")
	l.kubectl(t, "wait", "--for=condition=Established", "--timeout=60s", "crd/certificaterequests.cert-manager.io")
	text := certificate
	for _, n := range []string{"1", "2", "3", "4"} {
		text += strings.ReplaceAll(request, "N", n)
	}
	require.NoError(t, os.WriteFile(manifest, []byte(text), 0o600))
	r = execute(t, []string{"KUBECONFIG=" + l.Kubeconfig}, l.Kubectl, "apply", "-f", manifest)
	require.Zero(t, r.code, "%s", r)
	l.on(t, `set -e
mkdir -p /var/lib/kubelet/share /var/lib/rancher/k3s/storage/disk
mount -t devpts devpts /var/lib/kubelet/share
mount --bind /srv /var/lib/rancher/k3s/storage/disk
printf 'K3S_NODE_NAME=%s\nUNRELATED=1\n' "$(hostname)" >/etc/default/k3s
sysctl -q -w net.ipv6.conf.default.disable_ipv6=1
nft add table inet mine
nft 'add chain inet mine forward { type filter hook forward priority 0; policy drop; }'
nft add rule inet mine forward ct state established,related accept
nft add rule inet mine forward ip saddr 10.42.0.0/16 accept
nft add rule inet mine forward ip daddr 10.42.0.0/16 accept
ip -6 route add fd42:0:0:7::/64 dev eth0 table 51820
touch /etc/systemd/system/k3s-old.service`)

	// The job's pod takes a moment.
	var code int
	var details map[string]string
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Second) {
		code, details = found(t, file)
		if details["workloads.jobs"] != "" && strings.Contains(details["workloads.images"], "no-such") && strings.Contains(details["workloads.hostpath"], "mine") || time.Now().After(deadline) {
			break
		}
	}
	assert.Equal(t, 3, code)
	for id, part := range together {
		assert.Contains(t, details[id], part, id)
	}
	assert.Contains(t, details["host.mounts"], "/var/lib/rancher/k3s/storage/disk")
	others(t, details, append(slices.Collect(maps.Keys(together)), "node.ready")) // the second is none

	// What would lose data is not waived; the rest is, and the run says so.
	r = migrate(t, "check", "-f", file, "--waive", "host.mounts=why not")
	assert.Equal(t, 2, r.code, "%s", r)
	assert.Contains(t, r.stderr, "host.mounts cannot be waived: the run would lose data")
	l.on(t, `set -e
umount /var/lib/kubelet/share /var/lib/rancher/k3s/storage/disk
rmdir /var/lib/rancher/k3s/storage/disk
rm /etc/systemd/system/k3s-old.service
sysctl -q -w net.ipv6.conf.default.disable_ipv6=0`)
	l.kubectl(t, "delete", "pv", "missing", "longhorn")
	l.kubectl(t, "delete", "node", "second")
	waive := []string{
		"--waive", "host.firewall=it goes away", "--waive", "network.overlap=nobody is there",
		"--waive", "workloads.images=a test's", "--waive", "workloads.hostpath=empty",
	}
	code, details = found(t, file, waive...)
	assert.Zero(t, code, "%v", details)
	// Every line of the screen fits.
	r = migrate(t, slices.Concat([]string{"check", "-f", file}, waive)...)
	assert.Zero(t, r.code, "%s", r)
	for line := range strings.Lines(r.stdout) {
		if len(strings.Fields(line)) > 2 {
			assert.LessOrEqual(t, len([]rune(strings.TrimSuffix(line, "\n"))), 80, line)
		}
	}
	r = migrate(t, "run", "-f", file, "--until", "preflight")
	assert.Equal(t, 3, r.code, "%s", r)
	r = migrate(t, slices.Concat([]string{"run", "-f", file, "--until", "preflight"}, waive)...)
	assert.Zero(t, r.code, "%s", r)
	r = migrate(t, "status", "-f", file)
	assert.Contains(t, r.stdout, "Waived: host.firewall (it goes away)")
}

const faults = `
apiVersion: v1
kind: Namespace
metadata: {name: faults}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: missing}
spec: {capacity: {storage: 1Mi}, accessModes: [ReadWriteOnce], storageClassName: none, hostPath: {path: /srv/no-such-directory}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: nas}
spec: {capacity: {storage: 1Mi}, accessModes: [ReadWriteOnce], storageClassName: none, persistentVolumeReclaimPolicy: Delete, nfs: {server: nas.example, path: /x}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: longhorn}
spec: {capacity: {storage: 1Mi}, accessModes: [ReadWriteOnce], storageClassName: none, csi: {driver: driver.longhorn.io, volumeHandle: x}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: released}
spec: {capacity: {storage: 1Mi}, accessModes: [ReadWriteOnce], storageClassName: none, nfs: {server: nas.example, path: /y}, claimRef: {namespace: faults, name: gone, uid: of-old}}
---
apiVersion: v1
kind: Node
metadata: {name: second}
---
apiVersion: v1
kind: Service
metadata: {name: chart, namespace: faults, annotations: {meta.helm.sh/release-name: shop, meta.helm.sh/release-namespace: faults}, labels: {app.kubernetes.io/managed-by: Helm}}
spec: {ports: [{port: 80}], selector: {app: shop}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: waits, namespace: faults}
spec: {accessModes: [ReadWriteOnce], storageClassName: no-such-class, resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: never, namespace: faults}
spec: {containers: [{name: c, image: "no-such/image:1", imagePullPolicy: Never}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: long, namespace: faults}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: "registry.lab/sunbeam/app:1", args: [web, --name=long, "--listen=:3000"], volumeMounts: [{name: mine, mountPath: /mine}]}]
      volumes: [{name: mine, hostPath: {path: /var/lib/rancher/k3s/mine, type: DirectoryOrCreate}}]
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: certificates.cert-manager.io}
spec:
  group: cert-manager.io
  scope: Namespaced
  names: {kind: Certificate, listKind: CertificateList, plural: certificates, singular: certificate}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: certificaterequests.cert-manager.io}
spec:
  group: cert-manager.io
  scope: Namespaced
  names: {kind: CertificateRequest, listKind: CertificateRequestList, plural: certificaterequests, singular: certificaterequest}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

const certificate = `
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: web, namespace: faults}
status: {conditions: [{type: Ready, status: "False"}]}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: old, namespace: faults}
status: {renewalTime: "2020-01-01T00:00:00Z", conditions: [{type: Ready, status: "True"}]}
`

const request = `---
apiVersion: cert-manager.io/v1
kind: CertificateRequest
metadata: {name: old-N, namespace: faults, annotations: {cert-manager.io/certificate-name: old}}
`
