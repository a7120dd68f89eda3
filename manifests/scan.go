package manifests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
)

// maxSize is how large a file is read: far more than a manifest has.
const maxSize = 32 << 20

// Report is what a Scan found.
type Report struct {
	Policy   string    `json:"policy"`
	Services []Service `json:"services"`
	// Problems are the files of which nothing is known.
	Problems []Problem `json:"problems"`
	// Written are the files that Write changed.
	Written []string `json:"written,omitempty"`

	files []edited
}

// Problem is a file that could not be read, and why.
type Problem struct {
	File   string `json:"file"`
	Reason string `json:"reason"`
}

// Count is how many Services are in a state.
func (r *Report) Count(s State) int {
	n := 0
	for _, service := range r.Services {
		if service.State == s {
			n++
		}
	}
	return n
}

// edited is a file with changes to be made.
type edited struct {
	name, path string // as found; where it is, links resolved
	data       []byte
	changes    []Change
}

// Scan looks at files, and at all YAML and JSON files below directories, in the order of their names. Nothing is
// changed. An error is a path that is not there or a context that ended; a
// file within a directory that cannot be read is a Problem.
//
// Links to files are followed, as long as they stay below one of the directories; links to
// directories are not. A file that is found twice counts once.
func Scan(ctx context.Context, paths []string, o Options) (*Report, error) {
	s := &scan{options: o, report: &Report{Policy: string(o.Policy), Services: []Service{}, Problems: []Problem{}}, seen: map[string]bool{}, patches: map[string]string{}, charts: map[string]bool{}, kustomizations: map[string]*kustomization{}, uses: map[string][]use{}}
	real := make([]string, len(paths))
	for i, path := range paths {
		var err error
		if real[i], err = resolve(path); err != nil {
			return nil, fmt.Errorf("looking for manifests: %w", err)
		}
	}
	s.roots = real
	for i, path := range paths {
		if err := s.walk(ctx, path, real[i]); err != nil {
			return nil, err
		}
	}
	for _, f := range s.files {
		if isKustomization(f.path) {
			s.readKustomization(f)
		}
	}
	s.follow()
	for _, f := range s.files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.read(f)
	}
	s.settlePatches()
	return s.report, nil
}

type scan struct {
	options Options
	report  *Report
	roots   []string // real paths of what was named
	files   []found
	seen    map[string]bool   // by real path
	patches map[string]string // real path of a patch: the kustomization that uses it
	charts  map[string]bool   // directory: has a Chart.yaml
	// kustomizations by their directories, and by which each file is applied; real paths.
	kustomizations map[string]*kustomization
	uses           map[string][]use
}

type found struct{ name, path string }

func (s *scan) problem(name string, err error) {
	s.report.Problems = append(s.report.Problems, Problem{name, cause(err).Error()})
}

// cause is an error without the path, which is told beside it.
func cause(err error) error {
	if p, ok := err.(*fs.PathError); ok {
		return p.Err
	}
	return err
}

// walk adds the files of a path whose real path is given.
func (s *scan) walk(ctx context.Context, path, real string) error {
	info, err := os.Stat(real)
	if err != nil {
		return fmt.Errorf("looking for manifests: %w", err)
	}
	if !info.IsDir() {
		s.add(path, real)
		return nil
	}
	return filepath.WalkDir(real, func(at string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		name := filepath.Join(path, strings.TrimPrefix(at, real))
		if err != nil {
			s.problem(name, err)
			return nil
		}
		if d.IsDir() {
			if base := d.Name(); at != real && (base == ".git" || base == ".hg" || base == ".svn" || base == "node_modules") {
				return fs.SkipDir
			}
			return nil
		}
		if !isManifest(at) {
			return nil
		}
		target := at
		if d.Type()&fs.ModeSymlink != 0 {
			if target, err = resolve(at); err != nil {
				s.problem(name, fmt.Errorf("a link that leads nowhere: %w", cause(err)))
				return nil
			}
			info, err := os.Stat(target)
			switch {
			case err != nil:
				s.problem(name, err)
				return nil
			case info.IsDir():
				return nil
			case !slices.ContainsFunc(s.roots, func(root string) bool { return within(root, target) }):
				s.problem(name, fmt.Errorf("a link to %s, outside of what was named: name that too", target))
				return nil
			}
		}
		if info, err := os.Stat(target); err == nil && !info.Mode().IsRegular() {
			return nil // a pipe or a device: reading it may never end
		}
		s.add(name, target)
		return nil
	})
}

