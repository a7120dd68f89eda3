// Package platform reads what a cluster was made from: the manifests that a plan
// names in spec.platform.manifests, as files, directories and kustomizations, rendered
// on the laptop.
//
// It stands beside cluster, which compares what is rendered with what runs, and below
// steps. It contacts nobody and starts no program: a kustomization that would have
// something fetched, or a plugin or Helm run, is refused by name.
package platform

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/konfig"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// Manifests are the objects that a cluster is made from.
type Manifests struct {
	// Objects are in the order in which they were found; of two that are the same
	// object, the later one alone, as applying both leaves it.
	Objects []*unstructured.Unstructured
	// Left is what lies there and is no object that could be compared.
	Left []Left
}

// Left is a file, or an object in it, that was left out, and why.
type Left struct {
	Path string `json:"path"`
	Why  string `json:"why"`
}

// Read renders files, directories and kustomizations. A directory with a
// kustomization is built as `kustomize build` does; in any other all .yaml, .yml and
// .json files are read, those of its directories too, in the order of their names.
// The error names the file; of what is in it, it says no more than the parser does.
func Read(paths []string) (*Manifests, error) {
	m := &Manifests{}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("reading manifests: %w", err)
		}
		if !info.IsDir() {
			err = m.file(path)
		} else {
			err = m.directory(path)
		}
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Kustomized tells whether a path is the directory of a kustomization.
func Kustomized(path string) bool { return has(path, konfig.RecognizedKustomizationFileNames()...) }

func (m *Manifests) directory(dir string) error {
	if Kustomized(dir) {
		return m.kustomization(dir)
	}
	if has(dir, "Chart.yaml") {
		m.leave(dir, "a Helm chart: what it makes depends on its values; name the rendered objects instead")
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("reading manifests: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		// Followed where it is a link, but to files only: a directory may contain itself.
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return fmt.Errorf("reading manifests: %w", err)
		case e.IsDir():
			err = m.directory(path)
		case info.Mode().IsRegular() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)):
			err = m.file(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func has(dir string, names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return err == nil
	})
}

// file reads the documents of one file.
func (m *Manifests) file(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading manifests: %w", err)
	}
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for n := 1; ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = m.document(path, document)
		}
		if err != nil {
			return fmt.Errorf("reading manifests: %s, document %d: %w; repair it, or name in spec.platform.manifests what is applied as it is", path, n, err)
		}
	}
}

// document adds what one YAML or JSON document holds.
func (m *Manifests) document(path string, document []byte) error {
	data, err := yaml.YAMLToJSON(document)
	if err != nil {
		return err
	}
	var content any
	if err := utiljson.Unmarshal(data, &content); err != nil {
		return err
	}
	switch content := content.(type) {
	case nil: // comments only
	case map[string]any:
		return m.add(path, content)
	default:
		m.leave(path, "no object of Kubernetes: it has no apiVersion and kind")
	}
	return nil
}

func (m *Manifests) add(path string, object map[string]any) error {
	u := &unstructured.Unstructured{Object: object}
	if u.GetAPIVersion() == "" || u.GetKind() == "" {
		m.leave(path, "no object of Kubernetes: it has no apiVersion and kind")
		return nil
	}
	if items, list := object["items"].([]any); list && strings.HasSuffix(u.GetKind(), "List") {
		for i, item := range items {
			inner, ok := item.(map[string]any)
			if !ok {
				return fmt.Errorf("items[%d] of its %s is no object", i, u.GetKind())
			}
			if err := m.add(path, inner); err != nil {
				return err
			}
		}
		return nil
	}
	if _, ok := object["metadata"].(map[string]any); !ok {
		m.leave(path, u.GetKind()+" without metadata")
		return nil
	}
	name := u.GetKind() + " " + strings.TrimPrefix(u.GetNamespace()+"/"+u.GetName(), "/")
	switch {
	case object["sops"] != nil:
		m.leave(path, name+" is encrypted with SOPS")
	case u.GetAnnotations()["config.kubernetes.io/local-config"] == "true":
		m.leave(path, name+" is for tools alone (config.kubernetes.io/local-config)")
	case u.GetName() == "" && u.GetGenerateName() != "":
		m.leave(path, u.GetKind()+" "+u.GetGenerateName()+"… has another name each time that it is made")
	case u.GetName() == "":
		m.leave(path, u.GetKind()+" without a name")
	default:
		same := func(o *unstructured.Unstructured) bool {
			return o.GroupVersionKind().GroupKind() == u.GroupVersionKind().GroupKind() && o.GetNamespace() == u.GetNamespace() && o.GetName() == u.GetName()
		}
		if i := slices.IndexFunc(m.Objects, same); i >= 0 {
			m.leave(path, name+" is there twice; the later one counts")
			m.Objects = slices.Delete(m.Objects, i, i+1)
		}
		m.Objects = append(m.Objects, u)
	}
	return nil
}

func (m *Manifests) leave(path, why string) { m.Left = append(m.Left, Left{Path: path, Why: why}) }

// building is held while kustomize builds: it keeps its schemas in one place for all.
var building sync.Mutex

func (m *Manifests) kustomization(dir string) error {
	building.Lock()
	defer building.Unlock()
	if err := selfContained(dir); err != nil {
		return err
	}
	// The default options run no plugin and load no file from outside of a
	// kustomization's own directory.
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return fmt.Errorf("building the kustomization %s: %w; `kustomize build %s` has to work", dir, err, dir)
	}
	for _, r := range built.Resources() {
		document, err := r.AsYAML()
		if err == nil {
			err = m.document(dir, document)
		}
		if err != nil {
			return fmt.Errorf("building the kustomization %s: %s: %w", dir, r.CurId(), err)
		}
	}
	return nil
}
