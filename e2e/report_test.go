//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// reported makes the report in both forms, and asserts what holds of every one: nothing on
// the host moves, and no secret of the cluster is in it.
func reported(t testing.TB, l *lab, file string) (html, markdown string) {
	t.Helper()
	l.on(t, "touch /run/e2e-mark; sleep 1.1")
	before := l.on(t, untouched)
	dir := t.TempDir()
	r := migrate(t, "report", "-f", file, "--dir", dir)
	require.Zero(t, r.code, "%s", r)
	assert.Empty(t, r.stderr)
	assert.Equal(t, before, l.on(t, untouched))
	paths := strings.Fields(r.stdout)
	require.Len(t, paths, 2)
	var texts []string
	token := l.on(t, "cat /var/lib/rancher/k3s/server/token")
	for _, path := range paths {
		assert.Equal(t, dir, filepath.Dir(path))
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, secret := range []string{token[strings.LastIndex(token, ":")+1:], "PRIVATE KEY", "AGE-SECRET-KEY"} {
			assert.False(t, strings.Contains(string(text), secret), path)
		}
		texts = append(texts, string(text))
	}
	return texts[0], texts[1]
}

// reportedSums asserts that the report lists the sums of the files in the backup set.
func reportedSums(t testing.TB, file, html string) {
	t.Helper()
	var manifest struct {
		Artifacts []struct{ Name, File string }
	}
	set := filepath.Join(workDir(file), "backup")
	text, err := os.ReadFile(filepath.Join(set, "manifest.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &manifest))
	require.NotEmpty(t, manifest.Artifacts)
	for _, a := range manifest.Artifacts {
		data, err := os.ReadFile(filepath.Join(set, a.File))
		require.NoError(t, err)
		sum := sha256.Sum256(data)
		assert.True(t, strings.Contains(html, hex.EncodeToString(sum[:])), a.Name)
	}
}
