package verify

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"sunbeam.pt/k3s-dualstack/remote"
)

// A pod's images need not hold any tool, so probes are made with the host's: curl is started in the pod's
// network namespace (nsenter -n) and the host's everything else. One script holds all probes of one pod; it
// goes through standard input, so its length has no limit, and answers in lines that parseProbes reads.

// probe is one connection attempt.
type probe struct {
	url     string // http or https; the address in it, or resolve, decides the family
	resolve string // "host:port:address" for curl, when the URL has a name; empty otherwise
	family  string
	connect bool   // only the TCP connection matters: HEAD, and whatever comes back is good
	server  string // not empty: a DNS query over UDP to this address instead of a URL
	query   []byte // the query, a DNS message
}

// answer is what became of a probe.
type answer struct {
	exit      int     // curl's exit status
	connected float64 // seconds until the TCP connection stood; 0 when it never did
	code      int     // HTTP status; 0 without an answer
	local     string  // source address of the connection
	message   string  // curl's words for a failure
	cause     string  // the system's words for a connection that failed, as curl -v tells them
	body      []byte  // the first 2048 bytes
}

// Time limits of a probe in seconds. A pod, a Service and a DNS server answer in milliseconds; a site far away may take some seconds.
const (
	connectSeconds = 3
	connectTotal   = 4
	fetchConnect   = 5
	fetchTotal     = 10
	// parallelProbes bounds how many probes of one pod run at once, so that dead addresses do not add up their timeouts.
	parallelProbes = 16
)

// preamble defines the probes in POSIX sh. Standard input of the shell is the script itself, so every program
// that could read it gets another. Output is cut so that each line fits into one atomic write to a pipe (4096 bytes).
const preamble = `set -u
export LC_ALL=C
unset http_proxy https_proxy all_proxy HTTPS_PROXY ALL_PROXY
d=$(mktemp -d) || exit 1
trap 'rm -rf "$d"' EXIT
encode() { t=$(head -c "$1" | base64 | tr -d '\n'); printf %s "${t:--}"; }
words() { grep -E '^(curl|bash|timeout|sh|@)|^\* (connect to .* failed:|Immediate connect fail)' "$1" | tail -n 5 | encode 900; }
fetch() {
	id=$1; shift
	body=$( { curl -q -sSv --noproxy '*' "$@" -w '%{stderr}\n@ %{time_connect} %{http_code} %{local_ip}\n' </dev/null 2>"$d/$id.e"; echo $? >"$d/$id.x"; } | encode 2048)
	printf 'probe %s %s %s %s\n' "$id" "$(cat "$d/$id.x")" "$(words "$d/$id.e")" "$body"
}
ask() {
	id=$1
	printf "$3" >"$d/$id.q"
	body=$(timeout 4 bash -c 'exec 3<>"/dev/udp/$0/53" && cat "$1" >&3 && dd bs=4096 count=1 <&3 2>/dev/null' "$2" "$d/$id.q" </dev/null 2>"$d/$id.e" | encode 2048)
	printf 'probe %s 0 %s %s\n' "$id" "$(words "$d/$id.e")" "$body"
}
`

// probeScript is the shell script that makes the probes; their place in the slice is their number.
func probeScript(probes []probe) string {
	var b strings.Builder
	b.WriteString(preamble)
	for i, p := range probes {
		if p.server != "" {
			fmt.Fprintf(&b, "ask %d %s %s &\n", i, remote.Quote(p.server), remote.Quote(octal(p.query)))
		} else {
			args := []string{"--connect-timeout", strconv.Itoa(fetchConnect), "--max-time", strconv.Itoa(fetchTotal)}
			if p.connect {
				args = []string{"--connect-timeout", strconv.Itoa(connectSeconds), "--max-time", strconv.Itoa(connectTotal), "--head"}
			}
			args = append(args, "-"+strings.TrimPrefix(p.family, "IPv"), "--globoff")
			if p.resolve != "" {
				args = append(args, "--resolve", p.resolve)
			}
			fmt.Fprintf(&b, "fetch %d %s &\n", i, remote.Quote(append(args, p.url)...))
		}
		if i%parallelProbes == parallelProbes-1 {
			b.WriteString("wait\n")
		}
	}
	fmt.Fprintf(&b, "wait\necho end %d\n", len(probes))
	return b.String()
}

// octal writes bytes as printf's octal escapes, the one form that every shell's printf reads.
func octal(data []byte) string {
	var b strings.Builder
	for _, c := range data {
		fmt.Fprintf(&b, `\%03o`, c)
	}
	return b.String()
}

