package k3s

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// odd is an installation whose every path a shell could misread.
func odd() *Installation {
	return &Installation{
		Role: Server, Binary: "/opt/it's k3s/bin/k3s", Unit: "/etc/systemd/system/k3s.service",
		DataDir: `/srv/k3s data/$(touch x)/a;b "c" \d`, Killall: "/opt/it's k3s/bin/k3s-killall.sh", Uninstall: "/opt/it's k3s/bin/k3s-uninstall.sh",
		Mounts: []Mount{{Path: "/srv/k3s data/it's", Apart: true}},
	}
}

func plain() *Installation {
	return &Installation{
		Role: Server, Binary: "/usr/local/bin/k3s", Unit: "/etc/systemd/system/k3s.service", DataDir: "/var/lib/rancher/k3s",
		Killall: "/usr/local/bin/k3s-killall.sh", Uninstall: "/usr/local/bin/k3s-uninstall.sh",
	}
}

func TestScriptsAreValidShell(t *testing.T) {
	c := Config{
		Args: []string{"--tls-san=it's", "--kubelet-arg=node-labels=a=b c", `--x=$HOME "q" \ ` + "`id`"},
		Env:  map[string]string{"K3S_TOKEN": "it's $1 \"quoted\"\\"},
	}
	for name, in := range map[string]*Installation{"plain": plain(), "odd": odd()} {
		for kind, script := range map[string]string{
			"quiesce": in.Quiesce(), "uninstall": in.UninstallJob(""), "set aside": in.SetAsideJob("/var/lib/it's/aside"),
			"keep": in.InstallJob("/var/lib/it's/install.sh", c, ""), "named": in.InstallJob("/x", c, "v1.34.4+k3s1"),
		} {
			for _, shell := range []string{"sh", "dash", "bash"} {
				if _, err := exec.LookPath(shell); err != nil && shell != "sh" {
					continue
				}
				cmd := exec.Command(shell, "-n")
				cmd.Stdin = strings.NewReader(script)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%s %s: %s -n: %v\n%s\n%s", name, kind, shell, err, out, script)
				}
			}
		}
	}
}

