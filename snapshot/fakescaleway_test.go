package snapshot

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"sunbeam.pt/k3s-dualstack/plans"
)

// What the fake knows.
const (
	fakeZone   = "fr-par-2"
	fakeID     = "11111111-2222-4333-8444-555555555555"
	fakeNumber = "101674"
	fakeSecret = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
	fakeAccess = "SCWABCDEFGHJKLMNPQRS"
)

// fakeScaleway is a FAKE of those routes of Scaleway's API that the methods use, after the API's documentation and
// scaleway-sdk-go v1.39.0 (instance/v1, block/v1, baremetal/v1, dedibox/v1): paths, bodies, states and the error bodies
// that the SDK understands. Whatever takes time takes [fakeScaleway.slow] looks. It has one server of each product in one
// zone, and one [fakeMachine] that all of them are.
type fakeScaleway struct {
	*httptest.Server
	machine *fakeMachine
	slow    int // looks until a state has changed
	stuck   bool

	mu       sync.Mutex
	requests []string
	faults   []fault
	at       func(n int) // called with the number of every request, before it is answered

	state, bootType string // of all servers; bootType of the dedicated ones
	next            func() // what the state that is on its way brings about
	left            int
	password        string
	volumes         map[string]string // of the Instance: ID by slot
	resources       map[string]*fakeResource
	made            int
}

// fakeResource is a volume or a snapshot.
type fakeResource struct {
	ID, Name, Kind, State, Becomes, Of string
	Block, Snapshot                    bool
	Tags                               []string
	left                               int
}

// fault answers requests otherwise than they should be: those with the method whose path ends so.
type fault struct {
	method, suffix string
	times          int
	status         int
	body           string
	header         map[string]string
	after          bool // done, and the answer is lost
}

const rateLimited = `{"type":"too_many_requests","message":"rate limit exceeded"}`

func newFakeScaleway(t testing.TB) *fakeScaleway {
	f := &fakeScaleway{slow: 2, state: "ready", bootType: "normal", machine: newFakeMachine(t), volumes: map[string]string{"0": "vol-root", "1": "vol-data"}, resources: map[string]*fakeResource{
		"vol-root": {ID: "vol-root", Name: "root", Kind: "sbs_volume", State: "in_use", Block: true},
		"vol-data": {ID: "vol-data", Name: "data", Kind: "l_ssd", State: "available"},
	}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	t.Setenv("SCW_API_URL", f.URL)
	t.Setenv("SCW_ACCESS_KEY", fakeAccess)
	t.Setenv("SCW_SECRET_KEY", fakeSecret)
	t.Setenv("SCW_CONFIG_PATH", filepath.Join(t.TempDir(), "none"))
	t.Setenv("SCW_PROFILE", "")
	return f
}

func (f *fakeScaleway) fail(x fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, x)
}

func (f *fakeScaleway) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

// writes are the requests that were not only to look.
func (f *fakeScaleway) writes() (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if !strings.HasPrefix(r, "GET ") {
			out = append(out, r)
		}
	}
	return out
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if text, ok := body.(string); ok {
		io.WriteString(w, text)
		return
	}
	_ = json.NewEncoder(w).Encode(body)
}

func (f *fakeScaleway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r.Method+" "+r.URL.Path)
	n, at := len(f.requests), f.at
	f.mu.Unlock()
	if at != nil {
		at(n)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Header.Get("X-Auth-Token") != fakeSecret {
		answer(w, 401, `{"type":"denied_authentication","method":"api_key","reason":"not_found","message":"authentication is denied"}`)
		return
	}
	for i := range f.faults {
		x := &f.faults[i]
		if x.times == 0 || x.method != r.Method || !strings.HasSuffix(r.URL.Path, x.suffix) {
			continue
		}
		x.times--
		if x.after {
			f.serve(httptest.NewRecorder(), r)
		}
		for k, v := range x.header {
			w.Header().Set(k, v)
		}
		answer(w, x.status, x.body)
		return
	}
	f.serve(w, r)
}

