package steps

import (
	"context"
	"fmt"
	"time"

	"sunbeam.pt/k3s-dualstack/k3s"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/restore"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/verify"
)

// verify proves the result, and keeps the report.
func (m *Migration) verify(context.Context) ([]runner.Action, error) {
	return []runner.Action{{
		Name: "verify", Target: m.onCluster(),
		Summary: "Addresses, Services, DNS, pod to pod and egress of both families; volumes and secrets as backed up",
		Command: "migrate verify -f " + remote.Quote(m.Plan.Path()),
		Run: func(ctx context.Context) (any, error) {
			report, err := m.Verify(ctx, m.Plan.Spec.Verify.Timeout.Duration)
			if err != nil {
				return nil, err
			}
			if err := m.keep(reportFile, report); err != nil {
				return nil, err
			}
			if !report.OK() {
				return nil, &UnverifiedError{Failed: len(report.Failed())}
			}
			return map[string]int{"checks": passed(report)}, nil
		},
	}}, nil
}

// passed counts the checks that were passed; what was skipped is none.
func passed(r verify.Report) (n int) {
	for _, c := range r.Checks {
		if c.Status == verify.Pass {
			n++
		}
	}
	return n
}

// UnverifiedError says that the verification found something short.
type UnverifiedError struct{ Failed int }

func (e *UnverifiedError) Error() string {
	return fmt.Sprintf("%d checks fall short", e.Failed)
}

// Verify holds the cluster that runs now against the plan, before or after the
// migration; what can settle may take as long as timeout. After the rebuild the
// volumes and TLS secrets are compared with the backup set, too.
func (m *Migration) Verify(ctx context.Context, timeout time.Duration) (verify.Report, error) {
	h, err := m.Host(ctx)
	if err != nil {
		return verify.Report{}, err
	}
	in, err := k3s.Read(ctx, h)
	if err != nil {
		return verify.Report{}, err
	}
	if err := usable(h, in); err != nil {
		return verify.Report{}, err
	}
	c, err := m.Client(ctx, in)
	if err != nil {
		return verify.Report{}, err
	}
	t := m.Progress.Wait("Verifying")
	defer t.Done()
	o := verify.Options{Client: c, Host: h, Plan: m.Plan, Want: verify.SingleStack, Timeout: timeout, Detail: t.Detail}
	if _, v6 := in.Families(); v6 {
		o.Want = verify.DualStack
	}
	if m.Facts != nil && o.Want == verify.DualStack {
		o.Secrets = m.Facts.Cluster.TLSSecrets
		o.Contents = m.compareContents
	}
	report, err := verify.Run(ctx, o)
	if err != nil {
		return report, err
	}
	m.Report = &report
	return report, nil
}

// compareVolumes holds the volumes that were brought back against the set.
// What a workload wrote since is no difference.
func (m *Migration) compareVolumes(ctx context.Context) ([]verify.Check, error) {
	h, set, err := m.hostAndSet(ctx)
	if err != nil {
		return nil, err
	}
	at, err := m.returnedTo()
	if err != nil {
		return nil, err
	}
	var checks []verify.Check
	for _, v := range m.Facts.Cluster.Volumes {
		if !v.Copied() {
			continue
		}
		c := verify.Check{ID: verify.VolumeContents, Name: "volume contents", Target: v.Namespace + "/" + v.Claim, Status: verify.Pass}
		var d restore.Differences
		if at.IsZero() {
			d, err = restore.Compare(ctx, h, v.Ref(), set)
		} else {
			d, err = restore.CompareReturned(ctx, h, v.Ref(), set, fmt.Sprintf("%d.%09d", at.Unix(), at.Nanosecond()))
		}
		if err != nil {
			return nil, err
		}
		switch {
		case d.Equal() && d.BetweenTotal > 0:
			c.Status = verify.Skip
			c.Detail = fmt.Sprintf("%d entries; %d are not as in the backup set, and were written or removed after the snapshot, the first: %s", d.Entries, d.BetweenTotal, d.Between[0])
		case d.Equal():
			c.Detail = fmt.Sprintf("%d entries; as backed up but for %d written since", d.Entries, d.WrittenTotal)
		default:
			c.Status = verify.Fail
			c.Detail = fmt.Sprintf("%d entries are not as backed up, the first: %s", d.LostTotal, d.Lost[0])
			c.Remedy = "look at them on the host before anything writes to the volume again; the backup set has them"
		}
		checks = append(checks, c)
	}
	return checks, nil
}
