package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/propose"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/survey"
)

func initCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "init --host [USER@]ADDRESS",
		Short: "Look at a host and write a commented plan that is right for it",
		Long: strings.TrimSpace(`
Look at a host that has no plan yet, and at its cluster, and write one: with the
ranges that the cluster has and IPv6 ranges that collide with nothing, the
settings in force and where each was made, volumes, TLS secrets, OpenBao, host
names, and who put the workloads there. Nothing is changed on the host.

What is left to fill in is marked "FILL IN" in the plan and listed at the end:
the command that deploys the workloads, and what could not be found out.

Names are resolved on the host, and unless --egress-url names URLs, one of
Let's Encrypt is tried from it.

The host's key must be known already (known_hosts). The backup set is encrypted
to the SSH key that --identity-file names, else to ~/.ssh/id_ed25519 or id_rsa,
unless --recipient or --identity name another.`),
		Example: `  migrate init --host admin@sunbeam.pt
  migrate init --host root@192.0.2.7 --port 2222 --identity-file ~/.ssh/id_ed25519 -o sunbeam.yaml
  migrate init --host sunbeam --ula fd12:3456:789a::/48 -o - | less`,
		Args: cobra.NoArgs,
	}
	var (
		host, ula, out string
		force          bool
		w              propose.Wishes
	)
	fl := c.Flags()
	fl.StringVar(&host, "host", "", "the server: `[USER@]ADDRESS`, or an alias of the SSH configuration")
	fl.IntVar(&w.Host.Port, "port", 0, "`port` of its SSH server")
	fl.StringArrayVar(&w.Host.IdentityFiles, "identity-file", nil, "private key `file` that the host accepts (repeatable)")
	fl.StringArrayVar(&w.Host.KnownHosts, "known-hosts", nil, "`file` that holds the host's key (repeatable)")
	fl.StringVar(&w.Host.JumpHost, "jump-host", "", "`hosts` to go through, as ssh's ProxyJump")
	fl.StringVar(&w.Host.SSHConfig, "ssh-config", "", "SSH configuration `file`; \"none\" reads none")
	fl.StringVar(&ula, "ula", "", "unique local `prefix` to take the IPv6 ranges from; default: a random one")
	fl.StringArrayVar(&w.Recipients, "recipient", nil, "public `key` to encrypt the backup set to (repeatable)")
	fl.StringArrayVar(&w.Identities, "identity", nil, "private key `file` that opens the backup set (repeatable)")
	fl.StringVar(&w.InstallScript, "install-script", "", "K3s's installer, a `URL or file`; default: "+plans.DefaultInstallScript)
	fl.StringArrayVar(&w.EgressURLs, "egress-url", nil, "`URL` that pods must reach over both families (repeatable)")
	fl.StringArrayVar(&w.Hostnames, "hostname", nil, "`name` of a site of the cluster; default: those that are found (repeatable)")
	fl.StringVar(&w.TokenFile, "openbao-token-file", "", "`file` that holds OpenBao's token; default: asked for when needed")
	fl.StringVar(&w.UnsealKeysFile, "openbao-unseal-keys-file", "", "`file` that holds its unseal keys, one a line; default: asked for")
	fl.StringVarP(&out, "output", "o", "plan.yaml", "`file` to write the plan to; - prints it")
	fl.BoolVar(&force, "force", false, "replace the file if it is there")
	for _, name := range []string{"identity-file", "known-hosts", "ssh-config", "identity", "install-script", "openbao-token-file", "openbao-unseal-keys-file"} {
		_ = c.MarkFlagFilename(name)
	}
	_ = c.MarkFlagFilename("output", "yaml", "yml")
	for _, name := range []string{"host", "port", "jump-host", "ula", "recipient", "egress-url", "hostname"} {
		_ = c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := wishes(&w, host, ula); err != nil {
			return usageError{err}
		}
		if err := vacant(out, force); err != nil {
			return usageError{err}
		}
		p := progress.New(c.ErrOrStderr(), isTerminal(c.ErrOrStderr()))
		proposal, found, err := proposed(c.Context(), w, askPassphrase(c, p), p)
		if err != nil {
			return err
		}
		if out == "-" {
			if _, err := c.OutOrStdout().Write(proposal.Text); err != nil {
				return err
			}
			return summary(c.ErrOrStderr(), out, proposal, found)
		}
		if err := vacant(out, force); err != nil {
			return usageError{err}
		}
		if err := renameio.WriteFile(out, proposal.Text, 0o600, renameio.IgnoreUmask()); err != nil {
			return fmt.Errorf("laptop: writing the plan: %w", err)
		}
		return summary(c.OutOrStdout(), out, proposal, found)
	}
	return c
}