// pass lets time go by for the server.
func (f *fakeScaleway) pass() {
	if f.next == nil || f.stuck {
		return
	}
	if f.left--; f.left <= 0 {
		next := f.next
		f.next = nil
		next()
	}
}

// towards puts the server on its way to another state.
func (f *fakeScaleway) towards(now string, then func()) {
	f.state, f.next, f.left = now, then, f.slow
}

func (f *fakeScaleway) serve(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/") // api v1 zones <zone> kind …
	if len(parts) < 5 || parts[3] != fakeZone {
		answer(w, 404, `{"type":"not_found","resource":"server","resource_id":"`+fakeID+`","message":"resource is not found"}`)
		return
	}
	var body map[string]any
	_ = json.NewDecoder(r.Body).Decode(&body)
	rest := parts[5:]
	if len(rest) > 0 && parts[4] == "servers" && rest[0] != fakeID && rest[0] != fakeNumber {
		if parts[0] == "instance" { // which has bodies of its own
			answer(w, 404, `{"type":"unknown_resource","message":"Server \"`+rest[0]+`\" not found"}`)
			return
		}
		answer(w, 404, `{"type":"not_found","resource":"server","resource_id":"`+rest[0]+`","message":"resource is not found"}`)
		return
	}
	switch parts[0] + " " + parts[4] {
	case "baremetal servers":
		f.baremetal(w, r, rest, body)
	case "dedibox servers":
		f.dedibox(w, r, rest)
	case "dedibox os":
		answer(w, 200, map[string]any{"total_count": 2, "os": []any{map[string]any{"id": 7, "name": "WinPE", "type": "rescue"}, map[string]any{"id": 8, "name": "Ubuntu 24.04 amd64", "type": "rescue"}}})
	case "instance servers":
		f.instance(w, r, rest, body)
	default:
		f.storage(w, r, parts[0] == "block", parts[4] == "snapshots", rest, body)
	}
}

const transient = `{"type":"transient_state","resource":"server","resource_id":"` + fakeID + `","current_state":"starting","message":"resource is in a transient state"}`

func (f *fakeScaleway) rescued() {
	f.password = fmt.Sprintf("Rescue-Pa55 %d", f.count0())
	f.machine.start("rescue", f.password)
}

func (f *fakeScaleway) count0() int { f.made++; return f.made }

func (f *fakeScaleway) baremetal(w http.ResponseWriter, r *http.Request, rest []string, body map[string]any) {
	if r.Method == "GET" {
		f.pass()
	} else {
		if f.next != nil {
			answer(w, 409, transient)
			return
		}
		kind := body["boot_type"].(string)
		f.machine.start("", "")
		f.towards("starting", func() {
			f.state, f.bootType = "ready", kind
			if kind == "rescue" {
				f.rescued()
			} else {
				f.machine.start("own", "")
			}
		})
	}
	s := map[string]any{"id": fakeID, "status": f.state, "boot_type": f.bootType, "zone": fakeZone, "ips": []any{map[string]any{"address": "10.0.0.1", "version": "IPv4"}, map[string]any{"address": "127.0.0.1", "version": "IPv4"}}}
	if f.bootType == "rescue" {
		s["rescue_server"] = map[string]any{"user": f.machine.user, "password": f.password}
	}
	answer(w, 200, s)
}

func (f *fakeScaleway) dedibox(w http.ResponseWriter, r *http.Request, rest []string) {
	rescue := len(rest) == 2 && rest[1] == "rescue"
	switch {
	case r.Method == "GET" && rescue && f.state == "rescue":
		answer(w, 200, map[string]any{"os_id": 8, "login": f.machine.user, "password": f.password, "protocol": "ssh"})
	case r.Method == "GET" && rescue:
		answer(w, 404, `{"type":"not_found","resource":"rescue","resource_id":"`+fakeNumber+`","message":"resource is not found"}`)
	case r.Method == "GET":
		f.pass()
		answer(w, 200, map[string]any{"id": 101674, "status": f.state, "zone": fakeZone, "interfaces": []any{map[string]any{"ips": []any{map[string]any{"address": "127.0.0.1", "version": "ipv4"}}}}})
	case f.next != nil:
		answer(w, 409, transient)
	case r.Method == "POST" && rescue:
		f.machine.start("", "")
		f.towards("busy", func() { f.state = "rescue"; f.rescued() })
		answer(w, 200, map[string]any{"os_id": 8, "protocol": "ssh"})
	case r.Method == "DELETE" && rescue:
		f.machine.start("", "")
		f.towards("busy", func() { f.state = "ready"; f.machine.start("own", "") })
		w.WriteHeader(204)
	default:
		answer(w, 405, `{}`)
	}
}

