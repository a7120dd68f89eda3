package steps

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"pgregory.net/rapid"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/survey"
	"sunbeam.pt/k3s-dualstack/verify"
)

func TestIdentityChecks(t *testing.T) {
	for _, tc := range []struct {
		name      string
		change    func(now *survey.Facts)
		different string // in the detail of the check that fails; "" when none does
		settings  bool   // which of the two that is
	}{
		{"nothing", func(*survey.Facts) {}, "", false},
		{"what comes and goes", func(f *survey.Facts) {
			f.Host.Kernel, f.Cluster.Volumes[1].Bytes, f.Cluster.Nodes[0].Ready = "7", 1, false
		}, "", false},
		{"what a rollback set aside", func(f *survey.Facts) {
			f.Host.Strays = append(f.Host.Strays, "/var/lib/rancher/k3s/storage/pvc-1_data_db-0.replaced-20260301T090000Z")
		}, "", false},
		{"another thing in the storage", func(f *survey.Facts) {
			f.Host.Strays = append(f.Host.Strays, "/var/lib/rancher/k3s/storage/new")
		}, "storage/new in the volumes' storage is new", false},
		{"a volume that is gone, named as if it were set aside", func(f *survey.Facts) {
			f.Cluster.Volumes = f.Cluster.Volumes[:4] // the fifth has another path below
		}, "volume outside (/ at /srv/x.replaced-y) is gone", false},
		{"another cluster", func(f *survey.Facts) { f.Cluster.KubeSystemUID = "v" }, "UID of namespace kube-system: was u, is v", false},
		{"another node", func(f *survey.Facts) { f.Cluster.Nodes[0].UID = "o" }, "UID of node dedi: was n, is o", false},
		{"no node", func(f *survey.Facts) { f.Cluster.Nodes = nil }, "node dedi is gone", false},
		{"two ranges", func(f *survey.Facts) { f.Cluster.Nodes[0].PodCIDRs = []string{"10.42.0.0/24", "fd42::/64"} }, "were [10.42.0.0/24], are [10.42.0.0/24 fd42::/64]", false},
		{"a setting that differs", func(f *survey.Facts) {
			f.K3s.Settings["write-kubeconfig-mode"] = k3s.Setting{Values: []string{"0600"}}
		}, "write-kubeconfig-mode was [0644], is [0600]", true},
		{"a setting that is gone", func(f *survey.Facts) { clear(f.K3s.Settings) }, "write-kubeconfig-mode was [0644], is []", true},
		{"a setting that is left", func(f *survey.Facts) {
			f.K3s.Settings["cluster-cidr"] = k3s.Setting{Values: []string{"10.42.0.0/16,fd42::/48"}}
		}, "cluster-cidr is set to [10.42.0.0/16,fd42::/48] and was not", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			was, now := facts(t), facts(t)
			if strings.HasPrefix(tc.name, "a volume") {
				was.Cluster.Volumes[4].Path = "/srv/x.replaced-y"
			}
			tc.change(now)
			checks := identityChecks(was, now)
			require.Len(t, checks, 2)
			for i, c := range checks {
				want := verify.Pass
				if tc.different != "" && tc.settings == (i == 1) {
					want = verify.Fail
					require.Contains(t, c.Detail, tc.different)
				}
				if c.Status != want {
					t.Errorf("%s: %s: %s", c.ID, c.Status, c.Detail)
				}
			}
		})
	}
}

func TestFew(t *testing.T) {
	var all []string
	for i := range 12 {
		all = append(all, fmt.Sprint(i))
	}
	if got := few(all[:10]); got != "0; 1; 2; 3; 4; 5; 6; 7; 8; 9" {
		t.Error(got)
	}
	if got := few(all); !strings.HasSuffix(got, "; 9; and 2 more") || all[10] != "10" {
		t.Error(got)
	}
}

