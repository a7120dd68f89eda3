// Package verify is what proves that a cluster is dual-stack: it looks at the API, and it tries from where a workload
// stands, in the network namespaces of pods, each address family by itself. It changes nothing.
//
// It stands beside backup and restore, above cluster and remote, and is used by steps (the last step of a
// migration) and by `migrate verify`. It owns the checks, their IDs and remedies, the probes, and the report as a table and
// as JSON. What the API says is gathered once per round (state.go) and judged by pure functions (api.go); what the network
// does is asked by one script per pod (probe.go, netns.go) and by DNS queries through the SSH connection (dns.go).
package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// Stack is what a cluster is held against.
type Stack string

const (
	// SingleStack is a cluster that was not migrated yet: every check runs once, without waiting, and the report shows what
	// is missing for dual-stack.
	SingleStack Stack = "single-stack"
	// DualStack is a cluster that must be dual-stack now: what can settle by itself is tried again until the timeout.
	DualStack Stack = "dual-stack"
)

// Host is what verification needs of the cluster's host; *remote.Host is one.
type Host interface {
	Name() string
	Run(ctx context.Context, script string, opts ...remote.Option) error
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Options is what to verify.
type Options struct {
	// Client is the cluster's API.
	Client *cluster.Client
	// Host is the cluster's host, where the probes start. Pods of other nodes are skipped.
	Host Host
	// Plan names the ranges, the Services' policy and exclusions, the egress URLs and the host names.
	Plan *plans.Plan
	// Want is what the cluster is held against. Default DualStack.
	Want Stack
	// Timeout is how long what can settle may take. Default: the plan's spec.verify.timeout. Not used with SingleStack.
	Timeout time.Duration
	// Contents compares what lies in the volumes and in OpenBao with the backup set; nil leaves them out. Its checks have the
	// IDs VolumeContents and OpenBao.
	Contents func(ctx context.Context) ([]Check, error)
	// Secrets are the digests (see SecretDigest) that TLS secrets must have, by "namespace/name".
	Secrets map[string]string
	// Detail is told what is being done, for a progress display; may be nil.
	Detail func(string)

	between time.Duration // pause between two rounds; default as the constant
}

// site is the host as the checks use it.
type site struct {
	name string
	// run runs a script as root; stdin may be nil.
	run  func(ctx context.Context, script string, stdin io.Reader, stdout io.Writer) error
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func siteOf(h Host) site {
	return site{name: h.Name(), dial: h.DialContext, run: func(ctx context.Context, script string, stdin io.Reader, stdout io.Writer) error {
		opts := []remote.Option{remote.Stdout(stdout)}
		if stdin != nil {
			opts = append(opts, remote.Stdin(stdin))
		}
		return h.Run(ctx, script, opts...)
	}}
}

// between is the pause between two rounds.
const between = 2 * time.Second

// Run makes every check and reports. Checks that fail are part of the report, not an error: the error says that the
// verification itself could not be made (the API or the host cannot be reached, or ctx ended).
func Run(ctx context.Context, o Options) (Report, error) {
	if o.Client == nil || o.Host == nil || o.Plan == nil {
		return Report{}, errors.New("verify: Options needs Client, Host and Plan")
	}
	return run(ctx, o, siteOf(o.Host))
}

// run is Run on a host that a test can make up.
func run(ctx context.Context, o Options, h site) (Report, error) {
	if o.Want == "" {
		o.Want = DualStack
	}
	if o.Timeout == 0 {
		o.Timeout = o.Plan.Spec.Verify.Timeout.Duration
	}
	if o.Detail == nil {
		o.Detail = func(string) {}
	}
	if o.between == 0 {
		o.between = between
	}
	deadline := time.Now().Add(o.Timeout)
	var checks []Check
	for n := 1; ; n++ {
		var err error
		if checks, err = round(ctx, o, h); err != nil {
			return Report{}, err
		}
		short := unsettled(checks)
		if o.Want == SingleStack || short == 0 || time.Now().Add(o.between).After(deadline) {
			break
		}
		o.Detail(fmt.Sprintf("round %d: %d checks have not settled yet", n, short))
		select {
		case <-ctx.Done():
			return Report{}, fmt.Errorf("verify: %w", context.Cause(ctx))
		case <-time.After(o.between):
		}
	}
	o.Detail("TLS secrets")
	secrets, err := checkSecrets(ctx, o.Client.Kube, o.Secrets)
	if err != nil {
		return Report{}, err
	}
	checks = append(checks, secrets...)
	if o.Contents != nil {
		o.Detail("contents of volumes")
		contents, err := o.Contents(ctx)
		if err != nil {
			return Report{}, fmt.Errorf("verify: comparing with the backup set: %w", err)
		}
		checks = append(checks, contents...)
	}
	return newReport(o.Want, o.Plan.Metadata.Name, checks), nil
}

// unsettled counts the failures that waiting may mend. A final failure does not keep others from settling.
func unsettled(checks []Check) int {
	n := 0
	for _, c := range checks {
		if c.Status == Fail && !c.final {
			n++
		}
	}
	return n
}

// newReport puts the checks into the order of the table.
func newReport(want Stack, cluster string, checks []Check) Report {
	r := Report{Want: want, Cluster: cluster, Checks: slices.Clone(checks)}
	for i := range r.Checks {
		r.Checks[i].Name = title(r.Checks[i].ID) // Options.Volumes makes checks elsewhere
	}
	slices.SortStableFunc(r.Checks, func(a, b Check) int { return rank(a.ID) - rank(b.ID) })
	r.Passed = r.OK()
	return r
}

// round makes every check once, so that a report in which all pass tells of one moment.
func round(ctx context.Context, o Options, h site) ([]Check, error) {
	o.Detail("objects of the cluster")
	s, err := gather(ctx, o.Client.Kube)
	if err != nil {
		return nil, err
	}
	changes, err := o.Client.Services(ctx, o.Plan.Spec.Services.Policy, o.Plan.Spec.Services.Exclude)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	s.know(changes)
	checks := slices.Concat(evaluateNodes(s, o.Plan), evaluateWorkloads(s), evaluatePods(s), evaluateClusterIPs(s))

	o.Detail("DNS")
	resolver := newResolver(h, s)
	checks = append(checks, resolver.check(ctx, s)...)

	o.Detail("processes of the pods")
	facts, err := readFacts(ctx, h)
	if err != nil {
		return nil, err
	}
	checks = append(checks, evaluateTools(facts, h.name))
	if len(facts.missing) == 0 {
		probed, err := checkNetwork(ctx, o, h, s, facts, resolver)
		if err != nil {
			return nil, err
		}
		checks = append(checks, probed...)
	}
	return checks, ctx.Err()
}
