//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bao is the lab's OpenBao as any HTTP client sees it, through ssh's own forward.
type bao struct {
	url, token string
}

// openBao opens a way to the pod as it is now.
func openBao(t testing.TB, l *lab) *bao {
	t.Helper()
	token, err := os.ReadFile(l.OpenBao.Token)
	require.NoError(t, err)
	ip := l.kubectl(t, "get", "pod", "-n", "openbao", "openbao-0", "-o", "jsonpath={.status.podIP}")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	local := free.Addr().String()
	require.NoError(t, free.Close())
	cmd := exec.Command("ssh", "-N", "-F", "none", "-i", l.IdentityFile, "-o", "UserKnownHostsFile="+l.KnownHosts, "-o", "ExitOnForwardFailure=yes",
		"-p", fmt.Sprint(l.Port), "-L", local+":"+net.JoinHostPort(ip, "8200"), l.User+"@"+l.Address)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	b := &bao{url: "http://" + local, token: strings.TrimSpace(string(token))}
	b.answers(t)
	return b
}

// answers waits until something answers there.
func (b *bao) answers(t testing.TB) {
	t.Helper()
	require.Eventually(t, func() bool {
		r, err := http.Get(b.url + "/v1/sys/seal-status")
		if err == nil {
			r.Body.Close()
		}
		return err == nil
	}, 30*time.Second, 100*time.Millisecond)
}

// ask sends one request and returns what came, whatever the status.
func (b *bao) ask(t testing.TB, method, path string, body any) (int, object) {
	t.Helper()
	text, err := json.Marshal(body)
	require.NoError(t, err)
	req, err := http.NewRequest(method, b.url+"/v1/"+path, strings.NewReader(string(text)))
	require.NoError(t, err)
	req.Header.Set("X-Vault-Token", b.token)
	r, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer r.Body.Close()
	answer, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	var out object
	if len(answer) > 0 {
		dec := json.NewDecoder(strings.NewReader(string(answer)))
		dec.UseNumber()
		require.NoError(t, dec.Decode(&out), "%s", answer)
	}
	return r.StatusCode, out
}

func (b *bao) sealed(t testing.TB) bool {
	t.Helper()
	code, status := b.ask(t, "GET", "sys/seal-status", nil)
	require.Equal(t, 200, code)
	return status["sealed"].(bool)
}

// escaped is a path of which each name is escaped.
func escaped(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

// secrets are all versions of all KV secrets with their metadata, as JSON.
func (b *bao) secrets(t testing.TB) map[string]string {
	t.Helper()
	out := map[string]string{}
	keep := func(name string, code int, answer object) {
		text, err := json.Marshal(object{"code": code, "data": answer["data"]})
		require.NoError(t, err)
		out[name] = string(text)
	}
	_, mounts := b.ask(t, "GET", "sys/mounts", nil)
	for mount, info := range mounts["data"].(object) {
		of := info.(object)
		if of["type"] != "kv" {
			continue
		}
		options, _ := of["options"].(object)
		two := options["version"] == "2"
		list, read := mount, mount
		if two {
			list, read = mount+"metadata/", mount+"data/"
		}
		var walk func(dir string)
		walk = func(dir string) {
			code, names := b.ask(t, "LIST", escaped(list+dir), nil)
			if code == 404 {
				return
			}
			require.Equal(t, 200, code, "%s%s: %v", list, dir, names)
			for _, name := range names["data"].(object)["keys"].([]any) {
				path := dir + name.(string)
				if strings.HasSuffix(path, "/") {
					walk(path)
					continue
				}
				if !two {
					code, value := b.ask(t, "GET", escaped(read+path), nil)
					keep(read+path, code, value)
					continue
				}
				code, meta := b.ask(t, "GET", escaped(list+path), nil)
				keep(list+path, code, meta)
				for version := range meta["data"].(object)["versions"].(object) {
					code, value := b.ask(t, "GET", escaped(read+path)+"?version="+version, nil)
					keep(read+path+"@"+version, code, value)
				}
			}
		}
		walk("")
	}
	return out
}

func sameSecrets(t testing.TB, was, is map[string]string) {
	t.Helper()
	require.Greater(t, len(was), 20, "there were secrets")
	assert.Equal(t, slices.Sorted(maps.Keys(was)), slices.Sorted(maps.Keys(is)))
	for name := range was {
		assert.Equal(t, was[name], is[name], name)
	}
}

// baoOf is the plan's part on OpenBao.
func baoOf(spec object) object { return spec["backup"].(object)["openBao"].(object) }

// file0600 is a file of the test's own.
func file0600(t testing.TB, content string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(f, []byte(content), 0o600))
	return f
}