// Lines come whole and in order, however they were written.
func TestEachLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOf(rapid.StringMatching(`[a-c]{0,5}`)).Draw(t, "lines")
		text := []byte(strings.Join(append(lines, ""), "\n"))
		var got []string
		w := &eachLine{do: func(line []byte) error { got = append(got, string(line)); return nil }}
		for len(text) > 0 {
			n := rapid.IntRange(1, len(text)).Draw(t, "n")
			p := append([]byte(nil), text[:n]...)
			if written, err := w.Write(p); written != n || err != nil {
				t.Fatal(written, err)
			}
			clear(p) // a Writer must not keep what it is given
			text = text[n:]
		}
		if strings.Join(got, "\n") != strings.Join(lines, "\n") || len(got) != len(lines) {
			t.Fatalf("%q instead of %q", got, lines)
		}
	})
	enough := errors.New("enough")
	w := &eachLine{do: func([]byte) error { return enough }}
	if _, err := io.WriteString(w, "a"); err != nil {
		t.Error(err)
	}
	if _, err := io.WriteString(w, "b\nc"); !errors.Is(err, enough) {
		t.Error(err)
	}
}

func TestFleeting(t *testing.T) {
	for object, want := range map[string]bool{
		`{"apiVersion":"v1","kind":"Pod"}`: true, `{"apiVersion":"v1","kind":"Event"}`: true, `{"apiVersion":"v1","kind":"Endpoints"}`: true,
		`{"apiVersion":"events.k8s.io/v1","kind":"Event"}`: true, `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease"}`: true, `{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice"}`: true,
		`{"apiVersion":"rent.example.org/v1","kind":"Lease"}`: false, `{"apiVersion":"fair.example.org/v1","kind":"Event"}`: false,
		`{"kind":"ReplicaSet","metadata":{"ownerReferences":[{"kind":"Deployment"}]}}`: true,
		`{"kind":"ReplicaSet","metadata":{"ownerReferences":[]}}`:                      false,
		`{"kind":"Service"}`: false, `{"kind":"Secret"}`: false, `{"kind":"Node"}`: false, `{"kind":"PersistentVolumeClaim"}`: false,
	} {
		var k kept
		require.NoError(t, json.Unmarshal([]byte(object), &k))
		if k.fleeting() != want {
			t.Errorf("%s: %t", object, !want)
		}
	}
}

// serving is a client of an API server that is a FAKE: it has Services and
// Namespaces alone, as they are given.
func serving(t *testing.T, objects map[string]string) *cluster.Client {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/api":
			io.WriteString(w, `{"kind":"APIVersions","versions":["v1"]}`)
		case "/apis":
			io.WriteString(w, `{"kind":"APIGroupList","apiVersion":"v1","groups":[]}`)
		case "/api/v1":
			io.WriteString(w, `{"kind":"APIResourceList","groupVersion":"v1","resources":[
				{"name":"namespaces","kind":"Namespace","verbs":["list"]},{"name":"services","namespaced":true,"kind":"Service","verbs":["list"]},{"name":"pods","namespaced":true,"kind":"Pod","verbs":["list"]}]}`)
		default:
			list, ok := objects[strings.TrimPrefix(r.URL.Path, "/api/v1/")]
			if !ok {
				http.NotFound(w, r)
				return
			}
			fmt.Fprintf(w, `{"kind":"List","apiVersion":"v1","metadata":{},"items":[%s]}`, list)
		}
	}))
	t.Cleanup(server.Close)
	kube, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	require.NoError(t, err)
	return &cluster.Client{Kube: kube}
}

