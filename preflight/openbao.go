package preflight

import (
	"fmt"
	"slices"
	"strings"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/survey"
)

// openBao: a server whose secrets cannot be kept, or not be opened again, is not
// to be taken down.
func openBao(p *plans.Plan, f *survey.Facts, _ Laptop) (out []Finding) {
	spec, b := p.Spec.Backup.OpenBao, f.OpenBao
	if spec == nil || b == nil {
		return nil
	}
	if b.Problem != "" {
		return inhibit("openbao.server", "mend what it names, or take spec.backup.openBao out of the plan if there is no OpenBao",
			"OpenBao could not be read: %s", b.Problem)
	}
	if len(b.Missing) > 0 {
		return inhibit("openbao.token", "give the token of spec.backup.openBao.token a policy that grants it, or name another token",
			"the token may not do what a backup of OpenBao needs: %s", strings.Join(b.Missing, "; "))
	}
	return slices.Concat(openBaoStorage(f), openBaoKeys(spec, b), openBaoAuth(p, b), openBaoNamespaces(b))
}

func openBaoStorage(f *survey.Facts) []Finding {
	b := f.OpenBao
	if b.Snapshots() {
		return nil
	}
	if !f.OpenBaoCopied() {
		return inhibit("openbao.storage", "take its volume out of spec.backup.volumes.exclude, or move OpenBao to raft storage (`bao operator migrate`)",
			"OpenBao's storage is %q: it has no snapshots, and not every server's volume is backed up: nothing but the export of its KV secrets would be left of it", b.Storage())
	}
	return []Finding{{ID: "openbao.storage", Severity: Warning,
		Detail: fmt.Sprintf("OpenBao's storage is %q, which has no snapshots: what is kept of it is its stopped volume, and its KV secrets as an export", b.Storage()),
		Remedy: "nothing to do; raft storage (`bao operator migrate`) would be kept twice"}}
}

func openBaoKeys(spec *plans.OpenBao, b *survey.OpenBao) []Finding {
	switch {
	case b.Keys() == 0 && len(spec.UnsealKeys) > 0:
		return inhibit("openbao.keys", "leave spec.backup.openBao.unsealKeys out",
			"OpenBao unseals itself (%s), and the plan names unseal keys: they could not be proven", b.Servers[0].Seal)
	case b.Keys() == 0:
		return []Finding{{ID: "openbao.seal", Severity: Warning,
			Detail: fmt.Sprintf("OpenBao unseals itself (%s): whether the key that it does so with can be reached from the new cluster cannot be proven beforehand", b.Servers[0].Seal),
			Remedy: "make sure that its key is kept outside this cluster"}}
	case len(spec.UnsealKeys) == 0:
		return inhibit("openbao.keys", "name where they come from in spec.backup.openBao.unsealKeys",
			"OpenBao asks for %d unseal keys when it starts again, and the plan names none", b.Keys())
	case b.NoKeys != "":
		return inhibit("openbao.keys", "mend what it names", "OpenBao could not be unsealed again: %s", b.NoKeys)
	}
	return nil
}

// openBaoAuth: what was configured by hand for the old cluster may not do for the
// new one.
func openBaoAuth(p *plans.Plan, b *survey.OpenBao) (out []Finding) {
	warn := func(remedy, detail string, args ...any) {
		out = append(out, Finding{ID: "openbao.kubernetes", Severity: Warning, Detail: fmt.Sprintf(detail, args...), Remedy: remedy})
	}
	for _, a := range b.Auths {
		k := a.Kubernetes
		if k == nil {
			continue
		}
		config := "`bao write auth/" + strings.TrimSuffix(a.Path, "/") + "/config "
		switch {
		case k.FixedCA && p.Spec.K3s.Identity == plans.IdentityNew:
			warn("after the rebuild: "+config+"kubernetes_host="+k.Host+" kubernetes_ca_cert=@ca.crt`",
				"auth method %s has a fixed kubernetes_ca_cert and the cluster gets a new CA (spec.k3s.identity): no pod will log in", a.Path)
		case k.FixedCA:
			warn("nothing to do",
				"auth method %s has a fixed kubernetes_ca_cert; the cluster keeps its CA (spec.k3s.identity), so that it stays right", a.Path)
		}
		switch k.ReviewerToken {
		case "set":
			warn("after the rebuild: "+config+"kubernetes_host="+k.Host+" token_reviewer_jwt=…`; without one the server uses its pod's own",
				"auth method %s has a fixed token_reviewer_jwt: its service account is another one after the rebuild, whatever its name, and the token is refused", a.Path)
		case "unknown":
			warn("if one was configured, set it again after the rebuild",
				"auth method %s does not tell whether it has a fixed token_reviewer_jwt; if so, it is refused after the rebuild: its service account is another one then, whatever its name", a.Path)
		}
	}
	return out
}

// openBaoNamespaces: those below the root are kept once less.
func openBaoNamespaces(b *survey.OpenBao) []Finding {
	if len(b.Namespaces) == 0 {
		return nil
	}
	return []Finding{{ID: "openbao.namespaces", Severity: Warning,
		Detail: fmt.Sprintf("OpenBao has namespaces (%s): their secrets are in the snapshot and in the volume, not in the export, which holds those of the root namespace", strings.Join(b.Namespaces, ", ")),
		Remedy: "export them by hand if you want them kept twice"}}
}
