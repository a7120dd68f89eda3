// Package openbao is an OpenBao server: what it says of itself, its raft
// snapshot, the export and import of its KV secrets, and how it is unsealed.
// HashiCorp Vault before its change of licence speaks the same.
//
// It stands above a dialer, by which a server inside the cluster is reached
// through SSH, and below backup (which opens what it wrote), survey and steps. It
// knows nothing of Kubernetes, of the plan or of where artifacts lie; where tokens
// and keys come from is for package credentials. It owns
//
//   - the [Server]: status, description, sealing and unsealing, initialisation,
//     snapshot and restore, over github.com/openbao/openbao/api/v2 with nothing taken
//     from the environment;
//   - the snapshot's form ([ReadSnapshot]) and the proof that unseal keys open it
//     ([Snapshot.Prove]), both without any server: asking a running server means its
//     rekey endpoints, which OpenBao 2.5 closes by default, or sealing it;
//   - the export ([Server.Export]): every version of every KV secret as JSON lines,
//     its comparison with a server ([Server.Compare]) and its way into another
//     one ([Server.Import]).
//
// No error and no text that it makes holds a token, a key or a secret's data.
package openbao
