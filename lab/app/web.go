package main

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"

	"github.com/spf13/cobra"
)

// answer is what a web service says: who answered, and whom it saw.
type answer struct {
	Service   string   `json:"service"`
	Pod       string   `json:"pod"`
	Addresses []string `json:"addresses"`
	Source    string   `json:"source"`
	Forwarded string   `json:"forwarded,omitempty"`
}

func webCommand() *cobra.Command {
	var listen, service string
	c := &cobra.Command{
		Use:   "web",
		Short: "A web service that answers with its own addresses, on both families",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return serve(c.Context(), &http.Server{Addr: listen, Handler: web(service)})
		},
	}
	c.Flags().StringVar(&listen, "listen", ":8080", "address to listen on")
	c.Flags().StringVar(&service, "name", "web", "what it calls itself")
	return c
}

func web(service string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", health)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		pod, _ := os.Hostname() // informative only
		source, _, _ := net.SplitHostPort(r.RemoteAddr)
		w.Header().Set("Content-Type", "application/json")
		_ = writeJSON(w, answer{service, pod, addresses(), source, r.Header.Get("X-Forwarded-For")})
	})
	return mux
}

func proxyCommand() *cobra.Command {
	var listen []string
	var secure, certificate, key, to string
	c := &cobra.Command{
		Use:   "proxy",
		Short: "A web proxy in front of one service, with TLS",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			target, err := url.Parse(to)
			if err != nil {
				return err
			}
			// No connection is kept, so that an address of the service that has
			// changed is noticed with the next request.
			handler := proxy(target, &http.Transport{DisableKeepAlives: true})
			var servers []*http.Server
			for _, address := range listen {
				servers = append(servers, &http.Server{Addr: address, Handler: handler})
			}
			if secure != "" {
				pair, err := tls.LoadX509KeyPair(certificate, key)
				if err != nil {
					return err
				}
				servers = append(servers, &http.Server{Addr: secure, Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}}})
			}
			return serve(c.Context(), servers...)
		},
	}
	flags := c.Flags()
	flags.StringSliceVar(&listen, "listen", []string{":80"}, "addresses to listen on")
	flags.StringVar(&secure, "listen-tls", "", "address to listen on with TLS")
	flags.StringVar(&certificate, "certificate", "", "certificate file")
	flags.StringVar(&key, "key", "", "key file")
	flags.StringVar(&to, "to", "", "URL of the service behind")
	return c
}

func proxy(target *url.URL, transport http.RoundTripper) http.Handler {
	forward := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded()
		},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", health)
	mux.Handle("/", forward)
	return mux
}
