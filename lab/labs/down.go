package labs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sunbeam.pt/k3s-dualstack/lab/engine"
	"sunbeam.pt/k3s-dualstack/lab/state"
)

// Down removes all of a lab: containers with their volumes, network, control
// groups, state. What is gone already is no error.
func Down(ctx context.Context, name string) error {
	if err := state.Check(name); err != nil {
		return err
	}
	release, err := state.Lock(name)
	if err != nil {
		return err
	}
	defer release()
	return remove(ctx, name)
}

// remove does it for who holds the lab's lock.
func remove(ctx context.Context, name string) error {
	filter := "label=" + label + "=" + name
	out, err := engine.Output(ctx, "ps", "--all", "--quiet", "--no-trunc", "--filter", filter)
	if err != nil {
		return fmt.Errorf("finding the containers of lab %s: %w", name, err)
	}
	containers := strings.Fields(out)
	if len(containers) > 0 {
		if err := engine.Run(ctx, append([]string{"rm", "--force", "--volumes"}, containers...)...); err != nil {
			return fmt.Errorf("removing the containers of lab %s: %w", name, err)
		}
	}
	out, err = engine.Output(ctx, "network", "ls", "--quiet", "--filter", filter)
	if err != nil {
		return fmt.Errorf("finding the network of lab %s: %w", name, err)
	}
	if networks := strings.Fields(out); len(networks) > 0 {
		if err := engine.Run(ctx, append([]string{"network", "rm"}, networks...)...); err != nil {
			return fmt.Errorf("removing the network of lab %s: %w", name, err)
		}
	}
	dir, err := stateDir(name)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the state of lab %s: %w", name, err)
	}
	for _, container := range containers {
		if err := removeControlGroups("/sys/fs/cgroup", container); err != nil {
			return err
		}
	}
	return nil
}

// removeControlGroups removes the groups that systemd and the kubelet made below a
// container's own and that the engine, which did not make them, may leave. They
// are empty once the container is gone; elsewhere than on Linux there are none.
func removeControlGroups(root, container string) error {
	var groups []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !entry.IsDir() {
			return err
		}
		if strings.Contains(path, container) {
			groups = append(groups, path)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("finding control groups that are left: %w", err)
	}
	for i := len(groups) - 1; i >= 0; i-- { // children come after their parents
		if err := os.Remove(groups[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing a control group that is left (`sudo rmdir %s` does): %w", groups[i], err)
		}
	}
	return nil
}
