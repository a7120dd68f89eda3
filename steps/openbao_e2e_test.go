//go:build e2e

package steps

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/openbao"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/survey"
)

// standIn starts the lab's OpenBao on this machine, empty, and returns its URL. It is one of
// the parts that KUBERNETES_PARTS names, see the package cluster's tests.
func standIn(t *testing.T, flags ...string) string {
	t.Helper()
	program := filepath.Join(os.Getenv("KUBERNETES_PARTS"), "openbao")
	cmd := exec.Command(program, append([]string{"server", "--path", t.TempDir(), "--listen", "127.0.0.1:0", "--cluster", "127.0.0.1:0"}, flags...)...)
	out, err := cmd.StderrPipe()
	require.NoError(t, err)
	cmd.Stdout = cmd.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	address := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if _, after, ok := strings.Cut(lines.Text(), "serving: address="); ok {
				address <- "http://" + strings.Fields(after)[0]
			}
		}
	}()
	select {
	case url := <-address:
		return url
	case <-time.After(30 * time.Second):
		t.Fatal("the stand-in did not say where it serves")
		return ""
	}
}

func put(t *testing.T, url, token, path string, body any) {
	t.Helper()
	text, err := json.Marshal(body)
	require.NoError(t, err)
	require.EventuallyWithT(t, func(t *assert.CollectT) { // a fresh mount answers 400 for a moment
		req, err := http.NewRequest("POST", url+"/v1/"+path, bytes.NewReader(text))
		require.NoError(t, err)
		req.Header.Set("X-Vault-Token", token)
		r, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer r.Body.Close()
		answer, _ := io.ReadAll(r.Body)
		require.Less(t, r.StatusCode, 300, "%s", answer)
	}, 10*time.Second, 100*time.Millisecond)
}

// baoRun is a migration whose plan finds OpenBao at an address, with a set that has a snapshot
// and an export of a server that is gone, and the token and keys of that.
type baoRun struct {
	*Migration
	initial openbao.Initial
}

