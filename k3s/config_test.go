package k3s

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEffectiveFollowsTheOrderOfSources(t *testing.T) {
	c := Config{
		Args: []string{"--disable=traefik", "--disable", "servicelb", "--debug", "--node-name", "dedi", "--write-kubeconfig-mode=644"},
		Env:  map[string]string{"K3S_DATA_DIR": "/srv/k3s", "K3S_NODE_NAME": "loses-to-the-flag", "K3S_UNKNOWN": "x", "K3S_TOKEN": "t"},
		Files: []ConfigFile{
			{Path: "/etc/rancher/k3s/config.yaml", Data: []byte("data-dir: /beats/env\ncluster-cidr: 10.1.0.0/16\ntls-san:\n- a\n- b\nkubelet-arg: [max-pods=50]\n")},
			{Path: "/etc/rancher/k3s/config.yaml.d/10-a.yaml", Data: []byte("cluster-cidr: 10.2.0.0/16\ntls-san+: [c]\n")},
			{Path: "/etc/rancher/k3s/config.yaml.d/20-empty.yaml", Data: nil},
		},
	}
	got, err := c.Effective()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Setting{
		"disable":               {[]string{"traefik", "servicelb"}, SourceFlag},
		"debug":                 {[]string{"true"}, SourceFlag},
		"node-name":             {[]string{"dedi"}, SourceFlag},
		"write-kubeconfig-mode": {[]string{"644"}, SourceFlag},
		"data-dir":              {[]string{"/beats/env"}, "/etc/rancher/k3s/config.yaml"},
		"token":                 {[]string{"t"}, SourceEnv},
		"cluster-cidr":          {[]string{"10.2.0.0/16"}, "/etc/rancher/k3s/config.yaml.d/10-a.yaml"},
		"tls-san":               {[]string{"a", "b", "c"}, "/etc/rancher/k3s/config.yaml.d/10-a.yaml"},
		"kubelet-arg":           {[]string{"max-pods=50"}, "/etc/rancher/k3s/config.yaml"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestWithWritesWhereTheSettingIsInForce(t *testing.T) {
	const main, drop = "/etc/rancher/k3s/config.yaml", "/etc/rancher/k3s/config.yaml.d/50-net.yaml"
	wants := []Want{
		{Key: "cluster-cidr", Values: []string{"10.42.0.0/16", "fd42::/48"}},
		{Key: "flannel-ipv6-masq", Values: []string{"true"}},
		{Key: "disable", Values: []string{"traefik"}, Add: true},
	}
	for _, tc := range []struct {
		name     string
		in       Config
		wantArgs []string
		files    map[string]string
		sources  []string
	}{{
		name:    "nothing set, nothing given: a new config.yaml",
		in:      Config{},
		files:   map[string]string{main: "cluster-cidr: 10.42.0.0/16,fd42::/48\nflannel-ipv6-masq: true\ndisable:\n  - traefik\n"},
		sources: []string{main, main, main},
	}, {
		name:     "installed with flags alone: flags",
		in:       Config{Args: []string{"--disable=servicelb", "--cluster-cidr", "10.42.0.0/16"}},
		wantArgs: []string{"--disable=servicelb,traefik", "--cluster-cidr=10.42.0.0/16,fd42::/48", "--flannel-ipv6-masq"},
		sources:  []string{SourceFlag, SourceFlag, SourceFlag},
	}, {
		name:    "a flag adds to the file, so the file is changed and the flag goes",
		in:      Config{Args: []string{"--cluster-cidr=10.42.0.0/16"}, Files: []ConfigFile{{main, []byte("# ours\ncluster-cidr: 10.9.0.0/16 # old\ndisable: traefik\n")}}},
		files:   map[string]string{main: "# ours\ncluster-cidr: 10.42.0.0/16,fd42::/48 # old\ndisable: traefik\nflannel-ipv6-masq: true\n"},
		sources: []string{main, main},
	}, {
		name: "a drop-in wins over config.yaml, so the drop-in is changed; comments stay",
		in: Config{Files: []ConfigFile{
			{main, []byte("# the server\nwrite-kubeconfig-mode: \"0644\" # for us\n")},
			{drop, []byte("# network\ncluster-cidr: 10.42.0.0/16 # pods\n")},
		}},
		files: map[string]string{
			main: "# the server\nwrite-kubeconfig-mode: \"0644\" # for us\nflannel-ipv6-masq: true\ndisable:\n  - traefik\n",
			drop: "# network\ncluster-cidr: 10.42.0.0/16,fd42::/48 # pods\n",
		},
		sources: []string{drop, main, main},
	}} {
		t.Run(tc.name, func(t *testing.T) {
			before, err := tc.in.Effective()
			if err != nil {
				t.Fatal(err)
			}
			got, changes, err := tc.in.With(wants)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.wantArgs, got.Args); d != "" && len(tc.wantArgs)+len(got.Args) > 0 {
				t.Error("arguments", d)
			}
			files := map[string]string{}
			for _, f := range got.Files {
				files[f.Path] = string(f.Data)
			}
			for name, text := range tc.files {
				if d := cmp.Diff(text, files[name]); d != "" {
					t.Error(name, d)
				}
			}
			var sources []string
			for _, c := range changes {
				sources = append(sources, c.Source)
			}
			if d := cmp.Diff(tc.sources, sources); d != "" {
				t.Error("sources", d)
			}
			// Whatever was written where: in force is what was wanted, and
			// nothing else has moved.
			after, err := got.Effective()
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range wants {
				for _, v := range w.Values {
					if !strings.Contains(","+after[w.Key].String()+",", ","+v+",") {
						t.Errorf("%s in force is %v, wanted %s in it", w.Key, after[w.Key], v)
					}
				}
				delete(after, w.Key)
				delete(before, w.Key)
			}
			if d := cmp.Diff(before, after); d != "" {
				t.Error("other settings moved", d)
			}
			// Again changes nothing.
			if _, changes, err := got.With(wants); err != nil || len(changes) != 0 {
				t.Errorf("a second time: %v, %v", changes, err)
			}
		})
	}
}

func TestBadConfigNamesTheFile(t *testing.T) {
	for _, data := range []string{"a: [", "- a\n- b\n", "just words"} {
		_, err := Config{Files: []ConfigFile{{"/etc/rancher/k3s/config.yaml.d/x.yaml", []byte(data)}}}.Effective()
		if err == nil || !strings.Contains(err.Error(), "/etc/rancher/k3s/config.yaml.d/x.yaml") {
			t.Errorf("%q: %v", data, err)
		}
	}
}

// The unit as K3s's install script writes it.
const unit = `[Unit]
Description=Lightweight Kubernetes

[Service]
Type=notify
EnvironmentFile=-/etc/default/%N
EnvironmentFile=-/etc/sysconfig/%N
EnvironmentFile=-/etc/systemd/system/k3s.service.env
KillMode=process
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/local/bin/k3s \
    server \
	'--disable=traefik' \
	'--kubelet-arg=node-labels=a=b c' \
	'--tls-san' \
	'it'\''s' \

`

func TestParseUnit(t *testing.T) {
	exec, env := parseUnit([]byte(unit))
	if d := cmp.Diff([]string{"/usr/local/bin/k3s", "server", "--disable=traefik", "--kubelet-arg=node-labels=a=b c", "--tls-san", "it's"}, exec); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"/etc/default/k3s", "/etc/sysconfig/k3s", "/etc/systemd/system/k3s.service.env"}, env); d != "" {
		t.Error(d)
	}
}

