// Package plans owns the plan file: its types, defaults, validation, JSON schema and the commented
// examples beside this source. A plan is the declarative statement of what to migrate, to what, and how to
// protect it; every other package takes its settings from here and nearly all import this one. The package
// itself imports none of them and never touches a host: it reads the plan file and looks, on the
// laptop, for the files that the plan names.
//
// The doc comments of the types are what `migrate schema` prints as descriptions, so they speak to
// whoever writes a plan. After a change, `go generate ./plans` refreshes the schema.
package plans

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What a plan file says of itself.
const (
	// APIVersion is the apiVersion that this program reads.
	APIVersion = "dualstack.sunbeam.pt/v1alpha1"
	// Kind is the kind of a plan file.
	Kind = "Migration"
)

// Duration is a length of time as Go writes it: "30m", "1h30m", "90s".
type Duration = metav1.Duration

// Plan is the declarative description of one migration: which cluster, to which ranges, and how it is protected on the way.
type Plan struct {
	// Version of the plan format.
	APIVersion string `json:"apiVersion" jsonschema:"enum=dualstack.sunbeam.pt/v1alpha1"`
	// Kind of the file.
	Kind string `json:"kind" jsonschema:"enum=Migration"`
	// What the migration is called.
	Metadata Metadata `json:"metadata"`
	// What to do.
	Spec Spec `json:"spec"`

	path   string // absolute path of the file the plan came from; empty when decoded from memory
	digest string // see Digest; taken before paths are resolved
}

// Metadata names the migration.
type Metadata struct {
	// Name of the migration, an RFC 1123 label. Work directory, journal and backup set carry it.
	Name string `json:"name" jsonschema:"maxLength=63,pattern=^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"`
}

// Spec is what the migration does.
type Spec struct {
	// Hosts of the cluster. Exactly one, with the role server, for now.
	Hosts []Host `json:"hosts" jsonschema:"minItems=1,maxItems=1"`
	// The address ranges that the cluster gets.
	Network Network `json:"network,omitzero"`
	// How K3s is installed again.
	K3s K3s `json:"k3s,omitzero"`
	// The snapshot of the whole host that is taken first. Left out: none.
	Snapshot *Snapshot `json:"snapshot,omitempty"`
	// What is kept before anything is removed, and who can read it.
	Backup Backup `json:"backup"`
	// What puts the workloads back on the new cluster.
	Platform Platform `json:"platform"`
	// Which Services become dual-stack.
	Services Services `json:"services,omitzero"`
	// What proves that the cluster is dual-stack.
	Verify Verify `json:"verify,omitzero"`
	// Commands that run before and after steps, in this order where a step has several.
	Hooks []Hook `json:"hooks,omitempty"`
	// URLs that are asked once a second during a run and a rollback, over IPv4 and IPv6, so that it is known for how long they were away; any answer below 500 counts as up, and certificates are not checked. Default: https://NAME/ for every name of verify.hostnames; an empty list watches the API alone.
	Watch []string `json:"watch,omitzero" jsonschema:"pattern=^https?://[^/@?#]+([/?#]|$)"`
	// Directory of journal, facts and backup set. Relative to the plan file; default "<metadata.name>.migration" beside it.
	WorkDir string `json:"workDir,omitempty"`
}

// Role is what a host is in the cluster.
type Role string

// The roles of a host.
const (
	// RoleServer runs the control plane, and workloads.
	RoleServer Role = "server"
	// RoleAgent runs workloads only.
	RoleAgent Role = "agent"
)

// SSHConfigNone as Host.SSHConfig reads no SSH configuration.
const SSHConfigNone = "none"