// resolve is a path's absolute form without links.
func resolve(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(real)
}

func within(root, path string) bool {
	rel, err := filepath.Rel(root, path)
	return err == nil && filepath.IsLocal(rel)
}

func isManifest(path string) bool {
	switch filepath.Ext(path) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return filepath.Base(path) == "Kustomization"
}

func isKustomization(path string) bool {
	switch filepath.Base(path) {
	case "kustomization.yaml", "kustomization.yml", "Kustomization":
		return true
	}
	return false
}

func (s *scan) add(name, path string) {
	if !s.seen[path] {
		s.seen[path] = true
		s.files = append(s.files, found{name, path})
	}
}

func (s *scan) read(f found) {
	info, err := os.Stat(f.path)
	if err == nil && info.Size() > maxSize {
		err = fmt.Errorf("it has %d MiB; up to %d are read", info.Size()>>20, maxSize>>20)
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(f.path)
	}
	if err != nil {
		s.problem(f.name, err)
		return
	}
	services, changes := Edit(Source{Name: f.name, Data: data, Template: s.inTemplates(f.path), Patch: s.patches[f.path], uses: s.uses[f.path]}, s.options)
	if len(changes) > 0 && info.Mode().Perm()&0o200 == 0 {
		for i := range services {
			if services[i].State == ToSet {
				services[i].State, services[i].Reason = ByHand, "the file is read-only"
			}
		}
		changes = nil
	}
	s.report.Services = append(s.report.Services, services...)
	if len(changes) > 0 {
		s.report.files = append(s.report.files, edited{f.name, f.path, data, changes})
	}
}

// inTemplates says whether a file is in the templates of a Helm chart.
func (s *scan) inTemplates(path string) bool {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		parent := filepath.Dir(dir)
		if parent == dir {
			return false
		}
		if filepath.Base(dir) != "templates" {
			continue
		}
		has, known := s.charts[parent]
		if !known {
			_, err := os.Stat(filepath.Join(parent, "Chart.yaml"))
			has = err == nil
			s.charts[parent] = has
		}
		if has {
			return true
		}
	}
}

// settlePatches takes patches of Services that were found whole off the list: the
// policy belongs there.
func (s *scan) settlePatches() {
	all := s.report.Services
	for i := range all {
		if !all[i].partial || all[i].State != ByHand {
			continue
		}
		for _, whole := range all {
			same := whole.Namespace == all[i].Namespace || whole.Namespace == "" || all[i].Namespace == ""
			if !whole.partial && same && whole.Name == all[i].Name {
				all[i].State, all[i].Want = Exempt, ""
				all[i].Reason = fmt.Sprintf("a patch of the Service in %s:%d", whole.File, whole.Line)
				break
			}
		}
	}
}

// Diff is what Write does or did, as a unified diff that patch -p1 takes.
func (r *Report) Diff() string {
	var out strings.Builder
	for _, f := range r.files {
		out.WriteString(unified(strings.TrimPrefix(filepath.ToSlash(f.name), "/"), f.data, f.changes))
	}
	return out.String()
}

// Write makes the changes, one file after the other, each by a rename, with the mode
// and the owner that the file has. It goes on where one fails, and returns all errors. A
// Write that was cut off can be repeated with a new Scan.
func (r *Report) Write(ctx context.Context) error {
	var failed error
	for _, f := range r.files {
		if ctx.Err() != nil {
			return errors.Join(failed, ctx.Err())
		}
		if err := f.write(); err != nil {
			failed = errors.Join(failed, fmt.Errorf("writing %s: %w", f.name, err))
			continue
		}
		r.Written = append(r.Written, f.name)
	}
	return failed
}

var errChanged = errors.New("it changed since it was read; nothing was written: try again")

func (f edited) write() error {
	info, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	out, err := renameio.NewPendingFile(f.path, renameio.WithTempDir(filepath.Dir(f.path)), renameio.WithStaticPermissions(info.Mode().Perm()))
	if err != nil {
		return err
	}
	defer out.Cleanup()
	if err := keepOwner(out.File, info); err != nil {
		return fmt.Errorf("keeping its owner: %w", err)
	}
	if _, err := out.Write(apply(f.data, f.changes)); err != nil {
		return err
	}
	if now, err := os.ReadFile(f.path); err != nil {
		return err
	} else if !bytes.Equal(now, f.data) {
		return errChanged
	}
	return out.CloseAtomicallyReplace()
}
