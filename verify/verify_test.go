package verify

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/fake"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/plans"
)

// world is a made-up cluster with its host and its DNS. What is proven with it is what verify makes of answers, not that a real
// cluster gives them; the end-to-end tests do that in the lab.
type world struct {
	objects []runtime.Object
	plan    *plans.Plan

	dual     bool
	masq     bool
	v4only   map[string]bool // "namespace/pod" whose application listens on 0.0.0.0
	settles  int             // rounds until the chat Service answers
	noCurl   bool
	asked    atomic.Int32 // how often the host was asked for facts
	pids     map[string]int
	pods     map[int]*corev1.Pod
	services []*corev1.Service
	slices   []*discoveryv1.EndpointSlice
	dns      string
}

func (w *world) ips(n int) []string {
	if w.dual {
		return []string{fmt.Sprintf("10.42.0.%d", n), fmt.Sprintf("fd42::%x", n)}
	}
	return []string{fmt.Sprintf("10.42.0.%d", n)}
}

func (w *world) pod(namespace, name string, n int, hostNetwork bool) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name,
		UID: types.UID(fmt.Sprintf("%08x-0f3a-4c57-9b42-2f4d0a7f1b11", n)), Labels: map[string]string{"app": name}},
		Spec:   corev1.PodSpec{NodeName: "one", HostNetwork: hostNetwork},
		Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	for _, ip := range w.ips(n) {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	w.objects = append(w.objects, p)
	if !hostNetwork {
		w.pids[string(p.UID)] = 100 * n
		w.pods[100*n] = p
	}
	return p
}

func (w *world) service(namespace, name, clusterIP string, n int, pods ...*corev1.Pod) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": name}, ClusterIP: clusterIP,
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports:      []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}}}
	switch clusterIP {
	case corev1.ClusterIPNone:
		svc.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
	default:
		svc.Spec.ClusterIPs = []string{clusterIP}
		if w.dual {
			svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, fmt.Sprintf("fd43::%x", n))
		}
	}
	if w.dual {
		svc.Spec.IPFamilies = append(svc.Spec.IPFamilies, corev1.IPv6Protocol)
	}
	w.objects = append(w.objects, svc)
	w.services = append(w.services, svc)
	for _, family := range svc.Spec.IPFamilies {
		sl := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name + "-" + strings.ToLower(string(family)),
			Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			AddressType: discoveryv1.AddressType(family),
			Ports:       []discoveryv1.EndpointPort{{Port: ptr(int32(8080)), Name: ptr("")}}}
		for _, p := range pods {
			sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: ofFamily(podIPs(p), string(family)),
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: p.Name}})
		}
		w.objects = append(w.objects, sl)
		w.slices = append(w.slices, sl)
	}
	return svc
}

func ptr[T any](v T) *T { return &v }

