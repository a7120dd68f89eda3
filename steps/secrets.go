package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"

	"sunbeam.pt/k3s-dualstack/runner"
)

// secrets brings back namespaces and TLS secrets before the platform:
// cert-manager issues a certificate anew, and runs into its CA's rate limit,
// when the secret is not there first.
func (m *Migration) secrets(context.Context) ([]runner.Action, error) {
	return []runner.Action{{
		Name: "apply", Target: m.onCluster(),
		Summary: fmt.Sprintf("Create namespaces, and the TLS secrets (%d) with their annotations", len(m.Facts.Cluster.TLSSecrets)),
		Command: "kubectl apply -f - < tls-backup.yaml",
		Run: func(ctx context.Context) (any, error) {
			c, err := m.rebuilt(ctx)
			if err != nil {
				return nil, err
			}
			err = eachKept(m, namespaces, func(ns corev1.Namespace) error { return c.ApplyNamespace(ctx, ns) })
			if err != nil {
				return nil, err
			}
			return nil, eachKept(m, tlsSecrets, func(s corev1.Secret) error { return c.ApplySecret(ctx, s) })
		},
	}}, nil
}

// eachKept walks the objects of an artifact, one JSON object a line.
func eachKept[T any](m *Migration, artifact string, do func(T) error) error {
	set, err := m.Set()
	if err != nil {
		return err
	}
	r, err := set.Reader(artifact)
	if err != nil {
		return err
	}
	defer r.Close()
	for dec := json.NewDecoder(r); ; {
		var object T
		if err := dec.Decode(&object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading artifact %s: %w", artifact, err)
		}
		if err := do(object); err != nil {
			return err
		}
	}
}