func (f *fakeScaleway) instance(w http.ResponseWriter, r *http.Request, rest []string, body map[string]any) {
	invalid := func(message string) {
		answer(w, 400, `{"type":"invalid_request_error","message":"`+message+`"}`)
	}
	if f.state == "ready" {
		f.state = "running"
	}
	switch {
	case r.Method == "GET":
		f.pass()
	case f.next != nil:
		answer(w, 409, transient)
		return
	case r.Method == "PATCH":
		if f.state != "stopped" {
			invalid("server must be stopped")
			return
		}
		volumes := map[string]string{}
		for slot, v := range body["volumes"].(map[string]any) {
			id := v.(map[string]any)["id"].(string)
			x := f.resources[id]
			if x == nil || x.Snapshot || x.Block != (v.(map[string]any)["volume_type"] == "sbs_volume") {
				invalid("no such volume")
				return
			}
			volumes[slot] = id
		}
		for _, id := range f.volumes {
			if f.resources[id].Block {
				f.resources[id].State = "available"
			}
		}
		f.volumes = volumes
	case body["action"] == "poweroff" && f.state == "running":
		f.machine.start("", "")
		f.towards("stopping", func() { f.state = "stopped" })
	case body["action"] == "poweron" && f.state == "stopped":
		f.towards("starting", func() { f.state = "running"; f.machine.start("own", "") })
	default:
		invalid("action is not allowed in this state")
		return
	}
	volumes := map[string]any{}
	for slot, id := range f.volumes {
		v := f.resources[id]
		x := map[string]any{"id": id, "volume_type": v.Kind, "boot": slot == "0", "zone": fakeZone}
		if !v.Block {
			x["name"] = v.Name
		}
		volumes[slot] = x
	}
	answer(w, 200, map[string]any{"server": map[string]any{"id": fakeID, "state": f.state, "project": "project", "volumes": volumes, "zone": fakeZone}})
}

func (x *fakeResource) json() map[string]any {
	out := map[string]any{"id": x.ID, "name": x.Name, "tags": x.Tags, "zone": fakeZone}
	switch {
	case x.Block:
		out["status"], out["project_id"], out["specs"] = x.State, "project", map[string]any{"perf_iops": 5000}
		if x.Snapshot {
			out["parent_volume"] = map[string]any{"id": x.Of}
		}
	default:
		out["state"], out["project"], out["volume_type"] = x.State, "project", x.Kind
		if x.Snapshot {
			out["base_volume"] = map[string]any{"id": x.Of}
		}
	}
	return out
}

