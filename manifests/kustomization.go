package manifests

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
)

// kustomization is what of a kustomization's or component's file matters to Services.
type kustomization struct {
	name string // of its file, as it was found
	dir  string // where it is, links resolved

	Kind       string   `yaml:"kind"`
	Resources  []string `yaml:"resources"`
	Bases      []string `yaml:"bases"`
	Components []string `yaml:"components"`
	Patches    []struct {
		Path   string          `yaml:"path"`
		Target componentTarget `yaml:"target"`
	} `yaml:"patches"`
	PatchesStrategicMerge []string `yaml:"patchesStrategicMerge"`

	// sets are the Services that it sets the policy on, being a component of this package's.
	sets []componentTarget
}

// use is one kustomization that nothing else uses, by which a file is applied, and the
// Services that components set the policy on then.
type use struct {
	root string
	sets []componentTarget
}

// has tells whether a Service is among them. A target without a namespace is met in any.
func (u use) has(s Service) bool {
	return slices.ContainsFunc(u.sets, func(t componentTarget) bool {
		return t.Name == s.Name && (t.Namespace == "" || t.Namespace == s.Namespace)
	})
}

// readKustomization keeps a kustomization, and notes which files it uses as patches. What is
// wrong with it is for kustomize to say.
func (s *scan) readKustomization(f found) {
	data, err := os.ReadFile(f.path)
	k := &kustomization{name: f.name, dir: filepath.Dir(f.path)}
	if err != nil || yaml.Unmarshal(data, k) != nil {
		return
	}
	s.kustomizations[k.dir] = k
	patches := k.PatchesStrategicMerge
	for _, p := range k.Patches {
		patches = append(patches, p.Path)
		if k.Kind == "Component" && bytes.HasPrefix(data, []byte(componentMark)) && s.setsPolicy(filepath.Join(k.dir, p.Path)) {
			k.sets = append(k.sets, p.Target)
		}
	}
	for _, p := range patches {
		if real, err := resolve(filepath.Join(k.dir, p)); p != "" && err == nil {
			s.patches[real] = f.name
		}
	}
}

// setsPolicy tells whether a component's patch sets the policy that is asked for.
func (s *scan) setsPolicy(patch string) bool {
	var ops []componentOp
	data, err := os.ReadFile(patch)
	return err == nil && yaml.Unmarshal(data, &ops) == nil &&
		slices.Contains(ops, componentOp{"add", "/spec/" + key, string(s.options.Policy)})
}

// follow finds by which kustomizations each file is applied.
func (s *scan) follow() {
	used := map[*kustomization]bool{}
	for _, k := range s.kustomizations {
		for _, path := range slices.Concat(k.Resources, k.Bases, k.Components) {
			used[s.named(k, path)] = true
		}
	}
	for _, f := range s.files { // in their order
		if k := s.kustomizations[filepath.Dir(f.path)]; k != nil && k.name == f.name && !used[k] && k.Kind != "Component" {
			s.apply(k, use{root: k.name}, nil)
		}
	}
}

// apply follows a kustomization down to its files. Its components patch all that it
// applies, what it uses of others included.
func (s *scan) apply(k *kustomization, u use, above []*kustomization) {
	if slices.Contains(above, k) {
		return // in a circle, which kustomize refuses
	}
	above = append(slices.Clip(above), k)
	for _, path := range k.Components {
		if c := s.named(k, path); c != nil {
			u.sets = append(slices.Clip(u.sets), c.sets...)
		}
	}
	for _, path := range slices.Concat(k.Resources, k.Bases, k.Components) {
		if other := s.named(k, path); other != nil {
			s.apply(other, u, above)
		} else if file, err := resolve(filepath.Join(k.dir, path)); err == nil {
			s.uses[file] = append(s.uses[file], u)
		}
	}
}

// named is the kustomization at a path that another one names, nil where there is none.
func (s *scan) named(k *kustomization, path string) *kustomization {
	dir, err := resolve(filepath.Join(k.dir, path))
	if err != nil {
		return nil // remote, or not there
	}
	return s.kustomizations[dir]
}

// byComponent settles a Service on which components set the policy: in every
// kustomization that applies its file, or it is still to be set.
func (s *Service) byComponent(uses []use) bool {
	i := slices.IndexFunc(uses, func(u use) bool { return !u.has(*s) })
	if len(uses) == 0 || i >= 0 && !slices.ContainsFunc(uses, func(u use) bool { return u.has(*s) }) {
		return false
	}
	if i >= 0 {
		s.Reason = fmt.Sprintf("%s does not include the component that sets it elsewhere", uses[i].root)
		return false
	}
	s.State, s.Reason, s.Want, s.component = Present, "a kustomize component sets it", "", true
	return true
}
