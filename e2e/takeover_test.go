//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// A run that goes from one laptop to another and back: killed on ana's, finished on bo's
// (the same machine under another name) after it was taken once from a living one.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	l := up(t, "e2e-takeover", "--store-mib", "20")
	ana := l.plan(t, nil)
	text, err := os.ReadFile(ana)
	require.NoError(t, err)
	var p object
	require.NoError(t, yaml.Unmarshal(text, &p))
	dir := t.TempDir()
	p["spec"].(object)["workDir"] = filepath.Join(dir, "work")
	text, err = yaml.Marshal(p)
	require.NoError(t, err)
	bo := filepath.Join(dir, "plan.yaml")
	require.NoError(t, os.WriteFile(bo, text, 0o600))
	// asBo runs migrate under the other laptop's name.
	asBo := func(args ...string) []string {
		return append([]string{"--uts", "sh", "-c", `hostname bos-laptop && exec "$0" "$@"`, bin("migrate")}, args...)
	}
	files, ca := l.on(t, fingerprint), l.on(t, identity)

	// Ana's run is killed while it backs up the stopped cluster.
	run := start(t, nil, bin("migrate"), "run", "-f", ana, "--yes")
	journalOf(ana).await(t, run, 0, "freeze/.*/intent")
	require.NoError(t, run.Kill())
	run.wait(t, time.Minute)

	r := execute(t, nil, "unshare", asBo("run", "-f", bo, "--yes")...)
	require.Equal(t, 1, r.code, "%s", r)
	assert.Contains(t, r.stderr, "--take-over")
	r = execute(t, nil, "unshare", asBo("run", "-f", bo, "--yes", "--take-over")...)
	require.Equal(t, 1, r.code, "%s", r)
	assert.Contains(t, r.stderr, "rsync -a ")
	assert.Contains(t, r.stderr, filepath.Join(workDir(ana), "backup"))
	require.NoError(t, os.MkdirAll(workDir(bo), 0o700))
	require.Zero(t, execute(t, nil, "cp", "-a", filepath.Join(workDir(ana), "backup"), workDir(bo)).code)

	r = execute(t, nil, "unshare", asBo("run", "-f", bo, "--yes", "--take-over", "--until", "seal")...)
	require.Zero(t, r.code, "%s", r)
	assert.Contains(t, r.stderr, "work directory "+workDir(ana), "it shows who holds the lock")
	assert.NotContains(t, r.stderr, "Stop K3s, ask containers", "what is done is not done again")

	r = migrate(t, "run", "-f", ana, "--yes")
	require.Equal(t, 1, r.code, "%s", r)
	assert.Contains(t, r.stderr, "bos-laptop")

	// Ana gets it back, with bo's set, and bo takes it from her while she lives.
	require.NoError(t, os.RemoveAll(filepath.Join(workDir(ana), "backup")))
	require.Zero(t, execute(t, nil, "cp", "-a", filepath.Join(workDir(bo), "backup"), workDir(ana)).code)
	before := len(journalOf(bo).now(t))
	run = start(t, nil, bin("migrate"), "run", "-f", ana, "--yes", "--take-over")
	journalOf(ana).await(t, run, before, "install/.*/intent")
	second := start(t, nil, "unshare", asBo("run", "-f", bo, "--yes", "--take-over")...)
	assert.Equal(t, 1, run.wait(t, 2*time.Minute), "%s", &run.printed)
	assert.Contains(t, run.printed.String(), "the run was taken over")
	assert.Contains(t, run.printed.String(), "bos-laptop")
	require.Zero(t, second.wait(t, 10*time.Minute), "%s", &second.printed)
	assert.Equal(t, 1, strings.Count(run.printed.String()+second.printed.String(), "ok uninstall ("), "uninstalled once")

	assert.Equal(t, files, l.on(t, fingerprint), "volumes")
	assert.Equal(t, ca, l.on(t, identity), "identity")
	r = migrate(t, "verify", "-f", bo)
	assert.Zero(t, r.code, "%s", r)
}
