package steps

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
)

// sysctlFile persists the host's network settings over reboots.
const sysctlFile = "/etc/sysctl.d/90-k3s-dualstack.conf"

// network makes the host forward IPv6 and keep its own default route while it
// does: a forwarding interface ignores router advertisements unless accept_ra
// is 2, and a default route learned from one then dies with its lifetime.
func (m *Migration) network(context.Context) ([]runner.Action, error) {
	return []runner.Action{{
		Name: noted, Target: m.onHost(),
		Summary: "Note the present settings: a rollback puts them back",
		Command: "sysctl " + strings.Join(m.sysctlNames(), " "),
		Run:     func(ctx context.Context) (any, error) { return m.noteNetwork(ctx) },
	}, {
		Name: "sysctl", Target: m.onHost(),
		Summary: "Forwarding for both families, router advertisements kept on " + m.Facts.Host.Uplink,
		Command: "printf '%s\\n' " + remote.Quote(strings.Split(strings.TrimSpace(sysctls(m.Facts.Host.Uplink)), "\n")...) + " >" + sysctlFile + " && sysctl -p " + sysctlFile,
		Run: func(ctx context.Context) (any, error) {
			h, err := m.Host(ctx)
			if err != nil {
				return nil, err
			}
			if err := h.WriteFile(ctx, sysctlFile, []byte(sysctls(m.Facts.Host.Uplink)), 0o644); err != nil {
				return nil, fmt.Errorf("host %s: %w", h.Name(), err)
			}
			if err := h.Run(ctx, "sysctl -q -p "+remote.Quote(sysctlFile)); err != nil {
				return nil, fmt.Errorf("host %s: applying %s: %w", h.Name(), sysctlFile, err)
			}
			return nil, nil
		},
	}}, nil
}

func sysctls(uplink string) string {
	return fmt.Sprintf(`# Written by migrate for dual-stack K3s.
net.ipv4.ip_forward = 1
net.ipv6.conf.all.forwarding = 1
net.ipv6.conf.%s.accept_ra = 2
`, strings.ReplaceAll(uplink, ".", "/"))
}

// noted is the action whose data are the settings before they were changed.
const noted = "note"

// networkSettings are the host's, as a rollback puts them back.
type networkSettings struct {
	// Values by sysctl name, in the order in which they are set: forwarding
	// resets what interfaces accept.
	Values []sysctlValue `json:"values"`
	// File is what sysctlFile held; nil when it was not there.
	File *string `json:"file"`
}

type sysctlValue struct{ Name, Value string }

func (m *Migration) sysctlNames() []string {
	return []string{
		"net.ipv4.ip_forward",
		"net.ipv6.conf.all.forwarding",
		"net.ipv6.conf." + strings.ReplaceAll(m.Facts.Host.Uplink, ".", "/") + ".accept_ra",
	}
}

func (m *Migration) noteNetwork(ctx context.Context) (any, error) {
	h, err := m.Host(ctx)
	if err != nil {
		return nil, err
	}
	var was networkSettings
	for _, name := range m.sysctlNames() {
		value, err := h.Output(ctx, "sysctl -n "+remote.Quote(name))
		if err != nil {
			return nil, fmt.Errorf("host %s: reading the setting %s: %w", h.Name(), name, err)
		}
		was.Values = append(was.Values, sysctlValue{name, value})
	}
	switch data, err := h.ReadFile(ctx, sysctlFile); {
	case err == nil:
		text := string(data)
		was.File = &text
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("host %s: reading %s: %w", h.Name(), sysctlFile, err)
	}
	return was, nil
}

// undoNetwork puts back what was noted, where anything was changed.
func (m *Migration) undoNetwork(context.Context) ([]runner.Action, error) {
	state, err := m.State()
	if err != nil {
		return nil, err
	}
	var was networkSettings
	command := "rm -f " + sysctlFile
	if found, err := state.Data("network", noted, &was); err != nil {
		return nil, err
	} else if found {
		command = was.command()
	}
	return []runner.Action{{
		Name: "sysctl back", Target: m.onHost(),
		Summary: "Put the host's network settings back",
		Command: command,
		Run: func(ctx context.Context) (any, error) {
			// Versions that noted nothing have only the file to take back.
			if _, changed := state.ActionState("network", "sysctl"); !changed {
				return nil, nil
			}
			h, err := m.Host(ctx)
			if err != nil {
				return nil, err
			}
			if err := h.Run(ctx, command); err != nil {
				return nil, fmt.Errorf("host %s: putting its network settings back: %w", h.Name(), err)
			}
			return nil, nil
		},
	}}, nil
}

// command is shell. An interface that is gone has no setting to put back.
func (n networkSettings) command() string {
	out := "rm -f " + sysctlFile
	if n.File != nil {
		out = "printf %s " + remote.Quote(*n.File) + " >" + sysctlFile
	}
	for _, v := range n.Values {
		out += " && sysctl -qe " + remote.Quote(v.Name+"="+v.Value)
	}
	return out
}
