package survey

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Name is one of the plan's hostnames as the laptop sees it.
type Name struct {
	Host string       `json:"host"`
	A    []netip.Addr `json:"a,omitempty"`
	AAAA []netip.Addr `json:"aaaa,omitempty"`
	// Problem is what kept DNS from answering; that there is no such name or
	// address is an answer.
	Problem string `json:"problem,omitempty"`
	// HTTP4 and HTTP6 are what a plain request was answered with over each family:
	// a status, or an error; empty where there was no address to ask.
	HTTP4 string `json:"http4,omitempty"`
	HTTP6 string `json:"http6,omitempty"`
}

// lookAround bounds what is asked of the internet.
const lookAround = 5 * time.Second

// Laptop asks DNS and the sites, from where migrate runs.
type Laptop struct {
	Resolver *net.Resolver // nil: the system's
	Port     string        // of the sites; "" is http's
}

// Names looks the hostnames up and asks each family of their addresses. It takes
// some seconds at most, whatever does not answer.
func (l Laptop) Names(ctx context.Context, hostnames []string) []Name {
	ctx, cancel := context.WithTimeout(ctx, lookAround)
	defer cancel()
	out := make([]Name, len(hostnames))
	var wait sync.WaitGroup
	for i, host := range hostnames {
		wait.Go(func() { out[i] = l.name(ctx, host) })
	}
	wait.Wait()
	return out
}

func (l Laptop) name(ctx context.Context, host string) Name {
	n := Name{Host: host}
	resolver := l.Resolver
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	lookUp := func(network string) []netip.Addr {
		// Rooted, or a search domain could answer in its place.
		addrs, err := resolver.LookupNetIP(ctx, network, host+".")
		var gone *net.DNSError
		if err != nil && !(errors.As(err, &gone) && gone.IsNotFound) {
			n.Problem = err.Error()
		}
		for i := range addrs {
			addrs[i] = addrs[i].Unmap()
		}
		return addrs
	}
	n.A, n.AAAA = lookUp("ip4"), lookUp("ip6")
	var wait sync.WaitGroup
	wait.Go(func() { n.HTTP4 = l.ask(ctx, host, n.A) })
	wait.Go(func() { n.HTTP6 = l.ask(ctx, host, n.AAAA) })
	wait.Wait()
	return n
}

// ask makes a plain request to the first of a name's addresses. Whatever answers
// is enough: a redirect to https as well.
func (l Laptop) ask(ctx context.Context, host string, at []netip.Addr) string {
	if len(at) == 0 {
		return ""
	}
	port := l.Port
	if port == "" {
		port = "80"
	}
	var dialer net.Dialer
	client := http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", net.JoinHostPort(at[0].String(), port))
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, "http://"+host+"/", nil)
	if err != nil {
		return err.Error()
	}
	answer, err := client.Do(request)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			return op.Error()
		}
		return err.Error()
	}
	answer.Body.Close()
	return strconv.Itoa(answer.StatusCode)
}

// Answers tells whether a request was answered.
func Answers(http string) bool {
	_, err := strconv.Atoi(http)
	return err == nil
}