func (f *fakeScaleway) storage(w http.ResponseWriter, r *http.Request, blocks, snapshots bool, rest []string, body map[string]any) {
	what, wrap := "volumes", "volume"
	if snapshots {
		what, wrap = "snapshots", "snapshot"
	}
	say := func(code int, x *fakeResource) {
		if blocks {
			answer(w, code, x.json())
			return
		}
		answer(w, code, map[string]any{wrap: x.json()})
	}
	if len(rest) == 1 {
		x := f.resources[rest[0]]
		switch {
		case x == nil:
			answer(w, 404, `{"type":"not_found","resource":"`+wrap+`","resource_id":"`+rest[0]+`","message":"resource is not found"}`)
		case r.Method == "DELETE" && blocks:
			x.State, x.Becomes, x.left = "deleting", "gone", f.slow
			w.WriteHeader(204)
		case r.Method == "DELETE":
			delete(f.resources, x.ID)
			w.WriteHeader(204)
		default:
			say(200, x)
		}
		return
	}
	if r.Method == "POST" {
		f.made++
		x := &fakeResource{ID: fmt.Sprintf("%s-%d", wrap, f.made), Name: body["name"].(string), Block: blocks, Snapshot: snapshots, Kind: "l_ssd", State: "snapshotting", Becomes: "available", left: f.slow}
		for _, tag := range body["tags"].([]any) {
			x.Tags = append(x.Tags, tag.(string))
		}
		of, _ := body["volume_id"].(string)
		if base, ok := body["base_snapshot"].(string); ok {
			of = base
		}
		if from, ok := body["from_snapshot"].(map[string]any); ok {
			of = from["snapshot_id"].(string)
		}
		if blocks {
			x.Kind, x.State = "sbs_volume", "creating"
		}
		if !snapshots && !blocks {
			x.State = "fetching"
		}
		if f.resources[of] == nil {
			answer(w, 404, `{"type":"not_found","resource":"volume","resource_id":"`+of+`","message":"resource is not found"}`)
			return
		}
		x.Of = of
		f.resources[x.ID] = x
		say(200, x)
		return
	}
	list := []any{}
	for _, id := range slices.Sorted(maps.Keys(f.resources)) {
		x := f.resources[id]
		if x.Block != blocks || x.Snapshot != snapshots {
			continue
		}
		if x.left > 0 && !f.stuck {
			if x.left--; x.left == 0 {
				x.State = x.Becomes
			}
		}
		if x.State == "gone" {
			delete(f.resources, id)
			continue
		}
		list = append(list, x.json())
	}
	if r.URL.Query().Get("page") != "1" && r.URL.Query().Get("page") != "" {
		list = list[:0]
	}
	w.Header().Set("X-Total-Count", fmt.Sprint(len(list)))
	answer(w, 200, map[string]any{what: list, "total_count": len(list)})
}

// fakeMachine is a FAKE of the server itself: an SSH server that runs commands on this machine and is off, the
// server's own system with the host key that is known, or a rescue system with a new host key and a password. Its boot
// id is another one after each start.
type fakeMachine struct {
	port      int
	user      string
	key       ssh.PublicKey
	own       ssh.Signer
	plan      plans.Host
	cutAfter  int  // bytes from the machine after which the connection is cut, once; 0 for never
	takeAfter int  // the same to the machine
	late      int  // connections that its own system still answers after a start of the rescue system, which is then late
	otherKey  bool // it shows a host key that is not the known one meanwhile, as one of another type

	mu       sync.Mutex
	awaited  string   // password of the rescue system that is late
	commands []string // that were run, each after its system
	system   string   // "", "own" or "rescue"
	deaf     bool     // the rescue system's SSH server does not come up
	password string
	boot     int
	shown    ssh.Signer
	conns    map[net.Conn]bool
	children map[*exec.Cmd]bool
}

func newFakeMachine(t testing.TB) *fakeMachine {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	dir := t.TempDir()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(private, "")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "id"), pem.EncodeToMemory(block), 0o600))
	login, err := ssh.NewSignerFromSigner(private)
	require.NoError(t, err)
	m := &fakeMachine{port: l.Addr().(*net.TCPAddr).Port, user: "root", key: login.PublicKey(), own: newSigner(t), conns: map[net.Conn]bool{}, children: map[*exec.Cmd]bool{}}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "known_hosts"), []byte(knownhosts.Line([]string{knownhosts.Normalize(l.Addr().String())}, m.own.PublicKey())+"\n"), 0o600))
	m.plan = plans.Host{Name: "node1", Address: "127.0.0.1", Port: m.port, User: "root", Sudo: os.Getuid() != 0, SSHConfig: "none", IdentityFiles: []string{filepath.Join(dir, "id")}, KnownHosts: []string{filepath.Join(dir, "known_hosts")}}
	m.start("own", "")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go m.serve(c)
		}
	}()
	t.Cleanup(func() { l.Close(); m.start("", "") })
	return m
}

