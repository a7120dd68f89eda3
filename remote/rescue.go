package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// rescue is how a rescue system is logged in to.
type rescue struct {
	password string
	not      []string // fingerprints that its host key does not have
	settings *settings
}

// Rescue lets Dial log in to a rescue system: one that a provider starts in the place of the host's own, in memory and
// with a new host key each time. Its host key is not looked for in known_hosts: the one that it shows first is
// accepted, and no other for the life of the Host and of its [Host.Another]; what it is tells [Host.HostKey]. Jump
// hosts on the way are checked as ever.
//
// The password, "" for none, is offered before the keys, and given to sudo where that wants one: through its standard
// input, once, to be asked no more until the system ends. Nobody but the caller can know whether a system that nobody
// has seen before is trusted with it.
//
// not are fingerprints of host keys, as [Host.HostKey] tells them, of the systems in whose place it is started: what shows
// one of these is not it yet, and is not given the password.
func Rescue(password string, not ...string) DialOption {
	return func(s *settings) { s.rescue = &rescue{password, not, s} }
}

// foreign is the error where another system than the rescue system answers.
func (r *rescue) foreign() error {
	r.settings.mu.Lock()
	defer r.settings.mu.Unlock()
	key := r.settings.pinned[len(r.settings.pinned)-1]
	if key != nil && slices.Contains(r.not, ssh.FingerprintSHA256(key)) {
		return fmt.Errorf("host %s: it is not the rescue system that answers, but the one in whose place it is to be started, by its host key", r.settings.plan.Name)
	}
	return nil
}

// auth are the ways to log in that come before the keys.
func (r *rescue) auth(o *offer) []ssh.AuthMethod {
	if r == nil || r.password == "" {
		return nil
	}
	o.tried = append(o.tried, "the rescue system's password")
	return []ssh.AuthMethod{
		ssh.PasswordCallback(func() (string, error) { return r.password, r.foreign() }),
		ssh.KeyboardInteractive(func(_, _ string, questions []string, _ []bool) ([]string, error) {
			if err := r.foreign(); err != nil {
				return nil, err
			}
			answers := make([]string, len(questions))
			for i := range answers {
				answers[i] = r.password
			}
			return answers, nil
		}),
	}
}

// allowSudo has sudo ask the user no more. Of several rules the last holds, which the file's name sees to. The rule is gone with the system, which lies in memory.
func (r *rescue) allowSudo(ctx context.Context, s *settings, c *conn) error {
	if err := r.foreign(); err != nil {
		return err
	}
	e := s.route[len(s.route)-1]
	const rule = `umask 227; printf '#%s ALL=(ALL) NOPASSWD: ALL\n' "$SUDO_UID" >/etc/sudoers.d/zz-k3s-dualstack`
	var stderr bytes.Buffer
	err := c.exec(ctx, "env LC_ALL=C sudo -S -p '' -- "+Quote("sh", "-c", rule), runOptions{stdin: strings.NewReader(r.password + "\n"), stderr: &stderr})
	if err == nil {
		err = c.exec(ctx, "env LC_ALL=C sudo -n -- true", runOptions{stderr: &stderr})
	}
	var exit *ExitError
	switch {
	case err == nil:
		c.sudo = true
		return nil
	case errors.As(err, &exit):
		return &SudoError{Host: s.plan.Name, User: e.user, Reason: sudoReason(exit), Stderr: exit.Stderr}
	}
	return fmt.Errorf("host %s: trying sudo: %w", s.plan.Name, err)
}
