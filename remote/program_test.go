package remote_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/internal/sshtest"
	"sunbeam.pt/k3s-dualstack/remote"
)

func TestHasProgram(t *testing.T) {
	h := sshtest.Dial(t)
	dir := t.TempDir()
	plain, program := filepath.Join(dir, "my notes"), filepath.Join(dir, "my program")
	require.NoError(t, os.WriteFile(plain, nil, 0o644))
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755))
	for name, want := range map[string]bool{
		"sh": true, "/bin/sh": true, program: true, "no-such-program": false, "/no/such/program": false, plain: false, dir: false,
	} {
		assert.Equal(t, want, h.Run(t.Context(), remote.HasProgram(name)) == nil, name)
	}
}
