package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/cluster"
	"sunbeam.pt/k3s-dualstack/openbao"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
	"sunbeam.pt/k3s-dualstack/runner"
	"sunbeam.pt/k3s-dualstack/survey"
)

// reviveMode says what may be done to have OpenBao answer again.
type reviveMode struct {
	// Restore fills a first server without data from the snapshot.
	Restore bool
	// Prove asks with the plan's token whether it is the server that was backed up,
	// and compares the sentinel.
	Prove bool
}

// revived is what was done to OpenBao, for the journal.
type revived struct {
	Unsealed []string `json:"unsealed,omitempty"`
	Restored []string `json:"restored,omitempty"` // where the snapshot was restored into
}

// with adds a name to those that are there already.
func with(names []string, name string) []string {
	if slices.Contains(names, name) {
		return names
	}
	return append(names, name)
}

// reviveBao has the servers of the cluster that runs now unsealed, however long they
// take to come. It can be repeated and cut off anywhere; what was done is added to did.
func (m *Migration) reviveBao(ctx context.Context, mode reviveMode, did *revived) error {
	t := m.Progress.Wait("Waiting for OpenBao")
	defer t.Done()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		waits, err := m.reviveOnce(ctx, mode, did, t)
		if err != nil {
			return err
		}
		if waits == nil {
			return m.doneRestoring(mode)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("OpenBao did not come up (%w): %w", context.Cause(ctx), waits)
		case <-tick.C:
		}
	}
}

// away tells that a server cannot answer now and may do so later.
func away(err error) bool {
	var (
		unreachable *openbao.UnreachableError
		standby     *openbao.StandbyError
		refused     *openbao.RefusedError
		api         *cluster.UnreachableError
		pods        *cluster.NoPodsError
	)
	return errors.As(err, &unreachable) || errors.As(err, &standby) || errors.As(err, &api) || errors.As(err, &pods) ||
		errors.As(err, &refused) && refused.Status >= 500
}

// lookTime bounds one look at a server: a pod that is being made hangs, and is
// looked at again.
const lookTime = 10 * time.Second

// reviveOnce does for each server what can be done now. waits says what is still
// waited for; err ends the attempts.
func (m *Migration) reviveOnce(ctx context.Context, mode reviveMode, did *revived, t *progress.Task) (waits, err error) {
	all, err := m.baoEndpoints(ctx, "")
	if away(err) {
		t.Detail("its pods are not there yet")
		return err, nil
	}
	if err != nil {
		return nil, err
	}
	defer survey.CloseOpenBao(all)
	statuses := make([]openbao.Status, len(all))
	initialised := false
	for i, bao := range all {
		look, cancel := context.WithTimeout(ctx, lookTime)
		statuses[i], err = bao.Status(look)
		late := look.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case away(err) || err != nil && late:
			t.Detail(bao.Name + " does not answer yet")
			waits = fmt.Errorf("%s: %w", bao.Name, err)
		case err != nil:
			return nil, fmt.Errorf("%s: %w", bao.Name, err)
		}
		initialised = initialised || statuses[i].Initialised
	}
	for i, bao := range all {
		// The first leads the others, and comes into being before them.
		if waits != nil {
			return waits, nil
		}
		waits, err = m.reviveServer(ctx, mode, bao, statuses[i], i == 0 && !initialised, i == 0, did, t)
		if away(err) {
			waits, err = err, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", bao.Name, err)
		}
		if waits != nil {
			t.Detail(bao.Name + ": " + waits.Error())
			return fmt.Errorf("%s: %w", bao.Name, waits), nil
		}
	}
	if m.hasBao() && len(all) < len(m.Facts.OpenBao.Servers) {
		t.Detail("its other pods are not there yet")
		return fmt.Errorf("%d of its %d pods are there", len(all), len(m.Facts.OpenBao.Servers)), nil
	}
	active, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := all[0].WaitActive(active, t); err != nil {
		return fmt.Errorf("%s: %w", all[0].Name, err), nil // a pod may have been started anew meanwhile
	}
	if mode.Prove {
		err = m.proveServer(ctx, t)
		if away(err) {
			return err, nil
		}
	}
	return nil, err
}

