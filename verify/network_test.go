package verify

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// podOn makes a pod that can be probed from.
func podOn(node, namespace, name string, pid int) prober {
	return prober{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.42.0.%d", pid)}, {IP: fmt.Sprintf("fd42::%d", pid)}}}}, pid}
}

func policy(namespace string, types ...networkingv1.PolicyType) networkingv1.NetworkPolicy {
	return networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "p"}, Spec: networkingv1.NetworkPolicySpec{PolicyTypes: types}}
}

func TestChoosePairs(t *testing.T) {
	a, b, c, d := podOn("one", "matrix", "a", 1), podOn("one", "media", "b", 2), podOn("two", "matrix", "c", 3), podOn("two", "data", "d", 4)
	n := &network{state: &state{}, probers: []prober{a, b, c, d}}
	var got []string
	for _, p := range n.choosePairs([]listener{{a, 80, true}, {c, 80, true}, {d, 80, false}}) {
		got = append(got, fmt.Sprintf("%s>%s %s>%s", p.from.pod.Spec.NodeName, p.to.pod.Spec.NodeName, p.from.pod.Name, p.to.pod.Name))
		if p.from.pid == p.to.pid {
			t.Errorf("a pod is to connect to itself: %s", got[len(got)-1])
		}
	}
	// Each way between nodes, with another namespace wherever there is one.
	for _, want := range []string{"one>one b>a", "one>two b>c", "two>one d>a", "two>two d>c"} {
		if !strings.Contains(strings.Join(got, "\n"), want) {
			t.Errorf("no pair %s in %q", want, got)
		}
	}
	if again := n.choosePairs(nil); len(again) != 0 {
		t.Errorf("pairs without anything that listens: %v", again)
	}
	if alone := (&network{state: &state{}, probers: []prober{a}}).choosePairs([]listener{{a, 80, true}}); len(alone) != 0 {
		t.Errorf("pairs of one pod: %v", alone)
	}
}

func TestChoosePairsAvoidsNetworkPolicies(t *testing.T) {
	a, b, c := podOn("one", "matrix", "a", 1), podOn("one", "vault", "b", 2), podOn("one", "matrix", "c", 3)
	n := &network{state: &state{policies: []networkingv1.NetworkPolicy{policy("vault", networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress)}}, probers: []prober{a, b, c}}
	for _, p := range n.choosePairs([]listener{{a, 80, true}, {b, 80, true}, {c, 80, true}}) {
		if p.from.pod.Namespace == "vault" || p.to.pod.Namespace == "vault" {
			t.Errorf("pair %s to %s is guarded while others can be had", p.from.pod.Name, p.to.pod.Name)
		}
	}
}

func TestProbersAndServices(t *testing.T) {
	a, b, c := podOn("one", "matrix", "a", 1), podOn("one", "vault", "b", 2), podOn("one", "vault", "c", 3)
	n := &network{probers: []prober{b, c, a}, state: &state{
		nodes:    []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "one"}}, {ObjectMeta: metav1.ObjectMeta{Name: "two"}}},
		policies: []networkingv1.NetworkPolicy{policy("vault", networkingv1.PolicyTypeIngress)},
	}}
	svc := func(namespace string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "s"}}
	}
	for _, tc := range []struct {
		namespace, behind, want string
	}{
		{"vault", "vault/b", "c"},   // its own namespace, not itself
		{"matrix", "matrix/a", "b"}, // anybody else
		{"other", "", "b"},
	} {
		if got := n.proberFor(svc(tc.namespace), []endpoint{{pod: tc.behind}}, "one", &n.probers[0]); got.pod.Name != tc.want {
			t.Errorf("%+v: tried from %s", tc, got.pod.Name)
		}
	}
	probers := n.nodeProbers()
	if probers["one"] == nil || probers["two"] != nil {
		t.Errorf("%v", probers)
	}
	n.state.policies = []networkingv1.NetworkPolicy{policy("vault", networkingv1.PolicyTypeEgress)}
	if got := n.nodeProbers()["one"]; got.pod.Name != "a" {
		t.Errorf("egress is tried from %s, which a policy may keep from it", got)
	}
	detail, remedy := n.noProber("two")
	if !strings.Contains(detail, "node two") || remedy == "" {
		t.Error(detail, remedy)
	}
}

func TestDestinationOf(t *testing.T) {
	names := map[string]*resolved{
		"both.example": {addresses: map[string][]string{IPv4: {"192.0.2.1"}, IPv6: {"2001:db8::1", "2001:db8::2"}}},
		"old.example":  {addresses: map[string][]string{IPv4: {"192.0.2.1"}}, words: map[string]string{IPv6: "NODATA"}},
	}
	for _, tc := range []struct {
		url     string
		resolve map[string]string
		skip    map[string]string
	}{
		{"https://both.example/x", map[string]string{IPv4: "both.example:443:192.0.2.1", IPv6: "both.example:443:[2001:db8::1],[2001:db8::2]"}, map[string]string{}},
		{"http://both.example:8080", map[string]string{IPv4: "both.example:8080:192.0.2.1", IPv6: "both.example:8080:[2001:db8::1],[2001:db8::2]"}, map[string]string{}},
		{"http://old.example/", map[string]string{IPv4: "old.example:80:192.0.2.1"}, map[string]string{IPv6: "old.example: NODATA"}},
		{"http://[2001:db8::1]/", map[string]string{}, map[string]string{IPv4: "the URL names an address of the other family"}},
		{"http://192.0.2.1:81/", map[string]string{}, map[string]string{IPv6: "the URL names an address of the other family"}},
		{"http://unknown.example/", map[string]string{}, map[string]string{IPv4: "unknown.example: it was not resolved", IPv6: "unknown.example: it was not resolved"}},
	} {
		d, err := destinationOf(tc.url, names)
		if err != nil {
			t.Errorf("%s: %v", tc.url, err)
			continue
		}
		if diff := cmp.Diff([]map[string]string{tc.resolve, tc.skip}, []map[string]string{d.resolve, d.skip}); diff != "" {
			t.Errorf("%s: %s", tc.url, diff)
		}
	}
	for _, bad := range []string{"", "both.example", "ftp://both.example/", "http://", "http://a b/"} {
		if _, err := destinationOf(bad, names); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestClusterDomain(t *testing.T) {
	for corefile, want := range map[string]string{
		".:53 {\n    kubernetes cluster.local in-addr.arpa ip6.arpa {\n    }\n}": "cluster.local",
		".:53 {\n\tkubernetes k8s.example. {\n}\n":                               "k8s.example",
		"":               "cluster.local",
		"# kubernetes x": "cluster.local",
	} {
		if got := clusterDomain(corefile); got != want {
			t.Errorf("clusterDomain(%q) = %q, want %q", corefile, got, want)
		}
	}
}
