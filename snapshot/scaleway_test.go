package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scaleway/scaleway-sdk-go/scw"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
)

var quickPace = pace{look: time.Millisecond, refused: time.Millisecond, again: time.Hour, state: 20 * time.Second, shot: 20 * time.Second, start: 20 * time.Second}

// told is what a person was told.
type told struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *told) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *told) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// asking is what steps would ask for, with the fake's machine as the host.
func asking(t testing.TB, f *fakeScaleway, at plans.ScalewayServer) (Ask, *told) {
	log := &told{}
	var mu sync.Mutex
	var host *remote.Host
	t.Cleanup(func() {
		if host != nil {
			host.Close()
		}
	})
	return Ask{
		Plan: &plans.Snapshot{Method: plans.SnapshotScaleway, Scaleway: &at}, Name: "sunbeam", Server: f.machine.plan, Progress: progress.New(log, false),
		Host: func(ctx context.Context) (*remote.Host, error) {
			mu.Lock()
			defer mu.Unlock()
			if host == nil {
				h, err := remote.Dial(ctx, f.machine.plan)
				if err != nil {
					return nil, err
				}
				host = h
			}
			return host, nil
		},
	}, log
}

func instanceOf(t *testing.T, f *fakeScaleway) (*scwInstance, *told) {
	a, log := asking(t, f, plans.ScalewayServer{Product: plans.ScalewayInstance, Zone: fakeZone, ID: fakeID})
	return newScaleway(a, quickPace).(*scwInstance), log
}

func runAll(t *testing.T, ctx context.Context, operations []Operation) {
	t.Helper()
	for _, o := range operations {
		require.NoError(t, o.Run(ctx), o.Name)
	}
}

func TestScalewayCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	const other = "SCWOTHERXXXXXXXXXXXX"
	const config = "access_key: " + fakeAccess + "\nsecret_key: " + fakeSecret + "\nactive_profile: work\nprofiles:\n  work:\n    access_key: " + other + "\n"
	for name, c := range map[string]struct {
		env    map[string]string
		config string
		access string // of the client
		err    string
	}{
		"none":             {err: "neither the environment nor"},
		"environment":      {env: map[string]string{"SCW_ACCESS_KEY": fakeAccess, "SCW_SECRET_KEY": fakeSecret}, access: fakeAccess},
		"half":             {env: map[string]string{"SCW_ACCESS_KEY": fakeAccess}, err: "an access key and no secret key"},
		"other half":       {env: map[string]string{"SCW_SECRET_KEY": fakeSecret}, err: "a secret key and no access key"},
		"malformed access": {env: map[string]string{"SCW_ACCESS_KEY": fakeSecret, "SCW_SECRET_KEY": fakeSecret}, err: "the access key is malformed"},
		"malformed secret": {env: map[string]string{"SCW_ACCESS_KEY": fakeAccess, "SCW_SECRET_KEY": fakeSecret + "x"}, err: "the secret key is malformed"},
		"active profile":   {config: config, access: other},
		"named profile":    {config: config, env: map[string]string{"SCW_PROFILE": "default"}, access: fakeAccess},
		"missing profile":  {config: config, env: map[string]string{"SCW_PROFILE": "nobody"}, err: "has no profile of the name"},
		"environment wins": {config: config, env: map[string]string{"SCW_ACCESS_KEY": fakeAccess}, access: fakeAccess},
		"no YAML":          {config: "secret_key: [" + fakeSecret, err: "is no YAML"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range []string{"SCW_ACCESS_KEY", "SCW_SECRET_KEY", "SCW_PROFILE", "SCW_TOKEN", "SCALEWAY_ACCESS_KEY", "SCALEWAY_TOKEN", "SCW_API_URL"} {
				t.Setenv(v, c.env[v])
				if c.env[v] == "" {
					require.NoError(t, os.Unsetenv(v))
				}
			}
			t.Setenv("SCW_CONFIG_PATH", file)
			require.NoError(t, os.RemoveAll(file))
			if c.config != "" {
				require.NoError(t, os.WriteFile(file, []byte(c.config), 0o600))
			}
			client, err := newClient(time.Millisecond)
			if c.err != "" {
				var e *CredentialsError
				require.ErrorAs(t, err, &e)
				require.ErrorContains(t, err, c.err)
				require.ErrorContains(t, err, "set SCW_ACCESS_KEY and SCW_SECRET_KEY")
				require.NotContains(t, err.Error(), fakeSecret)
				return
			}
			require.NoError(t, err)
			access, _ := client.GetAccessKey()
			require.Equal(t, c.access, access)
		})
	}
}

