package snapshot

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/plans"
	"sunbeam.pt/k3s-dualstack/remote"
)

// A program of the laptop's that was cut off while it had the host away is run again, and only then.
func TestOwnCommandsReachTheHost(t *testing.T) {
	h := sshtest.Dial(t)
	for _, tc := range []struct {
		on   plans.Place
		cut  string
		away bool
		want []string // programs that are run
	}{
		{plans.OnLaptop, "restore", true, []string{"restore"}},
		{plans.OnLaptop, "create", true, []string{"create"}},
		{plans.OnLaptop, "restore", false, nil},
		{plans.OnLaptop, "status", true, nil},
		{plans.OnHost, "restore", true, nil},
	} {
		t.Run(string(tc.on)+" "+tc.cut, func(t *testing.T) {
			away := tc.away
			var ran []string
			c := New(Ask{
				Host: func(context.Context) (*remote.Host, error) {
					if away {
						return nil, errors.New("no route to host")
					}
					return h, nil
				},
				Here: func(_ context.Context, argv []string) error {
					ran, away = append(ran, argv[0]), false
					return nil
				},
				Plan: &plans.Snapshot{Method: plans.SnapshotCommand, Command: &plans.SnapshotCommands{On: tc.on,
					Create: []string{"create"}, Status: []string{"status"}, Restore: []string{"restore"}, Delete: []string{"delete"}}},
			})
			require.NoError(t, c.Reach(t.Context(), tc.cut))
			assert.Equal(t, tc.want, ran)
			for _, o := range append(c.Take(), c.Return()...) {
				planned := tc.on == plans.OnLaptop && (o.Name == "create" || o.Name == "restore")
				assert.Equal(t, planned, strings.Contains(o.Summary, "the next run or rollback runs it again"), "%s: %s", o.Name, o.Summary)
			}
		})
	}
}

// A return begins, too, where the host is away already.
func TestOwnRestoreOfAHostThatIsAway(t *testing.T) {
	h := sshtest.Dial(t)
	away := true
	c := New(Ask{
		Host: func(context.Context) (*remote.Host, error) {
			if away {
				return nil, errors.New("no route to host")
			}
			return h, nil
		},
		Here: func(context.Context, []string) error {
			away = false
			return nil
		},
		Plan: &plans.Snapshot{Method: plans.SnapshotCommand, Command: &plans.SnapshotCommands{On: plans.OnLaptop, Restore: []string{"restore"}}},
	})
	require.NoError(t, c.Return()[1].Run(t.Context()))
	assert.False(t, away)
}

// What an earlier run left is not written over.
func TestOwnSnapshotOfAnEarlierRun(t *testing.T) {
	there := true
	c := New(Ask{
		Here: func(_ context.Context, argv []string) error {
			if argv[0] == "status" && !there {
				return errors.New("exit status 1")
			}
			return nil
		},
		Plan: &plans.Snapshot{Method: plans.SnapshotCommand, Command: &plans.SnapshotCommands{On: plans.OnLaptop,
			Create: []string{"create"}, Status: []string{"status"}, Restore: []string{"restore"}, Delete: []string{"delete"}}},
	})
	take := c.Take()
	require.Equal(t, Unused, take[0].Name)
	err := take[0].Run(t.Context())
	require.ErrorContains(t, err, "a snapshot is there already, of an earlier run")
	assert.ErrorContains(t, err, "spec.snapshot.command.delete")
	there = false
	require.NoError(t, take[0].Run(t.Context()))
}