// The volume of OpenBao is left out of the backup, so that its data come out of the
// raft snapshot; before that, all that can be wrong with it.
func TestOpenBaoFromSnapshot(t *testing.T) {
	t.Parallel()
	l := up(t, "e2e-openbao", "--store-mib", "1")
	b := openBao(t, l)
	before := b.secrets(t)
	text, err := os.ReadFile(l.OpenBao.Keys)
	require.NoError(t, err)
	keys := strings.Fields(string(text))
	require.Len(t, keys, 5)

	running := l.on(t, "systemctl show -p InvocationID --value k3s")
	code, answer := b.ask(t, "PUT", "sys/policies/acl/reader", object{"policy": `path "*" { capabilities = ["read", "list"] } path "sys/storage/raft/snapshot" { capabilities = ["deny"] }`})
	require.Equal(t, 204, code, "%v", answer)
	code, answer = b.ask(t, "POST", "auth/token/create", object{"policies": []string{"reader"}})
	require.Equal(t, 200, code, "%v", answer)
	reader := answer["auth"].(object)["client_token"].(string)
	other := strings.ToUpper(keys[1][:8]) + strings.ToLower(keys[1][8:])
	require.NotEqual(t, other, keys[1])

	for _, tc := range []struct {
		name string
		edit func(bao object)
		code int
		want []string
	}{
		{"no such Service", func(b object) { b["service"] = "vault" }, 3, []string{"openbao.server", "openbao/vault"}},
		{"nobody listens", func(b object) { b["port"] = 8201 }, 3, []string{"openbao.server", "openbao-0", "8201"}},
		{"wrong token", func(b object) { b["token"] = object{"file": file0600(t, "hvs.wrong")} }, 3, []string{"openbao.server", "token", "bao token create"}},
		{"no token", func(b object) { b["token"] = object{"env": "E2E_NO_TOKEN"} }, 3, []string{"spec.backup.openBao.token", "E2E_NO_TOKEN"}},
		{"nobody to ask", func(b object) { b["token"] = object{"prompt": true} }, 3, []string{"spec.backup.openBao.token", "terminal"}},
		{"token without the snapshot", func(b object) { b["token"] = object{"file": file0600(t, reader)} }, 3, []string{"openbao.token", "sys/storage/raft/snapshot"}},
		{"too few keys", func(b object) {
			b["unsealKeys"] = []object{{"file": file0600(t, strings.Join(keys[:2], "\n"))}}
		}, 3, []string{"openbao.keys", "spec.backup.openBao.unsealKeys", "needs 3", "2 are given"}},
		{"no file with keys", func(b object) {
			b["unsealKeys"] = []object{{"file": "/nowhere/keys"}}
		}, 3, []string{"openbao.keys", "spec.backup.openBao.unsealKeys[0]", "/nowhere/keys"}},
		{"a wrong key", func(b object) {
			b["unsealKeys"] = []object{{"file": file0600(t, strings.Join([]string{keys[0], other, keys[2]}, "\n"))}}
		}, 1, []string{"spec.backup.openBao.unsealKeys"}},
		{"keys, and none of them named", func(b object) { delete(b, "unsealKeys") }, 3, []string{"openbao.keys", "spec.backup.openBao.unsealKeys"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := l.plan(t, func(spec object) { tc.edit(baoOf(spec)) })
			r := migrate(t, "run", "-f", file, "--yes")
			assert.Equal(t, tc.code, r.code, "%s", r)
			for _, w := range tc.want {
				assert.Contains(t, r.stdout+r.stderr, w)
			}
			hidden(t, r.stdout+r.stderr, append(keys, b.token, reader, other, "hvs.wrong")...)
			assert.NotContains(t, r.stderr, "panic")
			assert.Equal(t, running, l.on(t, "systemctl show -p InvocationID --value k3s"), "K3s was not stopped")
			assert.False(t, b.sealed(t), "the running server was left alone")
		})
	}

	var file string
	secret := func(name string) object {
		return object{"kubernetes": object{"namespace": "openbao", "name": "bao-keys", "key": name}}
	}
	l.kubectl(t, "create", "secret", "generic", "bao-keys", "-n", "openbao", "--from-file=keys="+l.OpenBao.Keys)
	file = l.plan(t, func(spec object) {
		spec["backup"].(object)["volumes"] = object{"exclude": []string{"openbao/data-openbao-0"}}
		baoOf(spec)["token"] = object{"command": []string{"cat", l.OpenBao.Token}}
		baoOf(spec)["unsealKeys"] = []object{secret("keys")}
	})

	t.Run("sealed", func(t *testing.T) {
		code, answer := b.ask(t, "PUT", "sys/seal", nil)
		require.Equal(t, 204, code, "%v", answer)
		r := migrate(t, "run", "-f", file, "--yes")
		assert.Equal(t, 3, r.code, "%s", r)
		assert.Contains(t, r.stderr, "is sealed")
		r = migrate(t, "openbao", "unseal", "-f", file)
		assert.Zero(t, r.code, "%s", r)
		assert.Equal(t, "unsealed openbao/openbao-0\n", r.stdout)
		assert.False(t, b.sealed(t))
		r = migrate(t, "openbao", "unseal", "-f", file)
		assert.Zero(t, r.code, "%s", r)
		assert.Equal(t, "OpenBao is unsealed already\n", r.stdout)
	})

	t.Run("the server comes back out of its snapshot", func(t *testing.T) {
		// Written after the first snapshot, and in the last one only.
		r := migrate(t, "run", "-f", file, "--until", "gate")
		require.Zero(t, r.code, "%s", r)
		said := r.stdout + r.stderr
		code, answer := b.ask(t, "POST", "secret/data/late", object{"data": object{"written": "after the first snapshot"}})
		require.Equal(t, 200, code, "%v", answer)
		before = b.secrets(t)
		r = migrate(t, "run", "-f", file, "--yes")
		require.Zero(t, r.code, "%s", r)
		said += r.stdout + r.stderr
		b = openBao(t, l)
		assert.False(t, b.sealed(t))
		sameSecrets(t, before, b.secrets(t))
		assert.Contains(t, l.kubectl(t, "get", "pvc", "-n", "openbao", "data-openbao-0", "-o", "jsonpath={.status.phase}"), "Bound")

		r = migrate(t, "verify", "-f", file)
		assert.Zero(t, r.code, "%s", r)
		assert.Contains(t, r.stdout, "OpenBao")

		var list struct{ Artifacts []struct{ Name string } }
		r = migrate(t, "backup", "list", "-f", file, "-o", "json")
		require.NoError(t, json.Unmarshal([]byte(r.stdout), &list), "%s", r)
		var names []string
		for _, a := range list.Artifacts {
			if strings.HasPrefix(a.Name, "openbao/") {
				names = append(names, a.Name)
			}
		}
		assert.Equal(t, []string{"openbao/credentials", "openbao/export", "openbao/snapshot"}, names, "and nothing of the throw-away keys")

		journal, err := os.ReadFile(journalOf(file).path)
		require.NoError(t, err)
		assert.Contains(t, string(journal), `"restored":["openbao/openbao-0"]`)

		hidden(t, said, append(keys, b.token)...)
		clean(t, l, workDir(file), append(keys, b.token, "after the first snapshot")...)
	})

	t.Run("its export comes into another server", func(t *testing.T) {
		other := standIn(t)
		token := file0600(t, other.token)
		command := func(flags ...string) result {
			return migrate(t, append([]string{"openbao", "import", "-f", file, "--address", other.url, "--token-file", token}, flags...)...)
		}
		r := command("--dry-run")
		assert.Zero(t, r.code, "%s", r)
		assert.Contains(t, r.stdout, "Nothing was written")
		assert.Empty(t, other.secrets(t))
		r = command()
		assert.Zero(t, r.code, "%s", r)
		hidden(t, r.stdout+r.stderr, append(keys, b.token, other.token, "after the first snapshot")...)
		assert.Equal(t, dataOf(t, before), dataOf(t, other.secrets(t)))

		var report struct{ Written, Unchanged, Conflicts int }
		r = command("-o", "json")
		assert.Zero(t, r.code, "%s", r)
		require.NoError(t, json.Unmarshal([]byte(r.stdout), &report), "%s", r)
		assert.Zero(t, report.Written, "once more there is nothing to do")
		assert.Greater(t, report.Unchanged, 20)

		code, answer := other.ask(t, "POST", "secret/data/late", object{"data": object{"written": "by somebody else"}})
		require.Equal(t, 200, code, "%v", answer)
		code, answer = other.ask(t, "DELETE", "secret/metadata/sentinel", nil)
		require.Equal(t, 204, code, "%v", answer)
		code, answer = other.ask(t, "POST", "secret/data/sentinel", object{"data": object{"of": "somebody else"}})
		require.Equal(t, 200, code, "%v", answer)
		r = command()
		assert.Equal(t, 1, r.code, "%s", r)
		assert.Regexp(t, `conflict +secret/sentinel`, r.stdout)
		assert.Contains(t, r.stderr, "left alone")

		r = migrate(t, "openbao", "import", "-f", file, "--address", other.url, "--token-file", file0600(t, "hvs.wrong"))
		assert.Equal(t, 1, r.code, "%s", r)
		assert.Contains(t, r.stderr, "token")
	})

	t.Run("rolled back, the old server comes out of the snapshot, too", func(t *testing.T) {
		r := migrate(t, "rollback", "-f", file, "--to", "protect", "--yes")
		require.Zero(t, r.code, "%s", r)
		b = openBao(t, l)
		assert.False(t, b.sealed(t))
		sameSecrets(t, before, b.secrets(t))
	})
}