// Host is a machine of the cluster and how to reach it over SSH.
type Host struct {
	// Name of the host in messages and in the journal, a DNS name. Best the name of its Kubernetes node.
	Name string `json:"name" jsonschema:"maxLength=253,pattern=^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"`
	// Role of the host in the cluster. Default "server".
	Role Role `json:"role,omitempty" jsonschema:"enum=server,default=server"`
	// Address to connect to: an IP address, a DNS name, or an alias of the SSH configuration.
	Address string `json:"address" jsonschema:"minLength=1"`
	// TCP port of the SSH server. Default: the SSH configuration's, otherwise 22.
	Port int `json:"port,omitempty" jsonschema:"minimum=1,maximum=65535"`
	// User to log in as. Default: the SSH configuration's, otherwise root.
	User string `json:"user,omitempty"`
	// Private key files to offer, before the agent's keys. Default: the SSH configuration's.
	IdentityFiles []string `json:"identityFiles,omitempty" jsonschema:"minLength=1"`
	// Files with known host keys. Default ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts, as far as they exist.
	KnownHosts []string `json:"knownHosts,omitempty" jsonschema:"minLength=1"`
	// Whether commands become root by "sudo -n". Needed when the user is not root.
	Sudo bool `json:"sudo,omitempty"`
	// Hosts to go through, as ssh's ProxyJump: [user@]host[:port] or an alias, several separated by commas.
	JumpHost string `json:"jumpHost,omitempty"`
	// SSH configuration file to read. Default ~/.ssh/config; "none" reads none.
	SSHConfig string `json:"sshConfig,omitempty"`
}

// Network is what the cluster's network becomes. Every list of ranges or addresses holds IPv4 first, IPv6 second.
type Network struct {
	// Ranges of the pods, one IPv4 and one IPv6. Default 10.42.0.0/16 and fd42::/48.
	ClusterCIDR []string `json:"clusterCIDR,omitempty" jsonschema:"minItems=2,maxItems=2,pattern=^[0-9A-Fa-f.:]+/[0-9]+$,default=10.42.0.0/16,default=fd42::/48"`
	// Ranges of the Services, one IPv4 and one IPv6. Default 10.43.0.0/16 and fd43::/108.
	ServiceCIDR []string `json:"serviceCIDR,omitempty" jsonschema:"minItems=2,maxItems=2,pattern=^[0-9A-Fa-f.:]+/[0-9]+$,default=10.43.0.0/16,default=fd43::/108"`
	// Whether pods reach the IPv6 internet through the node's address. Default true; needed unless the pod range is routed.
	FlannelIPv6Masq *bool `json:"flannelIPv6Masq,omitempty" jsonschema:"default=true"`
	// Addresses of the node, one IPv4 and one IPv6. Default: found by the survey.
	NodeIP []string `json:"nodeIP,omitempty" jsonschema:"minItems=2,maxItems=2"`
	// Addresses of the cluster's DNS Service, inside the Service ranges. Default: K3s's choice, the tenth address.
	ClusterDNS []string `json:"clusterDNS,omitempty" jsonschema:"minItems=1,maxItems=2"`
}

// Identity says whether clients recognise the new cluster as the old one.
type Identity string

// The choices of identity.
const (
	// IdentityPreserve keeps CAs, service-account key, token and node password.
	IdentityPreserve Identity = "preserve"
	// IdentityNew lets K3s create them anew; every kubeconfig and token in use becomes invalid.
	IdentityNew Identity = "new"
)

// VersionKeep as K3s.Version installs the version that was found.
const VersionKeep = "keep"

// DefaultInstallScript is where K3s's installer comes from unless the plan says otherwise.
const DefaultInstallScript = "https://get.k3s.io"

// K3s is how K3s is installed again.
type K3s struct {
	// Version to install: "keep" for the one that is found, or a release such as v1.34.4+k3s1. Default "keep".
	Version string `json:"version,omitempty" jsonschema:"pattern=^(keep|v[0-9]+[.][0-9]+[.][0-9]+(-[0-9A-Za-z.-]+)?([+]k3s[0-9]+)?)$,default=keep"`
	// The installer: a URL, or a file beside the plan. Default https://get.k3s.io.
	InstallScript string `json:"installScript,omitempty" jsonschema:"default=https://get.k3s.io"`
	// Further arguments of "k3s server", after those found on the host. Settings of spec.network, and "disable", have their own fields.
	ExtraArgs []string `json:"extraArgs,omitempty" jsonschema:"minLength=1"`
	// Packaged components to leave out, in addition to those left out already.
	Disable []string `json:"disable,omitempty" jsonschema:"pattern=^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"`
	// "preserve" keeps CAs, service-account key, token and node password, so that kubeconfigs stay valid; "new" creates them anew. Default "preserve".
	Identity Identity `json:"identity,omitempty" jsonschema:"enum=preserve,enum=new,default=preserve"`
}

