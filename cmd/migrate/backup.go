package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
)

func backupCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "backup",
		Short: "Read a backup set: list, verify, extract",
		Long: strings.TrimSpace(`
Read a backup set without the cluster: neither the host nor the API is
contacted, and nothing in the set's directory is changed. The set is that of
the plan, or with --dir any copy of one; then no plan is needed.`),
		Example: `  migrate backup list -f plan.yaml
  migrate backup verify --dir /mnt/copy --identity ~/.ssh/id_ed25519
  migrate backup extract -f plan.yaml tls-secrets --to tls-secrets.jsonl`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(backupListCommand(), backupVerifyCommand(), backupExtractCommand())
	return c
}

func backupListCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "list",
		Short: "Show what is in a backup set; needs no key",
		Long: strings.TrimSpace(`
Show the artifacts of a backup set with their sizes, and its volumes with their
claims. The manifest alone is read: no key is needed, and whether the artifacts are sound
is for 'migrate backup verify' to tell.`),
		Example: `  migrate backup list -f plan.yaml
  migrate backup list --dir /mnt/copy
  migrate backup list -f plan.yaml -o json | jq -r '.artifacts[].name'`,
		Args: usage(cobra.NoArgs),
	}
	from, format := setFlags(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := checkFormat(*format); err != nil {
			return err
		}
		set, _, err := from.open(c, false)
		if err != nil {
			return err
		}
		l := listSet(set)
		if *format == "json" {
			return writeJSON(c.OutOrStdout(), l)
		}
		return l.print(c.OutOrStdout())
	}
	return c
}

// setList is what `backup list` prints.
type setList struct {
	Dir       string            `json:"dir"`
	Artifacts []backup.Artifact `json:"artifacts"`
	Volumes   []setVolume       `json:"volumes"`
	// Size and ContentSize are the artifacts' together, in bytes.
	Size        int64 `json:"size"`
	ContentSize int64 `json:"contentSize"`
}

type setVolume struct {
	// Name is what `backup extract` takes.
	Name  string `json:"name"`
	Claim string `json:"claim,omitempty"`
	Path  string `json:"path"`
	// Complete is false while there is the full pass alone.
	Complete bool `json:"complete"`
}

func listSet(set *backup.Set) setList {
	l := setList{Dir: set.Dir(), Artifacts: append([]backup.Artifact{}, set.Artifacts()...), Volumes: []setVolume{}} // [], not null
	for _, a := range l.Artifacts {
		l.Size += a.Size
		l.ContentSize += a.ContentSize
	}
	for _, v := range set.Volumes() {
		l.Volumes = append(l.Volumes, setVolume{Name: v.Name(), Claim: v.Claim, Path: v.Path, Complete: set.Whole(v)})
	}
	return l
}