func TestScalewayReady(t *testing.T) {
	for name, c := range map[string]struct {
		at    func(*plans.ScalewayServer)
		fault fault
		key   string
		err   []string
	}{
		"there":        {},
		"another zone": {at: func(s *plans.ScalewayServer) { s.Zone = "nl-ams-1" }, err: []string{"write fr-par-2 in spec.snapshot.scaleway.zone"}},
		"no such zone": {at: func(s *plans.ScalewayServer) { s.Zone, s.ID = "xx-nul-9", fakeID[1:]+"0" }, err: []string{"there is none of this ID", "spec.snapshot.scaleway.id", "fr-par-1"}},
		"wrong id":     {at: func(s *plans.ScalewayServer) { s.ID = "99999999-2222-4333-8444-555555555555" }, err: []string{"there is none of this ID"}},
		"an odd 404":   {fault: fault{method: "GET", suffix: "servers/" + fakeID, times: 99, status: 404, body: `{"type":"unknown_resource","message":"nothing here"}`}, err: []string{"there is none of this ID"}},
		"deleted key":  {key: "ffffffff-bbbb-4ccc-8ddd-eeeeeeeeeeee", err: []string{"the API does not accept the key", "API key does not exist", "https://console.scaleway.com/iam/api-keys"}},
		"expired key": {fault: fault{method: "GET", suffix: fakeID, times: 99, status: 401, body: `{"type":"denied_authentication","method":"api_key","reason":"expired","message":"authentication is denied"}`},
			err: []string{"has expired", "API key is expired", "set SCW_ACCESS_KEY"}},
		"no permission": {fault: fault{method: "GET", suffix: "/snapshots", times: 99, status: 403, body: `{"type":"permissions_denied","message":"insufficient permissions","details":[{"resource":"snapshot","action":"read"}]}`},
			err: []string{"looking at its volumes and at snapshots", "insufficient permissions: read snapshot", "a policy that allows it"}},
		"rate limit": {fault: fault{method: "GET", suffix: fakeID, times: 3, status: 429, body: rateLimited, header: map[string]string{"X-RateLimit-Remaining": "0"}}},
		"fault":      {fault: fault{method: "GET", suffix: fakeID, times: 3, status: 503, body: `upstream`}},
		"down":       {fault: fault{method: "GET", suffix: fakeID, times: 99, status: 503, body: `{"message":"down"}`}, err: []string{"503", "status.scaleway.com"}},
		"locked":     {fault: fault{method: "GET", suffix: fakeID, times: 99, status: 423, body: `{"type":"locked","resource":"server","resource_id":"` + fakeID + `"}`}, err: []string{"ask its support"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeScaleway(t)
			if c.key != "" {
				t.Setenv("SCW_SECRET_KEY", c.key)
			}
			f.fail(c.fault)
			i, _ := instanceOf(t, f)
			if c.at != nil {
				c.at(&i.at)
			}
			err := i.Ready(t.Context())
			require.Empty(t, f.writes(), "looking changes nothing")
			if len(c.err) == 0 {
				require.NoError(t, err)
				return
			}
			require.Error(t, err)
			for _, part := range c.err {
				require.ErrorContains(t, err, part)
			}
			require.NotContains(t, err.Error(), fakeSecret)
		})
	}
}

// A pause that the API asks for is kept, and ends with the context.
func TestScalewayRateLimit(t *testing.T) {
	f := newFakeScaleway(t)
	f.fail(fault{method: "GET", suffix: fakeID, times: 1, status: 429, body: rateLimited, header: map[string]string{"Retry-After": "1"}})
	i, _ := instanceOf(t, f)
	begun := time.Now()
	require.NoError(t, i.find(t.Context()))
	require.GreaterOrEqual(t, time.Since(begun), time.Second)

	f.fail(fault{method: "GET", suffix: fakeID, times: 9, status: 429, body: rateLimited, header: map[string]string{"Retry-After": "3600"}})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, i.find(ctx), context.DeadlineExceeded)
}

