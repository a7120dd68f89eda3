package cluster

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// The statuses are those of the operators' versions: without and with conditions.
func TestUnsynced(t *testing.T) {
	for _, tc := range []struct {
		name   string
		read   func(*unstructured.Unstructured) string
		status string // of an object in generation 2
		want   string
	}{
		{"new", vaultUnsynced, ``, notSynced},
		{"synced", vaultUnsynced, `{lastGeneration: 2, secretMAC: x}`, ""},
		{"changed since", vaultUnsynced, `{lastGeneration: 1, secretMAC: x}`, notSynced},
		{"healthy", vaultUnsynced, `{lastGeneration: 2, conditions: [{type: Healthy, status: "True", observedGeneration: 2}]}`, ""},
		{"attempted", vaultUnsynced, `{lastGeneration: 2, conditions: [{type: SecretSynced, status: "False", reason: SecretSyncError, message: "Failed to sync the secret, err=403 "}]}`,
			"SecretSynced is False: SecretSyncError: Failed to sync the secret, err=403"},
		{"over an outage", vaultUnsynced, `{lastGeneration: 2, conditions: [{type: SecretSynced, status: "False"}, {type: Healthy, status: "True"}, {type: Ready, status: "True"}]}`, ""},
		{"condition of before", vaultUnsynced, `{lastGeneration: 2, conditions: [{type: Ready, status: "True", observedGeneration: 1}]}`, notSynced},
		{"healthy, never synced", vaultUnsynced, `{conditions: [{type: Healthy, status: "True"}]}`, notSynced},
		{"nonsense", vaultUnsynced, `{lastGeneration: many, conditions: [1, {type: 7}]}`, notSynced},

		{"new PKI", vaultPKIUnsynced, ``, notSynced},
		{"valid PKI of an old operator", vaultPKIUnsynced, `{valid: true, error: "", serialNumber: x}`, ""},
		{"valid PKI", vaultPKIUnsynced, `{valid: true, lastGeneration: 2}`, ""},
		{"valid PKI of before", vaultPKIUnsynced, `{valid: true, lastGeneration: 1}`, notSynced},
		{"PKI with an error", vaultPKIUnsynced, `{valid: false, error: K8sClientError, lastGeneration: 2}`, "K8sClientError"},
		{"unhealthy PKI", vaultPKIUnsynced, `{valid: true, lastGeneration: 2, conditions: [{type: Ready, status: Unknown}]}`, "Ready is Unknown"},

		{"new external", externalUnsynced, ``, notSynced},
		{"ready external", externalUnsynced, `{syncedResourceVersion: 2-abc, conditions: [{type: Ready, status: "True"}]}`, ""},
		{"ready external of before", externalUnsynced, `{syncedResourceVersion: 1-abc, conditions: [{type: Ready, status: "True"}]}`, notSynced},
		{"ready external of a generation that begins alike", externalUnsynced, `{syncedResourceVersion: 21-abc, conditions: [{type: Ready, status: "True"}]}`, notSynced},
		{"failing external", externalUnsynced, `{syncedResourceVersion: 2-abc, conditions: [{type: Ready, status: "False", reason: SecretSyncedError, message: could not get secret data from provider}]}`,
			"Ready is False: SecretSyncedError: could not get secret data from provider"},
	} {
		// As the API's JSON is decoded: whole numbers are int64.
		data, err := yaml.YAMLToJSON([]byte("apiVersion: example.org/v1\nkind: Any\nmetadata: {name: a, generation: 2}\nstatus: " + tc.status))
		require.NoError(t, err, tc.name)
		u := &unstructured.Unstructured{}
		require.NoError(t, u.UnmarshalJSON(data), tc.name)
		assert.Equal(t, tc.want, tc.read(u), tc.name)
	}
}

func TestSyncedDestination(t *testing.T) {
	for _, tc := range []struct {
		name, spec string
		read       func(*unstructured.Unstructured) (string, bool)
		want       string
		owned      bool
	}{
		{"made", `{destination: {name: db, create: true}}`, vaultDestination, "db", true},
		{"filled", `{destination: {name: db}}`, vaultDestination, "db", false},
		{"external, its own name", `{}`, externalDestination, "a", true},
		{"external, named", `{target: {name: db, creationPolicy: Owner}}`, externalDestination, "db", true},
		{"external, nobody's", `{target: {name: db, creationPolicy: Orphan}}`, externalDestination, "db", false},
		{"external, merged", `{target: {name: db, creationPolicy: Merge}}`, externalDestination, "db", false},
		{"external, none", `{target: {name: db, creationPolicy: None}}`, externalDestination, "", false},
	} {
		u := &unstructured.Unstructured{}
		require.NoError(t, yaml.Unmarshal([]byte("metadata: {name: a}\nspec: "+tc.spec), &u.Object), tc.name)
		name, owned := tc.read(u)
		assert.Equal(t, tc.want, name, tc.name)
		assert.Equal(t, tc.owned, owned, tc.name)
	}
}
