package remote

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"sunbeam.pt/k3s-dualstack/plans"
)

func TestRoute(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("SSH_AUTH_SOCK", "/agent.sock")
	require.NoError(t, os.Mkdir(filepath.Join(home, ".ssh"), 0o700))
	config := filepath.Join(home, ".ssh", "config")
	require.NoError(t, os.WriteFile(config, []byte(`
Host lab
  HostName lab.example.net
  Port 2222
  User admin
  IdentityFile ~/.ssh/%h_key
  IdentitiesOnly yes
  ProxyJump gate
  UserKnownHostsFile ~/.ssh/lab_hosts "%d/more"

Host gate
  HostName gate.example.net
  User jumper
  IdentityAgent none

Host far
  ProxyJump one@first:1022,ssh://second

Host first
  ProxyJump gate

Host second
  ProxyJump gate

Host loop
  ProxyJump pool
Host pool
  ProxyJump loop

Host suffix
  HostName %h.example.net
`), 0o600))

	lines := func(hops []endpoint) (all []string) {
		for _, e := range hops {
			all = append(all, e.String())
		}
		return all
	}
	for name, c := range map[string]struct {
		host plans.Host
		want []string
	}{
		"configuration": {plans.Host{Address: "lab"}, []string{"jumper@gate.example.net:22", "admin@lab.example.net:2222"}},
		"plan wins":     {plans.Host{Address: "lab", User: "root", Port: 22, JumpHost: "none"}, []string{"root@lab.example.net:22"}},
		"plan's jump":   {plans.Host{Address: "lab", JumpHost: "me@[fd00::1]:24"}, []string{"me@[fd00::1]:24", "admin@lab.example.net:2222"}},
		"not read":      {plans.Host{Address: "lab", SSHConfig: "none"}, []string{"root@lab:22"}},
		"only the first of a list has jump hosts of its own": {plans.Host{Address: "far"},
			[]string{"jumper@gate.example.net:22", "one@first:1022", "root@second:22", "root@far:22"}},
		"token": {plans.Host{Address: "suffix"}, []string{"root@suffix.example.net:22"}},
	} {
		t.Run(name, func(t *testing.T) {
			hops, err := route(c.host)
			require.NoError(t, err)
			require.Equal(t, c.want, lines(hops))
		})
	}

	hops, err := route(plans.Host{Address: "lab"})
	require.NoError(t, err)
	lab, gate := hops[1], hops[0]
	require.Equal(t, []identityFile{{home + "/.ssh/lab.example.net_key", false}}, lab.identities)
	require.True(t, lab.identitiesOnly)
	require.Equal(t, "/agent.sock", lab.agent)
	require.Equal(t, "", gate.agent)
	require.Equal(t, []string{home + "/.ssh/lab_hosts", home + "/more", "/etc/ssh/ssh_known_hosts"}, lab.knownHosts)
	require.Len(t, gate.identities, 3)

	hops, err = route(plans.Host{Address: "lab", IdentityFiles: []string{"~/k"}, KnownHosts: []string{"/kh"}})
	require.NoError(t, err)
	for _, e := range hops {
		require.Equal(t, []identityFile{{home + "/k", true}}, e.identities)
		require.Equal(t, []string{"/kh"}, e.knownHosts)
	}

	for name, c := range map[string]struct {
		host plans.Host
		want string
	}{
		"loop":           {plans.Host{Name: "n", Address: "loop"}, "ProxyJump entries of the SSH configuration may lead to each other"},
		"no host":        {plans.Host{Name: "n", Address: "lab", JumpHost: "me@:22"}, `jump host "me@:22": no host is named`},
		"bracket":        {plans.Host{Name: "n", Address: "lab", JumpHost: "[fd00::1"}, "the bracket is not closed"},
		"port":           {plans.Host{Name: "n", Address: "lab", JumpHost: "a:x"}, `port "x" of a is not a number`},
		"missing config": {plans.Host{Name: "n", Address: "lab", SSHConfig: "/none/config"}, "reading the SSH configuration: open /none/config"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := route(c.host)
			require.ErrorContains(t, err, c.want)
		})
	}

	require.NoError(t, os.WriteFile(config, []byte("Match exec true\n  User x\n"), 0o600))
	_, err = route(plans.Host{Name: "n", Address: "lab"})
	require.ErrorContains(t, err, "set sshConfig in the plan to another file")
	require.NoError(t, os.Remove(config))
	_, err = route(plans.Host{Name: "n", Address: "lab"})
	require.NoError(t, err)
}

func FuzzSplitJump(f *testing.F) {
	for _, s := range []string{"a", "u@a", "u@a:22", "[fd00::1]:22", "fd00::1", "ssh://u@h:1/", "", "@", ":", "[", "u@[a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		if _, host, _, err := splitJump(spec); err == nil && host == "" {
			t.Fatalf("%q has no host", spec)
		}
	})
}