// reviveServer brings one server a step on; empty tells that none of them has data,
// first that it is the one that is restored into.
func (m *Migration) reviveServer(ctx context.Context, mode reviveMode, bao survey.OpenBaoEndpoint, status openbao.Status, empty, first bool, did *revived, t *progress.Task) (waits, err error) {
	switch {
	case !status.Initialised && empty && mode.Restore:
		t.Detail("restoring the snapshot into " + bao.Name)
		did.Restored = with(did.Restored, bao.Name)
		return errRestored, m.restoreBao(ctx, bao, status)
	case !status.Initialised && empty:
		return nil, errors.New("OpenBao is not initialised: its storage is empty")
	case !status.Initialised:
		return errors.New("it has not joined the others yet"), nil
	case status.Sealed && status.RecoverySeal:
		return fmt.Errorf("it has not unsealed itself yet (%s)", status.Seal), nil
	case status.Sealed:
		keys, err := m.baoKeys(ctx)
		if err != nil {
			return nil, err
		}
		t.Detail("unsealing " + bao.Name)
		err = bao.Unseal(ctx, keys)
		var wrong *openbao.WrongKeysError
		if mode.Restore && first && errors.As(err, &wrong) {
			return m.goOnRestoring(ctx, bao, err, did)
		}
		if err != nil {
			return nil, err
		}
		did.Unsealed = with(did.Unsealed, bao.Name)
		return nil, nil
	case mode.Restore && first:
		return m.goOnRestoring(ctx, bao, nil, did)
	}
	return nil, nil
}

// NoBaoDataError says that a server came up empty and nothing is there to fill it.
type NoBaoDataError struct{ Storage string }

func (e *NoBaoDataError) Error() string {
	return fmt.Sprintf("it came up without data, and its storage %q has no snapshots: bring its volume back from the backup set (`migrate backup extract`), or initialise a new one and fill it with `migrate openbao import`", e.Storage)
}

// restoreBao fills a server that has no data: it is initialised with keys of no
// consequence, and the snapshot that replaces its data brings the old keys.
func (m *Migration) restoreBao(ctx context.Context, bao survey.OpenBaoEndpoint, status openbao.Status) error {
	set, err := m.Set()
	if err != nil {
		return err
	}
	snapshot, ok := set.Artifact(baoSnapshot)
	if !ok {
		return &NoBaoDataError{Storage: status.Storage}
	}
	if err := openbao.CheckVersion(status.Version, snapshot.Meta[baoVersion]); err != nil {
		return err
	}
	// Durable before and after: a server whose keys nobody has must be recognised.
	if err := m.keepThrowAway(openbao.Initial{}); err != nil {
		return err
	}
	// An interrupt in between would lose the key.
	once, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	was := m.Facts.OpenBao.Servers[0]
	initial, err := bao.Init(once, was.Shares, was.Threshold)
	if err != nil {
		return err
	}
	if err := m.keepThrowAway(initial); err != nil {
		return err
	}
	return m.refillBao(ctx, bao, set, initial)
}

func (m *Migration) keepThrowAway(initial openbao.Initial) error {
	return m.create(baoThrowAway, backup.KindFile, func(w io.Writer) error { return json.NewEncoder(w).Encode(initial) })
}

// doneRestoring forgets the throw-away keys, if there were any.
func (m *Migration) doneRestoring(mode reviveMode) error {
	if !mode.Restore {
		return nil
	}
	set, err := m.Set()
	if err != nil {
		return err
	}
	return set.Remove(baoThrowAway)
}

// throwAway are the keys of a server that was initialised to be restored into;
// begun is false when none was.
func (m *Migration) throwAway(set *backup.Set) (initial openbao.Initial, begun bool, err error) {
	if _, begun = set.Artifact(baoThrowAway); !begun {
		return initial, false, nil
	}
	r, err := set.Reader(baoThrowAway)
	if err != nil {
		return initial, true, err
	}
	defer r.Close()
	if err := json.NewDecoder(r).Decode(&initial); err != nil {
		return initial, true, fmt.Errorf("reading artifact %s: %w", baoThrowAway, err)
	}
	return initial, true, nil
}