func newWorld(t *testing.T, dual bool) *world {
	t.Helper()
	w := &world{dual: dual, masq: true, v4only: map[string]bool{}, pids: map[string]int{}, pods: map[int]*corev1.Pod{}}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.42.0.0/24"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.30.0.10"}, {Type: corev1.NodeHostName, Address: "one"}}}}
	cidrs := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.43.0.0/16"}}}
	if dual {
		node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, "fd42::/64")
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: "fd30::10"})
		cidrs.Spec.CIDRs = append(cidrs.Spec.CIDRs, "fd43::/108")
	}
	w.objects = append(w.objects, node, cidrs,
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns"}, Data: map[string]string{"Corefile": ".:53 {\n    errors\n    kubernetes cluster.local in-addr.arpa ip6.arpa {\n      pods insecure\n    }\n}\n"}})

	coredns := w.pod("kube-system", "coredns", 2, false)
	chat := w.pod("matrix", "chat", 3, false)
	web := w.pod("media", "web", 4, false)
	store := w.pod("data", "store-0", 5, false)
	w.pod("ingress", "proxy", 10, true)
	done := w.pod("matrix", "job", 11, false)
	done.Status.Phase = corev1.PodSucceeded

	api := w.service("default", "kubernetes", "10.43.0.1", 1)
	api.Spec.ClusterIPs, api.Spec.IPFamilies, api.Spec.Selector = api.Spec.ClusterIPs[:1], api.Spec.IPFamilies[:1], nil
	kubeDNS := w.service("kube-system", "kube-dns", "10.43.0.10", 10, coredns)
	kubeDNS.Spec.Ports = append(kubeDNS.Spec.Ports, corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP})
	w.service("matrix", "chat", "10.43.0.30", 0x30, chat)
	w.service("media", "web", "10.43.0.40", 0x40, web)
	w.service("data", "store", corev1.ClusterIPNone, 0, store)
	w.service("devtools", "idle", "10.43.0.50", 0x50)
	turn := w.service("media", "turn", "10.43.0.60", 0x60)
	turn.Spec.Ports[0].Protocol = corev1.ProtocolUDP
	w.objects = append(w.objects, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "devtools", Name: "elsewhere"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "elsewhere.example"}})
	w.objects = append(w.objects, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "matrix", Name: "chat"},
		Spec:   appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "chat"}}},
		Status: appsv1.DeploymentStatus{AvailableReplicas: 1, UpdatedReplicas: 1}})

	w.plan = &plans.Plan{Metadata: plans.Metadata{Name: "demo"}}
	w.plan.Spec.Network.ClusterCIDR = []string{"10.42.0.0/16", "fd42::/48"}
	w.plan.Spec.Network.ServiceCIDR = []string{"10.43.0.0/16", "fd43::/108"}
	w.plan.Spec.Services.Policy = plans.ServicesPreferDualStack
	w.plan.Spec.Verify.EgressURLs = []string{"http://internet.lab/", "http://172.30.0.20/"}
	w.plan.Spec.Verify.Hostnames = []string{"sunbeam.lab"}
	w.serveDNS(t)
	return w
}

func (w *world) options() Options {
	return Options{Client: &cluster.Client{Kube: fake.NewClientset(w.objects...)}, Plan: w.plan, Want: DualStack, Timeout: time.Nanosecond, between: time.Millisecond}
}

// serveDNS answers for the Services as CoreDNS does, and for two names of the outside.
func (w *world) serveDNS(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{Listener: l, Handler: dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) { rw.WriteMsg(w.answerDNS(q)) })}
	go srv.ActivateAndServe()
	t.Cleanup(func() { srv.Shutdown() })
	w.dns = l.Addr().String()
}

func (w *world) answerDNS(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	name, family := q.Question[0].Name, IPv4
	if q.Question[0].Qtype == dns.TypeAAAA {
		family = IPv6
	}
	outside := map[string][]string{"internet.lab.": {"172.30.0.20", "fd30::20"}, "sunbeam.lab.": {"172.30.0.10"}}
	addresses, known := outside[name]
	for _, svc := range w.services {
		if name == svc.Name+"."+svc.Namespace+".svc.cluster.local." {
			known = true
			addresses = svc.Spec.ClusterIPs
			if headless(svc) {
				addresses = nil
				for _, sl := range w.slices {
					if sl.Namespace == svc.Namespace && sl.Labels[discoveryv1.LabelServiceName] == svc.Name {
						for _, e := range sl.Endpoints {
							addresses = append(addresses, e.Addresses...)
						}
					}
				}
			}
		}
	}
	if !known {
		m.Rcode = dns.RcodeNameError
	}
	for _, a := range ofFamily(addresses, family) {
		rr, _ := dns.NewRR(name + " 5 IN " + map[string]string{IPv4: "A ", IPv6: "AAAA "}[family] + a)
		m.Answer = append(m.Answer, rr)
	}
	return m
}

func (w *world) site() site { return site{name: "one", run: w.run, dial: w.dial} }

func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if _, port, _ := net.SplitHostPort(address); port != "53" {
		return nil, fmt.Errorf("nothing is dialled but DNS: %s", address)
	}
	return (&net.Dialer{}).DialContext(ctx, network, w.dns)
}

