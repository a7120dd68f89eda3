package propose

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/snapshot"
	"sunbeam.pt/k3s-dualstack/survey"
)

// Proposal is a plan and what is left to do in it.
type Proposal struct {
	// Name is metadata.name.
	Name string
	// Host is spec.hosts[0].name.
	Host string
	Text []byte
	// Places are those that are marked.
	Places []Place
}

// Place is a line of the plan that a person has to complete.
type Place struct {
	Line int
	What string
}

// commandField is the one that nobody but its owner knows.
const commandField = "spec.platform.command"

// Plan writes the plan. Values that a plan does not take, as the host has them,
// are written and marked.
func (f *Found) Plan(w Wishes) (*Proposal, error) {
	r, err := f.ranges(w.ULA)
	if err != nil {
		return nil, err
	}
	p := &Proposal{Host: f.nodeName()}
	p.Name = label(p.Host)
	var problems field.ErrorList
	for range 2 {
		t := &text{problems: problems}
		f.write(t, w, p, r)
		p.Text = []byte(t.b.String())
		_, err := plans.Decode(p.Text, ".")
		var invalid *plans.InvalidError
		if !errors.As(err, &invalid) {
			if err != nil {
				return nil, fmt.Errorf("the plan that init would write cannot be read: %w", err)
			}
			break
		}
		problems = slices.DeleteFunc(invalid.Errors, func(e *field.Error) bool { return e.Field == commandField })
	}
	p.Places = places(p.Text)
	return p, nil
}

// places finds the marks; the words of one go on over the lines of its comment.
func places(plan []byte) []Place {
	var out []Place
	lines := strings.Split(string(plan), "\n")
	for i := 0; i < len(lines); i++ {
		_, what, ok := strings.Cut(lines[i], "# "+Mark+": ")
		if !ok {
			continue
		}
		p := Place{Line: i + 1, What: what}
		if strings.HasPrefix(strings.TrimSpace(lines[i]), "#") {
			for i+1 < len(lines) && strings.HasPrefix(strings.TrimSpace(lines[i+1]), "# ") && !strings.Contains(lines[i+1], Mark) {
				i++
				p.What += " " + strings.TrimPrefix(strings.TrimSpace(lines[i]), "# ")
			}
		}
		out = append(out, p)
	}
	return out
}

// nodeName is what the plan calls the host: as its Kubernetes node is called.
func (f *Found) nodeName() string {
	host := f.Facts.Host
	name := host.Hostname
	if v := f.Facts.K3s.Setting("node-name"); len(v) == 1 {
		name = v[0]
	}
	if nodes := f.Facts.Cluster.Nodes; len(nodes) == 1 {
		name = nodes[0].Name
	}
	if name = strings.ToLower(name); len(validation.IsDNS1123Subdomain(name)) == 0 {
		return name
	}
	return label(name)
}

var notLabel = regexp.MustCompile(`[^a-z0-9-]+`)

// label makes the first word of a host's name one that a migration can be called.
func label(name string) string {
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	name = strings.Trim(notLabel.ReplaceAllString(name, "-"), "-")
	if len(name) > validation.DNS1123LabelMaxLength {
		name = strings.Trim(name[:validation.DNS1123LabelMaxLength], "-")
	}
	return cmp.Or(name, "k3s")
}

func (f *Found) write(t *text, w Wishes, p *Proposal, r Ranges) {
	f.writeHead(t, p)
	t.line(0, "")
	t.line(0, "apiVersion: %s", plans.APIVersion)
	t.line(0, "kind: %s", plans.Kind)
	t.line(0, "metadata:")
	t.field(2, "metadata.name")
	t.line(2, "name: %s", scalar(p.Name))
	t.line(0, "")
	t.line(0, "spec:")
	f.writeHost(t, w, p)
	t.line(0, "")
	f.writeNetwork(t, r)
	t.line(0, "")
	f.writeK3s(t, w)
	t.line(0, "")
	f.writeSnapshot(t)
	t.line(0, "")
	f.writeBackup(t, w)
	t.line(0, "")
	f.writePlatform(t)
	t.line(0, "")
	f.writeServices(t)
	t.line(0, "")
	f.writeVerify(t, w)
}