// sh runs a script in dir with dir/bin first in PATH.
func sh(t *testing.T, dir, script string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + filepath.Join(dir, "bin") + ":" + os.Getenv("PATH")}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func file(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// The script is run for real against a mount table of the test's, with an
// uninstall script that notes what it was given.
func TestUninstallRefusesForeignMounts(t *testing.T) {
	for _, tc := range []struct {
		name    string
		data    string // data directory below the test's root
		mounts  []string
		refused []string
	}{
		{"nothing mounted", "/rancher/k3s", nil, nil},
		{"the host's own", "/rancher/k3s", []string{"/dev/sda1 / ext4 rw 0 0", "proc /proc proc rw 0 0", "/dev/sdb1 /home ext4 rw 0 0"}, nil},
		{"what pods and containers have", "/rancher/k3s", []string{
			"tmpfs ROOT/kubelet/pods/u/volumes/kubernetes.io~projected/t tmpfs rw 0 0",
			"overlay ROOT/rancher/k3s/agent/containerd/x overlay rw 0 0", "nsfs ROOT/rancher/k3s/n nsfs rw 0 0",
		}, nil},
		{"a share of a pod", "/rancher/k3s", []string{"nas:/x ROOT/kubelet/pods/u/volumes/kubernetes.io~nfs/media nfs4 rw 0 0"}, []string{"ROOT/kubelet/pods/u/volumes/kubernetes.io~nfs/media nfs4"}},
		{"a disk at the storage", "/rancher/k3s", []string{"/dev/sdb1 ROOT/rancher/k3s/storage xfs rw 0 0"}, []string{"ROOT/rancher/k3s/storage xfs"}},
		{"a disk for the whole data directory, which K3s owns", "/rancher/k3s", []string{"/dev/sdb1 ROOT/rancher/k3s ext4 rw 0 0"}, nil},
		{"a neighbour with the same beginning", "/rancher/k3s", []string{"/dev/sdb1 ROOT/rancher/k3s-old/x ext4 rw 0 0"}, nil},
		{"a dot is a dot", "/rancher/k.s", []string{"/dev/sdb1 ROOT/rancher/k3s/x ext4 rw 0 0"}, nil},
		{"a plus is a plus", "/rancher/k3s+", []string{"/dev/sdb1 ROOT/rancher/k3s+/storage ext4 rw 0 0"}, []string{"ROOT/rancher/k3s+/storage ext4"}},
		{"a bracket that no expression closes", "/rancher/k(3[s", []string{"/dev/sdb1 ROOT/rancher/k(3[s/storage ext4 rw 0 0"}, []string{"ROOT/rancher/k(3[s/storage ext4"}},
		{"white space and backslash, as the kernel writes them", "/my k3s\t\\x", []string{`/dev/sdb1 ROOT/my\040k3s\011\134x/storage ext4 rw 0 0`}, []string{`ROOT/my\040k3s\011\134x/storage ext4`}},
		{"through a symbolic link", "/link/k3s", []string{"/dev/sdb1 ROOT/rancher/k3s/storage ext4 rw 0 0"}, []string{"ROOT/rancher/k3s/storage ext4"}},
		{"several", "/rancher/k3s", []string{"a ROOT/kubelet/pods/a cifs rw 0 0", "/dev/sdb1 ROOT/rancher/k3s/storage/x ext4 rw 0 0"}, []string{"ROOT/kubelet/pods/a cifs", "ROOT/rancher/k3s/storage/x ext4"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			own := func(s string) string { return strings.ReplaceAll(s, "ROOT", root) }
			if err := os.MkdirAll(filepath.Join(root, "rancher/k3s"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("rancher", filepath.Join(root, "link")); err != nil {
				t.Fatal(err)
			}
			in := &Installation{
				Binary: root + "/bin/k3s", Unit: root + "/k3s.service", DataDir: root + tc.data,
				Uninstall: root + "/it's uninstall.sh",
			}
			file(t, in.Uninstall, `#!/bin/sh
printf %s "$K3S_DATA_DIR" >"$(dirname "$0")/ran"`)
			file(t, root+"/mounts", own(strings.Join(tc.mounts, "\n")+"\n"))
			file(t, root+"/bin/sync", "#!/bin/sh\n")

			code, _, stderr := sh(t, root, in.uninstallJob(root+"/kubelet", root+"/mounts", ""))
			if len(tc.refused) == 0 {
				got, err := os.ReadFile(root + "/ran")
				if code != 0 || err != nil || string(got) != in.DataDir {
					t.Fatalf("exit status %d, K3S_DATA_DIR %q, %v\n%s", code, got, err, stderr)
				}
				return
			}
			if code != 32 || exists(root+"/ran") {
				t.Errorf("exit status %d, uninstalled: %t", code, exists(root+"/ran"))
			}
			want := "mounted where the uninstall deletes: " + own(strings.Join(tc.refused, "\n")) + "\nunmount it first; nothing was removed\n"
			if d := cmp.Diff(want, stderr); d != "" {
				t.Error(d)
			}
		})
	}
}

// The volumes' own file system is unmounted before the uninstall script runs, and where
// that fails it does not run.
func TestUninstallUnmountsTheVolumes(t *testing.T) {
	for _, tc := range []struct {
		name, mountpoint, umount, hidden, foreign string
		code                                      int
		did, says                                 string
	}{
		{"mounted", "exit 0", "exit 0", "", "", 0, "unmounted uninstalled", ""},
		{"not mounted", "exit 1", "exit 0", "", "", 0, "uninstalled", ""},
		{"in use", "exit 0", "exit 32", "", "", 32, "unmounted mounted refused", "it's storage could not be unmounted; nothing was removed"},
		{"it has hidden files", "exit 0", "exit 0", "old", "", 32, "unmounted mounted refused", "it's storage itself, hidden while its file system is mounted; nothing was removed"},
		{"something else is mounted", "exit 0", "exit 0", "", "nfs", 32, "unmounted mounted refused", "mounted where the uninstall deletes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			in := &Installation{
				Binary: root + "/k3s", Unit: root + "/k3s.service", DataDir: root + "/data", Uninstall: root + "/uninstall",
				Mounts: []Mount{{Path: root, Data: true}, {Path: root + "/it's storage", Apart: true}},
			}
			file(t, in.Uninstall, "#!/bin/sh\nprintf ' uninstalled' >>did")
			file(t, root+"/bin/mountpoint", "#!/bin/sh\n[ \"$*\" = \"-q $PWD/it's storage\" ] || exit 9\n"+tc.mountpoint)
			file(t, root+"/bin/umount", "#!/bin/sh\n[ \"$*\" = \"-- $PWD/it's storage\" ] || exit 9\nprintf ' unmounted' >>did\n"+tc.umount)
			file(t, root+"/bin/sync", "#!/bin/sh\n")
			file(t, root+"/bin/systemctl", "#!/bin/sh\nprintf ' mounted' >>did")
			file(t, root+"/bin/systemd-escape", "#!/bin/sh\n")
			if tc.hidden != "" {
				file(t, root+"/it's storage/"+tc.hidden, "")
			}
			table := ""
			if tc.foreign != "" {
				table = "nas:/x " + root + "/kubelet/share " + tc.foreign + " rw 0 0\n"
			}
			file(t, root+"/mounts", table)
			code, _, stderr := sh(t, root, in.uninstallJob(root+"/kubelet", root+"/mounts", "printf ' refused' >>did"))
			did, _ := os.ReadFile(root + "/did")
			if code != tc.code || strings.TrimSpace(string(did)) != tc.did {
				t.Errorf("exit status %d, did %q\n%s", code, did, stderr)
			}
			if !strings.Contains(stderr, tc.says) {
				t.Error(stderr)
			}
		})
	}
}

func TestUninstallOutcome(t *testing.T) {
	for _, tc := range []struct {
		name, script string
		left         bool
		code         int
	}{
		{"all gone", "exit 0", false, 0},
		{"the script fails", "exit 7", false, 7},
		{"it succeeds and leaves something", "exit 0", true, 33},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			in := &Installation{Binary: root + "/k3s", Unit: root + "/k3s.service", DataDir: root + "/data", Uninstall: root + "/uninstall"}
			file(t, in.Uninstall, "#!/bin/sh\n"+tc.script)
			file(t, root+"/mounts", "")
			file(t, root+"/bin/sync", "#!/bin/sh\n")
			if tc.left {
				file(t, in.ServerDir()+"/token", "x")
			}
			code, _, stderr := sh(t, root, in.uninstallJob(root+"/kubelet", root+"/mounts", ""))
			if code != tc.code || (tc.left && !strings.Contains(stderr, in.ServerDir()+" is still there")) {
				t.Errorf("exit status %d\n%s", code, stderr)
			}
		})
	}
	t.Run("a mount table that cannot be read refuses", func(t *testing.T) {
		root := t.TempDir()
		in := &Installation{DataDir: root + "/data", Uninstall: root + "/uninstall"}
		file(t, in.Uninstall, "#!/bin/sh\ntouch ran")
		if code, _, stderr := sh(t, root, in.uninstallJob(root+"/kubelet", root+"/none", "")); code != 32 || exists(root+"/ran") {
			t.Errorf("exit status %d\n%s", code, stderr)
		}
	})
}