func (l setList) print(w io.Writer) error {
	fmt.Fprintf(w, "Backup set %s: %d artifacts, %.1f MiB at rest, %.1f MiB of contents\n", l.Dir, len(l.Artifacts), float64(l.Size)/(1<<20), float64(l.ContentSize)/(1<<20))
	var recipients []string
	for _, a := range l.Artifacts {
		recipients = append(recipients, a.Recipients()...)
	}
	slices.Sort(recipients)
	for _, r := range slices.Compact(recipients) {
		fmt.Fprintf(w, "Encrypted to %s\n", r)
	}
	if len(l.Artifacts) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	digits := max(len(fmt.Sprint(l.Size)), len(fmt.Sprint(l.ContentSize)), len("CONTENTS"))
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(t, "  ARTIFACT\tKIND\t%*s\t%*s\tCODEC\tCREATED\n", digits, "AT REST", digits, "CONTENTS")
	for _, a := range l.Artifacts {
		fmt.Fprintf(t, "  %s\t%s\t%*d\t%*d\t%s\t%s\n", a.Name, a.Kind, digits, a.Size, digits, a.ContentSize, a.Codec, a.Created.Local().Format(time.DateTime))
	}
	fmt.Fprintf(t, "  total, bytes\t\t%*d\t%*d\n", digits, l.Size, digits, l.ContentSize)
	if len(l.Volumes) > 0 {
		t.Flush()
		fmt.Fprintln(w)
		fmt.Fprintf(t, "  VOLUME\tCLAIM\tTAKEN\tPATH ON THE HOST\n")
		for _, v := range l.Volumes {
			taken := "full pass only"
			if v.Complete {
				taken = "completely"
			}
			claim := v.Claim
			if claim == "" {
				claim = "-"
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", v.Name, claim, taken, v.Path)
		}
	}
	return t.Flush()
}

func backupVerifyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "verify [ARTIFACT...]",
		Short: "Prove that a backup set can be restored from",
		Long: strings.TrimSpace(`
Read every artifact again, or those that are named: its checksum is compared
with the manifest, it is decrypted, and opened by its kind (database checked,
archive compared with its list, objects parsed). The name of a volume stands for all its
artifacts. All that is wrong is told. A file that the manifest does not name
is told as stray and does no harm: an interrupted backup left it.

The exit status is 1 when an artifact is missing or wrong.`),
		Example: `  migrate backup verify -f plan.yaml
  migrate backup verify -f plan.yaml k3s-database tls-secrets
  migrate backup verify --dir /mnt/copy --identity ~/.ssh/id_ed25519
  migrate backup verify -f plan.yaml -o json | jq '.artifacts[] | select(.ok | not)'`,
		Args: cobra.ArbitraryArgs,
	}
	from, format := setFlags(c), formatFlag(c)
	c.ValidArgsFunction = from.complete
	c.RunE = func(c *cobra.Command, names []string) error {
		if err := checkFormat(*format); err != nil {
			return err
		}
		set, p, err := from.open(c, true)
		if err != nil {
			return err
		}
		artifacts := set.Artifacts()
		var strays []string
		if len(names) > 0 {
			artifacts, err = from.pick(set, names)
		} else {
			strays, err = set.Strays()
		}
		if err != nil {
			return err
		}
		checked, err := set.Check(c.Context(), artifacts, p)
		if err != nil {
			return err
		}
		v := verdict(set, checked, strays)
		if *format == "json" {
			err = writeJSON(c.OutOrStdout(), v)
		} else {
			err = v.print(c.OutOrStdout())
		}
		if err == nil && v.Wrong > 0 {
			err = fmt.Errorf("backup set %s: %d of %d artifacts cannot be restored from; take them from another copy of the set, or back up again while the cluster is there", set.Dir(), v.Wrong, len(v.Artifacts))
		}
		return err
	}
	return c
}

// setVerdict is what `backup verify` prints.
type setVerdict struct {
	Dir       string            `json:"dir"`
	Artifacts []artifactVerdict `json:"artifacts"`
	// Wrong counts the artifacts that are not as they should be.
	Wrong int `json:"wrong"`
	// Strays are files that the manifest does not name.
	Strays []string `json:"strays,omitempty"`
}

type artifactVerdict struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

func verdict(set *backup.Set, checked []backup.Checked, strays []string) setVerdict {
	v := setVerdict{Dir: set.Dir(), Artifacts: []artifactVerdict{}, Strays: strays}
	for _, c := range checked {
		a := artifactVerdict{Name: c.Artifact.Name, OK: c.Err == nil}
		if c.Err != nil {
			v.Wrong++
			// The line begins with the name.
			a.Error = strings.TrimPrefix(c.Err.Error(), "artifact "+a.Name)
			a.Error = strings.TrimPrefix(strings.TrimPrefix(a.Error, ":"), " ")
		}
		v.Artifacts = append(v.Artifacts, a)
	}
	return v
}

