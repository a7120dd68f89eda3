// Command openbao stands in for OpenBao in the lab: HashiCorp Vault 1.14, the last
// line of free licence and the one that OpenBao forked from, put together with as
// much as a migration meets: raft and file storage, KV secrets, Kubernetes and AppRole
// logins. OpenBao's own server is not published as a Go module. It is a Go module of
// its own because Vault pins an unpublished version of its SDK.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/version"
	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "openbao:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "openbao",
		Short:         "A stand-in for OpenBao",
		Version:       version.GetVersion().VersionNumber() + " (a stand-in for OpenBao, made of HashiCorp Vault)",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	var o options
	server := &cobra.Command{
		Use:   "server",
		Short: "Serve until SIGTERM, sealed at first",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return serve(c.Context(), o) },
	}
	flags := server.Flags()
	flags.StringVar(&o.path, "path", "", "`directory` of the data")
	flags.StringVar(&o.storage, "storage", "raft", "kind of storage: raft or file")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:8200", "`address` of the API")
	flags.StringVar(&o.cluster, "cluster", "127.0.0.1:8201", "`address` of the traffic between servers")
	flags.StringVar(&o.host, "host", "127.0.0.1", "`name` by which clients and other servers reach this one")
	flags.StringVar(&o.certificate, "tls-cert", "", "`file` with the certificate; plain HTTP without")
	flags.StringVar(&o.key, "tls-key", "", "`file` with the certificate's key")
	server.MarkFlagsRequiredTogether("tls-cert", "tls-key")
	if err := server.MarkFlagRequired("path"); err != nil {
		panic(err) // the flag's name above
	}
	root.AddCommand(server)
	return root
}

type options struct {
	path, storage         string
	listen, cluster, host string
	certificate, key      string
}

// shutdownTimeout bounds how long requests that run may take after SIGTERM.
const shutdownTimeout = 5 * time.Second

func serve(ctx context.Context, o options) error {
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("listening for the API: %w", err)
	}
	defer listener.Close()
	scheme := "http"
	if o.certificate != "" {
		pair, err := tls.LoadX509KeyPair(o.certificate, o.key)
		if err != nil {
			return fmt.Errorf("loading the certificate: %w", err)
		}
		listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
		scheme = "https"
	}
	logger := hclog.New(&hclog.LoggerOptions{Name: "openbao", Level: hclog.Info})
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return err
	}
	core, handler, err := newCore(o, scheme+"://"+net.JoinHostPort(o.host, port), logger)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, ErrorLog: logger.StandardLogger(nil)}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	logger.Info("serving", "address", listener.Addr().String(), "storage", o.storage, "path", o.path)

	select {
	case err = <-failed:
		err = fmt.Errorf("serving the API: %w", err)
	case <-ctx.Done():
		logger.Info("stopping")
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if err = server.Shutdown(bounded); errors.Is(err, context.DeadlineExceeded) {
			err = server.Close() // who still asks is cut off
		}
	}
	return errors.Join(err, core.Shutdown())
}