func FuzzEffective(f *testing.F) {
	f.Add("cluster-cidr: 10.42.0.0/16\n", "--disable traefik --debug")
	f.Add("a+: [1, {b: c}]\n&x y: *x\n", "--a=b --a -- -")
	f.Add("a: &x [*x, *x, *x]\n", "")
	f.Add("cluster-cidr: &x [a, &y b]\nz: *x\nw: *y\n", "-i 1")
	f.Add("# only\n", "")
	f.Add("b: &b {c: d}\n<<: [*b, {e: f}]\n", "")
	f.Add("cluster-cidr+: a # b\ncluster-cidr+: c # d\n", "")
	f.Fuzz(func(t *testing.T, data, args string) {
		c := Config{Args: splitWords(args), Files: []ConfigFile{{DefaultConfigFile, []byte(data)}}}
		before, err := c.Effective()
		if err != nil {
			return
		}
		next, _, err := c.With([]Want{{Key: "cluster-cidr", Values: []string{"10.42.0.0/16", "fd42::/48"}}})
		if err != nil {
			return
		}
		got, err := next.Effective()
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, next.Files)
		}
		if got["cluster-cidr"].String() != "10.42.0.0/16,fd42::/48" {
			t.Fatalf("in force is %v", got["cluster-cidr"])
		}
		delete(before, "cluster-cidr")
		delete(got, "cluster-cidr")
		if d := cmp.Diff(before, got); d != "" {
			t.Fatalf("other settings moved: %s\n%s", d, next.Files)
		}
	})
}