func (f *Found) writeHead(t *text, p *Proposal) {
	in, host := f.Facts.K3s, f.Facts.Host
	t.note(0, "The migration of %s to dual-stack, as `migrate init` proposed it on %s.", p.Host, f.Facts.Taken.Format("2 January 2006"))
	t.note(0, "Places to fill in are marked %q. What is not here has its default; plans/sunbeam.yaml shows every field. "+
		"Paths start at this file's directory.", Mark)
	t.line(0, "#")
	t.note(0, "Found on the host:")
	rows := [][]string{
		{"system", strings.TrimSpace(fmt.Sprintf("%s, kernel %s, %s", host.OS, host.Kernel, host.Arch))},
		{"K3s", fmt.Sprintf("%s, %s, unit %s", in.Version, in.Binary, in.Unit)},
		{"installed by", f.method()},
		{"datastore", string(in.Datastore)},
		{"data directory", in.DataDir + " (" + source(in, "data-dir") + ")"},
		{"volumes in", in.Storage() + " (" + source(in, "default-local-storage-path") + ")"},
	}
	if c := f.Facts.Cluster; c.Version != "" {
		words := []string{"Kubernetes " + c.Version}
		for _, part := range []struct {
			name string
			n    int
		}{{survey.Nodes, len(c.Nodes)}, {survey.Namespaces, len(c.Namespaces)}, {survey.Services, len(c.Services)}} {
			if f.Knows(part.name) {
				words = append(words, fmt.Sprintf("%s: %d", part.name, part.n))
			}
		}
		rows = append(rows, []string{"cluster", strings.Join(words, ", ")})
	}
	t.table(0, rows)
	if len(f.Gaps) > 0 {
		t.line(0, "#")
		t.note(0, "Not found out:")
		for _, g := range f.Gaps {
			t.note(0, "- %s: %s", g.What, short(g.Why, 400))
		}
	}
}

// method is how K3s came onto the host, as far as its files tell.
func (f *Found) method() string {
	in := f.Facts.K3s
	how := "K3s's install script"
	if in.Uninstall == "" {
		how = "something else than K3s's install script (k3s-uninstall.sh is not there)"
	}
	var by []string
	flags := slices.ContainsFunc(settings(in), func(k string) bool { return in.Settings[k].Source == k3s.SourceFlag })
	if flags {
		by = append(by, "flags of the unit")
	}
	if by = append(by, in.Config...); len(in.EnvNames) > 0 {
		by = append(by, strings.Join(in.EnvFiles, ", "))
	}
	if len(by) > 0 {
		how += "; configured by " + strings.Join(by, ", ")
	}
	return how
}

// source says where a setting was made.
func source(in *k3s.Installation, key string) string {
	s := in.Settings[key]
	switch s.Source {
	case "", k3s.SourceDefault:
		return "default"
	case k3s.SourceFlag:
		return "--" + key + " in " + in.Unit
	case k3s.SourceEnv:
		return strings.Join(in.EnvFiles, ", ")
	}
	return s.Source
}

