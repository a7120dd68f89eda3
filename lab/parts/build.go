package parts

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"sunbeam.pt/k3s-dualstack/lab/cache"
	"sunbeam.pt/k3s-dualstack/lab/engine"
)

// K3sVersion is the version that the assembled node says it is: the K3s release that
// is made of the same Kubernetes.
const K3sVersion = "v1.34.4+k3s1"

// program is a binary built from source.
type program struct {
	name string
	// module is the directory of its Go module below the lab's sources.
	module string
	// pkg is the package to build, from within the module.
	pkg string
	// sources are the files and trees that decide what it is, from within the module.
	sources []string
	ldflags string
	// cgo is set where upstream's datastore driver needs C.
	cgo bool
}

var (
	kubernetes = program{name: "kubernetes", module: "kubernetes", pkg: ".", sources: []string{"."},
		ldflags: "-X k8s.io/component-base/version.gitVersion=" + K3sVersion + " -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34"}
	kine      = program{name: "kine", module: "kine", pkg: "github.com/k3s-io/kine", sources: []string{"."}, cgo: true}
	coredns   = program{name: "coredns", module: "coredns", pkg: ".", sources: []string{"."}}
	openbao   = program{name: "openbao", module: "openbao", pkg: ".", sources: []string{"."}}
	localPath = program{name: "local-path-provisioner", module: "localpath", pkg: "github.com/rancher/local-path-provisioner", sources: []string{"."}}
	launcher  = own("k3s")
	app       = own("app")
	internet  = own("internet")
	pause     = own("pause")
)

// own is a program of the lab's own module.
func own(name string) program {
	return program{name: name, module: ".", pkg: "./" + name, sources: []string{name, "go.mod", "go.sum"}}
}

// build returns the path of a program's binary for the engine's architecture.
func (s *Shop) build(ctx context.Context, p program) (string, error) {
	key, err := s.key(ctx, p)
	if err != nil {
		return "", err
	}
	dir, err := s.Cache.Get("bin-"+p.name, key, func(dir string) error {
		s.Say("%s: building from source", p.name)
		return s.compile(ctx, p, filepath.Join(dir, p.name))
	})
	return filepath.Join(dir, p.name), err
}

func (s *Shop) key(ctx context.Context, p program) (string, error) {
	sources, err := cache.Sources(filepath.Join(s.Source, p.module), p.sources...)
	if err != nil {
		return "", err
	}
	architecture, err := s.architecture(ctx)
	if err != nil {
		return "", err
	}
	version, err := s.goVersion(ctx)
	if err != nil {
		return "", err
	}
	return cache.Key(sources, architecture, version, p.pkg, p.ldflags, fmt.Sprint(p.cgo)), nil
}

func (s *Shop) compile(ctx context.Context, p program, output string) error {
	architecture, err := s.architecture(ctx)
	if err != nil {
		return err
	}
	cgo := "0"
	if p.cgo {
		cgo = "1"
		if _, err := exec.LookPath("gcc"); err != nil {
			if err := engine.Install(ctx, "gcc", "gcc", "libc6-dev"); err != nil {
				return err
			}
		}
		if runtime.GOOS != "linux" || runtime.GOARCH != architecture {
			return fmt.Errorf("%s is built with C and cannot be cross-compiled from %s/%s for linux/%s; build the lab's cache on such a machine and share it (LAB_CACHE)", p.name, runtime.GOOS, runtime.GOARCH, architecture)
		}
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", strings.TrimSpace("-s -w "+p.ldflags), "-o", output, p.pkg)
	cmd.Dir = filepath.Join(s.Source, p.module)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo, "GOOS=linux", "GOARCH="+architecture, "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s in %s: %w: %s", p.pkg, p.module, err, engine.Tail(out))
	}
	return nil
}

// goVersion asks the toolchain that builds, which need not be the one that built
// this program.
func (s *Shop) goVersion(ctx context.Context) (string, error) {
	return s.ask(&s.version, func() (string, error) {
		cmd := exec.CommandContext(ctx, "go", "env", "GOVERSION")
		cmd.Dir = s.Source
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("asking the Go toolchain for its version (https://go.dev/doc/install tells how to install one): %w", err)
		}
		return strings.TrimSpace(string(out)), nil
	})
}

func (s *Shop) architecture(ctx context.Context) (string, error) {
	return s.ask(&s.arch, func() (string, error) { return engine.Architecture(ctx) })
}

// ask remembers an answer that stays the same while this program runs.
func (s *Shop) ask(memory *string, question func() (string, error)) (string, error) {
	if *memory == "" {
		answer, err := question()
		if err != nil {
			return "", err
		}
		*memory = answer
	}
	return *memory, nil
}
