package plans

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// withOpenBao is the minimal plan with an openBao section in flow style.
func withOpenBao(t *testing.T, section string) *Plan {
	t.Helper()
	minimal, err := os.ReadFile("minimal.yaml")
	require.NoError(t, err)
	p, err := Decode([]byte(strings.Replace(string(minimal), "  backup:\n", "  backup:\n    openBao: "+section+"\n", 1)), "/plans")
	require.NoError(t, err)
	return p
}

func TestOpenBaoDefaults(t *testing.T) {
	prompt := Secret{Prompt: true}
	for section, want := range map[string]OpenBao{
		"{token: {prompt: true}}": {Namespace: "openbao", Service: "openbao", Port: 8200, Token: prompt},
		"{namespace: vault, service: bao, port: 443, tls: {}, token: {prompt: true}}": {Namespace: "vault", Service: "bao", Port: 443, Token: prompt,
			TLS: &OpenBaoTLS{ServerName: "bao.vault.svc"}},
		"{pods: [bao-0, bao-1], token: {prompt: true}}": {Namespace: "openbao", Pods: []string{"bao-0", "bao-1"}, Port: 8200, Token: prompt},
		`{address: "https://[::1]:8200/", tls: {caFile: ca.pem}, token: {prompt: true}}`: {Namespace: "openbao", Address: "https://[::1]:8200", Token: prompt,
			TLS: &OpenBaoTLS{CAFile: "/plans/ca.pem"}},
		"{token: {file: token}, unsealKeys: [{command: [./key]}, {command: [~/bin/key, ./a]}, {command: [pass, show]}, {prompt: true}, {prompt: true}]}": {
			Namespace: "openbao", Service: "openbao", Port: 8200, Token: Secret{File: "/plans/token"},
			UnsealKeys: []Secret{{Command: []string{"/plans/key"}}, {Command: []string{"/home/admin/bin/key", "./a"}}, {Command: []string{"pass", "show"}}, prompt, prompt}},
		"{token: {prompt: true}, mounts: [secret, /team/apps, legacy/], sentinel: team/apps/a b}": {Namespace: "openbao", Service: "openbao", Port: 8200, Token: prompt,
			Mounts: []string{"secret/", "team/apps/", "legacy/"}, Sentinel: "team/apps/a b"},
	} {
		t.Run(section, func(t *testing.T) {
			t.Setenv("HOME", "/home/admin")
			require.Equal(t, &want, withOpenBao(t, section).Spec.Backup.OpenBao)
		})
	}
}

func TestOneFormOfAMountAndAnAddressIsOnePlan(t *testing.T) {
	require.Equal(t,
		withOpenBao(t, "{address: http://bao:8200, mounts: [secret/], token: {prompt: true}}").Digest(),
		withOpenBao(t, "{address: http://bao:8200/, mounts: [secret], token: {prompt: true}}").Digest())
}

// What stands where a pointer to a secret belongs is never said again, in whatever form it was put there.
func TestNoErrorQuotesAHeldSecret(t *testing.T) {
	files, err := filepath.Glob("testdata/openbao-held*.golden")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, value := range []string{"hunter2", "Hunter2", "7331", "0708"} {
			require.NotContains(t, string(data), value, file)
		}
	}
}

func TestWhatLooksLikeASecret(t *testing.T) {
	for _, secret := range []string{
		"hvs.CAESIJQ2v8d0mXb3Yl8sJ0aEFC9fVJrUuTnTQx", "s.Xk2v8d0mXb3Yl8sJ0aEFC9fV", "b.AAAAAQKf2v8d0mXb3Yl8sJ0aEFC9fV", "s.Xk2v8d0mXb3Yl8sJ0aEFC9fV.ns1",
		strings.Repeat("a1", 32), strings.Repeat("A1", 33),
		"Vq9zJpHmXb3Yl8sJ0aEFC9fVJrUuTnTQx1Z2c3d4e5f6", "Vq9zJpHmXb3Yl8sJ0aEFC9fVJrUuTnTQx1Z2c3d4e5c=",
	} {
		require.Equal(t, "--token=…, ", hideSecrets("--token="+secret+", "))
	}
	for _, other := range []string{
		"BAO_TOKEN", "/run/secrets/openbao.token", "/Users/Sienna/Documents/OpenBao/unseal/key1", "op://Private/OpenBao2/unseal-key-1/password", "s.example.org",
		"age1fg3vr6djck0qpreaqr6vnmvzy7y5lwg9vf9323uuy72zn92jlaaqsv3c7v", "documents/secrets/openbao/laptop/unsealkeys1",
	} {
		require.Equal(t, other, hideSecrets(other))
	}
}

func TestSecretSaysWhereItIsFound(t *testing.T) {
	for want, s := range map[string]Secret{
		"the environment variable BAO_TOKEN":                 {Env: "BAO_TOKEN"},
		"the file /run/token":                                {File: "/run/token"},
		"the terminal":                                       {Prompt: true},
		`the command "pass show bao"`:                        {Command: []string{"pass", "show", "bao"}},
		"the key token of the Kubernetes Secret openbao/key": {Kubernetes: &SecretKey{"openbao", "key", "token"}},
		"nowhere": {},
	} {
		require.Equal(t, want, s.String())
	}
}
