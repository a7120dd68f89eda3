package cluster

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// TestWait runs in a bubble with its own clock: the seconds are not waited for.
func TestWait(t *testing.T) {
	gone := &http.ProtocolError{ErrorString: "EOF"}
	type look struct {
		missing []string
		err     error
	}
	for _, tc := range []struct {
		name    string
		looks   []look // the last repeats
		after   time.Duration
		want    string // of the error; "" for none
		outage  bool
		details []string
	}{
		{name: "at once", looks: []look{{}}},
		{name: "after a while", looks: []look{{missing: []string{"a", "b"}}, {missing: []string{"b"}}, {}}, after: 2 * time.Second, details: []string{"a and 1 more", "b"}},
		{name: "over an outage", looks: []look{{missing: []string{"a"}}, {err: io.EOF}, {err: gone}, {err: apierrors.NewServiceUnavailable("starting")}, {}}, after: 4 * time.Second,
			details: []string{"a", "the API does not answer", "the API does not answer", "the API does not answer"}},
		{name: "deadline", looks: []look{{missing: []string{"a"}}}, after: 10 * time.Second, want: "waiting for it: time is up: a, for a reason"},
		{name: "deadline in an outage", looks: []look{{missing: []string{"a"}}, {err: io.EOF}}, after: 10 * time.Second, want: "waiting for it: time is up: EOF: a", outage: true},
		{name: "K3s before its authenticator is up", looks: []look{{err: apierrors.NewUnauthorized("x")}, {}}, after: time.Second},
		{name: "what no waiting changes", looks: []look{{err: apierrors.NewForbidden(schema.GroupResource{}, "n", errors.New("no"))}}, want: "waiting for it: the API server at a:1 refuses"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &Client{every: time.Second, address: "a:1"}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				start, n := time.Now(), 0
				seen := recorded{}
				err := c.wait(ctx, "it", &seen, func(context.Context) ([]string, error) {
					l := tc.looks[min(n, len(tc.looks)-1)]
					n++
					return l.missing, l.err
				}, func(ctx context.Context) []string {
					assert.NoError(t, ctx.Err(), "there is time to find out why")
					return []string{"a, for a reason"}
				})
				assert.Equal(t, tc.after, time.Since(start))
				if tc.details != nil {
					assert.Equal(t, tc.details, []string(seen))
				}
				if tc.want == "" {
					assert.NoError(t, err)
					return
				}
				assert.ErrorContains(t, err, tc.want)
				var waited *WaitError
				if errors.As(err, &waited) {
					assert.Equal(t, tc.outage, waited.Outage != nil)
					assert.ErrorIs(t, err, context.DeadlineExceeded)
				}
			})
		})
	}
}

type recorded []string

func (r *recorded) Detail(s string) { *r = append(*r, s) }

func TestWaitIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Client{every: time.Second}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(3500*time.Millisecond, cancel)
		err := c.wait(ctx, "it", nil, func(context.Context) ([]string, error) { return []string{"a"}, nil }, nil)
		require.ErrorIs(t, err, context.Canceled)
	})
}

func TestWaitErrorMessage(t *testing.T) {
	err := &WaitError{For: "the workloads to be available", Missing: []string{"Deployment web/a: 0 of 1 available", "DaemonSet web/b: 1 of 2 available"}, Err: context.DeadlineExceeded}
	golden(t, "wait-error.golden", []byte(err.Error()+"\n"))
}