// SnapshotMethod is a way to take a snapshot of a host.
type SnapshotMethod string

// The methods.
const (
	// SnapshotNone takes none.
	SnapshotNone SnapshotMethod = "none"
	// SnapshotLVM takes snapshots of logical volumes.
	SnapshotLVM SnapshotMethod = "lvm"
	// SnapshotBtrfs takes snapshots of btrfs subvolumes.
	SnapshotBtrfs SnapshotMethod = "btrfs"
	// SnapshotZFS takes snapshots of ZFS datasets.
	SnapshotZFS SnapshotMethod = "zfs"
	// SnapshotScaleway goes through Scaleway's API.
	SnapshotScaleway SnapshotMethod = "scaleway"
	// SnapshotCommand runs the plan's own commands.
	SnapshotCommand SnapshotMethod = "command"
)

// OnItsDisks tells whether a snapshot by this method lies on the disks that it is of.
func (m SnapshotMethod) OnItsDisks() bool {
	return m == SnapshotLVM || m == SnapshotBtrfs || m == SnapshotZFS
}

// Snapshot is a snapshot of the whole host, taken before anything else is done and beside the backup set.
type Snapshot struct {
	// How it is taken. "lvm", "btrfs", "zfs": of the logical volumes, subvolumes or datasets that hold what the rebuild touches. "scaleway": through Scaleway's API. "command": by commands of your own. "none": not at all, for a reason.
	Method SnapshotMethod `json:"method" jsonschema:"enum=none,enum=lvm,enum=btrfs,enum=zfs,enum=scaleway,enum=command"`
	// With method none: why there is none. The journal keeps it.
	Reason string `json:"reason,omitempty"`
	// With method lvm: room for what is overwritten meanwhile, for each logical volume that is not thin, as in "20Gi". Default: twice what the rebuild is expected to write, or a share of half of what the volume group has free, whichever is more.
	Size string `json:"size,omitempty"`
	// Whether it stays when the migration is complete. Default: it is removed then.
	Keep bool `json:"keep,omitempty"`
	// With method command: the commands.
	Command *SnapshotCommands `json:"command,omitempty"`
	// With method scaleway: which server, and what of it.
	Scaleway *ScalewayServer `json:"scaleway,omitempty"`
}

// ScalewayServer is a server at Scaleway. The API's credentials come from its environment variables (SCW_ACCESS_KEY,
// SCW_SECRET_KEY) or its configuration file, never from the plan.
type ScalewayServer struct {
	// What kind it is: "instance" has snapshots; "elastic-metal" and "dedibox" are imaged in rescue mode.
	Product ScalewayProduct `json:"product" jsonschema:"enum=instance,enum=elastic-metal,enum=dedibox"`
	// Its zone, as in "fr-par-1".
	Zone string `json:"zone"`
	// Its ID: a UUID, or a Dedibox's number.
	ID string `json:"id"`
	// With elastic-metal and dedibox: the disks to image, whole and all from which the host starts or on which lies what the rebuild touches. Best as /dev/disk/by-id/…: the rescue system may count /dev/sda, /dev/sdb otherwise.
	Disks []string `json:"disks,omitempty" jsonschema:"pattern=^/dev/[A-Za-z0-9._:+@/-]+$"`
	// With elastic-metal and dedibox: directory on the laptop for the images, in a directory of their own and encrypted to the recipients of spec.backup. Default: images, in the work directory.
	Images string `json:"images,omitempty"`
	// With elastic-metal and dedibox: whether images are begun although the disks are larger than what is free for them on the laptop. They are compressed, and nobody knows beforehand by how much. Default: they are not.
	ImagesFit bool `json:"imagesFit,omitempty"`
	// With elastic-metal and dedibox, which need it: that the rescue system is trusted by the host key that it shows first. It makes a new one with each start, so that nobody can know it beforehand; whoever intercepts the connection just then is given its password, and could read the disks and write them. The key is shown, and no other is accepted for as long as that rescue system is used.
	TrustRescueHostKey bool `json:"trustRescueHostKey,omitempty"`
}

