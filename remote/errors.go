package remote

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

var (
	// ErrConnectionLost says that the connection ended while a command ran or a stream was open. Whether
	// the command finished on the host is not known; it is never repeated by this package. The next call
	// on the same Host connects anew.
	ErrConnectionLost = errors.New("the SSH connection was lost")

	// ErrClosed says that Close was called before.
	ErrClosed = errors.New("the connection was closed")

	// ErrNoJob says that no job of this name was started on the host.
	ErrNoJob = errors.New("no such job on the host")

	// ErrJobLost says that a job ended without leaving an exit status: it was killed, or the host
	// rebooted under it. What it did until then stays done.
	ErrJobLost = errors.New("the job was lost")
)

// ExitError says that a command ran on the host and failed.
type ExitError struct {
	Code   int    // exit status, 128 plus the signal's number when a signal ended it
	Signal string // name of the signal without "SIG", "" when none
	Stderr string // the last 8 KiB of what it wrote to standard error
}

func (e *ExitError) Error() string {
	what := fmt.Sprintf("exit status %d", e.Code)
	if e.Signal != "" {
		what = "ended by signal " + e.Signal
	}
	if tail := strings.TrimSpace(e.Stderr); tail != "" {
		return what + ": " + tail
	}
	return what
}

// UnknownHostKeyError says that no known_hosts file has a key for the host.
type UnknownHostKeyError struct {
	Host    string        // plan's name of the host
	Address string        // host name or address as dialled
	Port    string        // port as dialled
	Via     string        // user@host:port of the jump host through which Address is reached, "" when directly
	Key     ssh.PublicKey // what the host showed
	Files   []string      // known_hosts files that were read; the first is the one to add to
}

func (e *UnknownHostKeyError) Error() string {
	scan := "ssh-keyscan -p " + Quote(e.Port, e.Address)
	if e.Via != "" {
		scan = "ssh " + Quote("ssh://"+e.Via, scan)
	}
	return fmt.Sprintf(`host %s: the host key of %s is not known
  shown by the host: %s %s
  looked for in:     %s
  To trust it, run
    %s >> %s
  then compare what "ssh-keygen -lf %s -F %s" prints with "ssh-keygen -lf /etc/ssh/ssh_host_%s_key.pub" on the host's own console`,
		e.Host, joinHostPort(e.Address, e.Port), e.Key.Type(), ssh.FingerprintSHA256(e.Key), strings.Join(e.Files, ", "),
		scan, Quote(e.Files[0]),
		Quote(e.Files[0]), Quote(knownhosts.Normalize(joinHostPort(e.Address, e.Port))), keyFileWord(e.Key.Type()))
}

// keyFileWord is the word for a key type in the name of sshd's host key files.
func keyFileWord(keyType string) string {
	switch {
	case strings.Contains(keyType, "ecdsa"):
		return "ecdsa"
	case strings.Contains(keyType, "rsa"):
		return "rsa"
	default:
		return "ed25519"
	}
}

// ChangedHostKeyError says that the host showed another key than the one it is known by. Either the host
// was installed anew, or someone is in between.
type ChangedHostKeyError struct {
	Host    string // plan's name of the host
	Address string
	Port    string
	Key     ssh.PublicKey         // what the host showed
	Known   []knownhosts.KnownKey // what it is known by; a Line of 0 stands for the connection made earlier in this run
}

