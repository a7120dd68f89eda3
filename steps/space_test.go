package steps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/runner"
)

// The journal's own record may be what finds the laptop's disk full.
func TestAFullDiskIsToldWithNumbers(t *testing.T) {
	sshtest.Root(t)
	small := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	m := migration(t, nil)
	m.Plan.Spec.WorkDir = small
	j, err := runner.OpenJournal(m.JournalPath())
	require.NoError(t, err)
	t.Cleanup(func() { j.Close() })
	require.NoError(t, os.WriteFile(filepath.Join(small, "filler"), make([]byte, 40<<10), 0o600))
	for err = nil; err == nil; {
		err = j.Append(runner.Record{Event: runner.Intent, Step: "protect", Action: "volume"})
	}
	require.ErrorIs(t, err, unix.ENOSPC)
	m.tellFullDisk(&err)
	for _, want := range []string{"disk full", small, "needs", "0 bytes are free there", "spec.workDir", "write the journal"} {
		assert.ErrorContains(t, err, want)
	}
	require.ErrorIs(t, err, unix.ENOSPC)

	told := fmt.Errorf("step protect: %w", &backup.DiskFullError{Dir: small, Name: "volumes/a", Err: unix.ENOSPC})
	for _, as := range []error{nil, errors.New("no route to host"), told} {
		err = as
		m.tellFullDisk(&err)
		assert.Equal(t, as, err)
	}
}
