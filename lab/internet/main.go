// Command internet plays the world outside a lab's host: an HTTP server that tells and
// records who called, a registry with the platform's images, and a name server
// for the names under .lab. It runs in a container of its own, without a route to the
// pod ranges, so that a pod is answered only when its address was masqueraded.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/miekg/dns"
)

func main() {
	images := flag.String("images", "/images", "directory of image archives that the registry serves under their own names")
	names := flag.String("names", "", "NAME=ADDRESS,… that the name server knows")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *images, *names); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, images, names string) error {
	zone, err := parseZone(names)
	if err != nil {
		return err
	}
	failed := make(chan error, 4)
	serve := func(what string, run func() error) {
		go func() { failed <- fmt.Errorf("%s: %w", what, run()) }()
	}
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	serve("registry", func() error { return http.ListenAndServe(":5000", store) })
	for _, network := range []string{"udp", "tcp"} {
		serve("name server", func() error { return dns.ListenAndServe(":53", network, zone) })
	}
	if err := fill(ctx, images, "127.0.0.1:5000"); err != nil {
		return err
	}
	// The web server starts last: that it answers says that all is ready.
	serve("web server", func() error { return http.ListenAndServe(":80", newWeb()) })
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// fill pushes archives into the registry. An image registry.lab/a/b:1 is a/b:1 there.
func fill(ctx context.Context, dir, address string) error {
	archives, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil {
		return err
	}
	for _, archive := range archives {
		manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(archive) })
		if err != nil {
			return fmt.Errorf("reading %s: %w", archive, err)
		}
		for _, entry := range manifest {
			for _, tag := range entry.RepoTags {
				if err := push(ctx, archive, tag, address); err != nil {
					return fmt.Errorf("serving %s of %s: %w", tag, archive, err)
				}
			}
		}
	}
	return nil
}

func push(ctx context.Context, archive, tag, address string) error {
	from, err := name.NewTag(tag)
	if err != nil {
		return err
	}
	image, err := tarball.ImageFromPath(archive, &from)
	if err != nil {
		return err
	}
	to, err := name.NewTag(address+"/"+from.RepositoryStr()+":"+from.TagStr(), name.Insecure)
	if err != nil {
		return err
	}
	for attempt := 0; ; attempt++ {
		err := remote.Write(to, image, remote.WithContext(ctx))
		if err == nil || attempt == 20 || !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		time.Sleep(50 * time.Millisecond) // the registry has only just been started
	}
}

// seen is one request, as its source looked from here.
type seen struct {
	Time   time.Time `json:"time"`
	Source string    `json:"source"`
	Family string    `json:"family"`
	Method string    `json:"method"`
	Host   string    `json:"host"`
	Path   string    `json:"path"`
}

// most bounds the record: enough for any test, and little memory.
const most = 10_000

// web tells each caller its source address, and keeps a record.
type web struct {
	mu       sync.Mutex
	requests []seen
}

func newWeb() http.Handler {
	w := &web{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /log", w.log)
	mux.HandleFunc("/", w.answer)
	return mux
}

func (s *web) answer(w http.ResponseWriter, r *http.Request) {
	source, family := caller(r.RemoteAddr)
	s.mu.Lock()
	if len(s.requests) == most {
		s.requests = s.requests[1:]
	}
	s.requests = append(s.requests, seen{time.Now().UTC(), source, family, r.Method, r.Host, r.URL.Path})
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"source": source, "family": family})
}

func (s *web) log(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	requests := append([]seen(nil), s.requests...)
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-ndjson")
	encoder := json.NewEncoder(w)
	for _, request := range requests {
		if encoder.Encode(request) != nil {
			return // the reader went away
		}
	}
}

func caller(remote string) (source, family string) {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote, "unknown"
	}
	address, err := netip.ParseAddr(host)
	if err != nil {
		return host, "unknown"
	}
	if address = address.Unmap(); address.Is4() {
		return address.String(), "IPv4"
	}
	return address.WithZone("").String(), "IPv6"
}

// zone answers A and AAAA for the names it knows, and NXDOMAIN for all others: the
// lab has no way to the real internet.
type zone map[string][]netip.Addr

func parseZone(text string) (zone, error) {
	z := zone{}
	for pair := range strings.SplitSeq(text, ",") {
		if pair == "" {
			continue
		}
		host, value, _ := strings.Cut(pair, "=")
		address, err := netip.ParseAddr(value)
		if err != nil {
			return nil, fmt.Errorf("reading the name %q: %w", pair, err)
		}
		key := dns.CanonicalName(host)
		z[key] = append(z[key], address)
	}
	return z, nil
}

func (z zone) ServeDNS(w dns.ResponseWriter, request *dns.Msg) {
	reply := new(dns.Msg).SetReply(request)
	reply.Authoritative, reply.RecursionAvailable = true, true
	for _, question := range request.Question {
		addresses, known := z[dns.CanonicalName(question.Name)]
		if !known {
			reply.Rcode = dns.RcodeNameError
		}
		for _, address := range addresses {
			header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: 5}
			switch {
			case question.Qtype == dns.TypeA && address.Is4():
				reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: address.AsSlice()})
			case question.Qtype == dns.TypeAAAA && address.Is6():
				reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: header, AAAA: address.AsSlice()})
			}
		}
	}
	_ = w.WriteMsg(reply)
}