// parseProbes reads what a probe script wrote: n answers, in any order, closed by a line that says that the script ran to its end.
func parseProbes(out []byte, n int) ([]answer, error) {
	answers := make([]answer, n)
	seen := make([]bool, n)
	ended := false
	for line := range bytes.Lines(out) {
		f := strings.Fields(string(line))
		switch {
		case len(f) == 0:
		case f[0] == "end" && len(f) == 2 && f[1] == strconv.Itoa(n):
			ended = true
		case f[0] == "probe":
			id, a, err := parseProbe(f[1:])
			if err != nil {
				return nil, fmt.Errorf("probe output: line %q: %w", trim(string(line)), err)
			}
			if id >= n || seen[id] {
				return nil, fmt.Errorf("probe output: line %q: no such probe, or its second answer", trim(string(line)))
			}
			seen[id], answers[id] = true, a
		default:
			return nil, fmt.Errorf("probe output: line %q is not an answer", trim(string(line)))
		}
	}
	if !ended {
		return nil, fmt.Errorf("probe output: it is cut off; the script on the host did not run to its end")
	}
	for id, s := range seen {
		if !s {
			return nil, fmt.Errorf("probe output: probe %d of %d has no answer", id, n)
		}
	}
	return answers, nil
}

// parseProbe reads the fields after "probe": number, exit status, standard error and body, the last two in base64, or "-" when empty.
func parseProbe(f []string) (int, answer, error) {
	if len(f) != 4 {
		return 0, answer{}, fmt.Errorf("%d fields instead of 4", len(f))
	}
	id, err := strconv.Atoi(f[0])
	if err != nil || id < 0 {
		return 0, answer{}, fmt.Errorf("%q is not a probe's number", f[0])
	}
	a := answer{}
	if a.exit, err = strconv.Atoi(f[1]); err != nil {
		return 0, answer{}, fmt.Errorf("%q is not an exit status", f[1])
	}
	text, err := decode(f[2])
	if err != nil {
		return 0, answer{}, fmt.Errorf("standard error: %w", err)
	}
	if a.body, err = decode(f[3]); err != nil {
		return 0, answer{}, fmt.Errorf("body: %w", err)
	}
	for l := range strings.Lines(string(text)) {
		l = strings.TrimSpace(l)
		if attempt, ok := strings.CutPrefix(l, "* "); ok {
			a.cause = strings.TrimSpace(attempt[strings.LastIndex(attempt, ": ")+1:])
		} else if m := strings.Fields(l); len(m) > 2 && m[0] == "@" {
			a.connected, _ = strconv.ParseFloat(m[1], 64)
			a.code, _ = strconv.Atoi(m[2])
			if len(m) > 3 {
				a.local = m[3]
			}
		} else if l != "" && a.message == "" {
			a.message = strings.TrimSpace(strings.TrimPrefix(l, fmt.Sprintf("curl: (%d)", a.exit)))
		}
	}
	return id, a, nil
}

// decode reads base64, with "-" for nothing.
func decode(s string) ([]byte, error) {
	if s == "-" {
		return nil, nil
	}
	return base64.StdEncoding.DecodeString(s)
}

// trim shortens foreign text for an error message.
func trim(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 120 {
		s = s[:120] + "…"
	}
	return s
}

// refused tells whether something answered for the address, and said no.
func (a answer) refused() bool {
	return a.connected == 0 && a.exit == 7 && (a.cause == "Connection refused" || strings.Contains(a.message, "Connection refused"))
}

// words tells a failure.
func (a answer) words() string {
	switch {
	case a.exit == 28 && a.connected == 0:
		return "the connection times out"
	case a.connected == 0 && a.cause != "":
		return "the connection fails: " + strings.ToLower(a.cause[:1]) + a.cause[1:]
	case a.message != "":
		return a.message
	default:
		return fmt.Sprintf("curl ends with status %d", a.exit)
	}
}

// source reads the address that the target says it saw: plain text, or JSON with one of the usual keys.
func source(body []byte) (netip.Addr, bool) {
	text := strings.TrimSpace(string(body))
	var object map[string]any
	if json.Unmarshal([]byte(text), &object) == nil {
		text = ""
		for _, key := range []string{"source", "ip", "origin"} {
			if v, ok := object[key].(string); ok {
				text = strings.TrimSpace(v)
				break
			}
		}
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if a, err := netip.ParseAddrPort(text); err == nil {
		return a.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

// probePod makes the probes in the network namespace of the process; process 0 stands for the host's own.
func probePod(ctx context.Context, h site, pid int, probes []probe) ([]answer, error) {
	if len(probes) == 0 {
		return nil, nil
	}
	command := "sh -s"
	if pid > 0 {
		command = "nsenter -t " + strconv.Itoa(pid) + " -n sh -s"
	}
	// 3700 bytes a line at most.
	out := limited{limit: 4096 * (len(probes) + 1)}
	if err := h.run(ctx, command, strings.NewReader(probeScript(probes)), &out); err != nil {
		return nil, fmt.Errorf("probing from process %d on %s: %w", pid, h.name, err)
	}
	return parseProbes(out.Bytes(), len(probes))
}

// limited keeps what a host writes, up to a limit, so that a host gone mad does not fill the laptop's memory.
type limited struct {
	bytes.Buffer
	limit int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > l.limit {
		return 0, fmt.Errorf("the host wrote more than %d bytes", l.limit)
	}
	return l.Buffer.Write(p)
}
