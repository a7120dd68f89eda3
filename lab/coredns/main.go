// Command coredns is CoreDNS with the plugins of K3s's Corefile and no others:
// the full set takes several times as long to build.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
)

func main() {
	// The order in which a query passes the plugins; CoreDNS's own plugin.cfg
	// has the same, with those left out that are not built in.
	dnsserver.Directives = []string{
		"health", "ready", "reload", "prometheus", "errors", "loadbalance",
		"cache", "hosts", "kubernetes", "loop", "forward",
	}
	coremain.Run()
}