// refillBao restores the snapshot into a server with throw-away keys.
func (m *Migration) refillBao(ctx context.Context, bao survey.OpenBaoEndpoint, set *backup.Set, initial openbao.Initial) error {
	if err := bao.Unseal(ctx, initial.Keys); err != nil {
		return err
	}
	server := bao.WithToken(initial.Token)
	if err := server.WaitActive(ctx, nil); err != nil {
		return err
	}
	r, err := set.Reader(baoSnapshot)
	if err != nil {
		return err
	}
	defer r.Close()
	return server.Restore(ctx, r)
}

// errRestored is what a server is waited for after the restore.
var errRestored = errors.New("the snapshot was restored and is to be unsealed")

// goOnRestoring restores into a server that an attempt which was cut off has
// initialised, and says that it did. Any other is left alone; why is what the operator's
// keys were refused with, nil for a server that is unsealed.
func (m *Migration) goOnRestoring(ctx context.Context, bao survey.OpenBaoEndpoint, why error, did *revived) (waits, err error) {
	set, err := m.Set()
	if err != nil {
		return nil, err
	}
	initial, begun, err := m.throwAway(set)
	switch {
	case err != nil:
		return nil, err
	case !begun:
		return nil, why
	case initial.Token == "" && why != nil:
		return nil, fmt.Errorf("it was initialised to restore the snapshot into it, and the run was cut off before its keys were kept; it holds nothing: remove its storage so that it comes up empty (on the host: %s), and `migrate run` restores it", m.emptyBao(bao))
	case initial.Token == "":
		return nil, nil
	case why == nil:
		// Unsealed: the old server, or the one that was to be restored into.
		_, err := bao.WithToken(initial.Token).Missing(ctx)
		var unknown *openbao.TokenError
		if errors.As(err, &unknown) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	did.Restored = with(did.Restored, bao.Name)
	return errRestored, m.refillBao(ctx, bao, set, initial)
}

// emptyBao is what a person types to have a server come up with empty storage.
func (m *Migration) emptyBao(bao survey.OpenBaoEndpoint) string {
	i := slices.IndexFunc(m.Facts.OpenBao.Servers, func(s survey.OpenBaoServer) bool { return s.Name == bao.Name })
	if bao.Pod == "" || i < 0 {
		return "how depends on where it runs"
	}
	command := "k3s kubectl -n " + m.Plan.Spec.Backup.OpenBao.Namespace + " delete --wait=false pod/" + bao.Pod
	for _, claim := range m.Facts.OpenBao.Servers[i].Claims {
		_, name, _ := strings.Cut(claim, "/")
		command += " pvc/" + name
	}
	return "`" + command + "`"
}

// proveServer tells whether the server is the one that was backed up: it knows the
// plan's token, and has the sentinel as it was exported.
func (m *Migration) proveServer(ctx context.Context, t *progress.Task) error {
	return m.withBao(ctx, func(bao survey.OpenBaoEndpoint, _ openbao.Status) error {
		if _, err := bao.Missing(ctx); err != nil {
			return fmt.Errorf("spec.backup.openBao.token: %w; if it has expired, give another one", err)
		}
		sentinel := m.Plan.Spec.Backup.OpenBao.Sentinel
		if sentinel == "" {
			return nil
		}
		t.Detail("comparing " + sentinel)
		err := m.withExport(func(export io.Reader) error { return bao.CompareSecret(ctx, export, sentinel) })
		var different *openbao.DifferentError
		if errors.As(err, &different) {
			return fmt.Errorf("spec.backup.openBao.sentinel: %w: the server has other data than those that were backed up, which are in %s", err, m.baoCopies())
		}
		return err
	})
}

// baoCopies names the artifacts that hold OpenBao's secrets.
func (m *Migration) baoCopies() string {
	if m.Facts.OpenBao.Snapshots() {
		return baoSnapshot + " and " + OpenBaoExport
	}
	return OpenBaoExport
}

// baoBack has OpenBao answer again in the new cluster.
func (m *Migration) baoBack() []runner.Action {
	if !m.hasBao() {
		return nil
	}
	a := runner.Action{
		Name: "openbao", Target: m.onCluster(),
		Summary: "See that OpenBao is unsealed and has its data, as it is while the platform comes up; one without data gets the snapshot",
		Command: "bao operator unseal # empty: bao operator init && bao operator unseal && bao operator raft snapshot restore -force openbao.snap && bao operator unseal",
		Run: func(ctx context.Context) (any, error) {
			ctx, cancel := context.WithTimeout(ctx, workloadsDeadline)
			defer cancel()
			err := m.reviveBao(ctx, reviveMode{Restore: true, Prove: true}, &m.bao)
			return m.bao, err
		},
	}
	if !m.Facts.OpenBao.Snapshots() {
		a.Summary = "See that OpenBao is unsealed and has its data, as it is while the platform comes up"
		a.Command = "bao operator unseal"
	}
	return []runner.Action{a}
}

// baoError says that OpenBao, and not the platform command that may wait for it, is
// what went wrong.
type baoError struct{ err error }

func (e *baoError) Error() string {
	return fmt.Sprintf("OpenBao does not come back, and the platform command was ended: %v\nwhat is kept of it is in the backup set: mend what it names, then `migrate run` goes on", e.err)
}

func (e *baoError) Unwrap() error { return e.err }

// baoMeanwhile revives OpenBao beside a platform command that may wait for it, and
// again should the command start its pods anew. The context that it returns ends with
// what is wrong as its cause; stop ends the attempts, and returns when they have ended.
func (m *Migration) baoMeanwhile(ctx context.Context) (_ context.Context, stop func(), err error) {
	if !m.hasBao() {
		return ctx, func() {}, nil
	}
	// Asked for now, not in the middle of the command's output.
	if _, err := m.baoKeys(ctx); err != nil {
		return nil, nil, err
	}
	if _, err := m.baoToken(ctx); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := m.reviveBao(ctx, reviveMode{Restore: true, Prove: true}, &m.bao)
		for err == nil && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Second):
				_, err = m.reviveOnce(ctx, reviveMode{}, &m.bao, nil)
			}
		}
		if ctx.Err() == nil {
			cancel(&baoError{err})
		}
	}()
	return ctx, func() {
		cancel(context.Canceled)
		<-ended
	}, nil
}

