package labs

import (
	"context"
	"fmt"
	"strings"

	"sunbeam.pt/k3s-dualstack/lab/engine"
	"sunbeam.pt/k3s-dualstack/lab/parts"
)

// Names that the lab's name server knows.
const (
	internetName = "internet.lab"
	registryName = "registry.lab"
	// sunbeamName is the lab's host, as the platform's users call it.
	sunbeamName = "sunbeam.lab"
)

// startInternet runs the internet container and fills in what answers there.
func (l *Lab) startInternet(ctx context.Context, shop *parts.Shop, network string, at subnet) error {
	image, err := shop.Internet(ctx)
	if err != nil {
		return err
	}
	var put files
	for name, archiveOf := range map[string]func(context.Context) (string, error){"app": shop.App, "openbao": shop.OpenBao} {
		archive, err := archiveOf(ctx)
		if err != nil {
			return err
		}
		if err := put.addFile("/images/"+name+".tar", 0o644, archive); err != nil {
			return err
		}
	}
	v4, v6 := at.v4(internetIndex), at.v6(internetIndex)
	names := []string{internetName + "=" + v4, internetName + "=" + v6, registryName + "=" + v4}
	for _, name := range []string{sunbeamName, "messages." + sunbeamName} {
		names = append(names, name+"="+at.v4(hostIndex), name+"="+at.v6(hostIndex))
	}
	if err := engine.Run(ctx, "create", "--name", l.InternetContainer, "--hostname", internetName, "--label", label+"="+l.Name,
		"--network", network, "--ip", v4, "--ip6", v6, image, "--names="+strings.Join(names, ",")); err != nil {
		return fmt.Errorf("making the internet container: %w", err)
	}
	if err := put.put(ctx, l.InternetContainer); err != nil {
		return err
	}
	if err := engine.Run(ctx, "start", l.InternetContainer); err != nil {
		return fmt.Errorf("starting the internet container: %w", err)
	}
	l.Internet = Internet{
		IPv4: v4, IPv6: v6,
		URLs:     []string{"http://" + v4 + "/", "http://[" + v6 + "]/", "http://" + internetName + "/"},
		Log:      "http://" + v4 + "/log",
		Names:    []string{internetName, sunbeamName, "messages." + sunbeamName},
		Registry: v4 + ":5000",
	}
	return nil
}
