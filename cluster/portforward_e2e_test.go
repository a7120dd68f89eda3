//go:build e2e

package cluster

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A control plane alone has no kubelet: what it refuses by itself. The tests of e2e
// reach a real pod.
func TestDialPodWithoutAKubelet(t *testing.T) {
	c := connected(t, dualStack)
	ns := namespaced(t, c)
	pod, err := c.Kube.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "db-0"},
		Spec: corev1.PodSpec{NodeName: "forward-nowhere", Containers: []corev1.Container{{Name: "db", Image: "x"}}}}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = c.DialPod(t.Context(), ns, "db-0", 8200)
	require.ErrorContains(t, err, "the pod does not run: it is Pending")
	_, err = c.DialPod(t.Context(), ns, "db-1", 8200)
	require.ErrorContains(t, err, "there is no such pod")

	pod.Status.Phase = corev1.PodRunning
	_, err = c.Kube.CoreV1().Pods(ns).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
	require.NoError(t, err)
	_, err = c.DialPod(t.Context(), ns, "db-0", 8200)
	require.ErrorContains(t, err, "forwarding to port 8200 of the pod "+ns+"/db-0: ")
	require.ErrorContains(t, err, "forward-nowhere", "the API server looks for its node")
}