func settings(in *k3s.Installation) []string {
	keys := make([]string, 0, len(in.Settings))
	for k := range in.Settings {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (f *Found) writeHost(t *text, w Wishes, p *Proposal) {
	h := w.Host
	t.line(2, "hosts:")
	t.field(4, "spec.hosts")
	t.line(4, "- name: %s", scalar(p.Host))
	t.line(6, "address: %s", scalar(h.Address))
	if h.Port != 0 {
		t.line(6, "port: %d", h.Port)
	}
	if h.User != "" {
		t.line(6, "user: %s", scalar(h.User))
	}
	if h.Sudo {
		t.note(6, "The user is not root, and sudo asks for no password.")
		t.line(6, "sudo: true")
	}
	for _, l := range []struct {
		name   string
		values []string
	}{{"identityFiles", h.IdentityFiles}, {"knownHosts", h.KnownHosts}} {
		if len(l.values) > 0 {
			t.line(6, "%s:", l.name)
			t.list(8, l.values)
		}
	}
	if h.JumpHost != "" {
		t.line(6, "jumpHost: %s", scalar(h.JumpHost))
	}
	if h.SSHConfig != "" {
		t.line(6, "sshConfig: %s", scalar(h.SSHConfig))
	}
}

// presentIPv4 is the IPv4 range that a setting has, and where it was found.
func (f *Found) presentIPv4(key, fallback string) (string, string) {
	in := f.Facts.K3s
	for _, v := range in.Setting(key) {
		if !strings.Contains(v, ":") {
			return v, source(in, key)
		}
	}
	return fallback, "default"
}

func (f *Found) writeNetwork(t *text, r Ranges) {
	in, host := f.Facts.K3s, f.Facts.Host
	t.note(2, "IPv4 first, then IPv6. The IPv4 ranges are those that the cluster has. The IPv6 ranges are cut from the unique "+
		"local prefix %s (RFC 4193), which nothing on the host uses.", r.Prefix)
	t.line(2, "network:")
	if v4, v6 := in.Families(); v6 {
		what := "dual-stack"
		if !v4 {
			what = "IPv6-only"
		}
		t.note(4, "The cluster is %s already (cluster-cidr is %s): there may be nothing to migrate, and `migrate plan` will refuse.", what, in.Settings["cluster-cidr"])
	}
	pods, from := f.presentIPv4("cluster-cidr", "10.42.0.0/16")
	t.field(4, "spec.network.clusterCIDR")
	t.line(4, "clusterCIDR:  # pods")
	t.line(6, "- %s  # %s", scalar(pods), visible(from))
	t.line(6, "- '%s'", r.Pods)
	services, from := f.presentIPv4("service-cidr", "10.43.0.0/16")
	t.field(4, "spec.network.serviceCIDR")
	t.line(4, "serviceCIDR:  # Services")
	t.line(6, "- %s  # %s", scalar(services), visible(from))
	t.line(6, "- '%s'", r.Services)
	if dns := in.Setting("cluster-dns"); len(dns) > 0 {
		t.note(4, "The host sets cluster-dns to %s (%s). Without an IPv6 address beside it the DNS Service would stay IPv4-only.", strings.Join(dns, ","), source(in, "cluster-dns"))
		t.field(4, "spec.network.clusterDNS")
		t.line(4, "clusterDNS:")
		t.list(6, clusterDNS(dns, services, r.Services))
	}
	t.note(4, "flannelIPv6Masq: true is the default: pods with unique local addresses reach the IPv6 internet through the node's address.")

	var rows [][]string
	for _, a := range host.Addresses {
		if a.Prefix.Addr().Is6() && !survey.OwnInterface(a.Interface) {
			rows = append(rows, []string{a.Prefix.String(), a.Interface, addressKind(a)})
		}
	}
	for _, rt := range host.Routes {
		if rt.Default() && rt.Destination.Addr().Is6() {
			via := "default route"
			if rt.Gateway != "" {
				via += " via " + rt.Gateway
			}
			kind := rt.Protocol
			if rt.Expires > 0 {
				kind += fmt.Sprintf(", expires in %d s", rt.Expires)
			}
			rows = append(rows, []string{via, rt.Interface, kind})
		}
	}
	ips := f.Facts.NodeIPs()
	chosen, ok := host.IPv6()
	if len(rows) == 0 {
		t.note(4, "The host has no IPv6 address and no IPv6 default route: it needs both before it can be migrated.")
	} else {
		t.note(4, "The host's IPv6:")
		t.table(4, rows)
	}
	switch {
	case !ok:
		t.mark(4, "no lasting IPv6 address was found for the node. Give the host one from its provider (`migrate plan` finds it then), or name both addresses of the node here:")
		t.line(4, "# nodeIP: [%s, 2001:db8::10]", cmp.Or(first(ips), "192.0.2.10"))
	case len(ips) == 2:
		t.note(4, "nodeIP is found by the survey; now it would be %s and %s.", ips[0], ips[1])
	default:
		t.note(4, "nodeIP is found by the survey; its IPv6 address now would be %s.", chosen)
	}
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

func addressKind(a survey.Address) string {
	kind := "static"
	if a.Dynamic {
		kind = "given by router advertisements or DHCP"
	}
	if a.Temporary {
		kind += ", temporary"
	}
	if a.Deprecated {
		kind += ", deprecated"
	}
	return kind
}

// clusterDNS is the present IPv4 address and the one that lies as far behind the
// beginning of the IPv6 range.
func clusterDNS(present []string, services string, v6 netip.Prefix) []string {
	for _, p := range present {
		a, err := netip.ParseAddr(p)
		r, bad := netip.ParsePrefix(services)
		if err != nil || bad != nil || !a.Is4() || !r.Addr().Is4() || !r.Contains(a) {
			continue
		}
		offset := number(a) - number(r.Masked().Addr())
		b := v6.Addr().As16()
		b[14], b[15] = byte(offset>>8), byte(offset)
		if offset > 0xffff {
			b[14], b[15] = 0, 10
		}
		return []string{p, netip.AddrFrom16(b).String()}
	}
	return present
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// secretWords in a setting's name or value hide the value.
var secretWords = regexp.MustCompile(`(?i)token|password|secret|credential|access-key|auth=`)

func (f *Found) writeK3s(t *text, w Wishes) {
	in := f.Facts.K3s
	t.note(2, "K3s is installed again with the configuration that it has; network settings are changed where they are made now.")
	t.line(2, "k3s:")
	t.line(4, "version: keep  # %s runs now", visible(in.Version))
	if w.InstallScript != "" {
		t.field(4, "spec.k3s.installScript")
		t.line(4, "installScript: %s", scalar(w.InstallScript))
	}
	t.note(4, "identity: preserve is the default: kubeconfigs and tokens stay valid. Left out as it stands, too: extraArgs, disable (both add to what follows).")
	var rows [][]string
	for _, key := range settings(in) {
		value := in.Settings[key].String()
		if k3s.Secret(key) || secretWords.MatchString(key) && !strings.HasPrefix(value, "/") || secretWords.MatchString(value) {
			value = "(secret)"
		}
		rows = append(rows, []string{key, value, source(in, key)})
	}
	if len(rows) > 0 {
		t.note(4, "Settings in force, and where each was made:")
		t.table(4, rows)
	} else {
		t.note(4, "All settings have their defaults: no flag, no %s, no environment file sets one.", k3s.DefaultConfigFile)
	}
	if len(in.EnvNames) > 0 {
		t.note(4, "Environment files: %s, with %s.", strings.Join(in.EnvFiles, ", "), strings.Join(in.EnvNames, ", "))
	}
	rows = nil
	for _, file := range f.Files {
		row := []string{file.Path, cmp.Or(file.By, "read by K3s itself"), f.fate(file.Path)}
		if file.Missing {
			row[2] = "is not there"
		}
		rows = append(rows, row)
	}
	for _, path := range in.AgentFiles {
		rows = append(rows, []string{path, "in the agent directory", "kept"})
	}
	for _, path := range in.DropIns {
		rows = append(rows, []string{path, "drop-in of the unit", "`migrate plan` says what to do"})
	}
	for _, path := range in.OtherUnit {
		rows = append(rows, []string{path, "another unit of K3s", "`migrate plan` says what to do"})
	}
	if len(rows) > 0 {
		t.note(4, "Files that the configuration names:")
		t.table(4, rows)
	}
}

// fate says what the rebuild does with a file.
func (f *Found) fate(file string) string {
	in := f.Facts.K3s
	inside := func(dir string) bool { return strings.HasPrefix(file, dir+"/") }
	switch {
	case inside("/etc/rancher"), inside(in.ServerDir()), slices.Contains(in.AgentFiles, file):
		return "kept and put back"
	case inside(in.DataDir), inside("/var/lib/kubelet"), inside("/run/k3s"):
		return "LOST with the uninstall: move it to /etc/rancher/k3s first"
	}
	return "stays where it is"
}

// writeSnapshot proposes the snapshot that the host's storage allows. A provider's is for the person to know of.
func (f *Found) writeSnapshot(t *text) {
	can := snapshot.Proposed(f.Facts.Host.Storage)
	if can.Method == plans.SnapshotNone {
		t.note(2, "No snapshot of the host: %s. Where its provider can take one, spec.snapshot has it taken, by Scaleway's API or by commands of your own.", strings.Join(can.Why, "; "))
		t.line(2, "snapshot:")
		t.line(4, "method: none")
		t.line(4, "reason: %s", scalar("the host's own storage allows none; the backup set is the way back"))
		return
	}
	t.note(2, "A snapshot of the host, taken before anything is changed and removed at the end. It lies on the same disks: a checkpoint to return to with `migrate rollback --via snapshot`, which restarts the host, and no backup.")
	t.line(2, "snapshot:")
	t.line(4, "method: %s", can.Method)
	if can.Size != "" {
		t.note(4, "Room for what is overwritten meanwhile, on each logical volume; the rebuild writes about %s.", size(f.Facts.Host.Storage.Writes))
		t.line(4, "size: %s", can.Size)
	}
}

func (f *Found) writeBackup(t *text, w Wishes) {
	t.line(2, "backup:")
	t.line(4, "encryption:")
	if len(w.Recipients) > 0 {
		t.note(6, "Who can read the backup set: public keys of age or SSH.")
		t.line(6, "recipients:")
		t.list(8, w.Recipients)
	} else {
		held := ""
		if len(w.inAgent) > 0 {
			held = fmt.Sprintf("The SSH agent holds %s, but an agent signs and never decrypts: where a key's file lies elsewhere, name it with init's --identity. ", strings.Join(w.inAgent, ", "))
		}
		t.mark(6, "no key was found that the backup set can be encrypted to. %sMake one with `age-keygen -o ~/.config/age/migration.key`, and write the public key that it prints here:", held)
		t.line(6, "recipients: []")
	}
	if len(w.Identities) > 0 {
		t.note(6, "Private key files that open it. Nothing is removed before one of them has opened every artifact.")
		t.line(6, "identities:")
		t.field(8, "spec.backup.encryption.identities")
		t.list(8, w.Identities)
	} else {
		t.mark(6, "the private key file that belongs to a recipient:")
		t.line(6, "identities: []")
	}
	f.writeVolumes(t)
	f.writeSecrets(t)
	f.writeOpenBao(t, w)
}

func (f *Found) writeVolumes(t *text) {
	if !f.Knows(survey.Volumes) {
		t.unknown(4, "volumes were not found out; `migrate plan` lists them once the cluster's API answers. Nothing has to be written for them to be kept: spec.backup.volumes.exclude names those whose contents can be lost.")
		return
	}
	volumes := f.Facts.Cluster.Volumes
	if len(volumes) == 0 {
		t.note(4, "The cluster has no persistent volumes.")
		return
	}
	t.note(4, "Volumes, %s in all, that are copied and put back; spec.backup.volumes.exclude names those whose contents can be lost:", size(f.Facts.VolumeBytes()))
	var rows [][]string
	for _, v := range volumes {
		name := v.PV
		if v.Claim != "" {
			name = v.Namespace + "/" + v.Claim
		}
		what := size(v.Bytes)
		switch {
		case v.Copied():
			what += fmt.Sprintf(", %d files", v.Files)
		default:
			what = "not copied: " + v.Driver
		}
		if v.Claim != "" && len(v.ClaimObject) == 0 {
			what += ", its claim is gone"
		}
		rows = append(rows, []string{name, string(v.Kind), what, v.Path})
	}
	for _, stray := range f.Facts.Host.Strays {
		rows = append(rows, []string{"(no volume)", "directory", "copied all the same", stray})
	}
	t.table(4, rows)
}

// size is a number of bytes as people read it.
func size(n int64) string {
	for _, u := range []struct {
		bytes int64
		name  string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.bytes {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.bytes), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

func (f *Found) writeSecrets(t *text) {
	if !f.Knows(survey.TLSSecrets) {
		t.unknown(4, "TLS secrets were not found out; `migrate plan` counts them once the cluster's API answers. Nothing has to be written for them to be kept: spec.backup.tlsSecrets.selectors adds others by label.")
		return
	}
	names := f.Facts.Secrets()
	if len(names) == 0 {
		t.note(4, "The cluster has no TLS secrets to keep.")
		return
	}
	t.note(4, "TLS secrets and ACME account keys that are put back before the platform is; spec.backup.tlsSecrets.selectors adds others by label:")
	var rows [][]string
	for _, n := range names {
		rows = append(rows, []string{n})
	}
	t.table(4, rows)
}

func (f *Found) writeOpenBao(t *text, w Wishes) {
	if len(f.OpenBao) == 0 {
		if f.Knows(whetherOpenBao) {
			t.note(4, "No OpenBao or Vault server runs on the cluster.")
		} else {
			t.unknown(4, "whether an OpenBao or Vault server runs on the cluster was not found out. If one does, name it in spec.backup.openBao, or run init again once the cluster's API answers.")
		}
		return
	}
	b := f.OpenBao[0]
	for _, other := range f.OpenBao[1:] {
		t.mark(4, "%s is a server, too (%s), and a plan takes one: decide which it is, and back the other up by hand.", other, other.Image)
	}
	if b.Status != nil && !b.Status.Initialised {
		t.note(4, "%s (%s) is not initialised: there is nothing in it to keep.", b, b.Image)
		return
	}
	t.note(4, "%s runs %s%s. Its secrets are kept twice and its keys proven before anything is removed.", b, b.Image, described(b))
	t.line(4, "openBao:")
	t.field(6, "spec.backup.openBao")
	t.line(6, "namespace: %s", scalar(b.Namespace))
	if b.Service != "" {
		t.line(6, "service: %s", scalar(b.Service))
	} else {
		t.line(6, "pods: %s", flow(b.Pods))
	}
	if b.Port != 8200 {
		t.line(6, "port: %d", b.Port)
	}
	if b.TLS {
		t.note(6, "It speaks TLS. Unless this machine trusts its CA already, name the CA's file as caFile.")
		t.line(6, "tls:")
		t.line(8, "serverName: %s", scalar(b.plan().TLS.ServerName))
	}
	t.note(6, "Where token and keys are found, never what they are: prompt asks in the terminal; env, file, command and kubernetes are the other sources.")
	t.line(6, "token:")
	t.line(8, "%s", secret(w.TokenFile))
	keys := 1
	switch s := b.Status; {
	case s == nil:
		t.mark(6, "how many keys unseal the server is not known: one `- prompt: true` for each, none for a server that unseals itself.")
	case s.RecoverySeal:
		t.note(6, "No unsealKeys: it unseals itself (%s).", cmp.Or(s.Seal, "auto-unseal"))
		keys = 0
	default:
		keys = s.Threshold
	}
	if keys > 0 {
		t.line(6, "unsealKeys:")
		if w.UnsealKeysFile != "" {
			keys = 1
		}
		for range keys {
			t.line(8, "- %s", secret(w.UnsealKeysFile))
		}
	}
	t.note(6, "sentinel: secret/… would be the KV secret by which the right data are recognised afterwards; mounts are all, by default.")
}

func secret(file string) string {
	if file == "" {
		return "prompt: true"
	}
	return "file: " + scalar(file)
}

// described is what a server said of itself.
func described(b OpenBao) string {
	s := b.Status
	if s == nil {
		return ""
	}
	out := fmt.Sprintf(": version %s, storage %s", cmp.Or(s.Version, "unknown"), cmp.Or(s.Storage, "unknown"))
	if s.Sealed {
		out += ", SEALED now: unseal it before the migration"
	}
	if !s.RecoverySeal {
		out += fmt.Sprintf(", unsealed by %d of %d keys", s.Threshold, s.Shares)
	}
	return out
}

func (f *Found) writePlatform(t *text) {
	t.note(2, "What puts the workloads back: a command on this machine, with a KUBECONFIG for the new cluster; no shell is involved. "+
		"The volumes, TLS secrets and OpenBao above are back by themselves; everything else has to come from it.")
	if len(f.Owners) > 0 {
		t.note(2, "Found on the cluster, and to be brought back:")
		var rows [][]string
		for _, o := range f.Owners {
			names := o.Names
			more := ""
			if len(names) > 8 {
				names, more = names[:8], fmt.Sprintf(", … (%d in all)", len(o.Names))
			}
			rows = append(rows, []string{o.Tool, short(strings.Join(names, ", "), 120) + more})
		}
		t.table(2, rows)
	} else if f.Knows(whichOwners) && f.Knows(whichReleases) {
		t.note(2, "Neither Helm nor Argo CD, Flux or an operator was found: the workloads came from manifests.")
	}
	if skips, manifests := f.Facts.K3s.Skips(); len(manifests)+len(skips) > 0 {
		t.note(2, "Your own files in %s/manifests (*.skip files are put back, the others come from the command):", f.Facts.K3s.ServerDir())
		var rows [][]string
		for _, m := range slices.Concat(manifests, skips) {
			rows = append(rows, []string{m})
		}
		t.table(2, rows)
	}
	t.line(2, "platform:")
	t.line(4, "command: []  # %s: the command that deploys the workloads, such as [sunbeam, platform, up] or [./up.sh]", Mark)
	t.note(4, "directory: this file's, by default. timeout: 30m, by default.")
}

func (f *Found) writeServices(t *text) {
	n, stay := 0, [][]string{}
	for _, s := range f.Facts.Cluster.Services {
		if s.Skip == "" {
			n++
		} else {
			stay = append(stay, []string{s.String(), s.Skip})
		}
	}
	t.line(2, "services:")
	t.line(4, "policy: PreferDualStack")
	if !f.Knows(survey.Services) {
		t.note(4, "Services were not found out; `migrate plan` lists each with what becomes of it.")
		return
	}
	t.note(4, "Services that become dual-stack: %d.", n)
	if len(stay) > 0 {
		t.note(4, "These stay as they are:")
		t.table(4, stay)
	}
}

func (f *Found) writeVerify(t *text, w Wishes) {
	t.line(2, "verify:")
	t.note(4, "URLs that pods must reach over IPv6, and over IPv4 as before.")
	switch {
	case len(w.EgressURLs) > 0:
		t.line(4, "egressURLs:")
		t.field(6, "spec.verify.egressURLs")
		t.list(6, w.EgressURLs)
	case f.Egress:
		t.line(4, "egressURLs:")
		t.line(6, "- %s", egressURL)
	default:
		t.note(4, "The host does not reach %s now. Name another URL that has addresses of both families, so that the way out is proven:", egressURL)
		t.line(4, "# egressURLs: [%s]", egressURL)
	}
	if len(w.Hostnames) > 0 {
		t.line(4, "hostnames:")
		t.field(6, "spec.verify.hostnames")
		t.list(6, w.Hostnames)
		return
	}
	const sites = "spec.verify.hostnames lists the DNS names of the cluster's own sites, which pods must reach over both families."
	if !f.Cluster {
		t.mark(4, "host names were not found out. %s", sites)
		return
	}
	var good, rest []Hostname
	for i, n := range f.Hostnames {
		if i < maxHostnames && (n.IPv4 && n.IPv6 || !n.Asked) {
			good = append(good, n)
		} else {
			rest = append(rest, n)
		}
	}
	some := slices.ContainsFunc(f.Gaps, func(g Gap) bool { return strings.HasPrefix(g.What, whichHostnames) })
	if some {
		t.unknown(4, "not all host names were found out. %s", sites)
	}
	if len(f.Hostnames) == 0 && !some {
		t.note(4, "No Ingress, Gateway, route or certificate names a host. hostnames would list the cluster's own sites, which pods must reach over both families.")
		return
	}
	if len(good) > 0 {
		t.note(4, "The cluster's own sites, as Ingresses, routes and certificates name them; pods must reach them over both families.")
		t.line(4, "hostnames:")
		t.field(6, "spec.verify.hostnames")
		for _, n := range good {
			from := strings.Join(n.From, ", ")
			if !n.Asked {
				from += "; DNS did not answer"
			}
			t.line(6, "- %s  # %s", scalar(n.Name), visible(short(from, 100)))
		}
	}
	if len(rest) > 0 {
		t.note(4, "Named on the cluster and left out, since verification would fail. Give them the records that they lack, and list them among the hostnames:")
		var rows [][]string
		for _, n := range rest {
			rows = append(rows, []string{n.Name, lacks(n), strings.Join(n.From, ", ")})
		}
		t.table(4, rows)
	}
}

// lacks says what keeps a host name from being verified.
func lacks(n Hostname) string {
	switch {
	case !n.Asked:
		return "not asked for"
	case n.IPv4:
		return "no AAAA record"
	case n.IPv6:
		return "no A record"
	}
	return "no address"
}

// Check finds what a plan would not take of the wishes, before anybody is asked.
func (w Wishes) Check() error {
	f := &Found{Facts: &survey.Facts{K3s: &k3s.Installation{}}, Cluster: true}
	f.Facts.Host.Hostname = "host"
	w.TokenFile, w.UnsealKeysFile = "", ""
	t := &text{}
	f.write(t, w, &Proposal{Host: "host", Name: "host"}, cut(RandomPrefix()))
	_, err := plans.Decode([]byte(t.b.String()), ".")
	var invalid *plans.InvalidError
	if !errors.As(err, &invalid) {
		return err
	}
	for _, e := range invalid.Errors {
		if e.Field != commandField && !strings.HasPrefix(e.Field, "spec.backup.encryption") || strings.HasPrefix(e.Field, "spec.backup.encryption.recipients[") {
			return e
		}
	}
	return nil
}
