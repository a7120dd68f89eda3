package survey

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A DNS server and a site of one family, asked for names in every state.
func TestNames(t *testing.T) {
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	server := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		answer := new(dns.Msg).SetReply(q)
		answer.RecursionAvailable = true
		records := map[string]string{
			"both.example. A": "127.0.0.1", "both.example. AAAA": "::1",
			"four.example. A": "127.0.0.1",
		}
		name, kind := strings.ToLower(q.Question[0].Name), dns.TypeToString[q.Question[0].Qtype]
		switch text, ok := records[name+" "+kind]; {
		case ok:
			rr, err := dns.NewRR(name + " 60 IN " + kind + " " + text)
			if assert.NoError(t, err) {
				answer.Answer = []dns.RR{rr}
			}
		case name == "broken.example.":
			answer.Rcode = dns.RcodeServerFailure
		case name == "nobody.example.":
			answer.Rcode = dns.RcodeNameError
		}
		assert.NoError(t, w.WriteMsg(answer))
	})}
	go server.ActivateAndServe()
	t.Cleanup(func() { server.Shutdown() })

	asked := make(chan string, 9)
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Host
		http.Redirect(w, r, "https://elsewhere.example/", http.StatusPermanentRedirect)
	}))
	t.Cleanup(site.Close)
	_, port, err := net.SplitHostPort(site.Listener.Addr().String())
	require.NoError(t, err)

	l := Laptop{Port: port, Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", packets.LocalAddr().String())
	}}}
	got := l.Names(t.Context(), []string{"both.example", "four.example", "nobody.example", "broken.example"})
	// Nobody listens on the other family; how that is refused is the system's to say.
	assert.False(t, Answers(got[0].HTTP6), got[0].HTTP6)
	assert.NotEmpty(t, got[0].HTTP6)
	assert.Contains(t, got[3].Problem, "broken.example")
	got[0].HTTP6, got[3].Problem = "", ""
	want := []Name{
		{Host: "both.example", A: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, AAAA: []netip.Addr{netip.IPv6Loopback()}, HTTP4: "308"},
		{Host: "four.example", A: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, HTTP4: "308"},
		{Host: "nobody.example"}, {Host: "broken.example"},
	}
	same := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if d := cmp.Diff(want, got, same); d != "" {
		t.Error(d)
	}
	if len(asked) != 2 {
		t.Errorf("%d requests", len(asked))
	}
}