// Rescue tells whether its disks are imaged in rescue mode.
func (s ScalewayServer) Rescue() bool {
	return s.Product == ScalewayElasticMetal || s.Product == ScalewayDedibox
}

// ScalewayProduct is a kind of server.
type ScalewayProduct string

// The kinds.
const (
	ScalewayInstance     ScalewayProduct = "instance"
	ScalewayElasticMetal ScalewayProduct = "elastic-metal"
	ScalewayDedibox      ScalewayProduct = "dedibox"
)

// SnapshotCommands are programs with arguments, no shell is involved. Each can be run more than once, and must bear an earlier attempt that still goes on: one on the laptop may have left something behind when migrate was killed.
type SnapshotCommands struct {
	// Where they run. Default "laptop".
	On Place `json:"on,omitempty" jsonschema:"enum=laptop,enum=host,default=laptop"`
	// Takes the snapshot, and returns when it is complete.
	Create []string `json:"create" jsonschema:"minItems=1"`
	// Succeeds when the snapshot is there and whole, and fails while there is none: one of an earlier run stops the next.
	Status []string `json:"status" jsonschema:"minItems=1"`
	// Brings the host back to the snapshot; the host may be restarted by it.
	Restore []string `json:"restore" jsonschema:"minItems=1"`
	// Removes the snapshot.
	Delete []string `json:"delete" jsonschema:"minItems=1"`
}

// Backup is what is kept before anything is removed, and who can read it.
type Backup struct {
	// Who can read the backup set.
	Encryption Encryption `json:"encryption"`
	// The contents of persistent volumes.
	Volumes BackupVolumes `json:"volumes,omitzero"`
	// TLS secrets, put back before the platform is.
	TLSSecrets BackupTLSSecrets `json:"tlsSecrets,omitzero"`
	// The export of all API objects.
	Objects BackupObjects `json:"objects,omitzero"`
	// The OpenBao server that runs on the cluster. Left out when there is none.
	OpenBao *OpenBao `json:"openBao,omitempty"`
}

// Encryption says who can read the backup set. Every sensitive artifact is encrypted with age.
type Encryption struct {
	// Public keys that the backup set is encrypted to: age1…, ssh-ed25519 … or ssh-rsa ….
	Recipients []string `json:"recipients" jsonschema:"minItems=1,pattern=^(age1|ssh-)"`
	// Private key files that open the set. The gate proves with them that the set can be read; the restore reads with them.
	Identities []string `json:"identities" jsonschema:"minItems=1,minLength=1"`
}

// BackupVolumes is how the contents of persistent volumes are kept.
type BackupVolumes struct {
	// Claims whose contents are not kept, as namespace/claim.
	Exclude []string `json:"exclude,omitempty" jsonschema:"pattern=^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"`
	// Volumes streamed at the same time. Default 3.
	Concurrency int `json:"concurrency,omitempty" jsonschema:"minimum=1,maximum=16,default=3"`
}

// BackupTLSSecrets is which secrets are put back before the platform is.
type BackupTLSSecrets struct {
	// Label selectors of secrets to keep besides those of type kubernetes.io/tls, for example ACME account keys.
	Selectors []string `json:"selectors,omitempty" jsonschema:"minLength=1"`
}

// BackupObjects is what the export of API objects leaves out.
type BackupObjects struct {
	// Resources left out, as resource or resource.group. Default events and events.events.k8s.io.
	ExcludeResources []string `json:"excludeResources,omitzero" jsonschema:"pattern=^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$,default=events,default=events.events.k8s.io"`
}

