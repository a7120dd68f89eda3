package verify

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
)

const (
	askTime      = 5 * time.Second // for one query, connection included
	parallelAsks = 8               // queries at once; each has a connection of its own
)

// resolver asks the cluster's DNS, over TCP through the SSH connection: from the host's network namespace, where
// kube-proxy answers for the ClusterIP as it does for pods.
type resolver struct {
	host    site
	servers []string // ClusterIPs of the DNS Service
	domain  string
}

// dnsService is where K3s and kubeadm have it, whatever serves it.
const dnsNamespace, dnsName = "kube-system", "kube-dns"

func newResolver(h site, s *state) *resolver {
	r := &resolver{host: h, domain: s.domain}
	for i := range s.services {
		if svc := &s.services[i]; svc.Namespace == dnsNamespace && svc.Name == dnsName && !headless(svc) {
			r.servers = svc.Spec.ClusterIPs
		}
	}
	return r
}

// ask sends one query to one server.
func (r *resolver) ask(ctx context.Context, server, name string, qtype uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	nc, err := r.host.dial(ctx, "tcp", net.JoinHostPort(server, "53"))
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", net.JoinHostPort(server, "53"), err)
	}
	// A connection inside SSH has no deadlines; closing it ends what waits.
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	defer nc.Close()
	query := new(dns.Msg)
	query.SetQuestion(dns.Fqdn(name), qtype)
	conn := &dns.Conn{Conn: nc}
	if err := conn.WriteMsg(query); err != nil {
		return nil, fmt.Errorf("asking %s: %w", server, timeout(ctx, err))
	}
	reply, err := conn.ReadMsg()
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", server, timeout(ctx, err))
	}
	if reply.Id != query.Id {
		return nil, fmt.Errorf("asking %s: the answer is to another question", server)
	}
	return reply, nil
}

// timeout names the cause of an error that closing the connection brought about.
func timeout(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("no answer within %s", askTime)
	}
	return err
}

// lookup asks the first server that answers for the addresses of the family, following aliases as the server does.
// Without an address, the words say whether the name exists.
func (r *resolver) lookup(ctx context.Context, name, family string) (addresses []string, words string, err error) {
	if len(r.servers) == 0 {
		return nil, "", fmt.Errorf("the cluster has no DNS Service %s/%s", dnsNamespace, dnsName)
	}
	for _, server := range r.servers {
		var reply *dns.Msg
		if reply, err = r.ask(ctx, server, name, recordType(family)); err == nil {
			addresses, words = records(reply, family)
			return addresses, words, nil
		}
	}
	return nil, "", err
}

func recordType(family string) uint16 {
	if family == IPv4 {
		return dns.TypeA
	}
	return dns.TypeAAAA
}

// records reads the addresses of the family from a reply, sorted, or says what the server answered instead:
// NODATA (the name exists without such a record) and NXDOMAIN (there is no such name) are different troubles.
func records(reply *dns.Msg, family string) ([]string, string) {
	var out []string
	for _, rr := range reply.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			if family == IPv4 {
				out = append(out, rr.A.String())
			}
		case *dns.AAAA:
			if family == IPv6 {
				out = append(out, rr.AAAA.String())
			}
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	switch {
	case len(out) > 0:
		return out, ""
	case reply.Rcode == dns.RcodeNameError:
		return nil, "NXDOMAIN: there is no such name"
	case reply.Rcode == dns.RcodeSuccess:
		return nil, fmt.Sprintf("NODATA: the name exists but has no %s record", dns.TypeToString[recordType(family)])
	default:
		return nil, "the server answers " + dns.RcodeToString[reply.Rcode]
	}
}

// remedyDNS is for a DNS that does not answer at all.
const remedyDNS = "look at CoreDNS: kubectl -n kube-system get pods -l k8s-app=kube-dns; kubectl -n kube-system logs -l k8s-app=kube-dns"

// check asks each address of the DNS Service for one name, and the first that answers for every Service.
func (r *resolver) check(ctx context.Context, s *state) []Check {
	if len(r.servers) == 0 {
		return []Check{fail(DNSServer, dnsNamespace+"/"+dnsName, "", "the cluster has no such Service with a ClusterIP", remedyDNS)}
	}
	var out []Check
	var alive []string
	for _, server := range r.servers {
		c := fail(DNSServer, server, familyOf(server), "", remedyDNS)
		reply, err := r.ask(ctx, server, "kubernetes.default.svc."+r.domain, dns.TypeA)
		if err != nil {
			c.Detail = err.Error()
			c.Remedy = "the host itself reaches an " + familyOf(server) + " ClusterIP only with a default route of that family; otherwise " + remedyDNS
		} else if got, words := records(reply, IPv4); len(got) == 0 {
			c.Detail = "asked for kubernetes.default.svc." + r.domain + ": " + words
		} else {
			c = pass(DNSServer, server, familyOf(server), "kubernetes.default.svc."+r.domain+" is "+strings.Join(got, ", "))
		}
		if err == nil {
			alive = append(alive, server)
		}
		out = append(out, c)
	}
	if len(alive) == 0 {
		return append(out,
			skip(DNSA, "all Services", IPv4, "the cluster's DNS does not answer"),
			skip(DNSAAAA, "all Services", IPv6, "the cluster's DNS does not answer"))
	}
	return append(out, r.checkServices(ctx, s, alive[0])...)
}

