package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"sunbeam.pt/k3s-dualstack/lab/labs"
)

func plan(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "plan",
		Short: "Print a migration plan for a lab",
		Long: `Print a migration plan for a lab, ready for migrate. The backup set is encrypted to the
lab's own SSH key; what migrate keeps goes to the directory "migration" of the lab's state,
and away with it.`,
		Example: "  lab plan > plan.yaml && migrate plan -f plan.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			lab, err := labs.Load(*name)
			if err != nil {
				return err
			}
			public, err := os.ReadFile(lab.IdentityFile + ".pub")
			if err != nil {
				return fmt.Errorf("reading the lab's public key: %w", err)
			}
			text, err := yaml.Marshal(migration(lab, strings.TrimSpace(string(public))))
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(text)
			return err
		},
	}
}

// object is one mapping of the plan: the lab is a module of its own and writes the plan as a
// person would, not with the product's types.
type object = map[string]any

func migration(lab *labs.Lab, recipient string) object {
	host := object{
		"name": lab.Hostname, "address": lab.Address, "port": lab.Port, "user": lab.User,
		"identityFiles": []string{lab.IdentityFile}, "knownHosts": []string{lab.KnownHosts}, "sshConfig": "none",
	}
	if lab.User != "root" {
		host["sudo"] = true
	}
	backup := object{
		"encryption": object{"recipients": []string{recipient}, "identities": []string{lab.IdentityFile}},
	}
	if bao := lab.OpenBao; bao != nil {
		backup["openBao"] = object{
			"namespace": bao.Namespace, "sentinel": bao.Sentinel,
			"token": object{"file": bao.Token}, "unsealKeys": []object{{"file": bao.Keys}},
		}
	}
	// Reached from outside the lab, which knows no names: the web proxy of the platform.
	watch := []string{}
	if len(lab.Platform) > 0 {
		watch = []string{"http://" + lab.Host.IPv4 + "/", "http://[" + lab.Host.IPv6 + "]/"}
	}
	spec := object{
		"hosts":   []object{host},
		"watch":   watch,
		"backup":  backup,
		"verify":  object{"egressURLs": lab.Internet.URLs, "hostnames": lab.Internet.Names},
		"workDir": filepath.Join(lab.StateDir, "migration"),
	}
	if lab.InstallScript != "" {
		spec["k3s"] = object{"installScript": lab.InstallScript}
	}
	platform := object{"command": []string{"true"}}
	if len(lab.Platform) > 0 {
		platform = object{"command": lab.Platform, "environment": lab.PlatformEnvironment, "timeout": "10m"}
	}
	spec["platform"] = platform
	return object{
		"apiVersion": "dualstack.sunbeam.pt/v1alpha1",
		"kind":       "Migration",
		"metadata":   object{"name": lab.Name},
		"spec":       spec,
	}
}
