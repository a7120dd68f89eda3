package steps

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/openbao"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
)

func savedFile(t *testing.T, m *Migration) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "shop.saved")
	require.NoError(t, m.Save(file))
	return file
}

// ownDir is a migration with a work directory of its own.
func ownDir(t *testing.T, edit func(*plans.Spec)) *Migration {
	t.Helper()
	m := migration(t, edit)
	m.Plan.Spec.WorkDir = t.TempDir()
	return m
}

// What comes and goes does not count; what the run works on does, and is called by its name.
func TestFactsThatCount(t *testing.T) {
	service := cluster.ServiceChange{Namespace: "data", Name: "web", Type: "ClusterIP", Families: nil, ClusterIPs: []string{"10.43.0.7"}, WantPolicy: "PreferDualStack"}
	for _, tc := range []struct {
		name   string
		change func(now *survey.Facts)
		want   []string
	}{
		{"nothing", func(*survey.Facts) {}, nil},
		{"what comes and goes", func(f *survey.Facts) {
			f.Taken = time.Now()
			f.Host.Free = map[string]int64{"/": 1}
			f.Host.Kernel, f.Host.Skew, f.Host.AcceptRA = "7", 3, 2
			f.Host.Routes[1].Expires = 12
			f.Host.Addresses = append(f.Host.Addresses, survey.Address{Interface: "eth0.100", Prefix: f.Host.Addresses[1].Prefix, Temporary: true})
			f.Cluster.Volumes[1].Bytes, f.Cluster.Volumes[1].Files = 1, 1
			f.Cluster.TLSSecrets["data/acme"] = "renewed"
			f.Cluster.Workloads = survey.Workloads{}
			f.Rates = survey.Rates{Down: 1, Up: 1}
			f.Names = []survey.Name{{}}
		}, nil},
		{"a Service that is new", func(f *survey.Facts) { f.Cluster.Services = append(f.Cluster.Services, service) },
			[]string{"Service data/web is new: ClusterIP, 10.43.0.7 → PreferDualStack"}},
		{"a Service that is gone", func(f *survey.Facts) { f.Cluster.Services = f.Cluster.Services[1:] },
			[]string{"Service data/db is gone; it was ClusterIP IPv4, 10.43.0.20 → PreferDualStack"}},
		{"a Service of another policy", func(f *survey.Facts) { f.Cluster.Services[0].Policy = "SingleStack" },
			[]string{"Service data/db: was ClusterIP IPv4, 10.43.0.20 → PreferDualStack, is ClusterIP IPv4, SingleStack, 10.43.0.20 → PreferDualStack"}},
		{"a volume elsewhere", func(f *survey.Facts) { f.Cluster.Volumes[1].Path = "/mnt" },
			[]string{"volume pvc-1: was hostPath data/db-0, /var/lib/rancher/k3s/storage/pvc-1_data_db-0, Delete, is hostPath data/db-0, /mnt, Delete"}},
		{"a setting", func(f *survey.Facts) {
			f.K3s.Settings["disable"] = k3s.Setting{Values: []string{"traefik"}, Source: "/etc/rancher/k3s/config.yaml"}
		}, []string{"setting disable is new: traefik in /etc/rancher/k3s/config.yaml"}},
		{"another K3s", func(f *survey.Facts) { f.K3s.Version = "v1.35.0+k3s1" },
			[]string{"K3s: was v1.34.4+k3s1, SHA-256 00, is v1.35.0+k3s1, SHA-256 00"}},
		{"storage on a disk of its own", func(f *survey.Facts) {
			f.K3s.Mounts = append(f.K3s.Mounts, k3s.Mount{Path: "/var/lib/rancher/k3s/storage", Type: "ext4", Source: "/dev/sdb1", UUID: "5e7a", Root: "/", Apart: true})
		}, []string{"mount /var/lib/rancher/k3s/storage is new: /var/lib/rancher/k3s/storage, / of UUID 5e7a"}},
		{"another address", func(f *survey.Facts) { f.Cluster.Nodes[0].InternalIPs[0] = "192.0.2.11" },
			[]string{"addresses of the node: was 192.0.2.10, 2001:db8::10, is 192.0.2.11, 2001:db8::10", "node dedi: was 192.0.2.10, 10.42.0.0/24 (n), is 192.0.2.11, 10.42.0.0/24 (n)"}},
		{"another machine and cluster", func(f *survey.Facts) { f.Host.MachineID, f.Cluster.KubeSystemUID = "x", "y" },
			[]string{"UID of namespace kube-system: was u, is y", "machine-id of the host: was 3f1d0c0ad7cf4d6cb1b0f4dd3ad8c9d1, is x"}},
		{"secret, stray and file", func(f *survey.Facts) {
			f.Cluster.TLSSecrets["a/b"] = "c"
			f.Host.Strays = nil
			f.K3s.Config = append(f.K3s.Config, "/etc/rancher/k3s/config.yaml.d/10.yaml")
		}, []string{"TLS secret a/b is new: there", "configuration file /etc/rancher/k3s/config.yaml.d/10.yaml is new: there", "entry of the volumes' storage /var/lib/rancher/k3s/storage/left over is gone; it was there"}},
		{"OpenBao", func(f *survey.Facts) {
			f.OpenBao = &survey.OpenBao{Servers: []survey.OpenBaoServer{{Name: "openbao/openbao-0", Status: openbao.Status{Version: "2.1", Storage: "raft", Seal: "shamir", Shares: 5, Threshold: 3}}}}
		}, []string{"OpenBao openbao/openbao-0 is new: 2.1, raft storage, seal shamir, 3 of 5 keys"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			now := facts(t)
			tc.change(now)
			if d := cmp.Diff(tc.want, differences(factValues(facts(t)), factValues(now))); d != "" {
				t.Error(d)
			}
		})
	}
}