func TestWaitAPINamesTheFailedChecks(t *testing.T) {
	c := served(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		io.WriteString(w, "[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\nreadyz check failed\n")
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := c.WaitAPI(ctx, nil)
	require.ErrorContains(t, err, "readyz check etcd failed: reason withheld")
}

func TestWaitAPIDoesNotWaitForTrust(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	c, err := Connect(recorder{to: server.Listener.Addr().String()}, kubeconfigFor(t, "https://127.0.0.1:6443", nil, nil))
	require.NoError(t, err)
	var untrusted *UntrustedError
	require.ErrorAs(t, c.WaitAPI(t.Context(), nil), &untrusted)
}

// The fake clientset keeps objects and nothing else: no validation, no controllers,
// no field selectors. It serves here to have objects at hand while the clock is the
// bubble's; the same waits run against a real API server with the tag e2e.
func TestFakeClientsetWaitNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kube := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "server"}})
		looks := 0
		kube.PrependReactor("get", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
			if looks++; looks < 3 {
				return true, nil, io.ErrUnexpectedEOF
			}
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "server"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.42.0.0/24"}},
				Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
			if looks >= 6 {
				node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, "fd42::/64")
			}
			return true, node, nil
		})
		c := &Client{Kube: kube, every: time.Second}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		require.NoError(t, c.WaitNode(ctx, "server", 2, nil))
		require.Equal(t, 5*time.Second, time.Since(start))
	})
}

func TestNodeMissing(t *testing.T) {
	node := func(ready corev1.ConditionStatus, cidrs ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
		if ready != "" {
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready, Reason: "R", Message: "m"}}
		}
		return n
	}
	for _, tc := range []struct {
		node     *corev1.Node
		families int
		want     []string
	}{
		{node("True", "10.42.0.0/24", "fd42::/64"), 2, nil},
		{node("True", "10.42.0.0/24"), 1, nil},
		{node("True", "10.42.0.0/24"), 2, []string{"node n has podCIDRs of 1 of 2 families (10.42.0.0/24)"}},
		{node("True", "10.42.0.0/24", "10.43.0.0/24"), 2, []string{"node n has podCIDRs of 1 of 2 families (10.42.0.0/24, 10.43.0.0/24)"}},
		{node("Unknown"), 2, []string{"node n is not Ready: R: m", "node n has podCIDRs of 0 of 2 families (none)"}},
		{node("", "10.42.0.0/24", "fd42::/64"), 2, []string{"node n is not Ready: its kubelet has not reported yet"}},
	} {
		assert.Equal(t, tc.want, nodeMissing(tc.node, tc.families))
	}
}

func TestPodWaits(t *testing.T) {
	waiting := func(name, reason, message string) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
	}
	crashed := waiting("app", "CrashLoopBackOff", "back-off 10s")
	crashed.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 3}
	for _, tc := range []struct {
		name   string
		status corev1.PodStatus
		want   string
	}{
		{"ready", corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}, ""},
		{"unschedulable", corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/1 nodes are available"}}}, "Unschedulable: 0/1 nodes are available"},
		{"image", corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{waiting("app", "ErrImagePull", "not found")}}, "app: ErrImagePull (not found)"},
		{"crash", corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{crashed}}, "app: CrashLoopBackOff (back-off 10s), it ended before with status 3"},
		{"init", corev1.PodStatus{InitContainerStatuses: []corev1.ContainerStatus{waiting("init", "CreateContainerConfigError", `secret "x" not found`)}, ContainerStatuses: []corev1.ContainerStatus{waiting("app", "PodInitializing", "")}}, `init: CreateContainerConfigError (secret "x" not found)`},
		{"not ready", corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "app", Started: new(true), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}}, "app: runs and is not ready"},
		{"ended", corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "app", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}}}}}, "app: ended with status 137 (OOMKilled)"},
		{"evicted", corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "disk pressure"}, "Failed: Evicted: disk pressure"},
		{"nothing known", corev1.PodStatus{Phase: corev1.PodPending}, "Pending, not ready"},
	} {
		assert.Equal(t, tc.want, podWaits(&corev1.Pod{Status: tc.status}), tc.name)
	}
}

