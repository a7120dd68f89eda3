package manifests

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/yaml"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/plans"
)

const service = "apiVersion: v1\r\nkind: Service\r\nmetadata: {name: web}\r\nspec:\r\n  ports: [{port: 80}]"

const edit = "apiVersion: v1\r\nkind: Service\r\nmetadata: {name: web}\r\nspec:\r\n  ipFamilyPolicy: PreferDualStack\r\n  ports: [{port: 80}]"

// tree writes files and returns their directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		name = filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(data), 0o644))
	}
	return dir
}

func find(t *testing.T, paths ...string) *Report {
	t.Helper()
	r, err := Scan(t.Context(), paths, prefer)
	require.NoError(t, err)
	return r
}

func holdsText(t *testing.T, want string, name ...string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(name...))
	require.NoError(t, err)
	require.Equal(t, want, string(data))
}

// A file keeps its mode and owner, and nothing is left beside it.
func TestWrite(t *testing.T) {
	dir := tree(t, map[string]string{"a/web.yaml": service, "b.yml": service, "note.txt": service})
	web := filepath.Join(dir, "a/web.yaml")
	require.NoError(t, os.Chmod(web, 0o640))
	if os.Getuid() == 0 {
		require.NoError(t, os.Chown(web, 12, 34))
	}
	before, err := os.Stat(web)
	require.NoError(t, err)
	r := find(t, dir)
	require.NoError(t, r.Write(t.Context()))
	require.Equal(t, []string{web, filepath.Join(dir, "b.yml")}, r.Written)
	holdsText(t, edit, web)
	holdsText(t, edit, dir, "b.yml")
	holdsText(t, service, dir, "note.txt")
	after, err := os.Stat(web)
	require.NoError(t, err)
	require.Equal(t, before.Mode(), after.Mode())
	file, err := os.Open(web)
	require.NoError(t, err)
	defer file.Close()
	require.NoError(t, keepOwner(file, before)) // the same: nothing to do
	names, err := os.ReadDir(filepath.Dir(web))
	require.NoError(t, err)
	require.Len(t, names, 1)
	require.Empty(t, find(t, dir).files)
}

// A file is edited where it is, once, however many links lead to it; a link does not
// lead out of what was named.
func TestLinks(t *testing.T) {
	dir := tree(t, map[string]string{"base/web.yaml": service, "other/db.yaml": service})
	link := func(target, name string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	link("../base/web.yaml", "overlay/web.yaml")
	link("web.yaml", "base/again.yaml")
	link("../other/db.yaml", "base/db.yaml")
	link("circle.yaml", "base/circle.yaml")
	link("..", "base/up.yaml") // a directory is not followed
	base, overlay := filepath.Join(dir, "base"), filepath.Join(dir, "overlay")
	r := find(t, base, overlay)
	require.Len(t, r.Services, 1)
	require.Len(t, r.Problems, 2)
	require.Contains(t, r.Problems[0].Reason, "a link that leads nowhere")
	require.Contains(t, r.Problems[1].Reason, "outside of what was named")
	require.NoError(t, r.Write(t.Context()))
	holdsText(t, edit, base, "web.yaml")
	holdsText(t, service, dir, "other/db.yaml")
	for _, name := range []string{"overlay/web.yaml", "base/again.yaml", "base/db.yaml"} {
		info, err := os.Lstat(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, os.ModeSymlink, info.Mode().Type(), name)
	}
	// A link that was named is meant.
	require.NoError(t, find(t, filepath.Join(base, "db.yaml")).Write(t.Context()))
	holdsText(t, edit, dir, "other/db.yaml")
}

func TestUnwritable(t *testing.T) {
	dir := tree(t, map[string]string{"locked.yaml": service, "moved.yaml": service, "gone.yaml": service, "web.yaml": service, "huge.yaml": "Service"})
	require.NoError(t, os.Chmod(filepath.Join(dir, "locked.yaml"), 0o444))
	require.NoError(t, os.Truncate(filepath.Join(dir, "huge.yaml"), maxSize+1))
	r := find(t, dir)
	require.Equal(t, []Problem{{filepath.Join(dir, "huge.yaml"), "it has 32 MiB; up to 32 are read"}}, r.Problems)
	require.Equal(t, 1, r.Count(ByHand))
	require.Equal(t, "the file is read-only", r.Services[1].Reason)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "moved.yaml"), []byte(service+" # by somebody\n"), 0o644))
	require.NoError(t, os.Remove(filepath.Join(dir, "gone.yaml")))
	err := r.Write(t.Context())
	require.ErrorIs(t, err, errChanged)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Equal(t, []string{filepath.Join(dir, "web.yaml")}, r.Written)
	holdsText(t, service, dir, "locked.yaml")
	holdsText(t, service+" # by somebody\n", dir, "moved.yaml")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r = find(t, dir)
	require.ErrorIs(t, r.Write(ctx), context.Canceled)
	require.Empty(t, r.Written)
	_, err = Scan(ctx, []string{dir}, prefer)
	require.ErrorIs(t, err, context.Canceled)
	_, err = Scan(t.Context(), []string{filepath.Join(dir, "nosuch")}, prefer)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// What a kustomization patches is set where it is whole; a patch of something that
