package platform

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"sigs.k8s.io/kustomize/api/konfig"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/yaml"
)

// OutsideError says that a kustomization needs what does not lie beside it.
type OutsideError struct {
	File  string // the kustomization
	Field string
	Entry string
	Why   string
}

func (e *OutsideError) Error() string {
	return fmt.Sprintf("kustomization %s: %s %q %s: manifests are rendered from files on this machine alone; keep a copy in the repository (`kustomize localize` makes one), or name the rendered objects in spec.platform.manifests",
		e.File, e.Field, e.Entry, e.Why)
}

// remote matches what kustomize takes for an address, even where a file has that name.
var remote = regexp.MustCompile(`(?i)^(git::|gh:|[a-z][a-z0-9-]*@|(www\.)?github\.com[:/])|://`)

// selfContained refuses a kustomization, or one that it builds upon, for which kustomize
// would call git, ask a server, or run a plugin or Helm.
func selfContained(dir string) error { return containedIn(dir, map[string]bool{}) }

func containedIn(dir string, seen map[string]bool) error {
	if seen[dir] {
		return nil // kustomize itself says what is wrong with a circle
	}
	seen[dir] = true
	var file string
	var data []byte
	for _, name := range konfig.RecognizedKustomizationFileNames() {
		var err error
		if data, err = os.ReadFile(filepath.Join(dir, name)); err == nil {
			file = filepath.Join(dir, name)
			break
		}
	}
	if file == "" {
		return nil // kustomize says so
	}
	var k types.Kustomization
	if err := yaml.Unmarshal(data, &k); err != nil {
		return fmt.Errorf("reading the kustomization %s: %w", file, err)
	}
	k.FixKustomization() // the deprecated fields become those that are looked at
	c := contained{dir: dir, file: file, seen: seen}
	for _, h := range k.HelmCharts {
		c.refuse("helmCharts", h.Name, "is a chart that Helm would render")
	}
	c.bases("resources", k.Resources...)
	c.bases("components", k.Components...)
	c.bases("generators", k.Generators...)
	c.bases("transformers", k.Transformers...)
	c.bases("validators", k.Validators...)
	c.files("crds", k.Crds...)
	c.files("configurations", k.Configurations...)
	c.files("openapi", k.OpenAPI["path"])
	for _, p := range k.Patches {
		c.files("patches", p.Path)
	}
	for _, p := range k.PatchesJson6902 {
		c.files("patchesJson6902", p.Path)
	}
	for _, p := range k.PatchesStrategicMerge {
		c.files("patchesStrategicMerge", string(p))
	}
	for _, r := range k.Replacements {
		c.files("replacements", r.Path)
	}
	for _, g := range k.ConfigMapGenerator {
		c.sources("configMapGenerator", g.KvPairSources)
	}
	for _, g := range k.SecretGenerator {
		c.sources("secretGenerator", g.KvPairSources)
	}
	return c.err
}

// contained checks the entries of one kustomization; the first that leads outside counts.
type contained struct {
	dir, file string
	seen      map[string]bool
	err       error
}

func (c *contained) refuse(field, entry, why string) {
	if c.err == nil {
		c.err = &OutsideError{File: c.file, Field: field, Entry: entry, Why: why}
	}
}

func (c *contained) files(field string, entries ...string) {
	for _, entry := range entries {
		if !strings.Contains(entry, "\n") && remote.MatchString(entry) { // several lines are a patch, not a path
			c.refuse(field, entry, "lies elsewhere")
		}
	}
}

func (c *contained) sources(field string, s types.KvPairSources) {
	for _, f := range s.FileSources { // key=path, or path
		if _, path, named := strings.Cut(f, "="); named {
			f = path
		}
		c.files(field, f)
	}
	c.files(field, s.EnvSources...)
}

// bases are files, kustomizations, or written out in place.
func (c *contained) bases(field string, entries ...string) {
	for _, entry := range entries {
		if c.err != nil {
			return
		}
		made := field == "generators" || field == "transformers" || field == "validators"
		if strings.Contains(entry, "\n") {
			if made {
				c.configured(field, []byte(entry))
			}
			continue
		}
		path := entry
		if !filepath.IsAbs(path) {
			path = filepath.Join(c.dir, entry)
		}
		info, err := os.Stat(path)
		switch {
		case remote.MatchString(entry):
			c.refuse(field, entry, "lies elsewhere")
		case err != nil:
			c.refuse(field, entry, "is not there")
		case info.IsDir():
			c.err = containedIn(path, c.seen)
		case made:
			data, err := os.ReadFile(path)
			if err != nil {
				c.err = fmt.Errorf("reading the kustomization %s: %w", c.file, err)
				return
			}
			c.configured(field, data)
		}
	}
}

// source matches an address where kustomize's own generators and transformers take a file.
var source = regexp.MustCompile(`(?m)(^|[\s\-"'=:\[,])(https?|ssh|git|file)://\S+`)

// configured refuses addresses in what configures a generator or transformer: their
// fields are as many as their kinds, and several load files.
func (c *contained) configured(field string, config []byte) {
	if found := source.Find(config); found != nil {
		c.refuse(field, strings.Trim(string(found), " \t\n\"'-=:[,"), "may be fetched")
	}
}