func TestWorkloadShort(t *testing.T) {
	meta := metav1.ObjectMeta{Generation: 2}
	deployment := func(want *int32, s appsv1.DeploymentStatus) *appsv1.Deployment {
		return &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Replicas: want}, Status: s}
	}
	for _, tc := range []struct {
		name string
		d    *appsv1.Deployment
		want string
	}{
		{"available", deployment(nil, appsv1.DeploymentStatus{ObservedGeneration: 2, AvailableReplicas: 1, UpdatedReplicas: 1}), ""},
		{"scaled to nothing", deployment(new(int32(0)), appsv1.DeploymentStatus{ObservedGeneration: 2}), ""},
		{"not seen", deployment(nil, appsv1.DeploymentStatus{ObservedGeneration: 1, AvailableReplicas: 1, UpdatedReplicas: 1}), notSeen},
		{"short", deployment(new(int32(3)), appsv1.DeploymentStatus{ObservedGeneration: 2, AvailableReplicas: 1, UpdatedReplicas: 3}), "1 of 3 available"},
		{"old version", deployment(new(int32(3)), appsv1.DeploymentStatus{ObservedGeneration: 2, AvailableReplicas: 3, UpdatedReplicas: 1}), "1 of 3 in the present version"},
	} {
		short, _ := deploymentShort(tc.d)
		assert.Equal(t, tc.want, short, tc.name)
	}
	_, own := deploymentShort(deployment(nil, appsv1.DeploymentStatus{ObservedGeneration: 2, Conditions: []appsv1.DeploymentCondition{
		{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: "exceeded quota"}}}))
	assert.Equal(t, "FailedCreate: exceeded quota", own)

	set := &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Replicas: new(int32(2))}, Status: appsv1.StatefulSetStatus{ObservedGeneration: 2, AvailableReplicas: 1}}
	assert.Equal(t, "1 of 2 available", statefulSetShort(set))
	set.Status.AvailableReplicas = 2
	assert.Empty(t, statefulSetShort(set))
	daemon := &appsv1.DaemonSet{ObjectMeta: meta, Status: appsv1.DaemonSetStatus{ObservedGeneration: 2, DesiredNumberScheduled: 1}}
	assert.Equal(t, "0 of 1 available", daemonSetShort(daemon))
	daemon.Status.ObservedGeneration = 1
	assert.Equal(t, notSeen, daemonSetShort(daemon))
}

func TestWaitStartedSince(t *testing.T) {
	moment := time.Date(2026, 3, 1, 9, 0, 0, 500e6, time.UTC)
	running := func(name string, since time.Time) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(since)}}}
	}
	pod := func(statuses ...corev1.ContainerStatus) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "data", Name: "db-0"}, Status: corev1.PodStatus{ContainerStatuses: statuses}}
	}
	for _, tc := range []struct {
		name string
		pod  *corev1.Pod
		want string // what it waits for; "" for nothing
	}{
		{"started since", pod(running("db", moment.Add(time.Minute))), ""},
		{"in the same second, of which Kubernetes keeps no part", pod(running("db", moment.Truncate(time.Second))), ""},
		{"said to run since before", pod(running("new", moment.Add(time.Second)), running("db", moment.Add(-time.Hour))), "pod data/db-0: container db is said to run since 2026-03-01T08:00:00Z"},
		{"one that does not come up", pod(corev1.ContainerStatus{Name: "db", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}}), ""},
		{"one that ended long ago", pod(corev1.ContainerStatus{Name: "db", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: metav1.NewTime(moment.Add(-time.Hour))}}}), ""},
		{"none yet", pod(), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &Client{Kube: fake.NewClientset(tc.pod), every: time.Second}
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				err := c.WaitStartedSince(ctx, moment, nil)
				if tc.want == "" {
					require.NoError(t, err)
					return
				}
				var late *WaitError
				require.ErrorAs(t, err, &late)
				assert.Equal(t, []string{tc.want}, late.Missing)
				// It ends once the kubelet has looked.
				go func() {
					time.Sleep(1500 * time.Millisecond) // between two looks
					_, _ = c.Kube.CoreV1().Pods("data").Update(t.Context(), pod(running("db", moment.Add(time.Hour))), metav1.UpdateOptions{})
				}()
				start := time.Now()
				require.NoError(t, c.WaitStartedSince(t.Context(), moment, nil))
				assert.Equal(t, 2*time.Second, time.Since(start).Truncate(time.Second))
			})
		})
	}
}