// Every change of a plan is seen, by its field, and no secret that it holds is kept.
func TestPlanValues(t *testing.T) {
	const secret = "hunter2-hunter2"
	edit := func(s *plans.Spec) {
		s.K3s.ExtraArgs = []string{"--token=" + secret}
		s.Platform.Command = []string{"/opt/shop/platform", "--password", secret}
		s.Platform.Rehearse = []string{"/opt/shop/platform", secret}
		s.Platform.Environment = map[string]string{"PASSWORD": secret}
		s.Hooks = []plans.Hook{{Name: "h", Before: "protect", On: plans.OnLaptop, Command: []string{"curl", secret}}}
		s.Backup.OpenBao = &plans.OpenBao{Namespace: "openbao", Token: plans.Secret{Command: []string{"echo", secret}}}
	}
	m := ownDir(t, edit)
	data, err := os.ReadFile(savedFile(t, m))
	require.NoError(t, err)
	if strings.Contains(string(data), "hunter2") {
		t.Errorf("a secret is in the saved plan: %s", data)
	}
	was := planValues(m.Plan)
	for want, change := range map[string]func(*plans.Spec){
		"spec.network.clusterCIDR[1]: was fd42::/48, is fd99::/48":     func(s *plans.Spec) { s.Network.ClusterCIDR = []string{"10.42.0.0/16", "fd99::/48"} },
		"spec.backup.volumes.exclude[0] is gone; it was cache/scratch": func(s *plans.Spec) { s.Backup.Volumes.Exclude = nil },
		"spec.services.policy: was PreferDualStack, is Keep":           func(s *plans.Spec) { s.Services.Policy = plans.ServicesKeep },
		"spec.platform.command: was what has the SHA-256 ":             func(s *plans.Spec) { s.Platform.Command[2] = "other" },
		"spec.platform.environment: was what has the SHA-256 ":         func(s *plans.Spec) { s.Platform.Environment["PASSWORD"] = "other" },
		"spec.k3s.extraArgs: was what has the SHA-256 ":                func(s *plans.Spec) { s.K3s.ExtraArgs = []string{"--token=other"} },
		"spec.hooks[0].command: was what has the SHA-256 ":             func(s *plans.Spec) { s.Hooks[0].Command[1] = "other" },
	} {
		now := migration(t, edit)
		now.Plan.Spec.WorkDir = m.Plan.Spec.WorkDir
		now.Plan.Spec.Hosts = m.Plan.Spec.Hosts
		change(&now.Plan.Spec)
		got := differences(was, planValues(now.Plan))
		if len(got) != 1 || !strings.HasPrefix(got[0], want) {
			t.Errorf("%q instead of %q", got, want)
		}
	}
}

