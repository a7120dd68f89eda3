package plans

import (
	"encoding/json"
	"errors"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"
)

// laptop is a home directory and a PATH with all that the examples name; it returns a directory for plans.
func laptop(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	write(t, filepath.Join(home, ".ssh", "id_ed25519"), 0o600)
	write(t, filepath.Join(home, ".ssh", "known_hosts"), 0o600)
	write(t, filepath.Join(home, ".ssh", "config"), 0o600)
	write(t, filepath.Join(home, ".config", "age", "migration.key"), 0o600)
	write(t, filepath.Join(home, ".config", "openbao", "ca.pem"), 0o600)
	write(t, filepath.Join(home, "sbbb", "base", "kustomization.yaml"), 0o600)
	write(t, filepath.Join(home, "bin", "sunbeam"), 0o700)
	write(t, filepath.Join(home, "plans", "up.sh"), 0o700)
	t.Setenv("HOME", home)
	t.Setenv("PATH", filepath.Join(home, "bin"))
	return filepath.Join(home, "plans")
}

func write(t *testing.T, path string, mode os.FileMode, lines ...string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")), mode))
}

func loadExample(t *testing.T, dir, name string) *Plan {
	t.Helper()
	data, err := os.ReadFile(name)
	require.NoError(t, err)
	path := filepath.Join(dir, name)
	write(t, path, 0o600, string(data))
	p, err := Load(path)
	require.NoError(t, err)
	require.Equal(t, path, p.Path())
	return p
}

func TestLoadMinimalExampleFillsInDefaults(t *testing.T) {
	dir := laptop(t)
	p := loadExample(t, dir, "minimal.yaml")
	data, err := json.MarshalIndent(p, "", "  ")
	require.NoError(t, err)
	golden(t, "testdata/minimal.json", strings.ReplaceAll(string(data), filepath.Dir(dir), "HOME")+"\n")
	require.Equal(t, p.Spec.Hosts[0], p.Server())
}

func TestLoadSunbeamExample(t *testing.T) {
	dir := laptop(t)
	p := loadExample(t, dir, "sunbeam.yaml")
	data, err := json.MarshalIndent(p, "", "  ")
	require.NoError(t, err)
	golden(t, "testdata/sunbeam.json", strings.ReplaceAll(string(data), filepath.Dir(dir), "HOME")+"\n")
}

var indexPattern = regexp.MustCompile(`\[[^]]*\]`)

func TestSunbeamExampleHasEveryField(t *testing.T) {
	data, err := os.ReadFile("sunbeam.yaml")
	require.NoError(t, err)
	root, syntax := parse(data)
	require.Nil(t, syntax)
	d := &decoder{at: map[string]position{}}
	d.value(nil, root, reflect.ValueOf(&Plan{}).Elem())
	require.Empty(t, d.errs)
	written := map[string]bool{}
	for path := range d.at {
		written[indexPattern.ReplaceAllString(path, "")] = true
	}
	// Fields that exclude each other stand in comments, or another Secret of the example has them.
	const bao = "spec.backup.openBao."
	for _, name := range []string{"pods", "address"} {
		written[bao+name] = written[bao+name] || strings.Contains(string(data), "# "+name+": ")
	}
	for _, name := range []string{"reason", "command", "command.on", "command.create", "command.status", "command.restore", "command.delete",
		"scaleway", "scaleway.product", "scaleway.zone", "scaleway.id", "scaleway.disks", "scaleway.images", "scaleway.imagesFit", "scaleway.trustRescueHostKey"} {
		written["spec.snapshot."+name] = regexp.MustCompile(`(?m)^ *# +` + path.Ext("." + name)[1:] + `:( |$)`).Match(data)
	}
	for path := range written {
		if rest, ok := strings.CutPrefix(path, bao+"unsealKeys."); ok {
			written[bao+"token."+rest] = true
		}
		if rest, ok := strings.CutPrefix(path, bao+"token."); ok {
			written[bao+"unsealKeys."+rest] = true
		}
	}
	for _, path := range fieldPaths("", reflect.TypeFor[Plan]()) {
		require.True(t, written[path], "sunbeam.yaml does not show %s", path)
	}
}

func fieldPaths(prefix string, t reflect.Type) []string {
	var paths []string
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == durationType {
		return nil
	}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "" {
			continue
		}
		path := strings.TrimPrefix(prefix+"."+name, ".")
		paths = append(append(paths, path), fieldPaths(path, t.Field(i).Type)...)
	}
	return paths
}

