package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/platform"
	"sunbeam.pt/k3s-dualstack/steps"
)

func TestDriftScreens(t *testing.T) {
	at := time.Date(2026, 11, 1, 9, 30, 0, 0, time.UTC)
	ana := []cluster.Author{{Manager: "kubectl-edit", At: at}, {Manager: "kubectl"}}
	for name, d := range map[string]*cluster.Drift{
		"drift-none": {Same: 12, Left: map[string]int{"made by Kubernetes itself": 101, "K3s's own, or of its manifests directory": 17}},
		"drift": {
			Same: 1,
			Changed: []cluster.ChangedObject{{Object: cluster.Object{Kind: "Deployment.apps", Namespace: "shop", Name: "web"}, Fields: []cluster.Field{
				{Path: "metadata.annotations[example.org/note]", Cluster: cluster.Hidden, By: ana},
				{Path: "spec.replicas", Cluster: "3", Manifests: "2", By: ana[:1]},
				{Path: "spec.template.spec.containers[name=web].args", Manifests: cluster.Hidden},
				{Path: "spec.template.spec.containers[name=web].env[name=DOOR].value", Cluster: cluster.Hidden, Manifests: cluster.Hidden, By: ana[:1]},
			}}},
			Extra:      []cluster.ExtraObject{{Object: cluster.Object{Kind: "Secret", Namespace: "shop", Name: "by-hand"}, By: ana}},
			Missing:    []cluster.Object{{Kind: "ConfigMap", Namespace: "shop", Name: "gone"}, {Kind: "Thing.example.org", Name: "unheard-of"}},
			Uncompared: []cluster.UncomparedObject{{Object: cluster.Object{Kind: "Service", Namespace: "shop", Name: "impossible"}, Why: "Service \"impossible\" is invalid: spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"}},
			Left:       map[string]int{"made by another object, which owns them": 4},
			Warnings:   []string{"the API group metrics.k8s.io/v1beta1 does not answer, its objects are not in the export"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			full := &steps.Drift{Drift: d}
			if name == "drift" {
				full.Unread = []platform.Left{{Path: "/home/ana/shop/values.yaml", Why: "no object of Kubernetes: it has no apiVersion and kind"}}
			}
			if err := printDrift(&b, full); err != nil {
				t.Fatal(err)
			}
			file := "testdata/" + name + ".golden"
			if *update {
				if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), b.String()); d != "" {
				t.Error(d)
			}
			for line := range strings.Lines(b.String()) {
				if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > columns {
					t.Errorf("%d columns: %s", n, line)
				}
			}
		})
	}
}
