package manifests

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"sunbeam.pt/k3s-dualstack/plans"
)

// State is what is to become of one Service in a manifest.
type State string

const (
	// ToSet is a Service that an edit sets the policy on.
	ToSet State = "set"
	// ByHand is a Service that a person must set the policy on; Reason says why.
	ByHand State = "by-hand"
	// Chosen is a Service whose manifest says SingleStack: somebody's choice.
	Chosen State = "single-stack"
	// Present is a Service that has a policy already, and keeps it.
	Present State = "present"
	// Exempt is a Service that has no use for a policy; Reason says why.
	Exempt State = "exempt"
)

// Service is one Service found in a file.
type Service struct {
	// File as it was found, and the line of the Service's spec in it (of the
	// Service itself where it has none).
	File      string `json:"file"`
	Line      int    `json:"line"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	State     State  `json:"state"`
	Reason    string `json:"reason,omitempty"`
	// Want is the value for spec.ipFamilyPolicy; empty where none is to be set.
	Want string `json:"want,omitempty"`

	// patchable: a kustomize patch can set it where an edit cannot.
	// partial: less than a Service, as a kustomize patch is. component: one sets it.
	patchable, partial, component bool
}

// String is the Service's namespace/name, or its name where the manifest has no namespace.
func (s Service) String() string {
	name := s.Name
	if s.Namespace != "" {
		name = s.Namespace + "/" + name
	}
	if name == "" {
		return "without a name"
	}
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(name)
	}
	return name
}

// Options are what is set, and where.
type Options struct {
	// Policy is PreferDualStack or RequireDualStack.
	Policy plans.ServicePolicy
	// Replace takes an explicit SingleStack for no choice and replaces it.
	Replace bool
	// Exclude holds namespace/name of Services that stay as they are; a plan's spec.services.exclude.
	Exclude []string
}

// exempt says why a Service has no use for a policy: package cluster's rules, on the
// spec as aliases and merge keys make it.
func (o Options) exempt(s Service, spec map[string]any) string {
	families, _ := spec["ipFamilies"].([]any)
	selector, _ := spec["selector"].(map[string]any)
	switch {
	case spec["type"] == "ExternalName":
		return "ExternalName: it has no addresses"
	case s.Name == "kubernetes" && (s.Namespace == "" || s.Namespace == "default"):
		return "the API server owns it"
	case s.Name == "kube-dns" && s.Namespace == "kube-system":
		return "K3s owns it (cluster-dns)"
	case slices.Contains(o.Exclude, s.Namespace+"/"+s.Name):
		return "excluded"
	case headless(spec) && len(selector) == 0:
		return "headless without a selector: its endpoints are its owner's"
	case len(families) == 2:
		return "dual-stack already"
	}
	return ""
}

func headless(spec map[string]any) bool {
	if addresses, _ := spec["clusterIPs"].([]any); len(addresses) > 0 && addresses[0] == "None" {
		return true
	}
	return spec["clusterIP"] == "None"
}

// judge fills in State, Reason and Want from the Service's object, as aliases and
// merge keys make it. What it calls ToSet may still turn out to be beyond an edit.
func (o Options) judge(s *Service, object map[string]any) {
	metadata, _ := object["metadata"].(map[string]any)
	s.Name, _ = metadata["name"].(string)
	s.Namespace, _ = metadata["namespace"].(string)
	if object["$patch"] == "delete" {
		s.State, s.Reason = Exempt, "a patch that deletes it"
		return
	}
	spec, isMap := object["spec"].(map[string]any)
	if object["spec"] != nil && !isMap {
		s.State, s.Reason, s.Want = ByHand, "its spec is not a mapping", string(o.Policy)
		return
	}
	if s.Reason = o.exempt(*s, spec); s.Reason != "" {
		s.State = Exempt
		return
	}
	policy, given := spec["ipFamilyPolicy"]
	switch {
	case given && policy == nil:
		s.State, s.Reason, s.patchable = ByHand, "its ipFamilyPolicy is empty", true
	case policy == "SingleStack" && !o.Replace:
		s.State, s.Reason = Chosen, "its manifest says SingleStack (--replace changes that)"
	case given && policy != "SingleStack":
		s.State, s.Reason = Present, fmt.Sprintf("it has ipFamilyPolicy: %v", policy)
		return
	default:
		s.State = ToSet
		if ports, _ := spec["ports"].([]any); len(ports) == 0 && !headless(spec) {
			s.State, s.Reason, s.partial = ByHand, "it has no ports: a patch, or not complete; set it where the Service is whole, else here", true
		}
	}
	s.Want = string(o.Policy)
}
