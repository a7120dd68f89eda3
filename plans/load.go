package plans

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxSize bounds a plan in bytes, so that a disk image named by mistake is not read into memory. It also bounds the time that
// the parser takes for lists nested without end, which grows with the square of their depth.
const maxSize = 128 << 10

// Load reads the plan file at path, decodes it strictly, fills in the defaults, validates it and looks for the
// files and programs that it names. Paths in the plan are made absolute: "~" is the home directory, relative
// ones start at the plan's directory. A file that is not YAML gives a *SyntaxError, a plan with mistakes an
// *InvalidError that names all of them.
func Load(path string) (*Plan, error) {
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("finding the directory of plan %s: %w", path, err)
	}
	p, err := decode(path, data, filepath.Dir(absolute), checkFiles)
	if err != nil {
		return nil, err
	}
	p.path = absolute
	return p, nil
}

// Decode reads a plan from memory as Load does, with relative paths starting at dir; whether the files and
// programs that the plan names exist is not looked at.
func Decode(data []byte, dir string) (*Plan, error) {
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("finding the plan's directory %q: %w", dir, err)
	}
	return decode("", data, absolute)
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the plan: %w; name the plan file with -f", err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the plan: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("reading the plan: %w", err)
	}
	return data, nil
}

// decode is Load and Decode; more are checks of the finished plan.
func decode(file string, data []byte, dir string, more ...func(*Plan) field.ErrorList) (*Plan, error) {
	root, syntax := parse(data)
	if syntax != nil {
		syntax.File = file
		return nil, syntax
	}
	p := &Plan{}
	d := &decoder{at: map[string]position{}}
	d.value(nil, root, reflect.ValueOf(p).Elem())
	invalid := &InvalidError{File: file, at: d.at}
	if foreign := foreign(p); len(foreign) > 0 {
		// Another program's file: its fields say nothing about a plan.
		invalid.Errors = foreign
		return nil, invalid
	}
	invalid.add(d.errs)
	setDefaults(p)
	p.digest = digest(p)
	invalid.add(validate(p))
	invalid.add(resolvePaths(p, dir))
	for _, check := range more {
		invalid.add(check(p))
	}
	if len(invalid.Errors) > 0 {
		slices.SortStableFunc(invalid.Errors, func(a, b *field.Error) int {
			x, _ := invalid.position(a.Field)
			y, _ := invalid.position(b.Field)
			return cmp.Or(cmp.Compare(x.line, y.line), cmp.Compare(x.column, y.column))
		})
		return nil, invalid
	}
	return p, nil
}

// foreign reports an apiVersion or kind that is another program's.
func foreign(p *Plan) field.ErrorList {
	var errs field.ErrorList
	if p.APIVersion != "" && p.APIVersion != APIVersion {
		errs = append(errs, field.NotSupported(field.NewPath("apiVersion"), p.APIVersion, []string{APIVersion}))
	}
	if p.Kind != "" && p.Kind != Kind {
		errs = append(errs, field.NotSupported(field.NewPath("kind"), p.Kind, []string{Kind}))
	}
	return errs
}

