package verify

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// runHere runs a probe script with this machine's shell and curl.
func runHere(t *testing.T, probes []probe) []answer {
	t.Helper()
	for _, tool := range []string{"sh", "curl", "bash", "timeout", "base64"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("this machine has no %s", tool)
		}
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-s")
	cmd.Stdin = strings.NewReader(probeScript(probes))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	answers, err := parseProbes(out, len(probes))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return answers
}

func TestProbeScriptAsAShellRunsIt(t *testing.T) {
	const body = "{\"source\": \"fd30::10\"}\n"
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			w.Write(bytes.Repeat([]byte("x"), 1<<20))
			return
		}
		fmt.Fprint(w, body)
	}))
	defer web.Close()
	_, port, _ := net.SplitHostPort(web.Listener.Addr().String())
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()

	udp, err := net.ListenPacket("udp", "127.0.0.53:53")
	if err != nil {
		udp = nil // needs root, and an address that is free
	}
	question := new(dns.Msg)
	question.SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA)
	packed, err := question.Pack()
	if err != nil {
		t.Fatal(err)
	}
	probes := []probe{
		{url: web.URL + "/", family: IPv4},
		{url: web.URL + "/", family: IPv4, connect: true},
		{url: web.URL + "/large", family: IPv4},
		{url: "http://" + closed.Addr().String() + "/", family: IPv4, connect: true},
		{url: "http://it's a name.example:" + port + "/", family: IPv4},
		{url: "http://name.example:" + port + "/", resolve: "name.example:" + port + ":127.0.0.1", family: IPv4},
		{url: "http://name.example:" + port + "/", resolve: "name.example:" + port + ":127.0.0.1", family: IPv6},
	}
	for range 2 * parallelProbes { // more than one batch
		probes = append(probes, probe{url: web.URL + "/", family: IPv4, connect: true})
	}
	if udp != nil {
		go func() {
			srv := &dns.Server{PacketConn: udp, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
				m := new(dns.Msg).SetReply(q)
				rr, _ := dns.NewRR(q.Question[0].Name + " 5 IN A 10.43.0.1")
				m.Answer = []dns.RR{rr}
				w.WriteMsg(m)
			})}
			srv.ActivateAndServe()
		}()
		defer udp.Close()
		probes = append(probes, probe{server: "127.0.0.53", query: packed, family: IPv4})
	}

	got := runHere(t, probes)
	if a := got[0]; a.exit != 0 || a.connected == 0 || a.code != 200 || string(a.body) != body || a.local != "127.0.0.1" {
		t.Errorf("fetching: %+v", a)
	}
	if a := got[1]; a.connected == 0 || a.code != 200 {
		t.Errorf("connecting: %+v", a)
	}
	if a := got[2]; a.connected == 0 || a.code != 200 || len(a.body) != 2048 {
		t.Errorf("fetching much: %d bytes of %+v", len(a.body), a.code)
	}
	if a := got[3]; a.connected != 0 || !a.refused() || a.words() != "the connection fails: connection refused" {
		t.Errorf("connecting to a closed port: %+v: %s", a, a.words())
	}
	if a := got[4]; a.connected != 0 || a.exit == 0 {
		t.Errorf("a URL with blanks and quotes: %+v", a)
	}
	if a := got[5]; a.code != 200 {
		t.Errorf("a name with its address: %+v", a)
	}
	if a := got[6]; a.connected != 0 {
		t.Errorf("a name that has no address of the family must not be reached over the other: %+v", a)
	}
	for i, a := range got[7 : 7+2*parallelProbes] {
		if a.connected == 0 {
			t.Errorf("probe %d: %+v", i, a)
		}
	}
	if udp != nil {
		reply := new(dns.Msg)
		if err := reply.Unpack(got[len(got)-1].body); err != nil {
			t.Fatalf("the reply over UDP: %v: %+v", err, got[len(got)-1])
		}
		if addresses, words := records(reply, IPv4); len(addresses) != 1 {
			t.Errorf("the reply over UDP has %v %s", addresses, words)
		}
	}
}