// checkServices asks for the records of every Service that has any.
func (r *resolver) checkServices(ctx context.Context, s *state, server string) []Check {
	type question struct {
		svc    *corev1.Service
		family string
	}
	var questions []question
	for i := range s.services {
		if svc := &s.services[i]; svc.Spec.Type != corev1.ServiceTypeExternalName {
			questions = append(questions, question{svc, IPv4}, question{svc, IPv6})
		}
	}
	out := make([]Check, len(questions))
	var g errgroup.Group
	g.SetLimit(parallelAsks)
	for i, q := range questions {
		g.Go(func() error {
			name := q.svc.Name + "." + q.svc.Namespace + ".svc." + r.domain
			reply, err := r.ask(ctx, server, name, recordType(q.family))
			out[i] = judgeRecords(s, q.svc, q.family, reply, err)
			return nil
		})
	}
	g.Wait()
	return out
}

// judgeRecords compares what DNS says of a Service with what the API says of it.
func judgeRecords(s *state, svc *corev1.Service, family string, reply *dns.Msg, err error) Check {
	id := DNSA
	if family == IPv6 {
		id = DNSAAAA
	}
	name := qualified(svc)
	if err != nil {
		return fail(id, name, family, err.Error(), remedyDNS)
	}
	var want []string
	if headless(svc) {
		if len(s.addresses(svc, IPv4)) == 0 && len(s.addresses(svc, IPv6)) == 0 {
			return skip(id, name, family, "headless, and no endpoint is ready")
		}
		want = s.addresses(svc, family)
	} else {
		want = ofFamily(svc.Spec.ClusterIPs, family)
	}
	want = canonical(want)
	got, words := records(reply, family)
	got = canonical(got)
	kind := dns.TypeToString[recordType(family)]
	_, kept := s.kept[name]
	// A headless Service without a selector has the families of its hand-written endpoints.
	single := kept || headless(svc) && len(svc.Spec.Selector) == 0
	switch {
	case slices.Equal(got, want) && len(want) > 0:
		return pass(id, name, family, strings.Join(got, ", "))
	case len(want) == 0 && len(got) == 0 && single && reply.Rcode == dns.RcodeSuccess:
		return pass(id, name, family, "NODATA, as the Service has no "+family+" address")
	case len(want) == 0 && len(got) == 0 && single && headless(svc):
		return pass(id, name, family, "no record, as the Service has no "+family+" endpoint")
	case len(want) == 0 && len(got) == 0:
		remedy := "make the Service dual-stack; see " + ServiceClusterIPs
		if s.singleStack() {
			remedy = remedyMigrate
		}
		return lasting(fail(id, name, family, words+"; the Service has no "+family+" address", remedy))
	case len(got) == 0:
		return fail(id, name, family, fmt.Sprintf("%s; the API says %s", words, list(want)), remedyDNS)
	default:
		return fail(id, name, family, fmt.Sprintf("the %s records are %s; the API says %s", kind, list(got), list(want)), remedyDNS)
	}
}

// canonical writes addresses in one form and order.
func canonical(all []string) []string {
	var out []string
	for _, s := range all {
		if a, err := netip.ParseAddr(s); err == nil {
			s = a.String()
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// resolved is what a name of the plan is.
type resolved struct {
	addresses map[string][]string // by family
	words     map[string]string   // why there are none
	dead      map[string]bool     // that no server answered, or none with a result
}

// resolveAll resolves names as a pod would: by the cluster's DNS.
func (r *resolver) resolveAll(ctx context.Context, names []string) map[string]*resolved {
	out := map[string]*resolved{}
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(parallelAsks)
	for _, name := range names {
		if _, known := out[name]; known {
			continue
		}
		to := &resolved{addresses: map[string][]string{}, words: map[string]string{}, dead: map[string]bool{}}
		out[name] = to
		for _, f := range families {
			g.Go(func() error {
				got, words, err := r.lookup(ctx, name, f)
				if err != nil {
					words = "the cluster's DNS does not answer: " + err.Error()
				}
				mu.Lock()
				defer mu.Unlock()
				to.addresses[f], to.words[f] = got, words
				to.dead[f] = err != nil || strings.HasPrefix(words, "the server answers")
				return nil
			})
		}
	}
	g.Wait()
	return out
}
