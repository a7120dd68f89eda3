package remote

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kevinburke/ssh_config"
	"sunbeam.pt/k3s-dualstack/plans"
)

// endpoint is one SSH server on the way to the host, the host itself included, with all that is needed to
// log in there.
type endpoint struct {
	address        string
	port           string
	user           string
	identities     []identityFile
	identitiesOnly bool // offer no key of the agent that is not one of identities
	agent          string
	knownHosts     []string
}

// identityFile is a private key file and who named it; one that the plan names must exist.
type identityFile struct {
	path    string
	planned bool
}

func (e endpoint) String() string { return e.user + "@" + joinHostPort(e.address, e.port) }

func joinHostPort(address, port string) string { return net.JoinHostPort(address, port) }

// maxHops bounds ProxyJump entries that lead to each other.
const maxHops = 8

// route resolves the plan's host to the SSH servers to pass, the host last. The plan's values win over the
// SSH configuration's. Jump hosts take the configuration's values for their own names; the plan's identity
// files and known_hosts files hold for them as well, since the plan has no other place to name them.
func route(h plans.Host) ([]endpoint, error) {
	config, err := readConfig(h.SSHConfig)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name, err)
	}
	port := ""
	if h.Port != 0 {
		port = strconv.Itoa(h.Port)
	}
	r := resolver{plan: h, config: config}
	hops, err := r.hops(h.Address, h.User, port, h.JumpHost, maxHops)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name, err)
	}
	return hops, nil
}

// readConfig returns nil when there is no configuration to read.
func readConfig(path string) (*ssh_config.Config, error) {
	if path == "none" {
		return nil, nil
	}
	asked := path != ""
	if !asked {
		path = expandHome("~/.ssh/config")
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !asked {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the SSH configuration: %w", err)
	}
	defer f.Close()
	config, err := ssh_config.Decode(f)
	if err != nil {
		return nil, fmt.Errorf(`reading the SSH configuration %s: %w; set sshConfig in the plan to another file, or to "none" and give address, user and keys there`, path, err)
	}
	return config, nil
}

type resolver struct {
	plan   plans.Host
	config *ssh_config.Config
}

func (r resolver) get(alias, key string) (string, error) {
	if r.config == nil {
		return "", nil
	}
	value, err := r.config.Get(alias, key)
	if err != nil {
		return "", fmt.Errorf("SSH configuration of %s: %s: %w", alias, key, err)
	}
	return strings.Trim(value, `"`), nil
}

// hops resolves alias and the jump hosts before it; empty user, port and jump take the configuration's.
func (r resolver) hops(alias, userName, port, jump string, left int) ([]endpoint, error) {
	if left == 0 {
		return nil, fmt.Errorf("more than %d jump hosts on the way to %s; ProxyJump entries of the SSH configuration may lead to each other", maxHops, alias)
	}
	e := endpoint{address: alias, user: userName, port: port}
	var identityFiles []string
	var knownHosts, identitiesOnly, identityAgent string
	for _, setting := range []struct {
		key string
		to  *string
	}{
		{"HostName", &e.address}, {"Port", &e.port}, {"User", &e.user}, {"ProxyJump", &jump},
		{"UserKnownHostsFile", &knownHosts}, {"IdentitiesOnly", &identitiesOnly}, {"IdentityAgent", &identityAgent},
	} {
		if *setting.to != "" && setting.key != "HostName" {
			continue
		}
		value, err := r.get(alias, setting.key)
		if err != nil {
			return nil, err
		}
		if value != "" {
			*setting.to = value
		}
	}
	e.address = strings.NewReplacer("%h", alias, "%%", "%").Replace(e.address)
	if e.port == "" {
		e.port = "22"
	}
	if n, err := strconv.ParseUint(e.port, 10, 16); err != nil || n == 0 {
		return nil, fmt.Errorf("port %q of %s is not a number from 1 to 65535", e.port, alias)
	}
	if e.user == "" {
		e.user = "root"
	}
	if r.config != nil {
		all, err := r.config.GetAll(alias, "IdentityFile")
		if err != nil {
			return nil, fmt.Errorf("SSH configuration of %s: IdentityFile: %w", alias, err)
		}
		identityFiles = all
	}

	e.identitiesOnly = strings.EqualFold(identitiesOnly, "yes")
	e.agent = os.Getenv("SSH_AUTH_SOCK")
	switch {
	case identityAgent == "none":
		e.agent = ""
	case identityAgent == "SSH_AUTH_SOCK":
	case strings.HasPrefix(identityAgent, "$"):
		e.agent = os.Getenv(strings.Trim(identityAgent[1:], "{}"))
	case identityAgent != "":
		e.agent = e.expand(alias, identityAgent)
	}
	e.identities = r.identities(alias, e, identityFiles)
	e.knownHosts = r.plan.KnownHosts
	if len(e.knownHosts) == 0 {
		for _, f := range strings.Fields(knownHosts) {
			e.knownHosts = append(e.knownHosts, e.expand(alias, strings.Trim(f, `"`)))
		}
		if len(e.knownHosts) == 0 {
			e.knownHosts = []string{expandHome("~/.ssh/known_hosts")}
		}
		e.knownHosts = append(e.knownHosts, "/etc/ssh/ssh_known_hosts")
	}

	var chain []endpoint
	if jump != "" && !strings.EqualFold(jump, "none") {
		for i, spec := range strings.Split(jump, ",") {
			jumpUser, jumpHost, jumpPort, err := splitJump(strings.TrimSpace(spec))
			if err != nil {
				return nil, err
			}
			// As with ssh: only the first of a list may itself stand behind further jump hosts.
			own := "none"
			if i == 0 {
				own = ""
			}
			before, err := r.hops(jumpHost, jumpUser, jumpPort, own, left-1)
			if err != nil {
				return nil, err
			}
			chain = append(chain, before...)
		}
	}
	return append(chain, e), nil
}

// identities lists the plan's key files, otherwise the configuration's, otherwise those that ssh tries.
func (r resolver) identities(alias string, e endpoint, configured []string) []identityFile {
	var files []identityFile
	for _, f := range r.plan.IdentityFiles {
		files = append(files, identityFile{expandHome(f), true})
	}
	if len(files) > 0 {
		return files
	}
	for _, f := range configured {
		if f = strings.Trim(f, `"`); !strings.EqualFold(f, "none") {
			files = append(files, identityFile{e.expand(alias, f), false})
		}
	}
	if len(configured) > 0 {
		return files
	}
	for _, f := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		files = append(files, identityFile{expandHome("~/.ssh/" + f), false})
	}
	return files
}