func TestParseProbes(t *testing.T) {
	// "@ 0.001 200 10.42.0.7", and "curl: (7) Failed to connect" with "@ 0 000".
	good := "QCAwLjAwMSAyMDAgMTAuNDIuMC43Cg=="
	bad := "Y3VybDogKDcpIEZhaWxlZCB0byBjb25uZWN0CkAgMC4wMDAwMDAgMDAwIAo="
	unreachable := base64.StdEncoding.EncodeToString([]byte("* Immediate connect fail for fd30::20: Network is unreachable\ncurl: (7) Failed to connect\n@ 0.0 000  \n"))
	for _, tc := range []struct {
		name, out, err string
		n              int
		want           []answer
	}{
		{"any order", "probe 1 7 " + bad + " -\nprobe 0 0 " + good + " aGk=\nend 2\n", "", 2, []answer{
			{connected: 0.001, code: 200, local: "10.42.0.7", body: []byte("hi")},
			{exit: 7, message: "Failed to connect"},
		}},
		{"what the system said", "probe 0 7 " + unreachable + " -\nend 1\n", "", 1, []answer{
			{exit: 7, message: "Failed to connect", cause: "Network is unreachable"},
		}},
		{"none", "end 0\n", "", 0, []answer{}},
		{"cut off", "probe 0 0 - -\n", "cut off", 1, nil},
		{"empty", "", "cut off", 1, nil},
		{"end of another script", "end 2\n", "not an answer", 1, nil},
		{"one missing", "probe 0 0 - -\nend 2\n", "probe 1 of 2", 2, nil},
		{"twice", "probe 0 0 - -\nprobe 0 0 - -\nend 1\n", "second answer", 1, nil},
		{"no such probe", "probe 9 0 - -\nend 1\n", "no such probe", 1, nil},
		{"negative", "probe -1 0 - -\nend 1\n", "not a probe's number", 1, nil},
		{"fields", "probe 0 0 -\nend 1\n", "3 fields", 1, nil},
		{"status", "probe 0 x - -\nend 1\n", "not an exit status", 1, nil},
		{"not base64", "probe 0 0 - %%%\nend 1\n", "body", 1, nil},
		{"a shell's complaint", "sh: 12: curl: not found\nend 1\n", "is not an answer", 1, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseProbes([]byte(tc.out), tc.n)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want one with %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(answer{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzParseProbes(f *testing.F) {
	f.Add([]byte("probe 1 7 Y3VybDogKDcpIGEKQCAwIDAwMCAK -\nprobe 0 0 QCAwLjEgMjAwIDo6MQo= aGk=\nend 2\n"), 2)
	f.Add([]byte("end 0\n"), 0)
	f.Add([]byte("probe 0 0 - -\nend 1"), 1)
	f.Fuzz(func(t *testing.T, out []byte, n int) {
		if n < 0 || n > 100 {
			return
		}
		answers, err := parseProbes(out, n)
		if err == nil && len(answers) != n {
			t.Fatalf("%d answers to %d probes, and no error", len(answers), n)
		}
		for _, a := range answers {
			a.words()
			a.refused()
			source(a.body)
		}
	})
}

func TestSource(t *testing.T) {
	for body, want := range map[string]string{
		`{"source":"fd30::10","family":"IPv6"}`: "fd30::10",
		`{"ip":"192.0.2.7"}`:                    "192.0.2.7",
		`{"origin": "192.0.2.7"}`:               "192.0.2.7",
		"2001:db8::1\n":                         "2001:db8::1",
		"192.0.2.7":                             "192.0.2.7",
		"::ffff:192.0.2.7":                      "192.0.2.7",
		"[2001:db8::1]:443":                     "2001:db8::1",
		"<html>":                                "",
		"":                                      "",
		`{"source": 4}`:                         "",
		`["192.0.2.7"]`:                         "",
	} {
		got, ok := source([]byte(body))
		if ok != (want != "") || ok && got != netip.MustParseAddr(want) {
			t.Errorf("source(%q) = %v, %v; want %q", body, got, ok, want)
		}
	}
}

func TestLimited(t *testing.T) {
	l := limited{limit: 4}
	if _, err := l.Write([]byte("1234")); err != nil {
		t.Error(err)
	}
	if _, err := l.Write([]byte("5")); err == nil {
		t.Error("more than the limit was taken")
	}
}
