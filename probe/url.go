package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
)

// URL are the targets of a URL: one for each family in which its host can have an address. It
// is asked from this machine, past any proxy.
//
// Up is what answers below 500, with a redirect or a refusal too. Certificates are not
// checked: one that has expired is bad, but the way to the site is open.
func URL(text string) ([]Target, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("watching %s: %w", text, err)
	}
	families := []string{IPv4, IPv6}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && a.Unmap().Is4() {
		families = []string{IPv4}
	} else if err == nil {
		families = []string{IPv6}
	}
	var targets []Target
	for _, family := range families {
		targets = append(targets, Target{Name: text, Family: family, Check: get(text, family)})
	}
	return targets, nil
}

// get asks a URL over one family, with a new connection each time.
func get(text, family string) func(context.Context) error {
	network := map[string]string{IPv4: "tcp4", IPv6: "tcp6"}[family]
	var dialer net.Dialer
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				return dialer.DialContext(ctx, network, address)
			},
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, text, nil)
		if err != nil {
			return err
		}
		request.Header.Set("User-Agent", "k3s-dualstack")
		answer, err := client.Do(request)
		if err != nil {
			return explain(err, family)
		}
		answer.Body.Close()
		if answer.StatusCode >= http.StatusInternalServerError {
			return fmt.Errorf("HTTP %d", answer.StatusCode)
		}
		return nil
	}
}

// explain tells what is wrong with the target from what is wrong with this machine or with DNS.
func explain(err error, family string) error {
	var (
		name    *net.DNSError
		address *net.AddrError
		op      *net.OpError
		outer   *url.Error
		errno   syscall.Errno
	)
	switch {
	case errors.As(err, &name) && name.IsNotFound, errors.As(err, &address):
		return ErrAbsent
	case errors.As(err, &name):
		return &UnknownError{Why: "DNS did not answer"}
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL):
		return &UnknownError{Why: "this machine has no way to it over " + family}
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case errors.As(err, &op) && errors.As(err, &errno):
		return errno
	case errors.As(err, &outer):
		return outer.Err
	}
	return err
}