// splitJump takes [user@]host[:port] and ssh://[user@]host[:port] apart.
func splitJump(spec string) (userName, host, port string, err error) {
	rest := strings.TrimSuffix(strings.TrimPrefix(spec, "ssh://"), "/")
	if i := strings.LastIndex(rest, "@"); i >= 0 {
		userName, rest = rest[:i], rest[i+1:]
	}
	host = rest
	switch {
	case strings.HasPrefix(rest, "["):
		end := strings.Index(rest, "]")
		if end < 0 {
			return "", "", "", fmt.Errorf("jump host %q: the bracket is not closed", spec)
		}
		host = rest[1:end]
		port = strings.TrimPrefix(rest[end+1:], ":")
	case strings.Count(rest, ":") == 1:
		host, port, _ = strings.Cut(rest, ":")
	}
	if host == "" {
		return "", "", "", fmt.Errorf("jump host %q: no host is named; write [user@]host[:port]", spec)
	}
	return userName, host, port, nil
}

// expand replaces the tokens of ssh_config(5) that name files: ~ %d %h %n %p %r %u %%.
func (e endpoint) expand(alias, path string) string {
	home, _ := os.UserHomeDir()
	local := ""
	if u, err := user.Current(); err == nil {
		local = u.Username
	}
	path = strings.NewReplacer("%%", "%", "%d", home, "%h", e.address, "%n", alias, "%p", e.port, "%r", e.user, "%u", local).Replace(path)
	return expandHome(path)
}

func expandHome(path string) string {
	if path != "~" && !strings.HasPrefix(path, "~/") {
		return path
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return path
	}
	return filepath.Join(home, strings.TrimPrefix(path, "~"))
}
