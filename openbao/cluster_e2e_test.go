//go:build e2e

package openbao_test

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sunbeam.pt/k3s-dualstack/openbao"
)

// Three servers with one raft.
func TestCluster(t *testing.T) {
	first := running(t)
	nodes := []*node{first}
	for _, id := range []string{"openbao-1", "openbao-2"} {
		t.Setenv("VAULT_RAFT_NODE_ID", id) // which the process inherits
		n := started(t)
		n.must(t, "POST", map[string]any{"leader_api_addr": first.url, "retry": true}, "sys/storage/raft/join")
		n.token, n.keys = first.token, first.keys
		nodes = append(nodes, n)
	}
	for _, n := range nodes[1:] {
		s := n.server(t, first.token)
		require.Eventually(t, func() bool {
			status, err := s.Status(t.Context())
			return err == nil && status.Initialised && status.Threshold == 3
		}, wait, tick, "%s", n.log)
		require.NoError(t, s.Unseal(t.Context(), first.keys), "%s", n.log)
		require.NoError(t, s.WaitActive(t.Context(), nil), "%s", n.log)
	}
	first.mount(t, "secret", "2")
	first.put(t, "secret", "a", map[string]any{"v": 1})
	whole := export(t, first.server(t, first.token))
	for i, n := range nodes {
		s := n.server(t, first.token)
		status, err := s.Status(t.Context())
		require.NoError(t, err)
		require.False(t, status.Sealed)
		require.Equal(t, i == 0, status.Active)
		require.Equal(t, first.url, status.Leader)
		_, err = s.Describe(t.Context())
		require.NoError(t, err, "a standby passes small requests on")
		require.Equal(t, exported(t, whole), exported(t, export(t, s)))
		err = s.Snapshot(t.Context(), io.Discard)
		if i == 0 {
			require.NoError(t, err)
			continue
		}
		var standby *openbao.StandbyError
		require.ErrorAs(t, err, &standby, "and sends away for a snapshot")
		require.Equal(t, first.url, standby.Active)
	}

	// Without a majority nobody is active, whoever is still named.
	first.stop()
	nodes[2].stop()
	s := nodes[1].server(t, first.token)
	_, err := s.Describe(t.Context())
	var standby *openbao.StandbyError
	require.ErrorAs(t, err, &standby)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err = s.WaitActive(ctx, nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "does not answer requests yet")
}