// OpenBao is how the OpenBao server on the cluster is found, spoken to and unsealed.
type OpenBao struct {
	// Namespace of the server's Service and pods. Default "openbao".
	Namespace string `json:"namespace,omitempty" jsonschema:"maxLength=63,pattern=^[a-z0-9]([-a-z0-9]*[a-z0-9])?$,default=openbao"`
	// Service whose selector names the server's pods. Default "openbao"; pods or address are given instead of it.
	Service string `json:"service,omitempty" jsonschema:"maxLength=63,pattern=^[a-z0-9]([-a-z0-9]*[a-z0-9])?$,default=openbao"`
	// The server's pods, instead of a Service.
	Pods []string `json:"pods,omitempty" jsonschema:"minItems=1,maxLength=253,pattern=^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"`
	// URL of the server as the host reaches it, instead of pods that are reached by port-forward: scheme, host and port.
	Address string `json:"address,omitempty" jsonschema:"pattern=^https?://[^/@?#]+/?$"`
	// TCP port of the server in its pods. Default 8200; an address says it itself.
	Port int `json:"port,omitempty" jsonschema:"minimum=1,maximum=65535,default=8200"`
	// How the server's certificate is checked. Pods are spoken to over TLS when this is given; an address says so itself.
	TLS *OpenBaoTLS `json:"tls,omitempty"`
	// Token that may read everything that is kept: the raft snapshot, KV secrets with their metadata, mounts, auth methods and policies.
	Token Secret `json:"token"`
	// Unseal keys, as many as the server's threshold asks for; one source may hold several, one a line. Left out for a server that unseals itself.
	UnsealKeys []Secret `json:"unsealKeys,omitempty"`
	// KV mounts to export, for example secret/. Default: all. With a sentinel, its mount is one of them.
	Mounts []string `json:"mounts,omitempty" jsonschema:"minLength=1"`
	// KV secret by which the right data are recognised after the rebuild, as `bao kv get` takes it: mount and path, for example secret/sentinel.
	Sentinel string `json:"sentinel,omitempty" jsonschema:"pattern=^[^/](.*[^/])?/(.*[^/])?[^/]$"`
}

// OpenBaoTLS is how the server's certificate is checked.
type OpenBaoTLS struct {
	// File with the CA certificates that the server's certificate is checked against. Default: the laptop's.
	CAFile string `json:"caFile,omitempty"`
	// Name that the certificate must be for. Default: the address's host, or <service>.<namespace>.svc; needed with pods.
	ServerName string `json:"serverName,omitempty"`
}

// Secret points to a secret value; exactly one of its fields is given. The plan itself never holds one.
//
// What it points to is looked at when the value is read, before anything is changed, and not when the plan is loaded: it may be
// there for a while only, as on a stick, and a rollback or a look at the status needs none.
type Secret struct {
	// Environment variable that holds it.
	Env string `json:"env,omitempty" jsonschema:"oneof_required=env,pattern=^[A-Za-z_][A-Za-z0-9_]*$"`
	// File that holds it. Users other than its owner and group must not be able to read it.
	File string `json:"file,omitempty" jsonschema:"oneof_required=file,minLength=1"`
	// Whether it is asked for in the terminal.
	Prompt bool `json:"prompt,omitempty" jsonschema:"oneof_required=prompt"`
	// Program and arguments that print it, such as a password manager's; no shell is involved.
	Command []string `json:"command,omitempty" jsonschema:"oneof_required=command,minItems=1"`
	// Kubernetes Secret of the cluster that holds it. Its value is kept in the encrypted backup set.
	Kubernetes *SecretKey `json:"kubernetes,omitempty" jsonschema:"oneof_required=kubernetes"`
}