// is elsewhere is for a person.
func TestPatches(t *testing.T) {
	patch := strings.Replace(service, "spec:", "spec:\r\n  type: NodePort", 1)
	r := find(t, tree(t, map[string]string{
		"base/web.yaml": service,
		"over/kustomization.yaml": "patches:\n- path: p.yaml\n- target: {kind: Service}\n  patch: '[]'\n" +
			"patchesStrategicMerge: [remote.yaml, \"kind: Service\"]\n",
		"over/p.yaml":      patch,
		"over/remote.yaml": strings.Replace(patch, "web", "remote", 1),
	}))
	require.Len(t, r.Services, 3)
	require.Equal(t, ToSet, r.Services[0].State)
	require.Equal(t, Exempt, r.Services[1].State)
	require.Contains(t, r.Services[1].Reason, "base/web.yaml:4")
	require.Equal(t, ByHand, r.Services[2].State)
	require.Contains(t, r.Services[2].Reason, "a patch of ")
	require.Len(t, r.files, 1)
}

// Manifests and living Services are judged alike.
func TestRulesAreTheClusters(t *testing.T) {
	all := corpus(t)
	compared := 0
	for _, name := range []string{"eligibility.yaml", "k3s-manifest.yaml", "helm-output.yaml", "trailing-space.yaml"} {
		services, _ := Edit(Source{Name: name, Data: all[name]}, prefer)
		found := map[string]Service{}
		for _, s := range services {
			if s.Namespace == "" {
				s.Namespace = "default"
			}
			found[s.String()] = s
		}
		for _, part := range split(all[name]) {
			var object corev1.Service
			if yaml.Unmarshal([]byte(part), &object) != nil || object.Kind != "Service" || object.APIVersion != "v1" {
				continue
			}
			if object.Namespace == "" {
				object.Namespace = "default"
			}
			// The cluster has no say in what a manifest says already.
			object.Spec.IPFamilyPolicy = nil
			client := &cluster.Client{Kube: fake.NewClientset([]runtime.Object{&object}...)}
			changes, err := client.Services(t.Context(), plans.ServicesPreferDualStack, prefer.Exclude)
			require.NoError(t, err)
			require.Len(t, changes, 1)
			s, ok := found[changes[0].String()]
			require.True(t, ok, changes[0].String())
			skip := changes[0].Skip
			if skip == "excluded by the plan" {
				skip = "excluded"
			}
			if s.State == Exempt || skip != "" {
				require.Equal(t, skip, s.Reason, s.String())
			}
			compared++
		}
	}
	require.Greater(t, compared, 15)
}