// Every testdata/*.yaml is a plan with mistakes; beside it stands what a person is told.
func TestMistakesAreNamed(t *testing.T) {
	laptop(t)
	files, err := filepath.Glob("testdata/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			_, err = Decode(data, "/plans")
			require.Error(t, err)
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", err.Error()+"\n")
		})
	}
}

func TestMissingFilesAreNamed(t *testing.T) {
	dir := laptop(t)
	path := filepath.Join(dir, "plan.yaml")
	write(t, filepath.Join(dir, "notes", "up.sh"), 0o600)
	write(t, path, 0o600,
		"apiVersion: "+APIVersion, "kind: "+Kind, "metadata: {name: files}", "spec:",
		"  hosts:",
		"    - name: node1",
		"      address: node1",
		"      identityFiles: [~/.ssh/id_missing, ~/.ssh]",
		"      knownHosts: [known_hosts]",
		"      sshConfig: ssh_config",
		"  k3s: {installScript: install.sh}",
		"  backup:",
		"    encryption:",
		"      recipients: [age1fg3vr6djck0qpreaqr6vnmvzy7y5lwg9vf9323uuy72zn92jlaaqsv3c7v]",
		"      identities: [~admin/key, missing.key]",
		"    openBao:",
		"      tls: {caFile: ca.pem}",
		"      token: {file: missing.token}", // may come later, and a rollback needs none
		"  platform: {command: [./up.sh], directory: notes, manifests: [base], rehearse: [./up.sh, --dry-run]}",
	)
	_, err := Load(path)
	require.Error(t, err)
	golden(t, "testdata/files.golden", strings.ReplaceAll(err.Error(), filepath.Dir(dir), "HOME")+"\n")
}

func TestMissingPlatform(t *testing.T) {
	dir := laptop(t)
	write(t, filepath.Join(dir, "file"), 0o600)
	for name, test := range map[string]struct {
		platform Platform
		want     string
	}{
		"no such directory":   {Platform{Command: []string{"sunbeam"}, Directory: filepath.Join(dir, "missing")}, "spec.platform.directory: Invalid value: \"DIR/missing\": no such file; name the directory that the platform's command runs in"},
		"directory is a file": {Platform{Command: []string{"sunbeam"}, Directory: filepath.Join(dir, "file")}, "spec.platform.directory: Invalid value: \"DIR/file\": not a directory; name the one that the platform's command runs in"},
		"not in PATH":         {Platform{Command: []string{"moonbeam"}, Directory: dir}, "spec.platform.command[0]: Invalid value: \"moonbeam\": missing platform command: no such program in PATH; install it, extend PATH, or write its path"},
		"only in directory":   {Platform{Command: []string{"up.sh"}, Directory: dir}, "spec.platform.command[0]: Invalid value: \"up.sh\": missing platform command: no such program in PATH; for the one in spec.platform.directory write ./up.sh"},
		"in PATH":             {Platform{Command: []string{"sunbeam", "up"}, Directory: dir}, ""},
		"in directory":        {Platform{Command: []string{"./up.sh"}, Directory: dir}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if errs := checkFiles(&Plan{Spec: Spec{Platform: test.platform, K3s: K3s{InstallScript: DefaultInstallScript}}}); len(errs) > 0 {
				got = strings.ReplaceAll(errs.ToAggregate().Error(), dir, "DIR")
			}
			require.Equal(t, test.want, got)
		})
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	_, err := Load(filepath.Join(dir, "missing.yaml"))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "name the plan file with -f")
	_, err = Load(dir)
	require.ErrorContains(t, err, "reading the plan")

	big := filepath.Join(dir, "big")
	require.NoError(t, os.WriteFile(big, make([]byte, maxSize+1), 0o600))
	_, err = Load(big)
	require.ErrorContains(t, err, "larger than 128 KiB")

	file := filepath.Join(dir, "plan.yaml")
	write(t, file, 0o600, "kind: [")
	_, err = Load(file)
	var syntax *SyntaxError
	require.ErrorAs(t, err, &syntax)
	require.Equal(t, file, syntax.File)
	write(t, file, 0o600, "kind: Deployment")
	_, err = Load(file)
	var invalid *InvalidError
	require.ErrorAs(t, err, &invalid)
	require.Equal(t, file, invalid.File)
}

