package labs

import (
	"context"
	"errors"
	"fmt"
	"os"

	"sunbeam.pt/k3s-dualstack/lab/engine"
	"sunbeam.pt/k3s-dualstack/lab/parts"
	"sunbeam.pt/k3s-dualstack/lab/state"
)

// Options say what lab to make.
type Options struct {
	Name string
	// Hostname is the host's own name, and its node's unless K3s is told another;
	// the lab's name by default.
	Hostname string
	User     *User // a further account, nil for root only
	Node     *Node // nil for a bare host
	Platform Platform
}

// Up makes a lab. When its host cannot be made, nothing is left. When what is installed there
// fails, the host stays for a look, and the lab is returned with the error.
func Up(ctx context.Context, options Options, shop *parts.Shop, say func(string, ...any)) (*Lab, error) {
	if err := state.Check(options.Name); err != nil {
		return nil, err
	}
	if err := options.Platform.check(); err != nil {
		return nil, err
	}
	release, err := state.Lock(options.Name)
	if err != nil {
		return nil, err
	}
	defer release()
	if _, err := Load(options.Name); !errors.Is(err, ErrNoLab) {
		if err == nil {
			err = fmt.Errorf("lab %s is up already; `lab down --name %s` removes it", options.Name, options.Name)
		}
		return nil, err
	}
	// Leftovers of a lab whose making was cut off.
	if err := remove(ctx, options.Name); err != nil {
		return nil, err
	}
	dir, err := stateDir(options.Name)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the lab's state directory: %w", err)
	}
	lab := &Lab{Name: options.Name, Hostname: options.Hostname, StateDir: dir,
		Container: "lab-" + options.Name, InternetContainer: "lab-" + options.Name + "-internet"}
	if lab.Hostname == "" {
		lab.Hostname = options.Name
	}
	err = lab.makeHost(ctx, options, shop)
	if err == nil {
		err = lab.save()
	}
	if err != nil {
		return nil, errors.Join(err, remove(context.WithoutCancel(ctx), options.Name))
	}
	say("host: %s answers SSH on %s:%d", lab.Container, lab.Address, lab.Port)
	if options.Node != nil {
		err = lab.install(ctx, *options.Node, shop, say)
		if err == nil && lab.Kubectl != "" {
			err = lab.deploy(ctx, options.Platform, shop, say)
		}
	}
	if err != nil {
		err = fmt.Errorf("%w\nthe host stays for a look: `lab ssh --name %s`; `lab down --name %s` removes it", err, lab.Name, lab.Name)
	}
	return lab, errors.Join(err, lab.save())
}

// makeHost makes network and containers, and waits until the host can be logged in to.
func (l *Lab) makeHost(ctx context.Context, options Options, shop *parts.Shop) error {
	// Everything is at hand before anything is made: a cold cache takes minutes.
	image, err := shop.HostImage(ctx)
	if err != nil {
		return err
	}
	var k3s parts.K3s
	if options.Node != nil {
		if k3s, err = shop.K3s(ctx, options.Node.K3s); err != nil {
			return err
		}
	}
	at, err := createNetwork(ctx, l.Name, l.Container)
	if err != nil {
		return err
	}
	if err := l.startInternet(ctx, shop, l.Container, at); err != nil {
		return err
	}
	var put files
	if options.Node != nil {
		if err := l.putNode(&put, at, *options.Node, k3s); err != nil {
			return err
		}
	}
	if err := l.createHost(ctx, image, l.Container, at, &put); err != nil {
		return err
	}
	if err := engine.Run(ctx, "start", l.Container); err != nil {
		return fmt.Errorf("starting the host: %w", err)
	}
	if err := l.waitSSH(ctx); err != nil {
		return err
	}
	if options.User != nil {
		return l.addUser(ctx, *options.User)
	}
	return nil
}