func TestParseEnv(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     map[string]string
	}{
		{"empty", "", map[string]string{}},
		{"plain", "K3S_TOKEN=abc\nA=\nB=b c\t\n", map[string]string{"K3S_TOKEN": "abc", "A": "", "B": "b c"}},
		{"comments and blanks", "# K3S_A=1\n\n  ; K3S_B=2\n  K3S_C=3\n", map[string]string{"K3S_C": "3"}},
		{"no newline at the end", "A=1", map[string]string{"A": "1"}},
		{"quoted, as the install script writes it", "K3S_A='x y'\nK3S_B='it'\"'\"'s'\nK3S_C=''\n", map[string]string{"K3S_A": "x y", "K3S_B": "it's", "K3S_C": ""}},
		{"double quotes", `A="a \"b\" \$c \\ \n"` + "\n", map[string]string{"A": `a "b" $c \ \n`}},
		{"a quote within a word is a character", "A=ab\"c'd\n", map[string]string{"A": "ab\"c'd"}},
		{"equals signs and hashes belong to the value", "A=b=c # d\n", map[string]string{"A": "b=c # d"}},
		{"escapes", `A=a\ \ ` + "\nB=a\\\nb\n", map[string]string{"A": "a  ", "B": "ab"}},
		{"a quoted value over lines", "A='a\nb'\nB=1\n", map[string]string{"A": "a\nb", "B": "1"}},
		{"an unclosed quote takes the rest", "A='a\nB=1\n", map[string]string{"A": "a\nB=1\n"}},
		{"what systemd ignores", "export A=1\nB-C=2\n3D=4\nno variable\n=5\nE=6\n", map[string]string{"E": "6"}},
		{"the last wins", "A=1\nA=2\n", map[string]string{"A": "2"}},
		{"CRLF", "A=1\r\nB=2\r\n", map[string]string{"A": "1", "B": "2"}},
		{"a comment without an end", "# a", map[string]string{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, parseEnv([]byte(tc.in))); d != "" {
				t.Error(d)
			}
		})
	}
}

func FuzzParseEnv(f *testing.F) {
	for _, seed := range []string{"", "A=1", "A='", "A=\"\\", "A=\\", "#\\", "A=b\\\nc\n;\nB='it'\"'\"'s'\n", "\r\r=\r", "A"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for name := range parseEnv([]byte(text)) {
			if !variableName.MatchString(name) {
				t.Errorf("variable %q", name)
			}
		}
		// A value in the quotes that the install script writes reads back.
		value := strings.NewReplacer("\x00", "", "\r", "").Replace(text)
		quoted := "K3S_X='" + strings.ReplaceAll(value, "'", `'"'"'`) + "'\n"
		if got := parseEnv([]byte(quoted))["K3S_X"]; got != value {
			t.Errorf("%q reads back as %q", quoted, got)
		}
	})
}