// A person is told what is waited for while requests are repeated, and nothing of those that are answered at once.
func TestScalewayWaits(t *testing.T) {
	f := newFakeScaleway(t)
	i, log := instanceOf(t, f)
	i.pace.refused = time.Hour
	require.NoError(t, i.Ready(t.Context()))
	require.Empty(t, log.String())

	f.fail(fault{method: "GET", suffix: "servers/" + fakeID, times: 4, status: 503, body: `{"message":"down"}`})
	i, log = instanceOf(t, f)
	require.NoError(t, i.find(t.Context()))
	require.Contains(t, log.String(), "Asking Scaleway's API")

	f.Close()
	i, log = instanceOf(t, f)
	require.ErrorContains(t, i.ask(t.Context(), "looking", func(c *scw.Client, _ scw.RequestOption) error {
		_, err := i.get(t.Context(), c)
		return err
	}), "which SCW_API_URL names as Scaleway's API, then repeat the command", "one that has never answered is not waited for at length")
}

func TestInstance(t *testing.T) {
	f := newFakeScaleway(t)
	i, log := instanceOf(t, f)
	require.NoError(t, i.Ready(t.Context()))
	runAll(t, t.Context(), i.Take())
	shots := f.of(true)
	require.Len(t, shots, 2)
	require.Equal(t, "data-before-sunbeam of vol-data available", shots[0])
	require.Equal(t, "root-before-sunbeam of vol-root available", shots[1])
	writes := len(f.writes())
	require.NoError(t, i.take(t.Context()), "again")
	require.Len(t, f.writes(), writes, "what is there is not made again")
	require.ErrorContains(t, i.unused(t.Context()), "of an earlier run")

	before := f.machine.boot
	runAll(t, t.Context(), i.Return())
	f.returned(t)
	require.Greater(t, f.machine.boot, before)
	require.Contains(t, log.String(), "scw block volume delete vol-root zone=fr-par-2")
	require.Contains(t, log.String(), "scw instance volume delete vol-data zone=fr-par-2")
	require.Contains(t, f.resources, "vol-root", "kept")
	require.Contains(t, f.resources, "vol-data", "kept")
	require.ErrorContains(t, i.Return()[0].Run(t.Context()), "runs on volumes made of its snapshots already, by an earlier return", "another would change nothing")

	runAll(t, t.Context(), i.Remove())
	require.Empty(t, f.of(true))
	runAll(t, t.Context(), i.Remove())
	require.ErrorContains(t, i.Return()[0].Run(t.Context()), "0 snapshots are there of all: nothing was changed")
}

// of lists the snapshots, or the volumes made of them.
func (f *fakeScaleway) of(snapshots bool) (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.resources {
		if x.Snapshot == snapshots && x.Of != "" {
			out = append(out, fmt.Sprintf("%s of %s %s", x.Name, x.Of, x.State))
		}
	}
	slices.Sort(out)
	return out
}

// returned looks that the Instance runs on one new volume of each snapshot.
func (f *fakeScaleway) returned(t *testing.T) {
	t.Helper()
	require.Len(t, f.of(false), 2, "one volume of each snapshot")
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Equal(t, "running", f.state)
	require.Len(t, f.volumes, 2)
	for slot, old := range map[string]string{"0": "vol-root", "1": "vol-data"} {
		v := f.resources[f.volumes[slot]]
		require.Equal(t, old, f.resources[v.Of].Of, "slot %s", slot)
	}
}

// present tells whether the Instance has the volumes that it had before any return.
func (f *fakeScaleway) present() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.volumes["0"] == "vol-root" && f.volumes["1"] == "vol-data"
}

