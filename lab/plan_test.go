package main

import (
	"testing"

	"sigs.k8s.io/yaml"

	"sunbeam.pt/k3s-dualstack/lab/labs"
)

func TestPlanNamesOpenBaoWhereThereIsOne(t *testing.T) {
	lab := &labs.Lab{Name: "demo", Hostname: "demo", User: "root"}
	backup := func() object {
		text, err := yaml.Marshal(migration(lab, "ssh-ed25519 AAAA"))
		if err != nil {
			t.Fatal(err)
		}
		var plan struct{ Spec struct{ Backup object } }
		if err := yaml.Unmarshal(text, &plan); err != nil {
			t.Fatal(err)
		}
		return plan.Spec.Backup
	}
	if bao, found := backup()["openBao"]; found {
		t.Errorf("got %v", bao)
	}
	lab.OpenBao = &labs.OpenBao{Namespace: "openbao", Token: "/lab/token", Keys: "/lab/keys", Sentinel: "secret/sentinel"}
	text, err := yaml.Marshal(backup()["openBao"])
	want := "namespace: openbao\nsentinel: secret/sentinel\ntoken:\n  file: /lab/token\nunsealKeys:\n- file: /lab/keys\n"
	if err != nil || string(text) != want {
		t.Errorf("got %s, %v", text, err)
	}
}

func TestPlanWatchesWhatThePlatformServes(t *testing.T) {
	lab := &labs.Lab{Name: "demo", Hostname: "demo", User: "root", Platform: []string{"platform", "up"}}
	lab.Host.IPv4, lab.Host.IPv6 = "172.30.14.10", "fd30:e::10"
	watch := func() string {
		text, err := yaml.Marshal(migration(lab, "ssh-ed25519 AAAA")["spec"].(object)["watch"])
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if got, want := watch(), "- http://172.30.14.10/\n- http://[fd30:e::10]/\n"; got != want {
		t.Errorf("got %s", got)
	}
	lab.Platform = nil
	if got := watch(); got != "[]\n" {
		t.Errorf("without a platform: got %s", got)
	}
}
