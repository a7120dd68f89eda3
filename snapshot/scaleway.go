package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/scaleway/scaleway-sdk-go/api/baremetal/v1"
	"github.com/scaleway/scaleway-sdk-go/api/dedibox/v1"
	"github.com/scaleway/scaleway-sdk-go/api/instance/v1"
	"github.com/scaleway/scaleway-sdk-go/scw"
	"github.com/scaleway/scaleway-sdk-go/validation"

	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/progress"
)

// scaleway is what the methods share that go through Scaleway's API: an Instance's snapshots ([scwInstance]), and
// the images that are made of a dedicated server's disks in rescue mode ([scwRescue]).
//
// What takes time at Scaleway is led there by [scaleway.until]: look at what is, do the one thing that is next,
// look again. Nothing is remembered that could not be asked for, so that whatever was cut off is led on the same way.
type scaleway struct {
	base
	at     plans.ScalewayServer
	pace   pace
	client func() (*scw.Client, error)
}

// pace is how often things are looked at, and for how long they are waited for.
type pace struct {
	look    time.Duration // between two looks at the API
	refused time.Duration // first pause after a refusal for the rate; it doubles
	again   time.Duration // after which an order that shows no effect is given again
	state   time.Duration // limit for a server or volume to change its state
	shot    time.Duration // limit for snapshots to be complete, and for volumes to be made of them
	start   time.Duration // limit for a system to start and to answer
}

var usualPace = pace{look: 5 * time.Second, refused: 2 * time.Second, again: 5 * time.Minute, state: 30 * time.Minute, shot: 3 * time.Hour, start: 30 * time.Minute}

func newScaleway(a Ask, p pace) Method {
	s := scaleway{base: base{a}, at: *a.Plan.Scaleway, pace: p}
	s.client = sync.OnceValues(func() (*scw.Client, error) { return newClient(p.refused) })
	switch s.at.Product {
	case plans.ScalewayInstance:
		return &scwInstance{s}
	case plans.ScalewayElasticMetal:
		r := &scwRescue{scaleway: s, port: 22, tools: rescueTools}
		r.machine = elasticMetal{&r.scaleway}
		return r
	}
	r := &scwRescue{scaleway: s, port: 22, tools: rescueTools}
	r.machine = box{&r.scaleway}
	return r
}

func (*scaleway) Problems() []Problem { return nil }

// Outside is empty: all volumes of an Instance are held, and that the plan's disks are those of a rebuild is for Ready to see.
func (*scaleway) Outside() []string { return nil }

// name is how a person would call the server.
func (s *scaleway) name() string { return fmt.Sprintf("%s %s in %s", s.at.Product, s.at.ID, s.at.Zone) }

func (s *scaleway) zone() scw.Zone { return scw.Zone(s.at.Zone) }

// console is where the server is steered by hand.
func (s *scaleway) console() string {
	switch s.at.Product {
	case plans.ScalewayInstance:
		return "https://console.scaleway.com/instance/servers"
	case plans.ScalewayElasticMetal:
		return "https://console.scaleway.com/elastic-metal/servers"
	}
	return "https://console.online.net"
}

// CredentialsError says that there is no key with which Scaleway's API lets anybody in.
type CredentialsError struct{ Why string }

func (e *CredentialsError) Error() string {
	return fmt.Sprintf("the credentials of Scaleway's API: %s; set SCW_ACCESS_KEY and SCW_SECRET_KEY, or have them written into the configuration file with `scw init`; keys are made at https://console.scaleway.com/iam/api-keys", e.Why)
}

// profile reads the environment and the configuration file in the precedence of Scaleway's CLI: the environment, then
// the profile that SCW_PROFILE or the file's active_profile names, then the file's default profile.
func profile() (*scw.Profile, error) {
	env := scw.LoadEnvProfile()
	config, err := scw.LoadConfig()
	var missing *scw.ConfigFileNotFoundError
	switch {
	case errors.As(err, &missing):
		return env, nil
	case err != nil:
		// The error itself may quote what stands in the file.
		return nil, &CredentialsError{Why: fmt.Sprintf("the configuration file %s cannot be read, or is no YAML", scw.GetConfigPath())}
	}
	active, err := config.GetActiveProfile()
	if err != nil {
		return nil, &CredentialsError{Why: fmt.Sprintf("the configuration file %s has no profile of the name that SCW_PROFILE or its active_profile has", scw.GetConfigPath())}
	}
	return scw.MergeProfiles(active, env), nil
}