func TestReadSaved(t *testing.T) {
	m := ownDir(t, nil)
	file := savedFile(t, m)
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	whole := strings.Replace(string(data), `"planFile": ""`, `"planFile": "/home/ana/plan.yaml"`, 1)
	read := func(text string) (*Saved, error) {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		return ReadSaved(file)
	}
	s, err := read(whole)
	require.NoError(t, err)
	want := m.saved()
	want.PlanFile = "/home/ana/plan.yaml"
	if d := cmp.Diff(want, s); d != "" {
		t.Error(d)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"empty":          {"", "it is damaged, or something else"},
		"truncated":      {whole[:len(whole)/2], "it is damaged, or something else"},
		"another format": {strings.Replace(whole, `"format": 1`, `"format": 2`, 1), "its format is 2, of another version of migrate, and this one reads 1"},
		"a value edited": {strings.Replace(whole, "PreferDualStack", "Keep", 1), "it is damaged, or was edited"},
		"a sum edited":   {strings.Replace(whole, s.Facts.SHA256, s.Plan.SHA256, 1), "it is damaged, or was edited"},
		"no plan":        {string(data), "it is damaged, or was edited"},
		"other JSON":     {`{"a": 1}`, "it is something else"},
		"no object":      {`[1]`, "it is damaged, or something else"},
		"a plan":         {minimal[:strings.Index(minimal, "port")] + "sshConfig: none}]" + minimal[strings.Index(minimal, "\n  backup"):], "it is a plan file"},
	} {
		_, err := read(tc.text)
		var not *NotSavedError
		if !errors.As(err, &not) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadSaved(file + "-not"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func FuzzReadSaved(f *testing.F) {
	m := migration(f, nil)
	file := filepath.Join(f.TempDir(), "saved")
	require.NoError(f, m.Save(file))
	data, err := os.ReadFile(file)
	require.NoError(f, err)
	f.Add(data)
	f.Add([]byte(`{"format": 1, "planFile": "/p", "plan": {"values": null}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "saved")
		require.NoError(t, os.WriteFile(file, data, 0o600))
		s, err := ReadSaved(file)
		if (s == nil) == (err == nil) {
			t.Errorf("%v, %v", s, err)
		}
	})
}

// A run that has begun goes on with the saved plan from which it began, without a look at
// the host, and with no other.
func TestHoldToARunThatHasBegun(t *testing.T) {
	m := ownDir(t, nil)
	s := m.saved()
	begin := func(saved string) {
		require.NoError(t, os.RemoveAll(m.JournalPath()))
		j, err := runner.OpenJournal(m.JournalPath())
		require.NoError(t, err)
		defer j.Close()
		for _, r := range []runner.Record{
			{Event: runner.Begin, Data: []byte(`{}`)},
			{Event: runner.Intent, Step: "survey", Action: "facts"},
			{Event: runner.Done, Step: "survey", Action: "facts", Data: []byte(`{"facts":"f","volumeBytes":1` + saved + `}`)},
			{Event: runner.Intent, Step: "protect", Action: "objects"},
		} {
			require.NoError(t, j.Append(r))
		}
	}
	begin(`,"saved":"` + s.Digest() + `"`)
	require.NoError(t, m.HoldTo(t.Context(), s))

	begin("")
	var other *NotFromError
	if err := m.HoldTo(t.Context(), s); !errors.As(err, &other) {
		t.Error(err)
	}
	begin(`,"saved":"of another"`)
	if err := m.HoldTo(t.Context(), s); !errors.As(err, &other) {
		t.Error(err)
	}

	begin(`,"saved":"` + s.Digest() + `"`)
	m.Plan.Spec.Services.Policy = plans.ServicesKeep
	var moved *MovedError
	if err := m.HoldTo(t.Context(), s); !errors.As(err, &moved) || !strings.Contains(err.Error(), "spec.services.policy: was PreferDualStack, is Keep") {
		t.Error(err)
	}
}

func TestMovedError(t *testing.T) {
	e := &MovedError{Saved: &Saved{Name: "shop", PlanFile: "/p/plan.yaml", Taken: time.Date(2026, 3, 1, 9, 0, 0, 0, time.Local)},
		Plan: []string{"spec.a: was 1, is 2"}, Facts: []string{"Service b/c is new: ClusterIP", "volume d is gone; it was e"}}
	const want = `plan shop is no longer as it was saved, with what was found at 2026-03-01 09:00:00:
  the plan, /p/plan.yaml
    spec.a: was 1, is 2
  host and cluster
    Service b/c is new: ClusterIP
    volume d is gone; it was e
nothing was done`
	if d := cmp.Diff(want, e.Error()); d != "" {
		t.Error(d)
	}
}
