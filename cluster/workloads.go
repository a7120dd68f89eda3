package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// workload is a Deployment, StatefulSet or DaemonSet that is not yet what its
// spec asks for.
type workload struct {
	kind, namespace, name string
	short                 string // how far it is: "1 of 2 available"
	own                   string // its own words (a failed replica), if it has some
	selector              *metav1.LabelSelector
}

func (w workload) String() string {
	return fmt.Sprintf("%s %s/%s: %s", w.kind, w.namespace, w.name, w.short)
}

// WaitWorkloads waits until the Deployments, StatefulSets and DaemonSets of all
// namespaces have all their replicas available, in the present version of each.
// Jobs are not waited for. The error names each workload that falls short, with
// what its pods wait for, their conditions and their last warning events. t may be nil.
func (c *Client) WaitWorkloads(ctx context.Context, t Detailer) error {
	var last []workload
	return c.wait(ctx, "the workloads to be available", t, func(ctx context.Context) ([]string, error) {
		short, err := c.shortWorkloads(ctx)
		if err != nil {
			return nil, err
		}
		last = short
		var missing []string
		for _, w := range short {
			missing = append(missing, w.String())
		}
		return missing, nil
	}, func(ctx context.Context) []string {
		var long []string
		for _, w := range last {
			long = append(long, c.whyShort(ctx, w))
		}
		return long
	})
}

// WaitStartedSince waits until no pod claims a container that has been running
// since before the moment, by the clock of its node: after everything was stopped,
// the API tells of the old containers until the kubelet has looked. Containers
// that do not come up are not waited for. t may be nil.
func (c *Client) WaitStartedSince(ctx context.Context, moment time.Time, t Detailer) error {
	return c.wait(ctx, "the pods to be started again", t, func(ctx context.Context) ([]string, error) {
		pods, err := c.Kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		var missing []string
		for _, p := range pods.Items {
			for _, s := range p.Status.ContainerStatuses {
				// Kubernetes keeps whole seconds.
				if r := s.State.Running; r != nil && r.StartedAt.Time.Before(moment.Truncate(time.Second)) {
					missing = append(missing, fmt.Sprintf("pod %s/%s: container %s is said to run since %s", p.Namespace, p.Name, s.Name, r.StartedAt.UTC().Format(time.RFC3339)))
				}
			}
		}
		return missing, nil
	}, nil)
}

// shortWorkloads lists the workloads that are not available, sorted.
func (c *Client) shortWorkloads(ctx context.Context) ([]workload, error) {
	apps := c.Kube.AppsV1()
	deployments, err := apps.Deployments(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	statefulSets, err := apps.StatefulSets(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	daemonSets, err := apps.DaemonSets(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var short []workload
	add := func(kind string, m metav1.ObjectMeta, selector *metav1.LabelSelector, how, own string) {
		if how != "" {
			short = append(short, workload{kind: kind, namespace: m.Namespace, name: m.Name, short: how, own: own, selector: selector})
		}
	}
	for _, d := range deployments.Items {
		how, own := deploymentShort(&d)
		add("Deployment", d.ObjectMeta, d.Spec.Selector, how, own)
	}
	for _, s := range statefulSets.Items {
		add("StatefulSet", s.ObjectMeta, s.Spec.Selector, statefulSetShort(&s), "")
	}
	for _, d := range daemonSets.Items {
		add("DaemonSet", d.ObjectMeta, d.Spec.Selector, daemonSetShort(&d), "")
	}
	slices.SortFunc(short, func(a, b workload) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.kind, b.kind), cmp.Compare(a.name, b.name))
	})
	return short, nil
}

const notSeen = "its controller has not seen it yet"

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func deploymentShort(d *appsv1.Deployment) (short, own string) {
	want := replicas(d.Spec.Replicas)
	for _, cond := range d.Status.Conditions {
		if cond.Type == appsv1.DeploymentReplicaFailure && cond.Status == corev1.ConditionTrue {
			own = cond.Reason + ": " + cond.Message
		}
	}
	switch {
	case d.Status.ObservedGeneration < d.Generation:
		return notSeen, ""
	case d.Status.AvailableReplicas < want:
		return fmt.Sprintf("%d of %d available", d.Status.AvailableReplicas, want), own
	case d.Status.UpdatedReplicas < want && !d.Spec.Paused:
		return fmt.Sprintf("%d of %d in the present version", d.Status.UpdatedReplicas, want), own
	}
	return "", ""
}