// After a return by snapshot only what was made after the snapshot may be gone.
func TestObjectsCheckAfterAReturn(t *testing.T) {
	const gone = `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"data","uid":"1","creationTimestamp":"TIME"}}`
	const service = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"db","namespace":"data","uid":"2","creationTimestamp":"2020-01-01T00:00:00Z"},"spec":{"clusterIPs":["10.43.0.20"]}}`
	for _, tc := range []struct {
		name    string
		created time.Duration // after the snapshot
		now     map[string]string
		status  verify.Status
		detail  string
	}{
		{"made before", -time.Minute, map[string]string{"namespaces": "", "services": service, "pods": ""}, verify.Fail, "Namespace /data is gone"},
		{"made since", time.Minute, map[string]string{"namespaces": "", "services": service, "pods": ""}, verify.Skip, "made or changed after the snapshot: Namespace /data is gone"},
		{"made since, and another is gone", time.Minute, map[string]string{"namespaces": "", "services": "", "pods": ""}, verify.Fail, "Service data/db is gone"},
		{"another of the name", time.Minute, map[string]string{"namespaces": "", "services": strings.Replace(service, `"2"`, `"9"`, 1), "pods": ""}, verify.Fail, "Service data/db is another one of that name"},
		{"another address", time.Minute, map[string]string{"namespaces": "", "services": strings.Replace(service, "43.0.20", "43.0.21", 1), "pods": ""}, verify.Skip, "Service data/db has the addresses"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := atHome(t)
			m.Plan.Spec.Snapshot, m.Via = ownSnapshot(), ViaSnapshot
			m.Facts.Host.Skew = 3600 // the objects' times are by the host's clock
			reached(t, m, "preflight", intent(snapshotStep, "create"), done(snapshotStep, "create", "null"))
			at, err := m.snapshotTaken()
			require.NoError(t, err)
			space := strings.Replace(gone, "TIME", at.Add(time.Hour+tc.created).UTC().Format(time.RFC3339), 1)
			require.NoError(t, m.create(objects, backup.KindObjects, func(w io.Writer) error {
				_, err := io.WriteString(w, strings.Join([]string{space, service, ""}, "\n"))
				return err
			}))
			got, err := m.objectsCheck(t.Context(), serving(t, tc.now))
			require.NoError(t, err)
			require.Equal(t, tc.status, got.Status, got.Detail)
			require.Contains(t, got.Detail, tc.detail)
		})
	}
}

func TestObjectsCheck(t *testing.T) {
	const (
		space   = `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"data","uid":"1"}}`
		service = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"db","namespace":"data","uid":"2"},"spec":{"clusterIPs":["10.43.0.20"]}}`
		pod     = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"db-0","namespace":"data","uid":"3"}}`
	)
	for _, tc := range []struct {
		name     string
		now      map[string]string
		differs  string
		unlisted bool // the cluster cannot tell
	}{
		{"the same", map[string]string{"namespaces": space, "services": service, "pods": pod}, "", false},
		{"another pod", map[string]string{"namespaces": space, "services": service, "pods": strings.Replace(pod, `"3"`, `"4"`, 1)}, "", false},
		{"more than there was", map[string]string{"namespaces": space, "services": service + "," + strings.NewReplacer("db", "more", `"2"`, `"5"`).Replace(service), "pods": ""}, "", false},
		{"one is gone", map[string]string{"namespaces": "", "services": service, "pods": ""}, "Namespace /data is gone", false},
		{"another of that name", map[string]string{"namespaces": space, "services": strings.Replace(service, `"2"`, `"9"`, 1), "pods": ""}, "Service data/db is another one of that name", false},
		{"another address", map[string]string{"namespaces": space, "services": strings.Replace(service, `"10.43.0.20"`, `"10.43.0.20","fd43::20"`, 1), "pods": ""},
			"Service data/db has the addresses 10.43.0.20,fd43::20 instead of 10.43.0.20", false},
		{"it does not say", map[string]string{"namespaces": space}, "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := atHome(t)
			require.NoError(t, m.create(objects, backup.KindObjects, func(w io.Writer) error {
				_, err := io.WriteString(w, strings.Join([]string{space, service, pod, ""}, "\n"))
				return err
			}))
			got, err := m.objectsCheck(t.Context(), serving(t, tc.now))
			if tc.unlisted {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			want := check(sameObjects, "the same objects and ClusterIPs", "shop", nil, "2 objects")
			if tc.differs != "" {
				want.Status, want.Detail = verify.Fail, tc.differs
			}
			require.Equal(t, want, got)
		})
	}
}