func newClient(refused time.Duration) (*scw.Client, error) {
	p, err := profile()
	if err != nil {
		return nil, err
	}
	// The SDK's own complaint would show the key.
	switch {
	case p.AccessKey == nil && p.SecretKey == nil:
		return nil, &CredentialsError{Why: "neither the environment nor " + scw.GetConfigPath() + " has any"}
	case p.AccessKey == nil:
		return nil, &CredentialsError{Why: "there is a secret key and no access key"}
	case p.SecretKey == nil:
		return nil, &CredentialsError{Why: "there is an access key and no secret key"}
	case !validation.IsAccessKey(*p.AccessKey):
		return nil, &CredentialsError{Why: "the access key is malformed: it is SCW and 17 capital letters or digits"}
	case !validation.IsSecretKey(*p.SecretKey):
		return nil, &CredentialsError{Why: "the secret key is malformed: it is a UUID"}
	}
	c, err := scw.NewClient(scw.WithProfile(p), scw.WithHTTPClient(&patient{pause: refused, client: &http.Client{
		Timeout: time.Minute,
		// The key must follow to no other address.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}))
	if err != nil {
		return nil, fmt.Errorf("the settings of Scaleway's API (environment, %s): %w", scw.GetConfigPath(), err)
	}
	return c, nil
}

// patient repeats requests: one that was refused for coming too fast (429), and one that a fault met (5xx, the network)
// where repeating cannot do anything twice. That it is no *http.Client keeps the SDK from logging the answers, which hold
// passwords, when SCW_DEBUG is set. An API that has never answered is not waited for at length: its address may be wrong.
type patient struct {
	client   *http.Client
	pause    time.Duration
	answered atomic.Bool
}

const (
	patientTries   = 8
	strangerTries  = 2           // of an API that has never answered
	patientLongest = time.Minute // of a pause
)

func (p *patient) Do(req *http.Request) (*http.Response, error) {
	pause := p.pause
	for try := 1; ; try++ {
		res, err := p.client.Do(req)
		if err == nil {
			p.answered.Store(true)
		} else if !p.answered.Load() && try >= strangerTries {
			return res, err
		}
		harmless := req.Method == http.MethodGet || req.Method == http.MethodDelete
		again := err != nil && harmless || err == nil && (res.StatusCode == http.StatusTooManyRequests || harmless && res.StatusCode >= 500)
		if !again || try == patientTries || req.Context().Err() != nil || req.Body != nil && req.GetBody == nil {
			return res, err
		}
		wait := pause
		if err == nil {
			if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && seconds > 0 {
				wait = min(time.Duration(seconds)*time.Second, patientLongest)
			}
			_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
			res.Body.Close()
		}
		select {
		case <-req.Context().Done():
			return nil, req.Context().Err()
		case <-time.After(wait):
		}
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
		pause = min(2*pause, patientLongest)
	}
}

// status is the HTTP status that an error of the SDK stands for, 0 when the API did not answer.
func status(err error) int {
	var (
		denied    *scw.DeniedAuthenticationError
		forbidden *scw.PermissionsDeniedError
		missing   *scw.ResourceNotFoundError
		transient *scw.TransientStateError
		locked    *scw.ResourceLockedError
		unmet     *scw.PreconditionFailedError
		expired   *scw.ResourceExpiredError
		quota     *scw.QuotasExceededError
		stock     *scw.OutOfStockError
		invalid   *scw.InvalidArgumentsError
		other     *scw.ResponseError
	)
	switch {
	case errors.As(err, &denied):
		return http.StatusUnauthorized
	case errors.As(err, &forbidden), errors.As(err, &quota):
		return http.StatusForbidden
	case errors.As(err, &missing):
		return http.StatusNotFound
	case errors.As(err, &transient):
		return http.StatusConflict
	case errors.As(err, &locked):
		return http.StatusLocked
	case errors.As(err, &unmet):
		return http.StatusPreconditionFailed
	case errors.As(err, &expired):
		return http.StatusGone
	case errors.As(err, &stock), errors.As(err, &invalid):
		return http.StatusBadRequest
	case errors.As(err, &other):
		return other.StatusCode
	}
	return 0
}

// passing tells that an error is no reason to give up yet: the API cannot be reached, has a fault, wants to be asked more
// slowly, or the resource is on its way to another state.
func passing(err error) bool {
	var final *finalError
	var unmet *scw.PreconditionFailedError
	switch {
	case errors.As(err, &final):
		return false
	case errors.As(err, &unmet):
		return unmet.Precondition == "resource_still_in_use"
	}
	switch code := status(err); code {
	case 0, http.StatusConflict, http.StatusTooManyRequests:
		return true
	default:
		return code >= 500
	}
}

// finalError is none of the API's: waiting does not mend it.
type finalError struct{ error }

func (e *finalError) Unwrap() error { return e.error }

func final(format string, args ...any) error { return &finalError{fmt.Errorf(format, args...)} }

// said is what an error of the SDK says. The SDK makes one of a nil pointer where the API's text names no UUID.
func said(err error) string {
	var missing *scw.ResourceNotFoundError
	var quota *scw.QuotasExceededError
	switch {
	case errors.As(err, &missing) && missing == nil:
		return "not found"
	case errors.As(err, &quota):
		return quota.Error() + ": ask Scaleway's support for more"
	}
	return err.Error()
}

// explain says of an error of the API what it means for the plan, and what to do next. what was being done.
func (s *scaleway) explain(what string, err error) error {
	var mine *finalError
	var credentials *CredentialsError
	if errors.As(err, &mine) || errors.As(err, &credentials) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %s: %w", s.name(), what, err)
	}
	next := "look at " + s.console() + " and https://status.scaleway.com, then repeat the command"
	switch code := status(err); {
	case code == http.StatusUnauthorized:
		return fmt.Errorf("%s: %s: %w", s.name(), what, &CredentialsError{Why: "the API does not accept the key, which is wrong, was deleted or has expired (" + said(err) + ")"})
	case code == http.StatusForbidden:
		next = "give the API key's owner a policy that allows it, at https://console.scaleway.com/iam/policies, or use another key"
	case code == http.StatusNotFound:
		next = "correct spec.snapshot.scaleway.id, .zone or .product, or use a key of the project that the server is in"
	case code == http.StatusLocked:
		next = "it is locked by Scaleway: ask its support"
	case code == 0:
		next = "check that this machine reaches Scaleway's API, then repeat the command"
		if url := os.Getenv(scw.ScwAPIURLEnv); url != "" {
			next = fmt.Sprintf("check that this machine reaches %s, which %s names as Scaleway's API, then repeat the command", url, scw.ScwAPIURLEnv)
		}
	}
	return fmt.Errorf("%s: %s: %s; %s", s.name(), what, said(err), next)
}

// LateError says that something at Scaleway did not come about in time.
type LateError struct {
	Server, What string
	After        time.Duration
	Last         string // what was seen last
	Next         string // how to get the server back
}

func (e *LateError) Error() string {
	return fmt.Sprintf("%s: %s: not so after %s; seen last: %s; %s", e.Server, e.What, e.After, e.Last, e.Next)
}

// until leads something to where it should be. Each step looks at what is, does the one thing that is next where
// anything is, and tells the state that it saw. Errors that pass are waited out, too. next is what a person can do
// when it takes longer than limit, or fails for good: the server may be away.
func (s *scaleway) until(ctx context.Context, what string, limit time.Duration, next string, step func(context.Context, *scw.Client) (done bool, state string, err error)) error {
	c, err := s.client()
	if err != nil {
		return fmt.Errorf("%w; %s", s.explain(what, err), next)
	}
	t := s.Progress.Wait(what)
	defer t.Done()
	deadline := time.Now().Add(limit)
	for {
		done, state, err := step(ctx, c)
		switch {
		case err == nil && done:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !passing(err):
			return fmt.Errorf("%w; %s", s.explain(what, err), next)
		case err != nil:
			state = firstLine(said(err))
		}
		if !time.Now().Before(deadline) {
			return &LateError{Server: s.name(), What: what, After: limit, Last: state, Next: next}
		}
		t.Detail(state)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(s.pace.look):
		}
	}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// orders keeps an order from being given again before it can have shown an effect.
type orders map[string]time.Time

// due tells whether an order is to be given, and notes that it is. An answer may have been lost: the note is no proof.
func (o orders) due(order string, again time.Duration) bool {
	if at, given := o[order]; given && time.Since(at) < again {
		return false
	}
	o[order] = time.Now()
	return true
}

// waiting shows that the API is asked, where that takes longer than a moment: the client's patience lasts minutes.
func (s *scaleway) waiting() (done func()) {
	var mu sync.Mutex
	var task *progress.Task
	ended := false
	timer := time.AfterFunc(s.pace.refused, func() {
		mu.Lock()
		defer mu.Unlock()
		if !ended {
			task = s.Progress.Wait("Asking Scaleway's API")
		}
	})
	return func() {
		timer.Stop()
		mu.Lock()
		defer mu.Unlock()
		ended = true
		task.Done()
	}
}

// ask makes one request, with the client's own patience.
func (s *scaleway) ask(ctx context.Context, what string, request func(*scw.Client, scw.RequestOption) error) error {
	defer s.waiting()()
	c, err := s.client()
	if err == nil {
		err = request(c, scw.WithContext(ctx))
	}
	if err != nil {
		return s.explain(what, err)
	}
	return nil
}

// find looks for the server; one that is not there is looked for in the product's other zones.
func (s *scaleway) find(ctx context.Context) error {
	const what = "looking for it"
	defer s.waiting()()
	c, err := s.client()
	if err != nil {
		return s.explain(what, err)
	}
	zones, get := s.finder(c)
	err = get(ctx, s.zone())
	if err == nil {
		return nil
	}
	if status(err) != http.StatusNotFound {
		return s.explain(what, err)
	}
	known := make([]string, 0, len(zones))
	for _, zone := range zones {
		known = append(known, string(zone))
		if zone != s.zone() && get(ctx, zone) == nil {
			return fmt.Errorf("%s: %s: it is in another zone: write %s in spec.snapshot.scaleway.zone", s.name(), what, zone)
		}
	}
	return fmt.Errorf("%s: %s: there is none of this ID, in no zone that is known of (%s), or the key does not see it; correct spec.snapshot.scaleway.id (or .product, .zone), which %s shows, or use a key of the server's project",
		s.name(), what, strings.Join(known, ", "), s.console())
}

// finder is how a server of the product is asked for in a zone, and the zones that there are.
func (s *scaleway) finder(c *scw.Client) ([]scw.Zone, func(context.Context, scw.Zone) error) {
	switch s.at.Product {
	case plans.ScalewayInstance:
		api := instance.NewAPI(c)
		return api.Zones(), func(ctx context.Context, zone scw.Zone) error {
			_, err := api.GetServer(&instance.GetServerRequest{Zone: zone, ServerID: s.at.ID}, scw.WithContext(ctx))
			return err
		}
	case plans.ScalewayElasticMetal:
		api := baremetal.NewAPI(c)
		return api.Zones(), func(ctx context.Context, zone scw.Zone) error {
			_, err := api.GetServer(&baremetal.GetServerRequest{Zone: zone, ServerID: s.at.ID}, scw.WithContext(ctx))
			return err
		}
	}
	api := dedibox.NewAPI(c)
	return api.Zones(), func(ctx context.Context, zone scw.Zone) error {
		_, err := api.GetServer(&dedibox.GetServerRequest{Zone: zone, ServerID: s.number()}, scw.WithContext(ctx))
		return err
	}
}

// number is a Dedibox's ID.
func (s *scaleway) number() uint64 {
	n, _ := strconv.ParseUint(s.at.ID, 10, 64) // valid since the plan was read
	return n
}

// answers waits until the host's own system, which has the host key that is known, answers with another boot id than before.
func (s *scaleway) answers(ctx context.Context, before, next string) error {
	return s.until(ctx, "Waiting for the host to start and to answer", s.pace.start, next, func(ctx context.Context, _ *scw.Client) (bool, string, error) {
		look, cancel := context.WithTimeout(ctx, rebootAsk)
		defer cancel()
		h, err := s.Host(look)
		if err != nil {
			return false, firstLine(err.Error()), nil
		}
		now, err := h.Output(look, bootID)
		if err != nil {
			return false, firstLine(err.Error()), nil
		}
		return now != before, "it answers, and was not started anew", nil
	})
}