func (v setVerdict) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, a := range v.Artifacts {
		if a.OK {
			fmt.Fprintf(t, "ok\t%s\n", a.Name)
		} else {
			fmt.Fprintf(t, "WRONG\t%s\t%s\n", a.Name, a.Error)
		}
	}
	for _, file := range v.Strays {
		fmt.Fprintf(t, "stray\t%s\tthe manifest does not name this file: an interrupted backup left it, or one is writing it now\n", file)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d artifacts: %d ok, %d wrong\n", len(v.Artifacts), len(v.Artifacts)-v.Wrong, v.Wrong)
	return err
}

func backupExtractCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "extract ARTIFACT",
		Short: "Write one artifact, or a volume, decrypted and decompressed",
		Long: strings.TrimSpace(`
Write the contents of an artifact to standard output, or with --to to a new
file: it has mode 0600, appears once it is complete and its checksum is
right, and never replaces another. To standard output the checksum can be told
at the end only: when the exit status is not 0, do not use what came out.

volumes/PV stands for the whole volume as it was when K3s was stopped: one tar
archive of the full pass and what changed after it, with owners, times, links,
holes, ACLs and extended attributes. GNU tar brings back exactly the volume.`),
		Example: `  migrate backup extract -f plan.yaml tls-secrets | jq .metadata.name
  migrate backup extract -f plan.yaml k3s-database --to state.db
  migrate backup extract -f plan.yaml volumes/pv-1 --to pv-1.tar
  migrate backup extract --dir /mnt/copy --identity ~/.ssh/id_ed25519 volumes/pv-1 |
    ssh host "tar -C /srv/pv-1 -xpf - --acls --xattrs --xattrs-include='*' --numeric-owner"`,
		Args: usage(cobra.ExactArgs(1)),
	}
	from := setFlags(c)
	c.ValidArgsFunction = func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return from.complete(c, args, word)
	}
	to := c.Flags().String("to", "", "write to this new `file` instead of standard output")
	_ = c.MarkFlagFilename("to")
	c.RunE = func(c *cobra.Command, args []string) error {
		if *to == "" && isTerminal(c.OutOrStdout()) {
			return usageError{fmt.Errorf("%s is not written to a terminal: redirect standard output, or name a file with --to", args[0])}
		}
		set, p, err := from.open(c, true)
		if err != nil {
			return err
		}
		if _, err := from.pick(set, args); err != nil {
			return err
		}
		if vol, ok := set.VolumeNamed(args[0]); ok && !set.Whole(vol) {
			fmt.Fprintf(p.Writer(), "note: of volume %s there is the full pass alone: what workloads wrote after it, and while it was taken, may be missing\n", vol.ID)
		}
		if *to != "" {
			return set.ExtractFile(c.Context(), args[0], *to, p)
		}
		out := &counted{w: c.OutOrStdout()}
		err = set.Extract(c.Context(), args[0], out, p)
		if err != nil && out.n > 0 {
			err = fmt.Errorf("%w\nThe %d bytes that were written to standard output are incomplete or wrong: do not use them", err, out.n)
		}
		return err
	}
	return c
}

