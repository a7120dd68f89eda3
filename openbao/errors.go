package openbao

import (
	"fmt"
	"strings"
)

// UnreachableError says that nothing answers at the server's address, or that the
// connection broke.
type UnreachableError struct {
	Address string
	Err     error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("the OpenBao server at %s does not answer (%v); see whether its pod runs and listens", e.Address, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// UntrustedError says that the server's certificate is not one that the CA
// vouches for, or is for another name.
type UntrustedError struct {
	Address string
	Err     error
}

func (e *UntrustedError) Error() string {
	return fmt.Sprintf("the OpenBao server at %s shows a certificate that is not trusted (%v); name its CA and the name that it is for in the plan's tls", e.Address, e.Err)
}

func (e *UntrustedError) Unwrap() error { return e.Err }

// ForeignError says that what answers is no OpenBao server.
type ForeignError struct {
	Address string
	Problem string
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("what answers at %s is not an OpenBao server (%s); check the address, the port, and whether it is http or https", e.Address, e.Problem)
}

// SealedError says that the server is sealed and can do nothing before it is
// unsealed.
type SealedError struct {
	Address string
	Status  Status
}

func (e *SealedError) Error() string {
	if e.Status.RecoverySeal {
		return fmt.Sprintf("the OpenBao server at %s is sealed and unseals itself by its %s seal, which it has not; see its log", e.Address, e.Status.Seal)
	}
	return fmt.Sprintf("the OpenBao server at %s is sealed; unseal it with %d of its %d keys", e.Address, e.Status.Threshold, e.Status.Shares)
}

// UninitialisedError says that the server was never initialised: it holds
// nothing and has no keys.
type UninitialisedError struct{ Address string }

func (e *UninitialisedError) Error() string {
	return fmt.Sprintf("the OpenBao server at %s is not initialised; check that it is the right one and that its storage is there", e.Address)
}

// InitialisedError says that a server that was to be initialised is so already.
type InitialisedError struct{ Address string }

func (e *InitialisedError) Error() string {
	return fmt.Sprintf("the OpenBao server at %s is initialised already and may hold secrets; it was left as it is", e.Address)
}

// StandbyError says that the server is a standby that does not pass the request
// on; the active server of its cluster is to be asked instead.
type StandbyError struct {
	Address string
	Active  string // the active server's address as the standby knows it; "" if it does not
}

func (e *StandbyError) Error() string {
	if e.Active == "" {
		return fmt.Sprintf("the OpenBao server at %s is a standby and knows no active server; see whether enough servers of its cluster are unsealed", e.Address)
	}
	return fmt.Sprintf("the OpenBao server at %s is a standby; ask the active one, %s", e.Address, e.Active)
}

// TokenError says that there is no token, that it cannot be one, or that the
// server does not know it, or no longer.
type TokenError struct {
	Address   string
	Missing   bool
	Malformed bool
}

func (e *TokenError) Error() string {
	if e.Missing {
		return fmt.Sprintf("the OpenBao server at %s needs a token, and none is given", e.Address)
	}
	if e.Malformed {
		return "the token for the OpenBao server is none: it has characters that no token has; see that its source gives the token and nothing else"
	}
	return fmt.Sprintf("the OpenBao server at %s does not accept the token: it is wrong, expired or revoked; make a new one with `bao token create`", e.Address)
}

// DeniedError says that the token may not do something that is needed.
type DeniedError struct {
	Path         string   // as a policy names it
	Capabilities []string // what the policy has to grant there
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("the token may not %s %s; grant it with the policy: %s", strings.Join(e.Capabilities, " and "), e.Path, stanza(e.Path, e.Capabilities))
}

// stanza is the policy that grants capabilities on a path, in one line.
func stanza(path string, capabilities []string) string {
	quoted := make([]string, len(capabilities))
	for i, c := range capabilities {
		quoted[i] = fmt.Sprintf("%q", c)
	}
	return fmt.Sprintf("path %q { capabilities = [%s] }", path, strings.Join(quoted, ", "))
}

// NoSnapshotError says that the server's storage has no snapshots: only raft has.
type NoSnapshotError struct{ Storage string }

func (e *NoSnapshotError) Error() string {
	return fmt.Sprintf("the OpenBao server keeps its data in %q storage, which has no snapshots; its stopped volume and the export of its KV secrets are the backup", e.Storage)
}

// RefusedError is an answer of the server that has no type of its own.
type RefusedError struct {
	Doing  string // what was asked for, such as "reading secret/data/a"
	Status int    // HTTP
	Says   string // the server's words, on one line
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s: the OpenBao server answers %d: %s", e.Doing, e.Status, e.Says)
}

// OlderError says that the server is of an older release than the one whose
// snapshot it is to take; OpenBao does not read what a newer release wrote.
type OlderError struct{ Server, Snapshot string }

func (e *OlderError) Error() string {
	return fmt.Sprintf("the OpenBao server is version %s, older than %s, of which the snapshot is; run at least %s", e.Server, e.Snapshot, e.Snapshot)
}

// MountError says that a mount that was asked for is not one of KV secrets.
type MountError struct {
	Index int    // in the list that named it
	Path  string // as it was named
	Type  string // "" if there is no such mount
	KV    []string
}

func (e *MountError) Error() string {
	have := "it has none"
	if len(e.KV) > 0 {
		have = "it has " + strings.Join(e.KV, ", ")
	}
	if e.Type == "" {
		return fmt.Sprintf("the OpenBao server has no mount %q; name KV mounts only: %s", e.Path, have)
	}
	return fmt.Sprintf("the OpenBao server's mount %q is of type %s, not KV; name KV mounts only: %s", e.Path, e.Type, have)
}

// DamagedExport says that an export is cut off or not one.
type DamagedExport struct {
	Line    int
	Problem string
}

func (e *DamagedExport) Error() string {
	return fmt.Sprintf("the export of the KV secrets is damaged at line %d: %s; take another copy of it", e.Line, e.Problem)
}

// NotExportedError says that an export does not hold a secret.
type NotExportedError struct{ Path string }

func (e *NotExportedError) Error() string {
	return fmt.Sprintf("the export holds no secret %s; name it as `bao kv get` takes it, mount and path, and see that its mount is exported", e.Path)
}

// DifferentError says that a secret is not in the server as it was exported.
type DifferentError struct {
	Path string
	What []string // one difference each, without data
}

func (e *DifferentError) Error() string {
	return fmt.Sprintf("the secret %s is not as it was exported: %s", e.Path, strings.Join(e.What, "; "))
}