// wishes completes and checks what was given, before anything is contacted.
func wishes(w *propose.Wishes, host, ula string) error {
	if host == "" {
		return errors.New("--host: name the server, as user@address")
	}
	h := &w.Host
	h.Address = host
	if i := strings.LastIndex(host, "@"); i >= 0 {
		h.User, h.Address = host[:i], host[i+1:]
		if h.User == "" {
			return fmt.Errorf("--host %q: no user stands before the @", host)
		}
	}
	h.Role = plans.RoleServer
	for _, files := range [][]string{h.IdentityFiles, h.KnownHosts, w.Identities} {
		for i := range files {
			if err := portable(&files[i]); err != nil {
				return err
			}
		}
	}
	for _, file := range []*string{&w.TokenFile, &w.UnsealKeysFile} {
		if err := portable(file); err != nil {
			return err
		}
	}
	if h.SSHConfig != plans.SSHConfigNone {
		if err := portable(&h.SSHConfig); err != nil {
			return err
		}
	}
	if !strings.Contains(w.InstallScript, "://") {
		if err := portable(&w.InstallScript); err != nil {
			return err
		}
	}
	if ula != "" {
		var err error
		if w.ULA, err = propose.ParsePrefix(ula); err != nil {
			return fmt.Errorf("--ula: %w", err)
		}
	}
	if err := w.FindKeys(); err != nil {
		return err
	}
	return w.Check()
}

func portable(file *string) (err error) {
	*file, err = propose.Portable(*file)
	return err
}

// vacant refuses to write over what is there.
func vacant(out string, force bool) error {
	if out == "-" {
		return nil
	}
	info, err := os.Stat(out)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if dir, err := os.Stat(filepath.Dir(out)); err != nil || !dir.IsDir() {
			return fmt.Errorf("--output %s: its directory is not there; make it first", out)
		}
		return nil
	case err != nil:
		return fmt.Errorf("--output: %w", err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("--output %s: it is there and is no regular file; name another", out)
	case !force:
		return fmt.Errorf("--output %s: it is there already; name another file, or replace it with --force", out)
	}
	return nil
}

// proposed looks at the host and makes the plan.
func proposed(ctx context.Context, w propose.Wishes, ask remote.AskFunc, p *progress.Reporter) (*propose.Proposal, *propose.Found, error) {
	t := p.Wait("Looking at " + w.Host.Address)
	defer t.Done()
	w.Host.Name = w.Host.Address
	h, err := propose.Connect(ctx, &w.Host, ask)
	if err != nil {
		return nil, nil, err
	}
	defer h.Close()
	found, err := propose.Look(ctx, h, w, t)
	if err != nil {
		return nil, nil, err
	}
	proposal, err := found.Plan(w)
	return proposal, found, err
}

// summary says what the plan is for, what is left to do in it, and how to go on.
func summary(out io.Writer, file string, p *propose.Proposal, f *propose.Found) error {
	w := &strings.Builder{}
	where, name := " is written to "+file, file
	if file == "-" {
		where, name = " is printed", "plan.yaml"
	}
	fmt.Fprintf(w, "The plan of %s%s.\n\n", p.Host, where)
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(t, "  K3s\t%s, %s\n", f.Facts.K3s.Version, f.Facts.K3s.Datastore)
	if f.Knows(survey.Volumes) {
		fmt.Fprintf(t, "  volumes\t%d, %.1f MiB to copy\n", len(f.Facts.Cluster.Volumes), float64(f.Facts.VolumeBytes())/(1<<20))
	}
	if f.Knows(survey.TLSSecrets) {
		fmt.Fprintf(t, "  TLS secrets\t%d\n", len(f.Facts.Cluster.TLSSecrets))
	}
	for _, b := range f.OpenBao {
		fmt.Fprintf(t, "  OpenBao\t%s\n", b)
	}
	ipv6 := "no lasting address with a default route"
	if a, ok := f.Facts.Host.IPv6(); ok {
		ipv6 = fmt.Sprintf("%s on %s", a, f.Facts.Host.Uplink)
	}
	fmt.Fprintf(t, "  IPv6\t%s\n", ipv6)
	t.Flush()
	say := func(indent, s string) {
		for i, line := range propose.Wrap(s, 80-len(indent)-2) {
			bullet := "  "
			if i == 0 {
				bullet = "- "
			}
			fmt.Fprintf(w, "%s%s%s\n", indent, bullet, line)
		}
	}
	if len(f.Gaps) > 0 {
		fmt.Fprintln(w, "\nNot found out")
		for _, g := range f.Gaps {
			say("  ", g.What+": "+g.Why)
		}
	}
	if len(p.Places) > 0 {
		fmt.Fprintln(w, "\nTo fill in")
		for _, place := range p.Places {
			say("  ", fmt.Sprintf("line %d: %s", place.Line, place.What))
		}
	}
	fmt.Fprintf(w, "\nThen: migrate plan -f %s\n", name)
	_, err := io.WriteString(out, w.String())
	return err
}