func (e *ChangedHostKeyError) Error() string {
	var b strings.Builder
	address := joinHostPort(e.Address, e.Port)
	fmt.Fprintf(&b, "host %s: the host key of %s has CHANGED: the host was installed anew, or someone is intercepting the connection\n", e.Host, address)
	fmt.Fprintf(&b, "  shown now: %s %s\n", e.Key.Type(), ssh.FingerprintSHA256(e.Key))
	files := make([]string, 0, len(e.Known))
	for _, k := range e.Known {
		where := "earlier in this run"
		if k.Line > 0 {
			where = fmt.Sprintf("%s:%d", k.Filename, k.Line)
			if len(files) == 0 || files[len(files)-1] != k.Filename {
				files = append(files, k.Filename)
			}
		}
		fmt.Fprintf(&b, "  known as:  %s %s (%s)\n", k.Key.Type(), ssh.FingerprintSHA256(k.Key), where)
	}
	fmt.Fprintf(&b, "  Nothing was sent to it. If the change is expected and the new key was compared on the host's own console")
	if len(files) == 0 {
		fmt.Fprintf(&b, ", start the command again")
		return b.String()
	}
	fmt.Fprintf(&b, ", remove the old one")
	for _, f := range files {
		fmt.Fprintf(&b, "\n    ssh-keygen -R %s -f %s", Quote(knownhosts.Normalize(address)), Quote(f))
	}
	return b.String()
}

// AuthError says that the host refused every key that was offered.
type AuthError struct {
	Host    string // plan's name of the host
	User    string
	Address string
	Port    string
	Tried   []string // keys offered, where each came from
	Unused  []string // keys that could not be offered, and why
	Err     error
}

func (e *AuthError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "host %s: %s at %s accepts none of the keys offered", e.Host, e.User, joinHostPort(e.Address, e.Port))
	if len(e.Tried) == 0 {
		fmt.Fprintf(&b, "\n  no key was offered")
	}
	for _, t := range e.Tried {
		fmt.Fprintf(&b, "\n  tried:    %s", t)
	}
	for _, u := range e.Unused {
		fmt.Fprintf(&b, "\n  not used: %s", u)
	}
	fmt.Fprintf(&b, "\n  the connection said: %v", e.Err)
	fmt.Fprintf(&b, "\n  Name the right key in the plan (identityFiles) or add it to the agent (ssh-add), and check that the host lets it in:\n    ssh -p %s %s true",
		e.Port, Quote(e.User+"@"+e.Address))
	return b.String()
}

func (e *AuthError) Unwrap() error { return e.Err }

// UnreachableError says that no SSH connection could be made.
type UnreachableError struct {
	Host    string // plan's name of the host
	Address string
	Port    string
	Via     string // the jump host through which it was tried, "" when directly
	Err     error
}

func (e *UnreachableError) Error() string {
	via := ""
	if e.Via != "" {
		via = " through " + e.Via
	}
	return fmt.Sprintf("host %s: no SSH connection to %s%s: %v; check that the host is up and that the plan's address, port and jumpHost are right",
		e.Host, joinHostPort(e.Address, e.Port), via, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// SudoReason tells why commands cannot run as root.
type SudoReason string

// The reasons of a SudoError.
const (
	SudoOff       SudoReason = "the plan does not allow sudo"
	SudoPassword  SudoReason = "sudo asks for a password"
	SudoForbidden SudoReason = "sudo does not allow it"
	SudoMissing   SudoReason = "sudo is not installed"
	SudoTerminal  SudoReason = "sudo wants a terminal"
	SudoFailed    SudoReason = "sudo failed"
)

// SudoError says that the user who logged in is not root and cannot become root.
type SudoError struct {
	Host   string // plan's name of the host
	User   string
	Reason SudoReason
	Stderr string // what sudo said
}

func (e *SudoError) Error() string {
	var next string
	switch e.Reason {
	case SudoOff:
		next = `set "sudo: true" for the host in the plan, or log in as root`
	case SudoMissing:
		next = "install sudo on the host, or log in as root"
	case SudoTerminal:
		next = fmt.Sprintf("add the line \"Defaults:%s !requiretty\" with visudo on the host", e.User)
	default:
		next = fmt.Sprintf("add the line \"%s ALL=(ALL) NOPASSWD: ALL\" with \"visudo -f /etc/sudoers.d/migrate\" on the host, or log in as root", e.User)
	}
	said := ""
	if s := strings.TrimSpace(e.Stderr); s != "" {
		said = " (" + s + ")"
	}
	return fmt.Sprintf("host %s: %s cannot run commands as root: %s%s; %s", e.Host, e.User, e.Reason, said, next)
}