// Wherever it is cut off, the next attempt makes nothing twice and comes to the same end. A return of which no volume is in
// place yet is not led on by Reach, which powers the Instance on as it is.
func TestInstanceCutOff(t *testing.T) {
	asBefore := 0
	defer func() { require.Greater(t, asBefore, 3) }()
	for _, part := range []string{"take", "return"} {
		for n := 1; ; n++ {
			f := newFakeScaleway(t)
			f.slow = 1
			i, _ := instanceOf(t, f)
			if part == "return" {
				require.NoError(t, i.take(t.Context()))
			}
			ctx, cancel := context.WithCancel(t.Context())
			begun := f.count()
			f.mu.Lock()
			f.at = func(k int) {
				if k == begun+n {
					cancel()
				}
			}
			f.mu.Unlock()
			run := i.take
			if part == "return" {
				run = i.back
			}
			err := run(ctx)
			cut := f.count() - begun
			cancel()
			again, _ := instanceOf(t, f)
			if part == "return" {
				made, writes := len(f.of(false)), len(f.writes())
				require.NoError(t, again.Reach(t.Context(), "return"), "cut off at request %d", n)
				require.Equal(t, "own", f.machine.now(), "cut off at request %d", n)
				if f.present() {
					asBefore++
					require.Len(t, f.of(false), made, "no volume is made")
					for _, w := range f.writes()[writes:] {
						require.True(t, strings.HasSuffix(w, "/action"), w)
					}
					require.NoError(t, again.back(t.Context()))
				}
				f.returned(t)
			} else {
				require.NoError(t, again.Reach(t.Context(), "snapshot"))
				require.NoError(t, again.take(t.Context()), "cut off at request %d", n)
				require.Len(t, f.of(true), 2)
			}
			if err == nil {
				require.LessOrEqual(t, cut, n+1, "nothing was left to be cut off: a request that is answered as it is cut off counts as one that was not")
				break
			}
			require.ErrorIs(t, err, context.Canceled)
		}
	}
}