func keptBao(t *testing.T) *baoRun {
	t.Helper()
	machineAlone(t)
	dir := t.TempDir()
	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	key := filepath.Join(dir, "key")
	require.NoError(t, os.WriteFile(key, []byte(id.String()+"\n"), 0o600))
	l := laptop{sshtest.Start(t), filepath.Join(dir, "work"), id.Recipient().String(), key}
	m := l.migration()
	t.Cleanup(func() { m.Close() })

	url := standIn(t)
	b := &baoRun{Migration: m}
	s, err := openbao.New(openbao.Options{Address: url})
	require.NoError(t, err)
	b.initial, err = s.Init(t.Context(), 5, 3)
	require.NoError(t, err)
	require.NoError(t, s.Unseal(t.Context(), b.initial.Keys))
	require.NoError(t, s.WaitActive(t.Context(), nil))
	put(t, url, b.initial.Token, "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
	put(t, url, b.initial.Token, "secret/data/sentinel", map[string]any{"data": map[string]any{"who": "the one and only"}})

	token, keys := filepath.Join(dir, "token"), filepath.Join(dir, "keys")
	require.NoError(t, os.WriteFile(token, []byte(b.initial.Token), 0o600))
	require.NoError(t, os.WriteFile(keys, []byte(strings.Join(b.initial.Keys, "\n")), 0o600))
	m.Plan.Spec.Backup.OpenBao = &plans.OpenBao{Namespace: "openbao", Address: url, Token: plans.Secret{File: token}, UnsealKeys: []plans.Secret{{File: keys}}, Sentinel: "secret/sentinel"}
	// The API is not asked when OpenBao has an address, but prepared.
	kubeconfig := filepath.Join(dir, "k3s.yaml")
	require.NoError(t, os.WriteFile(kubeconfig, []byte(`{"apiVersion":"v1","kind":"Config","clusters":[{"name":"default","cluster":{"server":"https://127.0.0.1:1"}}],"users":[{"name":"default","user":{"token":"none"}}],"contexts":[{"name":"default","context":{"cluster":"default","user":"default"}}],"current-context":"default"}`), 0o600))
	m.Facts = facts(t)
	m.Facts.K3s.Settings = map[string]k3s.Setting{"write-kubeconfig": {Values: []string{kubeconfig}}}
	h, err := m.Host(t.Context())
	require.NoError(t, err)
	c, err := m.rebuilt(t.Context())
	require.NoError(t, err)
	m.Facts.OpenBao, err = survey.ReadOpenBao(t.Context(), h, c, m.Plan.Spec.Backup.OpenBao, m.baoToken)
	require.NoError(t, err)
	require.Empty(t, m.Facts.OpenBao.Problem)
	require.Empty(t, m.Facts.OpenBao.Missing)
	require.NoError(t, m.refreshBao(t.Context(), m.Facts), "snapshot, export, and the keys proven on them")
	return b
}

// into lets the plan find another server.
func (b *baoRun) into(url string) *openbao.Server {
	b.Plan.Spec.Backup.OpenBao.Address = url
	s, err := openbao.New(openbao.Options{Address: url})
	if err != nil {
		panic(err) // it has just been listened at
	}
	return s
}

// revives asserts that the server comes to hold what was kept, and is unsealed.
func (b *baoRun) revives(t *testing.T) revived {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var did revived
	require.NoError(t, b.reviveBao(ctx, reviveMode{Restore: true, Prove: true}, &did))
	checks, err := b.compareBao(ctx)
	require.NoError(t, err)
	require.Len(t, checks, 1)
	assert.Equal(t, "pass", string(checks[0].Status), checks[0].Detail)
	return did
}

// A new server without data gets the snapshot, wherever an attempt before was cut off.
func TestBaoIsRestored(t *testing.T) {
	b := keptBao(t)
	ctx := t.Context()
	set, err := b.Set()
	require.NoError(t, err)
	for _, tc := range []struct {
		name string
		cut  func(t *testing.T, s *openbao.Server)
	}{
		{"at once", func(*testing.T, *openbao.Server) {}},
		{"after the note that it begins", func(t *testing.T, s *openbao.Server) {
			require.NoError(t, b.keepThrowAway(openbao.Initial{}))
		}},
		{"after it was initialised", func(t *testing.T, s *openbao.Server) {
			initial, err := s.Init(ctx, 5, 3)
			require.NoError(t, err)
			require.NoError(t, b.keepThrowAway(initial))
		}},
		{"after it was unsealed", func(t *testing.T, s *openbao.Server) {
			initial, err := s.Init(ctx, 5, 3)
			require.NoError(t, err)
			require.NoError(t, b.keepThrowAway(initial))
			require.NoError(t, s.Unseal(ctx, initial.Keys))
			require.NoError(t, s.WaitActive(ctx, nil))
		}},
		{"after the restore", func(t *testing.T, s *openbao.Server) {
			initial, err := s.Init(ctx, 5, 3)
			require.NoError(t, err)
			require.NoError(t, b.keepThrowAway(initial))
			all, err := b.baoEndpoints(ctx, "")
			require.NoError(t, err)
			require.NoError(t, b.refillBao(ctx, all[0], set, initial))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			require.NoError(t, set.Remove(baoThrowAway))
			s := b.into(standIn(t))
			tc.cut(t, s)
			assert.NotEmpty(t, b.revives(t).Unsealed)
			assert.Equal(t, revived{}, b.revives(t), "once more there is nothing to do")
		})
	}

	t.Run("initialised, and its keys were not kept", func(t *testing.T) {
		s := b.into(standIn(t))
		require.NoError(t, b.keepThrowAway(openbao.Initial{}))
		_, err := s.Init(ctx, 5, 3)
		require.NoError(t, err)
		err = b.reviveBao(ctx, reviveMode{Restore: true, Prove: true}, &revived{})
		require.ErrorContains(t, err, "cut off before its keys were kept")
		require.NoError(t, set.Remove(baoThrowAway))
		err = b.reviveBao(ctx, reviveMode{Restore: true, Prove: true}, &revived{})
		var wrong *openbao.WrongKeysError
		require.ErrorAs(t, err, &wrong, "another server than the one that was begun")
	})

	t.Run("a rollback restores nothing", func(t *testing.T) {
		s := b.into(standIn(t))
		err := b.reviveBao(ctx, reviveMode{}, &revived{})
		require.ErrorContains(t, err, "not initialised")
		status, err := s.Status(ctx)
		require.NoError(t, err)
		assert.False(t, status.Initialised)
	})

	t.Run("an older server", func(t *testing.T) {
		snapshot, err := set.Reader(baoSnapshot)
		require.NoError(t, err)
		defer snapshot.Close()
		data, err := io.ReadAll(snapshot)
		require.NoError(t, err)
		keep := func(version string) {
			w, err := set.Create(baoSnapshot, backup.KindRaftSnapshot)
			require.NoError(t, err)
			_, err = w.Write(data)
			require.NoError(t, err)
			_, err = w.Commit(map[string]string{baoVersion: version})
			require.NoError(t, err)
		}
		keep("99.0.0")
		defer keep("1.14.0")
		s := b.into(standIn(t))
		err = b.reviveBao(ctx, reviveMode{Restore: true, Prove: true}, &revived{})
		var older *openbao.OlderError
		require.ErrorAs(t, err, &older)
		status, err := s.Status(ctx)
		require.NoError(t, err)
		assert.False(t, status.Initialised, "it was left as it is")
	})

	t.Run("a server with other data", func(t *testing.T) {
		url := standIn(t)
		s := b.into(url)
		initial, err := s.Init(ctx, 5, 3)
		require.NoError(t, err)
		require.NoError(t, s.Unseal(ctx, initial.Keys))
		require.NoError(t, s.WaitActive(ctx, nil))
		put(t, url, initial.Token, "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
		put(t, url, initial.Token, "secret/data/sentinel", map[string]any{"data": map[string]any{"who": "somebody else"}})
		other := filepath.Join(t.TempDir(), "token")
		require.NoError(t, os.WriteFile(other, []byte(initial.Token), 0o600))
		was := b.Plan.Spec.Backup.OpenBao.Token
		b.Plan.Spec.Backup.OpenBao.Token = plans.Secret{File: other}
		defer func() { b.Plan.Spec.Backup.OpenBao.Token = was }()
		err = b.reviveBao(ctx, reviveMode{Restore: true, Prove: true}, &revived{})
		require.ErrorContains(t, err, "spec.backup.openBao.sentinel")
		assert.NotContains(t, err.Error(), "somebody")
	})

	t.Run("no secret is readable in the work directory", func(t *testing.T) {
		files := 0
		require.NoError(t, filepath.WalkDir(b.Plan.Spec.WorkDir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			files++
			data, err := os.ReadFile(path)
			for _, secret := range append(b.initial.Keys, b.initial.Token, "the one and only") {
				assert.False(t, bytes.Contains(data, []byte(secret)), path)
			}
			return err
		}))
		assert.Greater(t, files, 2)
	})
}

// With file storage what the keys open comes out of the volume's archive.
func TestBaoKeysOpenFiles(t *testing.T) {
	b := keptBao(t)
	ctx := t.Context()
	volume := filepath.Join(t.TempDir(), "pvc-bao")
	s := b.into(standIn(t, "--storage", "file", "--path", filepath.Join(volume, "bao")))
	initial, err := s.Init(ctx, 5, 3)
	require.NoError(t, err)
	status, err := s.Status(ctx)
	require.NoError(t, err)

	b.Facts.OpenBao.Servers[0].Status = status
	b.Facts.OpenBao.Servers[0].Claims = []string{"openbao/data"}
	v := survey.Volume{Volume: cluster.Volume{PV: "pvc-bao", Namespace: "openbao", Claim: "data", Path: volume, Kind: cluster.Local}}
	b.Facts.Cluster.Volumes = []survey.Volume{v}
	h, err := b.Host(ctx)
	require.NoError(t, err)
	set, err := b.Set()
	require.NoError(t, err)
	require.NoError(t, backup.Take(ctx, h, v.Ref(), set, nil))

	var wrong *openbao.WrongKeysError
	require.ErrorAs(t, b.proveBaoKeys(ctx), &wrong, "the keys of another server")
	keys := filepath.Join(t.TempDir(), "keys")
	require.NoError(t, os.WriteFile(keys, []byte(strings.Join(initial.Keys, "\n")), 0o600))
	b.Plan.Spec.Backup.OpenBao.UnsealKeys = []plans.Secret{{File: keys}}
	require.NoError(t, b.proveBaoKeys(ctx))

	b.Facts.OpenBao.Servers[0].Claims = []string{"openbao/other"}
	require.ErrorContains(t, b.proveBaoKeys(ctx), "core/_keyring")
}
