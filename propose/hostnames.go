package propose

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/remote"
)

// Hostname is a name that the cluster's sites are reached by.
type Hostname struct {
	Name string
	// From says what names it: "Ingress shop/web", "certificate shop/tls".
	From []string
	// IPv4 and IPv6 tell whether the host's resolver, which is the pods' too, has an
	// address of the family. Asked is whether it gave any answer.
	IPv4, IPv6, Asked bool
}

// routes are the objects besides Ingresses that name hosts, and where in them.
var routes = []struct {
	gvr  schema.GroupVersionResource
	kind string
	path []string
}{
	{schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "httproutes"}, "HTTPRoute", []string{"spec", "hostnames"}},
	{schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "grpcroutes"}, "GRPCRoute", []string{"spec", "hostnames"}},
	{schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}, "Gateway", []string{"spec", "listeners", "hostname"}},
	{schema.GroupVersionResource{Group: "traefik.io", Version: "v1alpha1", Resource: "ingressroutes"}, "IngressRoute", []string{"spec", "routes", "match"}},
}

// whichHostnames begins the gaps where a source of names could not be read.
const whichHostnames = "host names of "

// readHostnames collects the names from Ingresses, routes and certificates.
func (f *Found) readHostnames(ctx context.Context, c *cluster.Client) {
	ctx, cancel := context.WithTimeout(ctx, 3*patience)
	defer cancel()
	from := map[string][]string{}
	add := func(name, by string) {
		if name = strings.ToLower(strings.TrimSuffix(name, ".")); outside(name) && !slices.Contains(from[name], by) {
			from[name] = append(from[name], by)
		}
	}
	if ingresses, err := c.Kube.NetworkingV1().Ingresses(metav1.NamespaceAll).List(ctx, metav1.ListOptions{}); err != nil {
		f.gap(whichHostnames+"Ingresses", err)
	} else {
		for _, i := range ingresses.Items {
			by := "Ingress " + i.Namespace + "/" + i.Name
			for _, r := range i.Spec.Rules {
				add(r.Host, by)
			}
			for _, t := range i.Spec.TLS {
				for _, h := range t.Hosts {
					add(h, by)
				}
			}
		}
	}
	for _, r := range routes {
		list, err := c.Dynamic.Resource(r.gvr).List(ctx, metav1.ListOptions{})
		if absent(err) {
			continue
		}
		if err != nil {
			f.gap(whichHostnames+r.kind+"s", err)
			continue
		}
		for _, o := range list.Items {
			for _, text := range stringsAt(o.Object, r.path) {
				for _, name := range namesIn(text) {
					add(name, r.kind+" "+o.GetNamespace()+"/"+o.GetName())
				}
			}
		}
	}
	if secrets, err := c.TLSSecrets(ctx, nil); err != nil {
		f.gap(whichHostnames+"certificates", err)
	} else {
		for _, s := range secrets {
			for _, name := range certified(s.Data[corev1.TLSCertKey]) {
				add(name, "certificate "+s.Namespace+"/"+s.Name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(from)) {
		f.Hostnames = append(f.Hostnames, Hostname{Name: name, From: from[name]})
	}
}

// stringsAt are the strings at a path, lists on the way included.
func stringsAt(v any, path []string) (out []string) {
	switch v := v.(type) {
	case string:
		if len(path) == 0 {
			return []string{v}
		}
	case []any:
		for _, item := range v {
			out = append(out, stringsAt(item, path)...)
		}
	case map[string]any:
		if len(path) > 0 {
			next, _, _ := unstructured.NestedFieldNoCopy(v, path[0])
			return stringsAt(next, path[1:])
		}
	}
	return out
}

var (
	ruleHost = regexp.MustCompile("Host\\(([^)]*)\\)")
	quoted   = regexp.MustCompile("[`\"]([^`\"]+)[`\"]")
)

// namesIn is a host name, or those of a Traefik rule.
func namesIn(text string) []string {
	if !strings.Contains(text, "(") {
		return []string{text}
	}
	var out []string
	for _, rule := range ruleHost.FindAllStringSubmatch(text, -1) {
		for _, name := range quoted.FindAllStringSubmatch(rule[1], -1) {
			out = append(out, name[1])
		}
	}
	return out
}

// certified are the names of the first certificate.
func certified(chain []byte) []string {
	block, _ := pem.Decode(chain)
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || cert.IsCA {
		return nil
	}
	return cert.DNSNames
}

// outside tells whether a name is one that is used outside of the cluster, and
// one that a plan can hold.
func outside(name string) bool {
	if _, err := netip.ParseAddr(name); err == nil || !strings.Contains(name, ".") {
		return false
	}
	for _, suffix := range []string{".svc", ".cluster.local", ".localhost", ".invalid", ".localdomain"} {
		if strings.HasSuffix(name, suffix) {
			return false
		}
	}
	return len(validation.IsDNS1123Subdomain(name)) == 0
}

// maxHostnames bounds what is asked for and proposed: verification reaches each of
// them over both families.
const maxHostnames = 50

// resolve asks for the names on the host, whose resolver the pods use, too.
// Names that the person gave are not doubted.
func (f *Found) resolve(ctx context.Context, h *remote.Host, given []string) {
	if len(given) > 0 {
		f.Hostnames = nil
		return
	}
	var names []string
	for i := range f.Hostnames[:min(len(f.Hostnames), maxHostnames)] {
		names = append(names, f.Hostnames[i].Name)
	}
	if len(names) == 0 {
		return
	}
	// All at once: a resolver that does not answer takes seconds for each.
	out, err := h.Output(ctx, "for n in "+remote.Quote(names...)+`; do
  for f in 4 6; do (
    a=$(timeout 8 getent ahostsv$f "$n" | awk '{print $1}' | grep -v '^::ffff:' | head -n1; exit 0)
    timeout 8 getent ahosts "$n" >/dev/null; s=$?
    echo "$n $f $s ${a:-none}"
  ) & done
done; wait`)
	if err != nil {
		f.gap("whether the host names resolve", err)
		return
	}
	silent := map[string]bool{}
	found := false
	for line := range strings.SplitSeq(out, "\n") {
		words := strings.Fields(line)
		if len(words) != 4 {
			continue
		}
		i := slices.IndexFunc(f.Hostnames, func(n Hostname) bool { return n.Name == words[0] })
		if i < 0 {
			continue
		}
		n := &f.Hostnames[i]
		if words[2] == "124" { // timeout's
			silent[n.Name] = true
			continue
		}
		n.Asked = true
		if words[3] != "none" {
			found = true
			n.IPv4 = n.IPv4 || words[1] == "4"
			n.IPv6 = n.IPv6 || words[1] == "6"
		}
	}
	const what, next = "whether the host names resolve", "; /etc/resolv.conf there names its servers"
	switch {
	case len(silent) > 0:
		f.Gaps = append(f.Gaps, Gap{What: what, Why: "DNS does not answer on the host within 8 seconds, asked for " + strings.Join(slices.Sorted(maps.Keys(silent)), ", ") + next})
	case !found:
		f.Gaps = append(f.Gaps, Gap{What: what, Why: "the host finds no address for any of them" + next})
	}
}