// run answers the scripts as a host would.
func (w *world) run(ctx context.Context, script string, in io.Reader, out io.Writer) error {
	var text []byte
	if in != nil {
		var err error
		if text, err = io.ReadAll(in); err != nil {
			return err
		}
	}
	var reply string
	switch {
	case script == factsScript:
		reply = w.factsText()
	case bytes.Contains(text, []byte("section()")):
		reply = w.tablesText()
	case strings.HasSuffix(script, "sh -s"):
		pid := 0
		if f := strings.Fields(script); f[0] == "nsenter" {
			pid, _ = strconv.Atoi(f[2])
		}
		reply = w.probeText(pid, string(text))
	default:
		return fmt.Errorf("unexpected script %q", script)
	}
	_, err := io.WriteString(out, reply)
	return err
}

func (w *world) factsText() string {
	w.asked.Add(1)
	var b strings.Builder
	if w.noCurl {
		b.WriteString("missing curl\n")
	}
	b.WriteString("netns 1 /proc/1/ns/net\n")
	for _, uid := range slices.Sorted(maps.Keys(w.pids)) {
		fmt.Fprintf(&b, "netns %d /proc/%[1]d/ns/net\ncgroup /proc/%[1]d/cgroup:pod%s\n", w.pids[uid], uid)
	}
	rules := "-A FLANNEL-POSTRTG -s 10.42.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE\n"
	section(&b, "iptables", rules)
	rules = "-A KUBE-POSTROUTING -j MASQUERADE --random-fully\n"
	if w.masq {
		rules += "-A FLANNEL-POSTRTG -s fd42::/48 ! -d ff00::/8 -j MASQUERADE\n"
	}
	section(&b, "ip6tables", rules)
	section(&b, "inet6", "fd300000000000000000000000000010 02 40 00 80 eth0\n")
	section(&b, "route6", route6Table)
	section(&b, "route", routeTable)
	section(&b, "forwarding6", "1\n")
	section(&b, "forwarding4", "1\n")
	b.WriteString("end facts\n")
	return b.String()
}

func section(b *strings.Builder, name, text string) {
	fmt.Fprintf(b, "section %s %s\n", name, base64.StdEncoding.EncodeToString([]byte(text)))
}

func (w *world) tablesText() string {
	var b strings.Builder
	for pid, p := range w.pods {
		section(&b, fmt.Sprintf("route/%d", pid), routeTable)
		if w.dual {
			section(&b, fmt.Sprintf("ipv6_route/%d", pid), route6Table)
		}
		if w.v4only[qualified(p)] {
			section(&b, fmt.Sprintf("tcp/%d", pid), tcpTable)
		} else {
			section(&b, fmt.Sprintf("tcp6/%d", pid), strings.Replace(tcp6Table, ":0050", ":1F90", 1))
		}
	}
	b.WriteString("end facts\n")
	return b.String()
}

// probeText answers a probe script from the namespace of the process.
func (w *world) probeText(pid int, script string) string {
	var b strings.Builder
	n := 0
	for line := range strings.Lines(script) {
		f := strings.Fields(strings.ReplaceAll(line, "'", ""))
		if len(f) < 3 || f[0] != "fetch" && f[0] != "ask" {
			continue
		}
		if _, err := strconv.Atoi(f[1]); err != nil {
			continue
		}
		n++
		ok := "QCAwLjAwMSAyMDAgMTAuNDIuMC43Cg=="
		if f[0] == "ask" {
			q := new(dns.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA)
			packed, _ := w.answerDNS(q).Pack()
			fmt.Fprintf(&b, "probe %s 0 - %s\n", f[1], base64.StdEncoding.EncodeToString(packed))
			continue
		}
		family := IPv4
		if slices.Contains(f, "-6") {
			family = IPv6
		}
		outside := !slices.Contains(f, "--head")
		url := f[len(f)-2]
		switch {
		case family == IPv6 && outside && pid > 0 && !w.masq:
			fmt.Fprintf(&b, "probe %s 28 %s -\n", f[1], base64.StdEncoding.EncodeToString([]byte("curl: (28) Failed to connect\n@ 0 000 \n")))
		case strings.HasPrefix(url, "http://[fd43::40]") && w.v4only["media/web"], strings.HasPrefix(url, "https:"),
			strings.HasPrefix(url, "http://10.43.0.30:80") && int(w.asked.Load()) <= w.settles:
			fmt.Fprintf(&b, "probe %s 7 %s -\n", f[1], base64.StdEncoding.EncodeToString([]byte("* connect to x port 80 failed: Connection refused\ncurl: (7) Failed to connect\n@ 0 000 \n")))
		default:
			seen := netip.MustParseAddr("172.30.0.10")
			if family == IPv6 {
				seen = netip.MustParseAddr("fd30::10")
			}
			fmt.Fprintf(&b, "probe %s 0 %s %s\n", f[1], ok, base64.StdEncoding.EncodeToString([]byte(`{"source":"`+seen.String()+`"}`)))
		}
	}
	fmt.Fprintf(&b, "end %d\n", n)
	return b.String()
}