// baoAgain unseals OpenBao in the old cluster. A rollback does not end because of
// it: the cluster is back, and a person can unseal.
func (m *Migration) baoAgain() []runner.Action {
	if !m.hasBao() {
		return nil
	}
	command := "migrate openbao unseal -f " + remote.Quote(m.Plan.Path())
	a := runner.Action{
		Name: "openbao again", Target: m.onCluster(),
		Summary: "Unseal OpenBao",
		Command: command,
		Run: func(ctx context.Context) (any, error) {
			limited, cancel := context.WithTimeout(ctx, apiDeadline)
			defer cancel()
			var did revived
			err := m.reviveBao(limited, m.baoAgainMode(), &did)
			if err == nil || ctx.Err() != nil {
				return did, err
			}
			fmt.Fprintf(m.Output, "warning: OpenBao does not answer as before: %v\nthe cluster is back; when that is mended: %s\n", err, command)
			return map[string]string{"notRevived": err.Error()}, nil
		},
	}
	if m.baoAgainMode().Restore {
		a.Summary = "Unseal OpenBao; its volume is not in the backup: should it be empty, it gets the snapshot first"
	}
	return []runner.Action{a}
}

// baoAgainMode is how OpenBao comes back in the old cluster: out of its volume, or,
// when that was left out of the backup and went with the uninstall, out of the
// snapshot.
func (m *Migration) baoAgainMode() reviveMode {
	return reviveMode{Restore: m.Facts.OpenBao.Snapshots() && !m.Facts.OpenBaoCopied()}
}

// ErrNoBao says that the plan names no OpenBao.
var ErrNoBao = errors.New("the plan names no OpenBao: say in spec.backup.openBao how it is found")

// UnsealBao unseals OpenBao's servers as they are now, before a run has begun too.
func (m *Migration) UnsealBao(ctx context.Context) (unsealed []string, err error) {
	if m.Plan.Spec.Backup.OpenBao == nil {
		return nil, ErrNoBao
	}
	var mode reviveMode
	switch {
	case m.Facts == nil:
		if m.Facts, err = m.Survey(ctx); err != nil {
			return nil, err
		}
	case m.hasBao() && m.hasSet():
		mode = m.baoAgainMode()
	}
	ctx, cancel := context.WithTimeout(ctx, apiDeadline)
	defer cancel()
	var did revived
	err = m.reviveBao(ctx, mode, &did)
	return did.Unsealed, err
}