// String says where the value is found, as in "the file /run/token".
func (s Secret) String() string {
	switch {
	case s.Env != "":
		return "the environment variable " + s.Env
	case s.File != "":
		return "the file " + s.File
	case s.Prompt:
		return "the terminal"
	case len(s.Command) > 0:
		return fmt.Sprintf("the command %q", strings.Join(s.Command, " "))
	case s.Kubernetes != nil:
		return fmt.Sprintf("the key %s of the Kubernetes Secret %s/%s", s.Kubernetes.Key, s.Kubernetes.Namespace, s.Kubernetes.Name)
	}
	return "nowhere"
}

// SecretKey is one key of a Kubernetes Secret.
type SecretKey struct {
	// Namespace of the Secret.
	Namespace string `json:"namespace" jsonschema:"maxLength=63,pattern=^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"`
	// Name of the Secret.
	Name string `json:"name" jsonschema:"maxLength=253,pattern=^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"`
	// Key in its data.
	Key string `json:"key" jsonschema:"minLength=1"`
}

// Platform is the command that deploys the workloads again, run on the laptop with a KUBECONFIG for the new cluster.
type Platform struct {
	// Program and arguments; no shell is involved.
	Command []string `json:"command" jsonschema:"minItems=1"`
	// Directory to run it in. Default: the plan file's.
	Directory string `json:"directory,omitempty"`
	// Environment variables to add. KUBECONFIG is set by the migration.
	Environment map[string]string `json:"environment,omitempty"`
	// How long the command may take. Default 30m.
	Timeout Duration `json:"timeout,omitzero" jsonschema:"default=30m"`
	// Files, directories and kustomizations from which the cluster was made, relative to the plan file. Before anything is changed the cluster is compared with them.
	Manifests []string `json:"manifests,omitempty" jsonschema:"minLength=1"`
	// What it means when the cluster differs from its manifests: "warn" says so, "inhibit" forbids the run. Default "warn".
	Drift DriftPolicy `json:"drift,omitempty" jsonschema:"enum=warn,enum=inhibit,default=warn"`
	// Program and arguments that check, before anything is changed, whether the platform can be deployed again. It runs like the command, with a KUBECONFIG for the old cluster, in which it must change nothing; when it fails, the run stops.
	Rehearse []string `json:"rehearse,omitempty" jsonschema:"minItems=1"`
}

// DriftPolicy is what it means when the cluster differs from its manifests.
type DriftPolicy string

// The policies of drift.
const (
	// DriftWarn says so.
	DriftWarn DriftPolicy = "warn"
	// DriftInhibit forbids the run.
	DriftInhibit DriftPolicy = "inhibit"
)

// ServicePolicy is the ipFamilyPolicy that Services are given.
type ServicePolicy string

// The policies.
const (
	// ServicesPreferDualStack sets PreferDualStack.
	ServicesPreferDualStack ServicePolicy = "PreferDualStack"
	// ServicesRequireDualStack sets RequireDualStack.
	ServicesRequireDualStack ServicePolicy = "RequireDualStack"
	// ServicesKeep changes no Service.
	ServicesKeep ServicePolicy = "Keep"
)

// Services is which Services become dual-stack.
type Services struct {
	// ipFamilyPolicy that eligible Services are given; "Keep" changes none. Default "PreferDualStack".
	Policy ServicePolicy `json:"policy,omitempty" jsonschema:"enum=PreferDualStack,enum=RequireDualStack,enum=Keep,default=PreferDualStack"`
	// Services that stay as they are, as namespace/name.
	Exclude []string `json:"exclude,omitempty" jsonschema:"pattern=^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"`
}

// Verify is what proves that the cluster is dual-stack.
type Verify struct {
	// URLs that a pod must reach over IPv6, and over IPv4.
	EgressURLs []string `json:"egressURLs,omitempty" jsonschema:"pattern=^https?://[^/]+"`
	// DNS names of the cluster's own sites, which pods must reach.
	Hostnames []string `json:"hostnames,omitempty" jsonschema:"pattern=^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"`
	// How long workloads and checks may take to become good. Default 5m.
	Timeout Duration `json:"timeout,omitzero" jsonschema:"default=5m"`
}