// setDefaults fills in what the plan leaves open and has a fixed default. SSH settings have none here: what the
// plan leaves open is for the SSH configuration to say.
func setDefaults(p *Plan) {
	s := &p.Spec
	for i := range s.Hosts {
		setDefault(&s.Hosts[i].Role, RoleServer)
	}
	setDefaultList(&s.Network.ClusterCIDR, "10.42.0.0/16", "fd42::/48")
	setDefaultList(&s.Network.ServiceCIDR, "10.43.0.0/16", "fd43::/108")
	if s.Network.FlannelIPv6Masq == nil {
		masquerade := true
		s.Network.FlannelIPv6Masq = &masquerade
	}
	setDefault(&s.K3s.Version, VersionKeep)
	setDefault(&s.K3s.InstallScript, DefaultInstallScript)
	setDefault(&s.K3s.Identity, IdentityPreserve)
	setDefault(&s.Backup.Volumes.Concurrency, 3)
	if s.Backup.Objects.ExcludeResources == nil { // an empty list leaves nothing out
		s.Backup.Objects.ExcludeResources = []string{"events", "events.events.k8s.io"}
	}
	if s.Snapshot != nil && s.Snapshot.Command != nil {
		setDefault(&s.Snapshot.Command.On, OnLaptop)
	}
	if s.Backup.OpenBao != nil {
		setOpenBaoDefaults(s.Backup.OpenBao)
	}
	setDefault(&s.Platform.Directory, ".")
	setDefault(&s.Platform.Timeout.Duration, 30*time.Minute)
	if len(s.Platform.Manifests) > 0 {
		setDefault(&s.Platform.Drift, DriftWarn)
	}
	setDefault(&s.Services.Policy, ServicesPreferDualStack)
	setDefault(&s.Verify.Timeout.Duration, 5*time.Minute)
	for i := range s.Hooks {
		setDefault(&s.Hooks[i].On, OnLaptop)
		setDefault(&s.Hooks[i].Timeout.Duration, 10*time.Minute)
	}
	if p.Metadata.Name != "" {
		setDefault(&s.WorkDir, p.Metadata.Name+".migration")
	}
	if s.Snapshot != nil && s.Snapshot.Scaleway != nil && s.Snapshot.Scaleway.Rescue() && s.WorkDir != "" {
		setDefault(&s.Snapshot.Scaleway.Images, filepath.Join(s.WorkDir, "images"))
	}
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

func setDefaultList(v *[]string, values ...string) {
	if len(*v) == 0 {
		*v = values
	}
}

// resolvePaths makes every path on the laptop absolute.
func resolvePaths(p *Plan, dir string) field.ErrorList {
	r := resolver{dir: dir}
	s := &p.Spec
	spec := field.NewPath("spec")
	for i := range s.Hosts {
		h, path := &s.Hosts[i], spec.Child("hosts").Index(i)
		r.list(path.Child("identityFiles"), h.IdentityFiles)
		r.list(path.Child("knownHosts"), h.KnownHosts)
		if h.SSHConfig != SSHConfigNone {
			r.path(path.Child("sshConfig"), &h.SSHConfig)
		}
	}
	if !isURL(s.K3s.InstallScript) {
		r.path(spec.Child("k3s", "installScript"), &s.K3s.InstallScript)
	}
	r.list(spec.Child("backup", "encryption", "identities"), s.Backup.Encryption.Identities)
	if s.Backup.OpenBao != nil {
		resolveOpenBao(&r, spec.Child("backup", "openBao"), s.Backup.OpenBao)
	}
	r.path(spec.Child("platform", "directory"), &s.Platform.Directory)
	r.program(spec.Child("platform", "command"), s.Platform.Command)
	r.program(spec.Child("platform", "rehearse"), s.Platform.Rehearse)
	r.list(spec.Child("platform", "manifests"), s.Platform.Manifests)
	if s.Snapshot != nil && s.Snapshot.Command != nil && s.Snapshot.Command.On == OnLaptop {
		for _, p := range s.Snapshot.Command.programs() {
			r.program(spec.Child("snapshot", "command", p.name), p.command)
		}
	}
	for i, h := range s.Hooks {
		if h.On == OnLaptop {
			r.program(spec.Child("hooks").Index(i).Child("command"), h.Command)
		}
	}
	r.path(spec.Child("workDir"), &s.WorkDir)
	if s.Snapshot != nil && s.Snapshot.Scaleway != nil {
		r.path(spec.Child("snapshot", "scaleway", "images"), &s.Snapshot.Scaleway.Images)
	}
	return r.errs
}

type resolver struct {
	dir  string
	errs field.ErrorList
}

func (r *resolver) list(path *field.Path, values []string) {
	for i := range values {
		r.path(path.Index(i), &values[i])
	}
}

// program resolves the home directory alone: other names are looked for where the program runs.
func (r *resolver) program(path *field.Path, command []string) {
	if len(command) > 0 && strings.HasPrefix(command[0], "~") {
		r.path(path.Index(0), &command[0])
	}
}

func (r *resolver) path(path *field.Path, value *string) {
	switch rest, tilde := strings.CutPrefix(*value, "~"); {
	case *value == "":
	case tilde && rest != "" && rest[0] != '/':
		r.errs = append(r.errs, field.Invalid(path, *value, `only "~/" is expanded, not another user's home directory; write the path out`))
	case tilde:
		home, err := os.UserHomeDir()
		if err != nil {
			r.errs = append(r.errs, field.Invalid(path, *value, fmt.Sprintf("the home directory is not known (%v); write the path out", err)))
			return
		}
		*value = filepath.Join(home, rest)
	case filepath.IsAbs(*value):
		*value = filepath.Clean(*value)
	default:
		*value = filepath.Join(r.dir, *value)
	}
}

// Server is the host that runs the control plane.
func (p *Plan) Server() Host {
	for _, h := range p.Spec.Hosts {
		if h.Role == RoleServer {
			return h
		}
	}
	return Host{}
}

// Watched are the URLs that are watched during a run, besides the API.
func (p *Plan) Watched() []string {
	if p.Spec.Watch != nil {
		return p.Spec.Watch
	}
	var urls []string
	for _, name := range p.Spec.Verify.Hostnames {
		urls = append(urls, "https://"+name+"/")
	}
	return urls
}

// Path is the absolute path of the file that the plan was loaded from, empty for one decoded from memory.
func (p *Plan) Path() string { return p.path }

// Digest is the SHA-256, in hex, over what the plan says: its JSON with the defaults filled in and its
// paths as they were written, so that the same plan has the same digest in another directory and on another laptop.
// A plan put together in a program is digested as it is.
func (p *Plan) Digest() string {
	if p.digest != "" {
		return p.digest
	}
	return digest(p)
}

func digest(p *Plan) string {
	data, err := json.Marshal(p)
	if err != nil {
		panic("plans: the plan does not marshal: " + err.Error()) // only strings, numbers, lists and maps of strings are in it
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
