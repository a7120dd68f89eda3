package main

import (
	"encoding/json"
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestWebTellsAndRecordsTheSource(t *testing.T) {
	handler := newWeb()
	for remote, want := range map[string][2]string{
		"172.30.0.10:4242":        {"172.30.0.10", "IPv4"},
		"[::ffff:10.42.0.7]:4242": {"10.42.0.7", "IPv4"},
		"[fd30::10]:4242":         {"fd30::10", "IPv6"},
	} {
		request := httptest.NewRequest("GET", "/probe", nil)
		request.RemoteAddr = remote
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		var got map[string]string
		if err := json.Unmarshal(answer.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if got["source"] != want[0] || got["family"] != want[1] {
			t.Errorf("from %s: got %v, want %v", remote, got, want)
		}
	}
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, httptest.NewRequest("GET", "/log", nil))
	if lines := strings.Count(answer.Body.String(), "\n"); lines != 3 {
		t.Errorf("the log has %d lines, want 3:\n%s", lines, answer.Body)
	}
	if strings.Contains(answer.Body.String(), `"/log"`) {
		t.Error("reading the log is itself in the log")
	}
}

type wire struct {
	dns.ResponseWriter
	reply *dns.Msg
}

func (w *wire) WriteMsg(m *dns.Msg) error { w.reply = m; return nil }

func TestZone(t *testing.T) {
	z, err := parseZone("internet.lab=172.30.0.20,internet.lab=fd30::20,v4.lab=10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		kind    uint16
		rcode   int
		address string
	}{
		{"Internet.lab.", dns.TypeA, dns.RcodeSuccess, "172.30.0.20"},
		{"internet.lab.", dns.TypeAAAA, dns.RcodeSuccess, "fd30::20"},
		{"v4.lab.", dns.TypeAAAA, dns.RcodeSuccess, ""}, // NODATA, not NXDOMAIN
		{"elsewhere.", dns.TypeA, dns.RcodeNameError, ""},
	} {
		w := &wire{}
		z.ServeDNS(w, new(dns.Msg).SetQuestion(c.name, c.kind))
		var got string
		for _, record := range w.reply.Answer {
			switch r := record.(type) {
			case *dns.A:
				got = r.A.String()
			case *dns.AAAA:
				got = net.IP(r.AAAA).String()
			}
		}
		if w.reply.Rcode != c.rcode || got != c.address {
			t.Errorf("%s %d: got %s %q", c.name, c.kind, dns.RcodeToString[w.reply.Rcode], got)
		}
	}
	if _, err := parseZone("internet.lab=nowhere"); err == nil {
		t.Error("accepted an address that is none")
	}
}
