package survey

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sunbeam.pt/k3s-dualstack/k3s"
)

// Each file is what the readings print on one host.
func TestParseReadings(t *testing.T) {
	for dir, parse := range map[string]func(string) any{
		"disk":     func(out string) any { return parseDisk(out, "/var/lib/rancher/k3s") },
		"firewall": func(out string) any { return parseFirewall(out) },
	} {
		files, err := filepath.Glob("testdata/" + dir + "/*.txt")
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(parse(string(data)), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(name, ".txt")+".golden", string(got)+"\n")
		}
	}
}

func TestReadingsAreShell(t *testing.T) {
	for _, script := range []string{diskReadings, firewallReadings} {
		if out, err := exec.Command("sh", "-n", "-c", strings.ReplaceAll(script, "%", "")).CombinedOutput(); err != nil {
			t.Errorf("%s: %v", out, err)
		}
	}
}

func TestMountsOfOthers(t *testing.T) {
	mount := func(p, kind string) string { return "mount=src " + p + " " + kind + " rw 0 0\n" }
	for _, tc := range []struct {
		name, out string
		want      []string
	}{
		{"nothing", "", nil},
		{"beside", mount("/var/lib/rancher", "ext4") + mount("/var/lib/rancher/k3s-data", "ext4") + mount("/var/lib/kubelet2", "nfs"), nil},
		{"the data directory", mount("/var/lib/rancher/k3s", "ext4"), []string{"/var/lib/rancher/k3s"}},
		{"of pods", mount("/var/lib/kubelet/pods/1/volumes/kubernetes.io~nfs/x", "nfs4") + mount("/var/lib/kubelet/plugins/csi/globalmount", "ext4"), nil},
		{"of containers", mount("/var/lib/rancher/k3s/agent/x", "overlay") + mount("/var/lib/kubelet/x", "tmpfs"), nil},
		{"white space", mount(`/var/lib/rancher/k3s/storage/my\040disk`, "ext4"), []string{"/var/lib/rancher/k3s/storage/my disk"}},
		{"where it leads", "leads=/srv/kubelet\nleads=/srv/k3s\n" + mount("/srv/k3s/storage", "xfs") + mount("/srv/kubelet/pods/1/x", "nfs"), []string{"/srv/k3s/storage"}},
		{"no mount", "mount=\nmount=x\nmount=x y\n", nil},
	} {
		var got []string
		for _, m := range parseDisk(tc.out, "/var/lib/rancher/k3s").Mounts {
			got = append(got, m.Path)
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s: %s", tc.name, d)
		}
	}
}