func TestRunWithFakeClientset(t *testing.T) {
	for _, tc := range []struct {
		name   string
		dual   bool
		change func(*world, *Options)
	}{
		{"dual-stack", true, nil},
		{"single-stack", false, func(_ *world, o *Options) { o.Want = SingleStack }},
		{"without-masquerade", true, func(w *world, _ *Options) { w.masq = false }},
		{"without-curl", true, func(w *world, _ *Options) { w.noCurl = true }},
		{"application-on-ipv4", true, func(w *world, _ *Options) { w.v4only["media/web"] = true }},
		{"services-not-patched", true, func(w *world, o *Options) {
			for _, svc := range w.services {
				if svc.Namespace != "kube-system" && svc.Namespace != "default" {
					svc.Spec.IPFamilies = svc.Spec.IPFamilies[:1]
					svc.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicySingleStack)
					svc.Spec.ClusterIPs = svc.Spec.ClusterIPs[:1]
					svc.Annotations = map[string]string{corev1.LastAppliedConfigAnnotation: "{}"}
				}
			}
			for _, sl := range w.slices {
				if sl.Namespace == "data" && sl.AddressType == discoveryv1.AddressTypeIPv6 {
					sl.Endpoints = nil
				}
			}
			w.plan.Spec.Services.Exclude = []string{"media/web"}
			*o = w.options()
		}},
		{"troubled", true, func(w *world, o *Options) {
			for _, obj := range w.objects {
				switch x := obj.(type) {
				case *appsv1.Deployment:
					x.Status.AvailableReplicas = 0
				case *corev1.Pod:
					if x.Name == "chat" {
						x.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", State: corev1.ContainerState{
							Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "registry.lab is not there"}}}}
						x.Status.PodIPs = x.Status.PodIPs[:1] // older than the second range
					}
				}
			}
			w.plan.Spec.Network.ServiceCIDR[1] = "fd99::/108"
			w.plan.Spec.Verify.EgressURLs = []string{"http://172.30.0.20/", "gopher://internet.lab/"}
			w.plan.Spec.Verify.Hostnames = []string{"nowhere.lab"}
			*o = w.options()
			o.Secrets = map[string]string{"ingress/pingora-tls": "0"}
			o.Contents = func(context.Context) ([]Check, error) {
				return []Check{fail(VolumeContents, "data/small", "", "3 of 5000 files differ", "restore it")}, nil
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, tc.dual)
			o := w.options()
			if tc.change != nil {
				tc.change(w, &o)
			}
			r, err := run(t.Context(), o, w.site())
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			for _, c := range r.Checks {
				fmt.Fprintf(&b, "%s %s %s [%s] %s", c.Status, c.ID, c.Family, c.Target, c.Detail)
				if c.Remedy != "" {
					fmt.Fprintf(&b, " -> %s", c.Remedy)
				}
				b.WriteString("\n")
			}
			b.WriteString("\n")
			if err := r.Table(&b); err != nil {
				t.Fatal(err)
			}
			golden(t, "run-"+tc.name+".txt", b.Bytes())
		})
	}
}

