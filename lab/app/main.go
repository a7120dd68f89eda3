// Command app is every workload of the lab's platform in one static program: a web proxy, web
// services, a store with data worth keeping, a client that talks to them, and the probes
// that tests run inside pods.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func main() {
	log.SetFlags(log.LstdFlags | log.LUTC)
	// PID 1 has no default handlers: without this, SIGTERM would do nothing until the
	// kubelet's patience ends.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{Use: "app", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(webCommand(), proxyCommand(), storeCommand(), clientCommand(), getCommand(), lookupCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		log.Fatal(err)
	}
}

// serve runs HTTP servers until the context ends.
func serve(ctx context.Context, servers ...*http.Server) error {
	failed := make(chan error, len(servers))
	for _, server := range servers {
		go func() {
			if server.TLSConfig != nil {
				failed <- server.ListenAndServeTLS("", "")
			} else {
				failed <- server.ListenAndServe()
			}
		}()
	}
	select {
	case <-ctx.Done():
		for _, server := range servers {
			_ = server.Close() // leaving fast matters more than a last answer
		}
		return nil
	case err := <-failed:
		return err
	}
}

// health answers probes.
func health(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }

func writeJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// addresses are this pod's own, without loopback and link-local ones.
func addresses() []string {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var list []string
	for _, entry := range found {
		prefix, err := netip.ParsePrefix(entry.String())
		if err == nil && prefix.Addr().IsGlobalUnicast() {
			list = append(list, prefix.Addr().String())
		}
	}
	return list
}

// client makes an HTTP client that uses one family only ("4", "6"), or any ("").
func client(family string) *http.Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, // each request resolves and connects anew
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, network+family, address)
		},
	}}
}

func getCommand() *cobra.Command {
	var four, six bool
	c := &cobra.Command{
		Use:   "get URL",
		Short: "Print what a URL answers; -4 and -6 choose the family",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			family := ""
			switch {
			case four && six:
				return errors.New("-4 and -6 exclude each other")
			case four:
				family = "4"
			case six:
				family = "6"
			}
			return get(c.Context(), client(family), args[0], c.OutOrStdout())
		},
	}
	c.Flags().BoolVarP(&four, "ipv4", "4", false, "over IPv4 only")
	c.Flags().BoolVarP(&six, "ipv6", "6", false, "over IPv6 only")
	return c
}

func get(ctx context.Context, client *http.Client, url string, out io.Writer) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(out, io.LimitReader(response.Body, 1<<20)); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, response.Status)
	}
	return nil
}

func lookupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "lookup NAME",
		Short: "Print the addresses of a name, one on a line",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			found, err := net.DefaultResolver.LookupNetIP(c.Context(), "ip", args[0])
			if err != nil {
				return err
			}
			for _, address := range found {
				fmt.Fprintln(c.OutOrStdout(), address.Unmap())
			}
			return nil
		},
	}
}

func clientCommand() *cobra.Command {
	var urls []string
	var every time.Duration
	c := &cobra.Command{
		Use:   "client",
		Short: "Ask URLs again and again, and log each change between answer and failure",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			last := map[string]string{}
			ask := client("")
			for {
				for _, url := range urls {
					outcome := "answers"
					if err := get(c.Context(), ask, url, io.Discard); err != nil {
						outcome = err.Error()
					}
					if last[url] != outcome {
						log.Printf("%s: %s", url, outcome)
						last[url] = outcome
					}
				}
				select {
				case <-c.Context().Done():
					return nil
				case <-time.After(every):
				}
			}
		},
	}
	c.Flags().StringSliceVar(&urls, "to", nil, "URLs to ask")
	c.Flags().DurationVar(&every, "every", 5*time.Second, "how often")
	return c
}