func TestParseFirewallsThatAreNotThere(t *testing.T) {
	for _, out := range []string{"", "ufw=Status: inactive\n", "line=type filter hook forward priority filter; policy drop;\n"} {
		if d := cmp.Diff(Firewall{}, parseFirewall(out)); d != "" {
			t.Errorf("%q: %s", out, d)
		}
	}
	want := Firewall{UFW: []string{"Status: active", "", "22/tcp ALLOW Anywhere"}, Firewalld: true, Trusted: []string{"10.42.0.0/16"}}
	got := parseFirewall("ufw=Status: active\nufw=\nufw=22/tcp                     ALLOW       Anywhere\nfirewalld=\ntrusted=10.42.0.0/16\n")
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func FuzzParseReadings(f *testing.F) {
	f.Add("leads=/srv\nmount=a /srv/b c\nvariable=/etc/default/k3s X\nchain=inet a b\nline=type x policy drop\nline=accept\nufw=Status: active")
	f.Fuzz(func(t *testing.T, out string) {
		data, err := json.Marshal(Host{Disk: parseDisk(out, "/d"), Firewall: parseFirewall(out)})
		if err != nil {
			t.Fatal(err)
		}
		var again Host
		if err := json.Unmarshal(data, &again); err != nil {
			t.Fatal(err)
		}
	})
}

func TestNamedFiles(t *testing.T) {
	in := &k3s.Installation{Settings: map[string]k3s.Setting{
		"kube-apiserver-arg": {Values: []string{"audit-policy-file=/etc/audit.yaml", "audit-log-path=/var/log/audit.log", "v=2", "log-file=/x", "admission-control-config-file=rel"}},
		"kubelet-arg":        {Values: []string{"config=/var/lib/kubelet/config.yaml", "root-dir=/var/lib/kubelet"}},
		"token-file":         {Values: []string{"/etc/token"}},
		"data-dir":           {Values: []string{"/srv/k3s"}},
	}}
	if d := cmp.Diff([]string{"/etc/audit.yaml", "/etc/token", "/var/lib/kubelet/config.yaml"}, namedFiles(in)); d != "" {
		t.Error(d)
	}
}

func TestPolicyRoutes(t *testing.T) {
	const js = `[{"dst":"default","dev":"wg0","table":"51820"},{"dst":"fd42:0:0:7::/64","dev":"wg0","table":"51820","protocol":"static"},
		{"dst":"fd43::/64","dev":"eth0","protocol":"kernel"},{"type":"local","dst":"::1","dev":"lo","table":"local"},{"type":"multicast","dst":"ff00::/8","dev":"eth0","table":"local"}]`
	routes, err := parseRoutes(js, true, true)
	if err != nil || len(routes) != 1 || routes[0].Destination.String() != "fd42:0:0:7::/64" {
		t.Error(routes, err)
	}
}

func TestAddPod(t *testing.T) {
	in := &k3s.Installation{DataDir: "/var/lib/rancher/k3s"}
	pod := func(phase corev1.PodPhase, change func(*corev1.Pod)) corev1.Pod {
		p := corev1.Pod{Status: corev1.PodStatus{Phase: phase}}
		p.Namespace, p.Name = "shop", "web"
		p.Spec.Containers = []corev1.Container{{Name: "c", ImagePullPolicy: corev1.PullIfNotPresent}}
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", Image: "web:1", ImageID: "docker.io/library/web@sha256:aa"}}
		if change != nil {
			change(&p)
		}
		return p
	}
	hostPath := func(dir string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}}}
		}
	}
	imported := func(p *corev1.Pod) { p.Status.ContainerStatuses[0].ImageID = "sha256:aa" }
	for _, tc := range []struct {
		name string
		pod  corev1.Pod
		want Workloads
	}{
		{"running", pod(corev1.PodRunning, nil), Workloads{}},
		{"over", pod(corev1.PodSucceeded, imported), Workloads{}},
		{"failed", pod(corev1.PodFailed, nil), Workloads{}},
		{"pending", pod(corev1.PodPending, nil), Workloads{Unsettled: []string{"shop/web: Pending"}}},
		{"being deleted", pod(corev1.PodRunning, func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }), Workloads{Unsettled: []string{"shop/web: being deleted"}}},
		{"imported", pod(corev1.PodRunning, imported), Workloads{Images: []Image{{Name: "web:1", Pod: "shop/web"}}}},
		{"imported by K3s", pod(corev1.PodRunning, func(p *corev1.Pod) { imported(p); p.Namespace = "kube-system" }), Workloads{}},
		{"never pulled", pod(corev1.PodRunning, func(p *corev1.Pod) { p.Spec.Containers[0].ImagePullPolicy = corev1.PullNever }), Workloads{Images: []Image{{Name: "web:1", Pod: "shop/web", Never: true}}}},
		{"not there yet", pod(corev1.PodRunning, func(p *corev1.Pod) { p.Status.ContainerStatuses[0].ImageID = "" }), Workloads{}},
		{"a directory of K3s's", pod(corev1.PodRunning, hostPath("/var/lib/rancher/k3s/mine/")), Workloads{HostPaths: []HostPath{{"/var/lib/rancher/k3s/mine", "shop/web"}}}},
		{"a directory of the kubelet's", pod(corev1.PodRunning, hostPath("/var/lib/kubelet/mine")), Workloads{HostPaths: []HostPath{{"/var/lib/kubelet/mine", "shop/web"}}}},
		{"storage", pod(corev1.PodRunning, hostPath("/var/lib/rancher/k3s/storage/pvc-1")), Workloads{}},
		{"the whole host", pod(corev1.PodRunning, hostPath("/")), Workloads{}},
		{"a CSI driver", pod(corev1.PodRunning, hostPath("/var/lib/kubelet/plugins/csi.x")), Workloads{}},
		{"the kubelet's whole directory", pod(corev1.PodRunning, hostPath("/var/lib/kubelet")), Workloads{}},
		{"elsewhere", pod(corev1.PodRunning, hostPath("/var/lib/rancher/k3s2")), Workloads{}},
	} {
		var got Workloads
		got.addPod(tc.pod, in)
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s: %s", tc.name, d)
		}
	}
}

func TestDescribeCertificate(t *testing.T) {
	u := unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"namespace": "web", "name": "site"},
		"status": map[string]any{"renewalTime": "2026-03-01T12:00:00Z", "conditions": []any{
			map[string]any{"type": "Issuing", "status": "False"}, map[string]any{"type": "Ready", "status": "True"},
		}},
	}}
	want := Certificate{Name: "web/site", Ready: true, Renewal: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	if d := cmp.Diff(want, describeCertificate(u)); d != "" {
		t.Error(d)
	}
	for _, status := range []any{nil, "x", map[string]any{"conditions": []any{"x"}, "renewalTime": "soon"}} {
		u.Object["status"] = status
		if d := cmp.Diff(Certificate{Name: "web/site"}, describeCertificate(u)); d != "" {
			t.Error(d)
		}
	}
}
