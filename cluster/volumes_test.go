package cluster

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with testdata/name, or writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, got, 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

// objects reads the documents of a YAML file in testdata.
func objects(t *testing.T, name string) []*unstructured.Unstructured {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	var out []*unstructured.Unstructured
	for _, doc := range bytes.Split(data, []byte("\n---\n")) {
		j, err := yaml.YAMLToJSON(doc)
		require.NoError(t, err)
		u := &unstructured.Unstructured{}
		require.NoError(t, u.UnmarshalJSON(j))
		out = append(out, u)
	}
	return out
}

// TestReadVolume reads the volumes of testdata/volumes.yaml, which are as
// provisioners write them; the golden file is what is made of them.
func TestReadVolume(t *testing.T) {
	claims := map[string]*unstructured.Unstructured{}
	var volumes []*unstructured.Unstructured
	for _, u := range objects(t, "volumes.yaml") {
		if u.GetKind() == "PersistentVolumeClaim" {
			claims[u.GetNamespace()+"/"+u.GetName()] = u
		} else {
			volumes = append(volumes, u)
		}
	}
	var out bytes.Buffer
	for _, u := range volumes {
		v, err := readVolume(u, claims)
		require.NoError(t, err)
		require.NotEmpty(t, v.Object)
		hasClaim := len(v.ClaimObject) > 0
		v.Object, v.ClaimObject = json.RawMessage("null"), nil
		line, err := yaml.Marshal(v)
		require.NoError(t, err)
		out.WriteString(strings.Replace(string(line), "object: null\n", "", 1))
		if hasClaim {
			out.WriteString("claimObject: present\n")
		}
		out.WriteString("---\n")
	}
	golden(t, "volumes.golden", out.Bytes())
}

// TestReservation shows the objects that ReserveVolume creates.
func TestReservation(t *testing.T) {
	all := objects(t, "volumes.yaml")
	claims := map[string]*unstructured.Unstructured{}
	for _, u := range all {
		if u.GetKind() == "PersistentVolumeClaim" {
			claims[u.GetNamespace()+"/"+u.GetName()] = u
		}
	}
	v, err := readVolume(all[0], claims)
	require.NoError(t, err)
	pv, pvc, err := v.reservation()
	require.NoError(t, err)
	a, err := yaml.Marshal(pv.Object)
	require.NoError(t, err)
	b, err := yaml.Marshal(pvc.Object)
	require.NoError(t, err)
	golden(t, "reservation.golden", []byte(string(a)+"---\n"+string(b)))

	v.Object = json.RawMessage(`{`)
	_, _, err = v.reservation()
	var refused *ReservationError
	require.ErrorAs(t, err, &refused)
}

func TestNodeOf(t *testing.T) {
	term := func(key string, op corev1.NodeSelectorOperator, values ...string) corev1.NodeSelectorTerm {
		return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: op, Values: values}}}
	}
	for _, tc := range []struct {
		name  string
		terms []corev1.NodeSelectorTerm
		want  string
	}{
		{"none", nil, ""},
		{"one host", []corev1.NodeSelectorTerm{term(corev1.LabelHostname, corev1.NodeSelectorOpIn, "a")}, "a"},
		{"the same host twice", []corev1.NodeSelectorTerm{term(corev1.LabelHostname, corev1.NodeSelectorOpIn, "a"), term(corev1.LabelHostname, corev1.NodeSelectorOpIn, "a")}, "a"},
		{"two hosts", []corev1.NodeSelectorTerm{term(corev1.LabelHostname, corev1.NodeSelectorOpIn, "a", "b")}, ""},
		{"not a host", []corev1.NodeSelectorTerm{term(corev1.LabelHostname, corev1.NodeSelectorOpNotIn, "a")}, ""},
		{"a zone", []corev1.NodeSelectorTerm{term(corev1.LabelTopologyZone, corev1.NodeSelectorOpIn, "z")}, ""},
		{"by name", []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{"a"}}}}}, "a"},
	} {
		assert.Equal(t, tc.want, nodeOf(&corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: tc.terms}}), tc.name)
	}
	assert.Empty(t, nodeOf(nil))
	assert.Empty(t, nodeOf(&corev1.VolumeNodeAffinity{}))
}

func TestNotBound(t *testing.T) {
	v := Volume{PV: "pv", Namespace: "data", Claim: "c"}
	pv := func(phase corev1.PersistentVolumePhase) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{Status: corev1.PersistentVolumeStatus{Phase: phase},
			Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{Namespace: "data", Name: "c", UID: "u"}}}
	}
	pvc := func(phase corev1.PersistentVolumeClaimPhase, volume string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{UID: "u"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: volume},
			Status: corev1.PersistentVolumeClaimStatus{Phase: phase}}
	}
	other := pvc(corev1.ClaimPending, "pv")
	other.UID = "later"
	for _, tc := range []struct {
		name    string
		pv      *corev1.PersistentVolume
		pvc     *corev1.PersistentVolumeClaim
		missing string
		err     string
	}{
		{"bound", pv("Bound"), pvc("Bound", "pv"), "", ""},
		{"available", pv("Available"), pvc("Pending", "pv"), "volume pv is Available", ""},
		{"new", pv(""), pvc("Pending", ""), "volume pv is without a phase", ""},
		{"half", pv("Bound"), pvc("Pending", "pv"), "claim data/c is Pending", ""},
		{"released", pv("Released"), pvc("Pending", "pv"), "", "is Released"},
		{"elsewhere", pv("Available"), pvc("Bound", "pv-2"), "", "took another volume, pv-2"},
		{"no claim", pv("Available"), nil, "", "the claim does not exist"},
		{"earlier claim", pv("Bound"), other, "", "earlier claim"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			missing, err := v.notBound(tc.pv, tc.pvc)
			assert.Equal(t, tc.missing, strings.Join(missing, ";"))
			if tc.err == "" {
				assert.NoError(t, err)
			} else {
				assert.ErrorContains(t, err, tc.err)
			}
		})
	}
}