func statefulSetShort(s *appsv1.StatefulSet) string {
	want := replicas(s.Spec.Replicas)
	switch {
	case s.Status.ObservedGeneration < s.Generation:
		return notSeen
	case s.Status.AvailableReplicas < want:
		return fmt.Sprintf("%d of %d available", s.Status.AvailableReplicas, want)
	}
	return ""
}

func daemonSetShort(d *appsv1.DaemonSet) string {
	switch {
	case d.Status.ObservedGeneration < d.Generation:
		return notSeen
	case d.Status.NumberAvailable < d.Status.DesiredNumberScheduled:
		return fmt.Sprintf("%d of %d available", d.Status.NumberAvailable, d.Status.DesiredNumberScheduled)
	}
	return ""
}

// podsTold bounds how many pods of one workload an error speaks of.
const podsTold = 3

// whyShort tells what is known about why a workload is not available.
func (c *Client) whyShort(ctx context.Context, w workload) string {
	told := []string{w.String()}
	if w.own != "" {
		told = append(told, w.own)
	}
	pods, err := c.Kube.CoreV1().Pods(w.namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(w.selector)})
	if err != nil {
		return strings.Join(append(told, fmt.Sprintf("its pods could not be read (%v)", c.explain(err))), "; ")
	}
	if len(pods.Items) == 0 {
		told = append(told, "it has no pods")
		if event := c.lastWarning(ctx, w.namespace, w.kind, w.name); event != "" {
			told = append(told, event)
		}
	}
	n := 0
	for _, pod := range pods.Items {
		why := podWaits(&pod)
		if why == "" {
			continue
		}
		if n++; n > podsTold {
			told = append(told, "and more pods")
			break
		}
		said := fmt.Sprintf("pod %s: %s", pod.Name, why)
		if event := c.lastWarning(ctx, pod.Namespace, "Pod", pod.Name); event != "" && !strings.Contains(said, event) {
			said += "; last warning: " + event
		}
		told = append(told, said)
	}
	return strings.Join(told, "; ")
}

// podWaits says why a pod is not ready, "" if it is.
func podWaits(pod *corev1.Pod) string {
	for _, cond := range pod.Status.Conditions {
		if cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue {
			return ""
		}
	}
	if pod.DeletionTimestamp != nil {
		return "being deleted"
	}
	for _, cond := range pod.Status.Conditions {
		if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse {
			return cond.Reason + ": " + cond.Message
		}
	}
	var why []string
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		switch {
		case s.State.Waiting != nil && s.State.Waiting.Reason != "PodInitializing":
			said := s.Name + ": " + s.State.Waiting.Reason
			if s.State.Waiting.Message != "" {
				said += " (" + s.State.Waiting.Message + ")"
			}
			if last := s.LastTerminationState.Terminated; last != nil {
				said += fmt.Sprintf(", it ended before with status %d", last.ExitCode)
			}
			why = append(why, said)
		case s.State.Terminated != nil && s.State.Terminated.ExitCode != 0:
			why = append(why, fmt.Sprintf("%s: ended with status %d (%s)", s.Name, s.State.Terminated.ExitCode, s.State.Terminated.Reason))
		case s.State.Running != nil && !s.Ready && s.Started != nil:
			why = append(why, s.Name+": runs and is not ready")
		}
	}
	if len(why) > 0 {
		return strings.Join(why, ", ")
	}
	if pod.Status.Message != "" {
		return fmt.Sprintf("%s: %s: %s", pod.Status.Phase, pod.Status.Reason, pod.Status.Message)
	}
	return string(pod.Status.Phase) + ", not ready"
}

// lastWarning is the latest warning event about an object, "" without one.
func (c *Client) lastWarning(ctx context.Context, namespace, kind, name string) string {
	events, err := c.Kube.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"involvedObject.kind": kind, "involvedObject.name": name, "type": corev1.EventTypeWarning}.String(),
	})
	if err != nil {
		return "" // an error about the reason for an error helps nobody
	}
	var last *corev1.Event
	for i := range events.Items {
		if last == nil || eventTime(&events.Items[i]).After(eventTime(last).Time) {
			last = &events.Items[i]
		}
	}
	if last == nil {
		return ""
	}
	return last.Reason + ": " + strings.TrimSpace(last.Message)
}

func eventTime(e *corev1.Event) metav1.Time {
	if !e.LastTimestamp.IsZero() {
		return e.LastTimestamp
	}
	return metav1.Time{Time: e.EventTime.Time}
}