// counted counts what passes.
type counted struct {
	w io.Writer
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// usage makes what cobra says of arguments a usageError; newRoot does so for
// the commands that are right below it.
func usage(args cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		if err := args(c, a); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// setSource says which backup set a command reads, and with which keys.
type setSource struct {
	plan       *string
	dir        string
	identities []string
}

func setFlags(c *cobra.Command) *setSource {
	s := &setSource{plan: planFlag(c)}
	c.Flags().StringVar(&s.dir, "dir", "", "read the backup set in this `directory`, without a plan")
	_ = c.MarkFlagDirname("dir")
	c.Flags().StringArrayVar(&s.identities, "identity", nil, "`file` with a private key that opens the set, age or SSH, instead of the plan's (repeatable)")
	_ = c.MarkFlagFilename("identity")
	return s
}

// flags are what a person types to name the same set.
func (s *setSource) flags() string {
	if s.dir != "" {
		return "--dir " + remote.Quote(s.dir)
	}
	return "-f " + remote.Quote(*s.plan)
}

// open opens the set read-only; keys tells whether private keys are needed. The
// reporter writes to standard error.
func (s *setSource) open(c *cobra.Command, keys bool) (*backup.Set, *progress.Reporter, error) {
	dir, identities := s.dir, s.identities
	var p *progress.Reporter
	var ask remote.AskFunc
	if dir != "" {
		if c.Flags().Changed("file") {
			return nil, nil, usageError{errors.New("--dir and --file name two backup sets; give one of them")}
		}
		if keys && len(identities) == 0 {
			return nil, nil, usageError{errors.New("with --dir, name the file of a private key that opens the set with --identity")}
		}
		p = progress.New(c.ErrOrStderr(), isTerminal(c.ErrOrStderr()))
		ask = askPassphrase(c, p)
	} else {
		m, err := load(c, *s.plan)
		if err != nil {
			return nil, nil, err
		}
		dir, p, ask = m.SetDir(), m.Progress, m.Ask
		if len(identities) == 0 {
			identities = m.Plan.Spec.Backup.Encryption.Identities
		}
	}
	if !keys {
		identities = nil
	}
	set, err := backup.OpenAsking(dir, nil, identities, backup.Passphrase(ask))
	if _, gone := os.Stat(dir); err != nil && errors.Is(gone, fs.ErrNotExist) {
		err = fmt.Errorf("there is no backup set in %s: 'migrate run' begins one; --dir names one that lies elsewhere", dir)
	}
	return set, p, err
}

// pick finds the artifacts that are named, or belong to a volume that is.
func (s *setSource) pick(set *backup.Set, names []string) ([]backup.Artifact, error) {
	var out []backup.Artifact
	for _, name := range names {
		found := len(out)
		for _, a := range set.Artifacts() {
			if _, volume := set.VolumeNamed(name); a.Name == name || volume && strings.HasPrefix(a.Name, name+"/") {
				out = append(out, a)
			}
		}
		if len(out) > found {
			continue
		}
		err := error(&backup.NotFoundError{Dir: set.Dir(), Name: name})
		if near := nearest(set, name); len(near) > 0 {
			return nil, fmt.Errorf("%w; did you mean %s? 'migrate backup list %s' shows all", err, strings.Join(near, ", "), s.flags())
		}
		return nil, fmt.Errorf("%w; 'migrate backup list %s' shows what there is", err, s.flags())
	}
	return out, nil
}

// nearest are some names that a mistaken one may stand for: of a volume by its
// claim, those that contain it or are part of it, else those that begin alike.
func nearest(set *backup.Set, name string) []string {
	var contain, alike []string
	longest := 3 // fewer characters than that are chance
	for _, n := range setNames(set) {
		vol, volume := set.VolumeNamed(n)
		switch common := commonPrefix(n, name); {
		case strings.Contains(n, name), strings.Contains(name, n), volume && vol.Claim != "" && strings.Contains(vol.Claim, name):
			contain = append(contain, n)
		case common > longest:
			longest, alike = common, []string{n}
		case common == longest:
			alike = append(alike, n)
		}
	}
	if len(contain) == 0 {
		contain = alike
	}
	return contain[:min(len(contain), 5)]
}

func commonPrefix(a, b string) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// setNames are all names that can be picked.
func setNames(set *backup.Set) []string {
	var out []string
	for _, v := range set.Volumes() {
		out = append(out, v.Name())
	}
	for _, a := range set.Artifacts() {
		out = append(out, a.Name)
	}
	return out
}

// complete offers the names that can be picked, each with what it is.
func (s *setSource) complete(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	set, _, err := s.open(c, false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, v := range set.Volumes() {
		out = append(out, cobra.CompletionWithDesc(v.Name(), v.Label()))
	}
	for _, a := range set.Artifacts() {
		out = append(out, cobra.CompletionWithDesc(a.Name, string(a.Kind)))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