func newSigner(t testing.TB) ssh.Signer {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	s, err := ssh.NewSignerFromSigner(private)
	if err != nil {
		panic(err)
	}
	return s
}

// start ends what runs, and starts a system; "" leaves it off.
func (m *fakeMachine) start(system, password string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.late > 0 && system != "own" {
		if m.awaited = password; password != "" && m.otherKey {
			m.shown = newSigner(nil)
		}
		return
	}
	m.become(system, password)
}

// become is start, at once. The caller holds mu.
func (m *fakeMachine) become(system, password string) {
	m.system, m.password, m.shown = system, password, m.own
	m.boot++
	if system == "rescue" {
		m.shown = newSigner(nil)
	}
	m.cut()
}

// cut ends all connections and what runs in them. The caller holds mu.
func (m *fakeMachine) cut() {
	for c := range m.conns {
		c.Close()
	}
	for cmd := range m.children {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
}

func (m *fakeMachine) now() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.system
}

func (m *fakeMachine) serve(c net.Conn) {
	defer c.Close()
	m.mu.Lock()
	if m.awaited != "" {
		if m.late--; m.late == 0 {
			m.become("rescue", m.awaited)
			m.awaited = ""
		}
	}
	system, password, boot, shown, deaf := m.system, m.password, m.boot, m.shown, m.deaf
	m.conns[c] = true
	m.mu.Unlock()
	defer func() { m.mu.Lock(); delete(m.conns, c); m.mu.Unlock() }()
	if system == "" || system == "rescue" && deaf {
		return
	}
	config := &ssh.ServerConfig{
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if system == "own" && string(key.Marshal()) == string(m.key.Marshal()) {
				return nil, nil
			}
			return nil, errors.New("no")
		},
		PasswordCallback: func(_ ssh.ConnMetadata, given []byte) (*ssh.Permissions, error) {
			if system == "rescue" && string(given) == password {
				return nil, nil
			}
			return nil, errors.New("no")
		},
	}
	config.AddHostKey(shown)
	conn, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	defer conn.Close()
	go func() {
		for r := range requests {
			if r.WantReply {
				_ = r.Reply(true, nil)
			}
		}
	}()
	for n := range channels {
		ch, requests, err := n.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range requests {
				if r.Type != "exec" {
					_ = r.Reply(false, nil)
					continue
				}
				_ = r.Reply(true, nil)
				command := string(r.Payload[4:])
				m.mu.Lock()
				m.commands = append(m.commands, system+" "+command)
				m.mu.Unlock()
				go m.exec(ch, strings.ReplaceAll(command, "cat /proc/sys/kernel/random/boot_id", fmt.Sprintf("echo boot-%d", boot)))
			}
		}()
	}
}

func (m *fakeMachine) exec(ch ssh.Channel, command string) {
	defer ch.Close()
	cmd := exec.Command("sh", "-c", command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stdout, cmd.Stderr = &cutter{m: m, w: ch, left: &m.cutAfter}, ch.Stderr()
	in, err := cmd.StdinPipe()
	if err != nil || cmd.Start() != nil {
		return
	}
	m.mu.Lock()
	m.children[cmd] = true
	m.mu.Unlock()
	go func() {
		_, _ = io.Copy(&cutter{m: m, w: in, left: &m.takeAfter}, ch)
		in.Close()
	}()
	code := 0
	var exit *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	m.mu.Lock()
	delete(m.children, cmd)
	m.mu.Unlock()
	_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{uint32(code)}))
}

// cutter cuts the machine's connections after so many bytes, once.
type cutter struct {
	m    *fakeMachine
	w    io.Writer
	left *int
}

func (c *cutter) Write(p []byte) (int, error) {
	c.m.mu.Lock()
	if *c.left > 0 && len(p) > 16 {
		if *c.left -= len(p); *c.left <= 0 {
			*c.left = 0
			c.m.cut()
		}
	}
	c.m.mu.Unlock()
	return c.w.Write(p)
}