// What the install script is given is what the configuration says, byte for byte.
func TestInstallJobPassesEveryByte(t *testing.T) {
	c := Config{
		Args: []string{"--tls-san=it's", "--kubelet-arg=node-labels=a=b c", "--x=$HOME `id` \\ \"q\" *", ""},
		Env: map[string]string{
			"K3S_TOKEN": "it's $1 \"quoted\"\\", "CONTAINERD_LOG_LEVEL": "debug", "http_proxy": "http://p:3128", "NO_PROXY": "10.0.0.0/8,fd00::/8",
			"PATH": "/nowhere", "GODEBUG": "x", "INSTALL_K3S_SKIP_ENABLE": "false", "INSTALL_K3S_VERSION": "v0", "HTTP_PROXY_AUTH": "x",
		},
	}
	for _, tc := range []struct {
		version string
		want    []string
	}{
		{"", []string{"INSTALL_K3S_SKIP_DOWNLOAD=true", "INSTALL_K3S_SKIP_ENABLE=true"}},
		{"v1.34.4+k3s1", []string{"INSTALL_K3S_SKIP_ENABLE=true", "INSTALL_K3S_VERSION=v1.34.4+k3s1"}},
	} {
		root := t.TempDir()
		in := &Installation{Binary: root + "/it's bin/k3s"}
		script := root + "/it's/install.sh"
		file(t, script, `
env | grep -E '^(K3S_|CONTAINERD_|INSTALL_|GODEBUG|[A-Za-z]+_(PROXY|proxy))' | sort
for a in "$@"; do printf '<%s>\n' "$a"; done`)
		code, stdout, stderr := sh(t, root, in.InstallJob(script, c, tc.version))
		if code != 0 {
			t.Fatal(code, stderr)
		}
		want := append([]string{"CONTAINERD_LOG_LEVEL=debug", "INSTALL_K3S_BIN_DIR=" + root + "/it's bin"}, tc.want...)
		want = append(want, `K3S_TOKEN=it's $1 "quoted"\`, "NO_PROXY=10.0.0.0/8,fd00::/8", "http_proxy=http://p:3128",
			"<server>", "<--tls-san=it's>", "<--kubelet-arg=node-labels=a=b c>", "<--x=$HOME `id` \\ \"q\" *>", "<>")
		if d := cmp.Diff(want, strings.Split(strings.TrimSpace(stdout), "\n")); d != "" {
			t.Errorf("version %q: %s", tc.version, d)
		}
	}
}

// Programs of the host, each of which notes its call.
func TestQuiesce(t *testing.T) {
	for _, tc := range []struct {
		name   string
		active bool
		code   int
		stderr string
	}{
		{"stopped", false, 0, ""},
		{"still active", true, 1, "K3s is still active\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			in := odd()
			in.Killall = root + "/it's killall"
			file(t, in.Killall, "#!/bin/sh\necho killall >>"+root+"/calls")
			is := "exit 3"
			if tc.active {
				is = "exit 0"
			}
			file(t, root+"/bin/systemctl", "#!/bin/sh\necho systemctl \"$@\" >>"+root+"/calls\ncase $1 in is-active) "+is+" ;; show) echo id ;; esac")
			file(t, root+"/bin/pgrep", "#!/bin/sh\nexit 1")
			file(t, root+"/bin/sync", "#!/bin/sh\n")
			code, _, stderr := sh(t, root, in.Quiesce())
			if code != tc.code || stderr != tc.stderr {
				t.Errorf("exit status %d: %s", code, stderr)
			}
			calls, _ := os.ReadFile(root + "/calls")
			if want := "systemctl disable -q k3s\nsystemctl stop k3s\nkillall\nsystemctl is-active --quiet k3s\n"; !strings.HasPrefix(string(calls), want) {
				t.Errorf("calls:\n%s", calls)
			}
		})
	}
}

// What SetAsideJob moves, as a host has it: files, a directory, a link, the server's state.
var replacedTree = map[string]string{
	"unit": "unit", "unit.env": "env", "etc it's/rancher/config.yaml": "config", "data $x/server/token": "token", "data $x/server/db/state.db": "db",
}

// plant makes the tree below root and returns what to move, one of it missing and one a link that leads nowhere.
func plant(t *testing.T, root string) []string {
	t.Helper()
	for name, text := range replacedTree {
		file(t, filepath.Join(root, name), text)
	}
	if err := os.Symlink("nowhere", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, name := range []string{"unit", "unit.env", "missing", "link", "etc it's/rancher", "data $x/server"} {
		files = append(files, filepath.Join(root, name))
	}
	return files
}

// moved asserts that everything is below aside, and nothing in its place; movedOf
// looks only at the files whose names begin so, and at the link.
func moved(t *testing.T, root, aside string) {
	t.Helper()
	movedOf(t, root, aside, "")
}

func movedOf(t *testing.T, root, aside, beginning string) {
	t.Helper()
	for name, text := range replacedTree {
		if !strings.HasPrefix(name, beginning) {
			continue
		}
		got, err := os.ReadFile(filepath.Join(aside, root, name))
		if err != nil || string(got) != text {
			t.Errorf("%s is kept as %q: %v", name, got, err)
		}
		if exists(filepath.Join(root, name)) {
			t.Errorf("%s is still in its place", name)
		}
	}
	if to, err := os.Readlink(filepath.Join(aside, root, "link")); err != nil || to != "nowhere" || exists(filepath.Join(root, "link")) {
		t.Errorf("the link leads to %q: %v", to, err)
	}
	if exists(filepath.Join(aside, root, "missing")) {
		t.Error("what was not there is there")
	}
	st, err := os.Stat(aside)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("others can look into %s: %v", aside, err)
	}
	err = filepath.WalkDir(aside, func(p string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(p, ".part") {
			t.Errorf("%s was left", p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// quietTools are programs of the host that a script needs and that are to do nothing here.
func quietTools(t *testing.T, root string) {
	t.Helper()
	file(t, root+"/bin/systemctl", "#!/bin/sh\necho systemctl \"$@\" >>"+root+"/calls\n")
	file(t, root+"/bin/sync", "#!/bin/sh\n")
}

// otherFileSystem is a directory on another file system than the test's; the one
// that every Linux has is in memory.
func otherFileSystem(t *testing.T, root string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "aside-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var here, there syscall.Stat_t
	if err := errors.Join(syscall.Stat(root, &here), syscall.Stat(dir, &there)); err != nil {
		t.Fatal(err)
	}
	if here.Dev == there.Dev {
		t.Fatalf("%s and %s are one file system; set TMPDIR to another", root, dir)
	}
	return dir
}

func TestSetAside(t *testing.T) {
	for _, tc := range []struct {
		name  string
		aside func(t *testing.T, root string) string
	}{
		{"on the same file system", func(_ *testing.T, root string) string { return root + "/it's aside/1" }},
		{"on another", func(t *testing.T, root string) string { return otherFileSystem(t, root) + "/it's aside" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			aside := tc.aside(t, root)
			quietTools(t, root)
			job := setAsideJob(aside, plant(t, root), root+"/agent")
			for range 2 { // nothing is left to do the second time
				if code, _, stderr := sh(t, root, job); code != 0 {
					t.Fatal(code, stderr)
				}
				moved(t, root, aside)
			}
			if calls, _ := os.ReadFile(root + "/calls"); string(calls) != "systemctl daemon-reload\nsystemctl daemon-reload\n" {
				t.Errorf("calls:\n%s", calls)
			}
			// What the server issued to its agent goes, the agent's images stay.
			for _, name := range []string{"agent/client-ca.crt", "agent/serving-kubelet.key", "agent/kubelet.kubeconfig", "agent/images/app.tar"} {
				file(t, filepath.Join(root, name), name)
			}
			if code, _, stderr := sh(t, root, job); code != 0 {
				t.Fatal(code, stderr)
			}
			for name, gone := range map[string]bool{"agent/client-ca.crt": true, "agent/serving-kubelet.key": true, "agent/kubelet.kubeconfig": true, "agent/images/app.tar": false} {
				if at := filepath.Join(root, name); exists(at) == gone || exists(aside+at) != gone {
					t.Errorf("%s was moved: %t", name, !gone)
				}
			}
			// A name that is taken is left alone.
			plant := filepath.Join(root, "unit")
			file(t, plant, "a second one")
			if code, _, stderr := sh(t, root, job); code != 0 {
				t.Fatal(code, stderr)
			}
			moved(t, root, aside)
			if got, err := os.ReadFile(filepath.Join(aside, plant) + ".2"); err != nil || string(got) != "a second one" {
				t.Errorf("the second is kept as %q: %v", got, err)
			}
		})
	}
}

// The script is killed before each of its commands that change something, and
// repeated: in the end all is there, whole.
func TestSetAsideIsKilled(t *testing.T) {
	for _, across := range []bool{false, true} {
		for killed, n := true, 1; killed; n++ {
			root := t.TempDir()
			aside := root + "/aside"
			if across {
				aside = otherFileSystem(t, root)
			}
			quietTools(t, root)
			for _, name := range []string{"mkdir", "mv", "cp", "rm", "sync", "systemctl"} {
				real, err := exec.LookPath(name)
				if name == "sync" || name == "systemctl" {
					real = "true"
				} else if err != nil {
					t.Fatal(err)
				}
				file(t, filepath.Join(root, "bin", name), "#!/bin/sh\necho >>"+root+"/count\n[ $(wc -l <"+root+"/count) != $(cat "+root+"/kill) ] || { kill -9 $PPID; exit 1; }\nexec "+real+" \"$@\"\n")
			}
			// Two are enough for every place to be killed at.
			job := setAsideJob(aside, slices.DeleteFunc(plant(t, root), func(f string) bool {
				return !strings.HasSuffix(f, "/server") && !strings.HasSuffix(f, "/link")
			}), root+"/agent")
			file(t, root+"/count", "")
			file(t, root+"/kill", fmt.Sprint(n))
			code, _, _ := sh(t, root, job)
			killed = code == -1
			if !killed && code != 0 {
				t.Fatalf("exit status %d", code)
			}
			file(t, root+"/kill", "0")
			if code, _, stderr := sh(t, root, job); code != 0 {
				t.Fatalf("killed before command %d, then: %d %s", n, code, stderr)
			}
			movedOf(t, root, aside, "data $x/server/")
			if t.Failed() {
				t.Fatalf("killed before command %d, across file systems: %t", n, across)
			}
			if !killed && n < 6 {
				t.Fatalf("killed %d times only", n-1)
			}
		}
	}
}

// Where there is no room, what is there stays.
func TestSetAsideWithoutRoom(t *testing.T) {
	root := t.TempDir()
	aside := otherFileSystem(t, root)
	quietTools(t, root)
	file(t, root+"/bin/cp", "#!/bin/sh\necho half >\"$4\"; echo 'cp: no space left' >&2; exit 1\n") // a FAKE disk that is full
	job := setAsideJob(aside, plant(t, root), root+"/agent")
	if code, _, stderr := sh(t, root, job); code != 1 || !strings.Contains(stderr, "no space left") {
		t.Errorf("%d %s", code, stderr)
	}
	for name := range replacedTree {
		if !exists(filepath.Join(root, name)) {
			t.Errorf("%s is gone", name)
		}
	}
	if err := os.Remove(root + "/bin/cp"); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := sh(t, root, job); code != 0 {
		t.Fatal(code, stderr)
	}
	moved(t, root, aside)
}

func TestReplaced(t *testing.T) {
	in := plain()
	in.EnvFiles = []string{"/etc/default/k3s", "/etc/systemd/system/k3s.service.env", "/etc/sysconfig/k3s"}
	in.Config = []string{"/etc/rancher/k3s/config.yaml", "/srv/k3s.yaml"}
	want := []string{
		"/etc/systemd/system/k3s.service", "/etc/systemd/system/k3s.service.env", "/etc/rancher",
		"/etc/default/k3s", "/etc/sysconfig/k3s", "/srv/k3s.yaml", "/var/lib/rancher/k3s/server",
	}
	if d := cmp.Diff(want, in.Replaced()); d != "" {
		t.Error(d)
	}
	for _, kept := range []string{in.Binary, in.Killall, in.DataDir} {
		if strings.Contains(in.SetAsideJob("/aside"), " "+kept+" ") {
			t.Errorf("%s is moved, too", kept)
		}
	}
}