// standIn starts the lab's OpenBao on this machine, initialises and unseals it.
func standIn(t testing.TB) *bao {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := free.Addr().String()
	require.NoError(t, free.Close())
	cmd := exec.Command(filepath.Join(os.Getenv("KUBERNETES_PARTS"), "openbao"), "server", "--path", t.TempDir(), "--listen", address, "--cluster", "127.0.0.1:0")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	b := &bao{url: "http://" + address}
	b.answers(t)
	code, made := b.ask(t, "PUT", "sys/init", object{"secret_shares": 1, "secret_threshold": 1})
	require.Equal(t, 200, code, "%v", made)
	b.token = made["root_token"].(string)
	code, answer := b.ask(t, "PUT", "sys/unseal", object{"key": made["keys_base64"].([]any)[0]})
	require.Equal(t, 200, code, "%v", answer)
	require.Eventually(t, func() bool {
		code, _ := b.ask(t, "GET", "sys/mounts", nil)
		return code == 200
	}, 30*time.Second, 200*time.Millisecond)
	return b
}

// dataOf are the secrets' data by version, without metadata: times cannot be imported.
func dataOf(t testing.TB, secrets map[string]string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for name, text := range secrets {
		var answer struct {
			Code int
			Data struct{ Data json.RawMessage }
		}
		require.NoError(t, json.Unmarshal([]byte(text), &answer))
		switch {
		case strings.Contains(name, "@"): // a version
			out[name] = fmt.Sprint(answer.Code, " ", string(answer.Data.Data))
		case !strings.Contains(name, "/metadata/"): // KV version 1
			out[name] = text
		}
	}
	return out
}

// hidden asserts that a text holds none of the secrets.
func hidden(t testing.TB, text string, secrets ...string) {
	t.Helper()
	for i, s := range secrets {
		assert.False(t, strings.Contains(text, s), "secret %d shows", i)
	}
}

// clean searches for secrets in all that a run leaves on laptop and host. OpenBao's
// own storage and the datastore of Kubernetes are theirs.
func clean(t testing.TB, l *lab, work string, secrets ...string) {
	t.Helper()
	files := 0
	require.NoError(t, filepath.WalkDir(work, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		hidden(t, string(data), secrets...)
		return err
	}))
	assert.Greater(t, files, 5)
	for i, s := range secrets {
		r := execute(t, nil, "docker", "exec", l.Container, "grep", "-rlF", "--", s, "/var/lib/k3s-dualstack", "/tmp", "/root", "/etc")
		assert.Equal(t, 1, r.code, "secret %d is on the host: %s", i, r)
	}
}