func TestRunWaitsForWhatSettles(t *testing.T) {
	w := newWorld(t, true)
	w.plan.Spec.Verify.Hostnames = nil
	w.settles = 1
	o := w.options()
	o.Timeout = time.Minute
	var told []string
	o.Detail = func(s string) { told = append(told, s) }
	r, err := run(t.Context(), o, w.site())
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK() || w.asked.Load() != 2 {
		t.Errorf("after %d rounds, OK is %v: %+v", w.asked.Load(), r.OK(), r.Failed())
	}
	if !slices.ContainsFunc(told, func(s string) bool { return strings.Contains(s, "1 checks have not settled") }) {
		t.Errorf("nobody was told: %q", told)
	}

	// Before a migration nothing is waited for.
	w.asked.Store(0)
	o.Want = SingleStack
	if r, err = run(t.Context(), o, w.site()); err != nil || r.OK() || w.asked.Load() != 1 {
		t.Errorf("after %d rounds, OK is %v, %v", w.asked.Load(), r.OK(), err)
	}

	// A missing rule does not come by waiting.
	w = newWorld(t, true)
	w.plan.Spec.Verify.Hostnames = nil
	w.masq = false
	o = w.options()
	o.Timeout = time.Minute
	if r, err = run(t.Context(), o, w.site()); err != nil || r.OK() || w.asked.Load() != 1 {
		t.Errorf("after %d rounds, OK is %v, %v", w.asked.Load(), r.OK(), err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	w := newWorld(t, true)
	w.settles = 1000
	ctx, cancel := context.WithCancel(t.Context())
	o := w.options()
	o.Timeout = time.Hour
	o.Detail = func(s string) {
		if strings.Contains(s, "not settled") {
			cancel()
		}
	}
	if _, err := run(ctx, o, w.site()); err == nil {
		t.Error("no error")
	}
	if _, err := Run(t.Context(), Options{}); err == nil {
		t.Error("no error without a client")
	}
}

func TestSecrets(t *testing.T) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ingress", Name: "pingora-tls",
		Annotations: map[string]string{"cert-manager.io/issuer-name": "letsencrypt", "other": "x"}},
		Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": []byte("certificate"), "tls.key": []byte("the key")}}
	digest := SecretDigest(secret)
	for name, change := range map[string]func(*corev1.Secret){
		"data":       func(s *corev1.Secret) { s.Data["tls.key"] = []byte("another") },
		"moved":      func(s *corev1.Secret) { s.Data["tls.crt"], s.Data["tls.key"] = s.Data["tls.key"], s.Data["tls.crt"] },
		"type":       func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque },
		"annotation": func(s *corev1.Secret) { delete(s.Annotations, "cert-manager.io/issuer-name") },
		"added":      func(s *corev1.Secret) { s.Data["ca.crt"] = nil },
	} {
		other := secret.DeepCopy()
		change(other)
		if SecretDigest(other) == digest {
			t.Errorf("%s: the digest is the same", name)
		}
	}
	same := secret.DeepCopy()
	same.Annotations["other"], same.ResourceVersion, same.Labels = "y", "7", map[string]string{"a": "b"}
	if SecretDigest(same) != digest {
		t.Error("the digest depends on what may change")
	}

	kube := fake.NewClientset(secret)
	checks, err := checkSecrets(t.Context(), kube, map[string]string{"ingress/pingora-tls": digest, "ingress/gone": digest})
	if err != nil {
		t.Fatal(err)
	}
	if checks[0].Status != Fail || checks[1].Status != Pass {
		t.Errorf("%+v", checks)
	}
	if checks, _ = checkSecrets(t.Context(), kube, map[string]string{"ingress/pingora-tls": "0"}); checks[0].Status != Fail || strings.Contains(fmt.Sprint(checks), "the key") {
		t.Errorf("%+v", checks)
	}
}
