package manifests

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/google/renameio/v2"
	"go.yaml.in/yaml/v3"
)

// componentMark begins a component's file: one without it is somebody else's.
const componentMark = "# Written by migrate manifests, and overwritten by it.\n"

var (
	dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	noPatch  = "it has no plain name that a patch could go by"
)

type component struct {
	APIVersion string           `yaml:"apiVersion"`
	Kind       string           `yaml:"kind"`
	Patches    []componentPatch `yaml:"patches"`
}

type componentPatch struct {
	Path   string          `yaml:"path"`
	Target componentTarget `yaml:"target"`
}

type componentTarget struct {
	Version   string `yaml:"version"`
	Kind      string `yaml:"kind"`
	Name      string `yaml:"name"`
	Namespace string `yaml:"namespace,omitempty"`
}

type componentOp struct {
	Op    string `yaml:"op"`
	Path  string `yaml:"path"`
	Value string `yaml:"value"`
}

// Component writes a kustomize component into dir that sets the policy on the Services
// that Write would edit, and on those that only a patch can reach (generated files, shared
// anchors); they become ToSet. The manifests stay as they are. A target that a
// kustomization does not have is passed over by kustomize, so one component serves
// every kustomization of a repository. Where there is no Service to set, nothing is written.
func (r *Report) Component(dir string) error {
	c := component{APIVersion: "kustomize.config.k8s.io/v1alpha1", Kind: "Component"}
	have := map[componentTarget]bool{}
	for i := range r.Services {
		s := &r.Services[i]
		if !s.patchable || s.State != ToSet && s.State != ByHand && !s.component {
			continue
		}
		if !dnsLabel.MatchString(s.Name) || s.Namespace != "" && !dnsLabel.MatchString(s.Namespace) {
			s.State, s.Reason = ByHand, noPatch
			continue
		}
		s.State, s.Reason, s.Want = ToSet, "", r.Policy
		if target := (componentTarget{"v1", "Service", s.Name, s.Namespace}); !have[target] {
			have[target] = true
			c.Patches = append(c.Patches, componentPatch{"ipfamilypolicy.yaml", target})
		}
	}
	if len(c.Patches) == 0 {
		return nil
	}
	patch, kustomization := filepath.Join(dir, "ipfamilypolicy.yaml"), filepath.Join(dir, "kustomization.yaml")
	if err := errors.Join(own(patch), own(kustomization), os.MkdirAll(dir, 0o755)); err != nil {
		return fmt.Errorf("writing the kustomize component: %w", err)
	}
	// The one that names the other is the last.
	if err := write(patch, []componentOp{{"add", "/spec/" + key, r.Policy}}); err != nil {
		return fmt.Errorf("writing the kustomize component: %w", err)
	}
	if err := write(kustomization, c); err != nil {
		return fmt.Errorf("writing the kustomize component: %w", err)
	}
	r.Written = append(r.Written, patch, kustomization)
	return nil
}

var errForeign = errors.New("there is a file that this command did not write: name another directory, or remove it")

// own asserts that a file is a component's, or not there.
func own(name string) error {
	old, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && !bytes.HasPrefix(old, []byte(componentMark)) {
		err = fmt.Errorf("%s: %w", name, errForeign)
	}
	return err
}

func write(name string, content any) error {
	out := bytes.NewBufferString(componentMark)
	encoder := yaml.NewEncoder(out)
	encoder.SetIndent(2)
	if err := encoder.Encode(content); err != nil {
		return err
	}
	return renameio.WriteFile(name, out.Bytes(), 0o644, renameio.WithTempDir(filepath.Dir(name)))
}