func TestInstanceFaults(t *testing.T) {
	t.Run("lost answers", func(t *testing.T) {
		f := newFakeScaleway(t)
		i, _ := instanceOf(t, f)
		f.fail(fault{method: "POST", suffix: "/snapshots", times: 2, status: 502, body: `<html>`, after: true})
		require.NoError(t, i.take(t.Context()))
		require.Len(t, f.of(true), 2, "the one whose answer was lost is found, not made again")
		for _, suffix := range []string{"/volumes", "/action"} {
			f.fail(fault{method: "POST", suffix: suffix, times: 2, status: 502, body: `<html>`, after: true})
		}
		f.fail(fault{method: "PATCH", suffix: fakeID, times: 1, status: 504, body: ``, after: true})
		require.NoError(t, i.back(t.Context()))
		f.returned(t)
	})
	t.Run("in a transient state", func(t *testing.T) {
		f := newFakeScaleway(t)
		i, _ := instanceOf(t, f)
		f.fail(fault{method: "POST", suffix: "/snapshots", times: 3, status: 409, body: transient})
		f.fail(fault{method: "POST", suffix: "/action", times: 3, status: 409, body: transient})
		require.NoError(t, i.take(t.Context()))
		require.NoError(t, i.back(t.Context()))
		f.returned(t)
	})
	t.Run("never available", func(t *testing.T) {
		f := newFakeScaleway(t)
		f.stuck = true
		i, _ := instanceOf(t, f)
		i.pace.shot = 50 * time.Millisecond
		var late *LateError
		err := i.take(t.Context())
		require.ErrorAs(t, err, &late)
		require.ErrorContains(t, err, "instance "+fakeID+" in fr-par-2: Taking snapshots of its volumes: not so after 50ms; seen last: 0 of 2 are available")
		require.ErrorContains(t, err, "the Instance runs on unharmed")
	})
	t.Run("never off", func(t *testing.T) {
		f := newFakeScaleway(t)
		i, _ := instanceOf(t, f)
		require.NoError(t, i.take(t.Context()))
		f.fail(fault{method: "POST", suffix: "/action", times: -1, status: 409, body: transient})
		i.pace.shot = 100 * time.Millisecond
		err := i.back(t.Context())
		require.ErrorContains(t, err, "is in a transient state")
		require.ErrorContains(t, err, "scw instance server start "+fakeID+" zone=fr-par-2")
	})
	t.Run("a snapshot in error", func(t *testing.T) {
		f := newFakeScaleway(t)
		i, _ := instanceOf(t, f)
		require.NoError(t, i.take(t.Context()))
		for _, x := range f.resources {
			if x.Snapshot && x.Block {
				x.State = "error"
			}
		}
		require.ErrorContains(t, i.take(t.Context()), "is in the state error: delete it (`scw block snapshot delete")
		require.ErrorContains(t, i.Return()[0].Run(t.Context()), otherwise)
		writes := len(f.writes())
		require.Error(t, i.back(t.Context()))
		require.Len(t, f.writes(), writes, "nothing is begun")
	})
	t.Run("a return for which there is no room", func(t *testing.T) {
		f := newFakeScaleway(t)
		i, _ := instanceOf(t, f)
		require.NoError(t, i.take(t.Context()))
		f.fail(fault{method: "POST", suffix: "/volumes", times: -1, status: 403, body: `{"type":"quotas_exceeded","details":[{"resource":"volume","quota":5,"current":5}]}`})
		require.ErrorContains(t, i.back(t.Context()), "volume has reached its quota (5/5)")
		writes := len(f.writes())
		again, _ := instanceOf(t, f)
		require.NoError(t, again.Reach(t.Context(), "return"))
		require.Len(t, f.writes(), writes, "it runs: the other way back is open, and nothing is asked for again")
		pending, err := again.Pending(t.Context())
		require.NoError(t, err)
		require.Empty(t, pending)

		for _, x := range f.resources {
			if x.Snapshot {
				delete(f.resources, x.ID)
				break
			}
		}
		f.machine.start("", "")
		f.state = "stopped"
		require.NoError(t, again.Reach(t.Context(), "return"), "a snapshot is gone")
		require.Equal(t, "own", f.machine.now())
		require.True(t, f.present())
		f.fail(fault{method: "GET", suffix: fakeID, times: -1, status: 401, body: `{"type":"denied_authentication","method":"api_key","reason":"expired","message":"authentication is denied"}`})
		require.NoError(t, again.Reach(t.Context(), "return"), "the key has expired, and the host answers")
	})
	t.Run("scratch", func(t *testing.T) {
		f := newFakeScaleway(t)
		f.resources["tmp"] = &fakeResource{ID: "tmp", Name: "tmp", Kind: "scratch", State: "available"}
		f.volumes["2"] = "tmp"
		i, _ := instanceOf(t, f)
		require.ErrorContains(t, i.Ready(t.Context()), "its volume tmp (slot 2) is of the type scratch, of which there are no snapshots")
	})
	t.Run("quota", func(t *testing.T) {
		f := newFakeScaleway(t)
		i, _ := instanceOf(t, f)
		f.fail(fault{method: "POST", suffix: "/snapshots", times: 1, status: 403, body: `{"type":"quotas_exceeded","details":[{"resource":"snapshot","quota":5,"current":5}]}`})
		require.ErrorContains(t, i.take(t.Context()), "snapshot has reached its quota (5/5)")
	})
	// A return to some of today and some of yesterday would be to no state that the server ever had.
	t.Run("another attempt", func(t *testing.T) {
		f := newFakeScaleway(t)
		i, _ := instanceOf(t, f)
		require.NoError(t, i.take(t.Context()))
		var old []string
		for _, x := range f.resources {
			if x.Snapshot {
				old = append(old, x.ID)
			}
		}
		require.Len(t, old, 2)
		delete(f.resources, old[0]) // as if it had been refused
		require.NoError(t, i.take(t.Context()))
		require.Len(t, f.of(true), 2)
		require.NotContains(t, f.resources, old[1])
	})
}

// What costs and what restarts the host is said before.
func TestScalewaySummaries(t *testing.T) {
	f := newFakeScaleway(t)
	i, _ := instanceOf(t, f)
	require.Contains(t, i.Take()[1].Summary, "costs")
	require.Contains(t, i.Return()[1].Summary, "restarts the host")
	require.Contains(t, i.Return()[1].Summary, "costs")
	require.Contains(t, i.Return()[1].Summary, "when that is cut off, the next run or rollback powers it on")
	for _, o := range append(append(i.Take(), i.Return()...), i.Remove()...) {
		require.Contains(t, o.Command, "scw ", o.Name)
	}
	require.Empty(t, f.requests, "nothing is asked for a list")
}
