package main

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault-plugin-auth-kubernetes"
	"github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/builtin/credential/approle"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/physical/raft"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/vault"
)

// What can be mounted. A nil registry of these crashes Vault at the first mount.
var (
	secretsEngines = registry{"kv": kv.Factory}
	authMethods    = registry{"kubernetes": kubeauth.Factory, "approle": approle.Factory}
)

// newCore opens the storage and returns what serves it.
func newCore(o options, api string, logger hclog.Logger) (*vault.Core, http.Handler, error) {
	cluster, err := net.ResolveTCPAddr("tcp", o.cluster)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the cluster address: %w", err)
	}
	config := &vault.CoreConfig{
		StorageType:        o.storage,
		DisableMlock:       true, // a container may not lock memory
		Logger:             logger,
		RedirectAddr:       api,
		ClusterAddr:        "https://" + net.JoinHostPort(o.host, fmt.Sprint(cluster.Port)),
		LogicalBackends:    secretsEngines,
		CredentialBackends: authMethods,
		BuiltinRegistry:    builtins{consts.PluginTypeSecrets: secretsEngines, consts.PluginTypeCredential: authMethods},
	}
	if err := os.MkdirAll(o.path, 0o700); err != nil {
		return nil, nil, fmt.Errorf("making the data directory: %w", err)
	}
	if config.Physical, err = openStorage(o, logger); err != nil {
		return nil, nil, err
	}
	config.HAPhysical, _ = config.Physical.(physical.HABackend)
	core, err := vault.NewCore(config)
	if err != nil {
		return nil, nil, fmt.Errorf("opening the data in %s: %w", o.path, err)
	}
	core.SetClusterListenerAddrs([]*net.TCPAddr{cluster})
	handler := vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core, ListenerConfig: &configutil.Listener{
		MaxRequestSize: vaulthttp.DefaultMaxRequestSize, MaxRequestDuration: 90 * time.Second,
	}})
	core.SetClusterHandler(handler)
	return core, handler, nil
}

func openStorage(o options, logger hclog.Logger) (physical.Backend, error) {
	switch o.storage {
	case "raft":
		storage, err := raft.NewRaftBackend(map[string]string{"path": o.path, "node_id": "openbao-0"}, logger.Named("raft"))
		if err != nil {
			return nil, fmt.Errorf("opening the raft storage in %s: %w", o.path, err)
		}
		return storage, nil
	case "file":
		storage, err := file.NewFileBackend(map[string]string{"path": o.path}, logger.Named("file"))
		if err != nil {
			return nil, fmt.Errorf("opening the file storage in %s: %w", o.path, err)
		}
		return storage, nil
	}
	return nil, fmt.Errorf("--storage is raft or file, not %q", o.storage)
}

type registry = map[string]logical.Factory

// builtins is Vault's view of what is compiled in, by kind and name.
type builtins map[consts.PluginType]registry

func (b builtins) Contains(name string, kind consts.PluginType) bool {
	_, ok := b[kind][name]
	return ok
}

func (b builtins) Get(name string, kind consts.PluginType) (func() (any, error), bool) {
	factory, ok := b[kind][name]
	return func() (any, error) { return factory, nil }, ok
}

func (b builtins) Keys(kind consts.PluginType) []string { return slices.Sorted(maps.Keys(b[kind])) }

func (b builtins) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, b.Contains(name, kind)
}
