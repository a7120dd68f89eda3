package remote

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPidFilter(t *testing.T) {
	for name, c := range map[string]struct{ in, pid, out string }{
		"first":          {"migrate-pid 42\ntext\nmore", "42", "text\nmore"},
		"after warnings": {"sudo: unable to resolve host\nmigrate-pid 7\n", "7", "sudo: unable to resolve host\n"},
		"never":          {"sudo: a password is required", "", "sudo: a password is required"},
		"only once":      {"migrate-pid 1\nmigrate-pid 2\n", "1", "migrate-pid 2\n"},
		"empty":          {"", "", ""},
	} {
		for step := 1; step <= len(c.in)+1; step++ {
			var out bytes.Buffer
			f := &pidFilter{w: &out, known: make(chan struct{})}
			for rest := []byte(c.in); len(rest) > 0; {
				n := min(step, len(rest))
				written, err := f.Write(rest[:n])
				require.NoError(t, err)
				require.Equal(t, n, written)
				rest = rest[n:]
			}
			require.NoError(t, f.flush())
			require.Equal(t, c.pid, f.pid(), name)
			require.Equal(t, c.out, out.String(), name)
		}
	}
}

func TestTailBuffer(t *testing.T) {
	b := &tailBuffer{limit: 4}
	for _, s := range []string{"a", "bc", "", "defghijklmnop", "q"} {
		_, err := b.Write([]byte(s))
		require.NoError(t, err)
	}
	require.Equal(t, "nopq", b.String())
}