// Editors leave byte order marks and carriage returns behind.
func TestLineEndingsAndByteOrderMark(t *testing.T) {
	minimal, err := os.ReadFile("minimal.yaml")
	require.NoError(t, err)
	want, err := Decode(minimal, "/plans")
	require.NoError(t, err)
	for name, data := range map[string]string{
		"carriage returns": strings.ReplaceAll(string(minimal), "\n", "\r\n"),
		"byte order mark":  "\ufeff" + string(minimal),
		"no last newline":  strings.TrimSuffix(string(minimal), "\n"),
		"document markers": "---\n" + string(minimal) + "...\n",
		"comment and mark": "# first\n---\n" + string(minimal) + "---\n",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Decode([]byte(data), "/plans")
			require.NoError(t, err)
			require.Equal(t, want.Digest(), got.Digest())
		})
	}
}

func TestErrorsCarryTheirPlace(t *testing.T) {
	_, err := Decode([]byte("kind: \"Migration\n"), "/plans")
	var syntax *SyntaxError
	require.ErrorAs(t, err, &syntax)
	require.Equal(t, [2]int{1, 7}, [2]int{syntax.Line, syntax.Column})

	_, err = Decode([]byte("kind: a\r\n# b\r\n\r\nspec: {}\r\nspec: {}\r\n"), "/plans")
	require.ErrorAs(t, err, &syntax)
	require.Equal(t, [2]int{5, 1}, [2]int{syntax.Line, syntax.Column})
	require.Equal(t, "    5 | spec: {}\n      | ^", syntax.Excerpt)

	_, err = Decode([]byte("a: ["+strings.Repeat("x, ", 100)), "/plans")
	require.ErrorAs(t, err, &syntax)
	require.Empty(t, syntax.Excerpt, "a line of hundreds of columns helps nobody")
}

func TestDigest(t *testing.T) {
	minimal, err := os.ReadFile("minimal.yaml")
	require.NoError(t, err)
	here, err := Decode(minimal, "/here")
	require.NoError(t, err)
	there, err := Decode(minimal, "/there")
	require.NoError(t, err)
	require.Equal(t, here.Digest(), there.Digest(), "the plan says the same in every directory")
	require.Len(t, here.Digest(), 64)

	explicit, err := Decode([]byte(string(minimal)+"  network:\n    clusterCIDR: [10.42.0.0/16, \"fd42::/48\"]\n"), "/here")
	require.NoError(t, err)
	require.Equal(t, here.Digest(), explicit.Digest(), "a default written out is the same plan")

	other, err := Decode([]byte(string(minimal)+"  network:\n    clusterCIDR: [10.44.0.0/16, \"fd44::/48\"]\n"), "/here")
	require.NoError(t, err)
	require.NotEqual(t, here.Digest(), other.Digest())

	require.Len(t, (&Plan{}).Digest(), 64)
}

func TestAnEmptyListOfExcludedResourcesLeavesNothingOut(t *testing.T) {
	minimal, err := os.ReadFile("minimal.yaml")
	require.NoError(t, err)
	p, err := Decode([]byte(strings.Replace(string(minimal), "  backup:\n", "  backup:\n    objects: {excludeResources: []}\n", 1)), "/plans")
	require.NoError(t, err)
	require.Empty(t, p.Spec.Backup.Objects.ExcludeResources)
	again, err := Decode(marshal(t, p), "/plans")
	require.NoError(t, err)
	require.Empty(t, again.Spec.Backup.Objects.ExcludeResources)
}

func marshal(t *testing.T, p *Plan) []byte {
	t.Helper()
	data, err := json.Marshal(p)
	require.NoError(t, err)
	return data
}

// FuzzDecode: no input makes the decoder panic, every refusal is one of the two documented kinds, and what was decoded
// means the same when it is written out and read again.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	require.NoError(f, err)
	for _, file := range append(files, "minimal.yaml", "sunbeam.yaml") {
		data, err := os.ReadFile(file)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Setenv("HOME", "/home/admin")
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Decode(data, "/plans")
		if err != nil {
			var syntax *SyntaxError
			var invalid *InvalidError
			if !errors.As(err, &syntax) && !errors.As(err, &invalid) {
				t.Fatalf("an error of type %T", err)
			}
			if err.Error() == "" {
				t.Fatal("an error without words")
			}
			return
		}
		again, err := Decode(marshal(t, p), "/plans")
		if err != nil {
			t.Fatalf("written out, the plan is refused: %v\n%s", err, marshal(t, p))
		}
		if diff := cmp.Diff(p, again, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(Plan{})); diff != "" {
			t.Fatalf("written out, the plan means something else:\n%s", diff)
		}
	})
}
