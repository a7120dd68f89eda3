package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func noEnv(string) (string, bool) { return "", false }

func TestLoadConfigSources(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string]string // below the directory of config.yaml
		env   map[string]string
		args  []string
		check func(*Config) any
		want  any
	}{
		{name: "default", check: func(c *Config) any { return c.DataDir }, want: defaultDataDir},
		{
			name:  "file",
			files: map[string]string{"config.yaml": "cluster-cidr: 10.42.0.0/16,fd42::/56\n"},
			check: func(c *Config) any { return c.ClusterCIDR }, want: []string{"10.42.0.0/16", "fd42::/56"},
		},
		{
			name:  "file with a list",
			files: map[string]string{"config.yaml": "cluster-cidr: [10.42.0.0/16, 'fd42::/56']\n"},
			check: func(c *Config) any { return c.ClusterCIDR }, want: []string{"10.42.0.0/16", "fd42::/56"},
		},
		{
			name:  "last drop-in wins",
			files: map[string]string{"config.yaml": "node-name: a\n", "config.yaml.d/20.yaml": "node-name: c\n", "config.yaml.d/10.yaml": "node-name: b\n", "config.yaml.d/30.txt": "node-name: d\n"},
			check: func(c *Config) any { return c.NodeName }, want: "c",
		},
		{
			name:  "a drop-in replaces a list",
			files: map[string]string{"config.yaml": "disable: [traefik]\n", "config.yaml.d/10.yml": "disable: [servicelb]\n"},
			check: func(c *Config) any { return c.Disable }, want: []string{"servicelb"},
		},
		{
			name:  "plus appends",
			files: map[string]string{"config.yaml": "disable: traefik\n", "config.yaml.d/10.yaml": "disable+: [servicelb]\n"},
			check: func(c *Config) any { return c.Disable }, want: []string{"traefik", "servicelb"},
		},
		{
			name:  "file over environment",
			files: map[string]string{"config.yaml": "token: of-file\n"}, env: map[string]string{"K3S_TOKEN": "of-env"},
			check: func(c *Config) any { return c.Token }, want: "of-file",
		},
		{
			name: "flag over environment",
			env:  map[string]string{"K3S_NODE_NAME": "of-env"}, args: []string{"--node-name", "of-flag"},
			check: func(c *Config) any { return c.NodeName }, want: "of-flag",
		},
		{
			name:  "flags add to a list of the file",
			files: map[string]string{"config.yaml": "disable: [a, b]\n"}, args: []string{"--disable=c,d", "--disable", "e"},
			check: func(c *Config) any { return c.Disable }, want: []string{"a", "b", "c", "d", "e"},
		},
		{
			name: "component arguments keep their commas", args: []string{"--kubelet-arg=eviction-hard=a<1%,b<1%"},
			check: func(c *Config) any { return c.KubeletArgs }, want: []string{"eviction-hard=a<1%,b<1%"},
		},
		{name: "bool", files: map[string]string{"config.yaml": "flannel-ipv6-masq: true\n"}, check: func(c *Config) any { return c.FlannelIPv6Masq }, want: true},
		{name: "bool off", files: map[string]string{"config.yaml": "flannel-ipv6-masq: true\n"}, args: []string{"--flannel-ipv6-masq=false"}, check: func(c *Config) any { return c.FlannelIPv6Masq }, want: false},
		{name: "mode without quotes", files: map[string]string{"config.yaml": "write-kubeconfig-mode: 0644\n"}, check: func(c *Config) any { return c.KubeconfigMode }, want: "0644"},
		{name: "unknown key is skipped", files: map[string]string{"config.yaml": "no-such-key: 1\nnode-name: a\n"}, check: func(c *Config) any { return c.NodeName }, want: "a"},
		{name: "empty file", files: map[string]string{"config.yaml": "# nothing\n"}, check: func(c *Config) any { return c.NodeName }, want: ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range tc.files {
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			env := func(name string) (string, bool) {
				if name == "K3S_CONFIG_FILE" {
					path := filepath.Join(dir, "config.yaml")
					_, err := os.Stat(path)
					return path, err == nil
				}
				v, ok := tc.env[name]
				return v, ok
			}
			c, err := loadConfig(tc.args, env)
			if err != nil {
				t.Fatal(err)
			}
			if got := tc.check(c); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %#v, want %#v", got, tc.want)
			}
		})
	}
}

func TestGiven(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte("disable: [a]\nnode-name: b\ntoken: hush\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig([]string{"--config", path, "--node-name=c", "--token=hush"}, noEnv)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"--disable", "a", "--config", path, "--node-name=c", "--token=********"}
	if got := redact(c.Given); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLoadConfigRefusals(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"unknown flag", []string{"--no-such-flag"}, "flag provided but not defined: -no-such-flag"},
		{"argument", []string{"extra"}, `unexpected argument "extra"`},
		{"missing file", []string{"--config", "/nonexistent/config.yaml"}, "no such file"},
		{"bad bool", []string{"--flannel-ipv6-masq=perhaps"}, "neither true nor false"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := loadConfig(tc.args, noEnv); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestRedact(t *testing.T) {
	got := redact([]string{"server", "--token", "hush", "-t=hush", "--datastore-endpoint=mysql://hush", "--node-name", "token"})
	want := []string{"server", "--token", "********", "-t=********", "--datastore-endpoint=********", "--node-name", "token"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWithExtra(t *testing.T) {
	got := withExtra([]string{"--a=1", "--b=2"}, []string{"b=3", "--c"})
	if want := []string{"--a=1", "--b=3", "--c"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzMergeFile(f *testing.F) {
	f.Add([]byte("disable+: [a]\n"))
	f.Add([]byte("a: {b: c}\n"))
	f.Add([]byte("- x\n"))
	canonical := map[string]string{"disable": "disable"}
	f.Fuzz(func(t *testing.T, data []byte) {
		into := values{}
		if err := mergeFile(into, canonical, "f", data); err == nil && len(into) > 1 {
			t.Errorf("unknown keys came through: %v", into)
		}
	})
}