func TestSplitWords(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{" \t\n ", nil},
		{"a  b\tc\n", []string{"a", "b", "c"}},
		{`'a b' "c d"`, []string{"a b", "c d"}},
		{`'it'\''s' '' ""`, []string{"it's", "", ""}},
		{`"a\"b" '\'`, []string{`a"b`, `\`}},
		{"a \\\n b\\\nc", []string{"a", "bc"}},
		{`a\ b`, []string{"a b"}},
		{`--x='y z'w`, []string{"--x=y zw"}},
		{`'open`, []string{"open"}},
		{`end\`, []string{`end\`}},
		{"'--a=äö ✓'", []string{"--a=äö ✓"}},
	} {
		if d := cmp.Diff(tc.want, splitWords(tc.in)); d != "" {
			t.Errorf("%q: %s", tc.in, d)
		}
	}
}

// quoted is an argument as K3s's install script writes it into the unit.
func quoted(args []string) string {
	var b strings.Builder
	for _, a := range args {
		b.WriteString("\t'" + strings.ReplaceAll(a, "'", `'\''`) + "' \\\n")
	}
	return b.String()
}

func FuzzUnitOfTheInstallScript(f *testing.F) {
	f.Add("--tls-san=it's", "--kubelet-arg=a=b c")
	f.Add("", "''")
	f.Add("a'b'c", "%h $X")
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, s := range []string{a, b} {
			if strings.ContainsAny(s, "\n\r\\\x00") {
				t.Skip("no argument of a unit")
			}
		}
		exec, _ := parseUnit([]byte("[Service]\nExecStart=/usr/local/bin/k3s \\\n    server \\\n" + quoted([]string{a, b}) + "\n[Install]\n"))
		if d := cmp.Diff([]string{"/usr/local/bin/k3s", "server", a, b}, exec); d != "" {
			t.Error(d)
		}
	})
}

func TestParseUnitVariants(t *testing.T) {
	exec, env := parseUnit([]byte("[Service]\nEnvironmentFile = /etc/default/%N\nExecStart=/old\nExecStart =-/usr/bin/k3s server --debug\n"))
	if d := cmp.Diff([]string{"/usr/bin/k3s", "server", "--debug"}, exec); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"/etc/default/k3s"}, env); d != "" {
		t.Error(d)
	}
}

func TestParseArgs(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want map[string]string // key → value, the last
	}{
		{[]string{"--debug", "--disable", "traefik"}, map[string]string{"debug": "true", "disable": "traefik"}},
		{[]string{"-t", "secret", "-d", "/srv", "-i=10.0.0.1", "-c", "/etc/k.yaml", "-o", "/root/k", "-l", "/log", "-s", "https://x"},
			map[string]string{"token": "secret", "data-dir": "/srv", "node-ip": "10.0.0.1", "config": "/etc/k.yaml", "write-kubeconfig": "/root/k", "log": "/log", "server": "https://x"}},
		{[]string{"--flannel-ipv6-masq=false", "-debug"}, map[string]string{"flannel-ipv6-masq": "false", "debug": "true"}},
		{[]string{"--node-name"}, map[string]string{"node-name": "true"}},
		{[]string{"stray", "--v=3", "word"}, map[string]string{"v": "3"}},
		{[]string{"--kubelet-arg=a=b", "--kubelet-arg", "c=d"}, map[string]string{"kubelet-arg": "c=d"}},
	} {
		got := map[string]string{}
		for _, a := range parseArgs(tc.args) {
			got[a.key] = a.value
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%q: %s", tc.args, d)
		}
	}
}

// A short flag is the long one: left beside it, K3s would take both values.
func TestShortFlags(t *testing.T) {
	c := Config{Args: []string{"-i", "10.0.0.1", "-t", "s3cret"}, Files: []ConfigFile{{DefaultConfigFile, []byte("d: /srv/k3s\n")}}}
	s, err := c.Effective()
	if err != nil {
		t.Fatal(err)
	}
	if s["data-dir"].String() != "/srv/k3s" || s["token"].String() != "s3cret" || !Secret("token") || s["t"].Values != nil {
		t.Error(s)
	}
	c, _, err = c.With([]Want{{Key: "node-ip", Values: []string{"10.0.0.1", "2001:db8::1"}}, {Key: "data-dir", Values: []string{"/new"}}})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"--node-ip=10.0.0.1,2001:db8::1", "-t", "s3cret"}, c.Args); d != "" {
		t.Error(d)
	}
	if got := string(c.Files[0].Data); got != "data-dir: /new\n" {
		t.Error(got)
	}
}

func TestWithArgs(t *testing.T) {
	for _, tc := range []struct {
		have, extra, want []string
		changes           []Change
	}{
		{nil, nil, nil, nil},
		{[]string{"--debug"}, []string{"--debug", "--v=3"}, []string{"--debug", "--v=3"}, []Change{{"v", "", "3", SourceFlag}}},
		{[]string{"--kubelet-arg", "a=b"}, []string{"--kubelet-arg", "a=b", "--kubelet-arg", "c=d"}, []string{"--kubelet-arg", "a=b", "--kubelet-arg", "c=d"}, []Change{{"kubelet-arg", "", "c=d", SourceFlag}}},
		{[]string{"--kubelet-arg=a=b"}, []string{"--kubelet-arg", "a=b"}, []string{"--kubelet-arg=a=b"}, nil},
		{nil, []string{"--datastore-endpoint", "sqlite://s3cret"}, []string{"--datastore-endpoint", "sqlite://s3cret"}, []Change{{"datastore-endpoint", "", "sqlite://s3cret", SourceFlag}}},
	} {
		got, changes := Config{Args: tc.have}.WithArgs(tc.extra)
		if d := cmp.Diff(tc.want, got.Args); d != "" {
			t.Errorf("%q + %q: %s", tc.have, tc.extra, d)
		}
		if d := cmp.Diff(tc.changes, changes); d != "" {
			t.Errorf("%q + %q: %s", tc.have, tc.extra, d)
		}
		if again, changes := got.WithArgs(tc.extra); len(changes) > 0 || !cmp.Equal(again.Args, got.Args) {
			t.Errorf("a second time: %q", again.Args)
		}
	}
}

func TestConfigurationFileInForce(t *testing.T) {
	for _, tc := range []struct {
		c    Config
		want string
	}{
		{Config{}, DefaultConfigFile},
		{Config{Env: map[string]string{"K3S_CONFIG_FILE": "/etc/k.yaml"}}, "/etc/k.yaml"},
		{Config{Env: map[string]string{"K3S_CONFIG_FILE": "/etc/k.yaml"}, Args: []string{"-c", "/etc/l.yaml"}}, "/etc/l.yaml"},
	} {
		if got := tc.c.main(); got != tc.want {
			t.Errorf("%v: %s", tc.c, got)
		}
	}
	got, _, err := Config{Env: map[string]string{"K3S_CONFIG_FILE": "/etc/k.yaml"}}.With([]Want{{Key: "cluster-cidr", Values: []string{"a", "b"}}})
	if err != nil || len(got.Files) != 1 || got.Files[0].Path != "/etc/k.yaml" {
		t.Error(got, err)
	}
}

func TestSortFiles(t *testing.T) {
	files := []ConfigFile{{Path: "/e/config.yaml.d/20-b.yaml"}, {Path: "/e/config.yaml.d/10-z.yml"}, {Path: "/e/config.yaml"}, {Path: "/e/config.yaml.d/00.yaml"}}
	sortFiles(files, "/e/config.yaml")
	var got []string
	for _, f := range files {
		got = append(got, f.Path)
	}
	if d := cmp.Diff([]string{"/e/config.yaml", "/e/config.yaml.d/00.yaml", "/e/config.yaml.d/10-z.yml", "/e/config.yaml.d/20-b.yaml"}, got); d != "" {
		t.Error(d)
	}
}

// comments are the words that a person wrote behind "#", in order of the alphabet.
func comments(text string) (out []string) {
	for line := range strings.SplitSeq(strings.ReplaceAll(text, "\r", ""), "\n") {
		if _, c, ok := strings.Cut(line, "#"); ok {
			out = append(out, strings.TrimSpace(c))
		}
	}
	slices.Sort(out)
	return out
}

// Configuration files as people write them: after the edit the wanted settings
// are in force, and everything else says what it said.
func TestWithOnRealFiles(t *testing.T) {
	wants := []Want{
		{Key: "cluster-cidr", Values: []string{"10.42.0.0/16", "fd42::/48"}},
		{Key: "service-cidr", Values: []string{"10.43.0.0/16", "fd43::/108"}},
		{Key: "node-ip", Values: []string{"192.0.2.10", "2001:db8::10"}},
		{Key: "flannel-ipv6-masq", Values: []string{"true"}},
		{Key: "disable", Values: []string{"traefik"}, Add: true},
	}
	files, err := filepath.Glob("testdata/config/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			in := Config{Files: []ConfigFile{{DefaultConfigFile, data}}}
			before, err := in.Effective()
			if err != nil {
				t.Fatal(err)
			}
			out, _, err := in.With(wants)
			if err != nil {
				t.Fatal(err)
			}
			text := string(out.Files[0].Data)
			golden(t, strings.TrimSuffix(name, ".yaml")+".golden", text)
			after, err := out.Effective()
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range wants {
				values := w.Values
				if w.Add {
					values = after[w.Key].Values
					for _, v := range append(slices.Clone(before[w.Key].Values), w.Values...) {
						if !slices.Contains(values, v) {
							t.Errorf("%s: %v lacks %s", w.Key, values, v)
						}
					}
				}
				if d := cmp.Diff(values, after[w.Key].Values); d != "" {
					t.Error(w.Key, d)
				}
				delete(before, w.Key)
				delete(after, w.Key)
			}
			if d := cmp.Diff(before, after); d != "" {
				t.Error("other settings moved", d)
			}
			if d := cmp.Diff(comments(string(data)), comments(text)); d != "" {
				t.Error("comments", d)
			}
			if again, changes, err := out.With(wants); err != nil || len(changes) != 0 || string(again.Files[0].Data) != text {
				t.Errorf("a second time: %v, %v", changes, err)
			}
		})
	}
}

// What is read as nothing is nothing.
func TestNullValues(t *testing.T) {
	s, err := Config{Files: []ConfigFile{{DefaultConfigFile, []byte("data-dir:\nnode-name: ~\ncluster-cidr: null\n")}}}.Effective()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"data-dir", "node-name", "cluster-cidr"} {
		if got := s[key].String(); got != "" {
			t.Errorf("%s is %q", key, got)
		}
	}
	in := Installation{DataDir: "/var/lib/rancher/k3s", Settings: map[string]Setting{"write-kubeconfig": {Values: []string{""}}, "default-local-storage-path": {Values: []string{""}}}}
	if in.Kubeconfig() != "/etc/rancher/k3s/k3s.yaml" || in.Storage() != "/var/lib/rancher/k3s/storage" {
		t.Error(in.Kubeconfig(), in.Storage())
	}
}

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s: %s", name, d)
	}
}
