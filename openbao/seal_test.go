package openbao

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func keysOf(t testing.TB, name string) []string {
	t.Helper()
	return strings.Fields(string(sealsFile(t, name+".keys")))
}

func snapshotOf(t testing.TB, name string) *Snapshot {
	t.Helper()
	snapshot, err := ReadSnapshot(bytes.NewReader(sealsFile(t, name+".snap")))
	require.NoError(t, err)
	return snapshot
}

func inHex(t testing.TB, key string) string {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(key)
	require.NoError(t, err)
	return hex.EncodeToString(data)
}

// mistyped is a key with one bit changed.
func mistyped(t testing.TB, key string) string {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(key)
	require.NoError(t, err)
	data[9] ^= 4
	return base64.StdEncoding.EncodeToString(data)
}

func TestProve(t *testing.T) {
	keys, single, rekeyed := keysOf(t, "5of3"), keysOf(t, "1of1"), keysOf(t, "rekeyed")
	first, other := mistyped(t, keys[0]), mistyped(t, keys[1])
	const together = "the unseal keys do not open it together: at least one is mistyped, another server's, or from before a rekey"

	for _, test := range []struct {
		name, snapshot string
		keys           []string
		says           string // "" when they are right
	}{
		{"the first three", "5of3", keys[:3], ""},
		{"the last three, in another order", "5of3", []string{keys[4], keys[2], keys[3]}, ""},
		{"more than it takes", "5of3", keys, ""},
		{"in hex", "5of3", []string{inHex(t, keys[0]), inHex(t, keys[1]), strings.ToUpper(inHex(t, keys[2]))}, ""},
		{"in both", "5of3", []string{inHex(t, keys[3]), keys[1], keys[2]}, ""},
		{"after a rotation", "rotated", keys[1:4], ""},
		{"after a rekey", "rekeyed", rekeyed[2:], ""},
		{"the only one", "1of1", single, ""},
		{"the only one in hex", "1of1", []string{inHex(t, single[0])}, ""},

		{"none", "5of3", nil, "the server needs 3 unseal keys, and 0 are given; give the missing ones too"},
		{"two", "5of3", keys[:2], "the server needs 3 unseal keys, and 2 are given; give the missing ones too"},
		{"one mistyped", "5of3", []string{first, keys[1], keys[2]}, together},
		{"another server's", "1of1", []string{mistyped(t, single[0])}, "the unseal key is wrong: it is mistyped, another server's, or from before a rekey"},
		{"before a rekey", "rekeyed", keys, together},
		{"of before and of after", "rekeyed", []string{keys[0], rekeyed[0], rekeyed[1]}, "unseal key 1 of 3 is wrong: it does not belong to the others, which open it"},
		{"the first mistyped", "5of3", []string{first, keys[1], keys[2], keys[3]}, "unseal key 1 of 4 is wrong: it does not belong to the others, which open it"},
		{"the last mistyped", "5of3", []string{keys[2], keys[1], keys[3], first}, "unseal key 4 of 4 is wrong: it does not belong to the others, which open it"},
		{"two mistyped", "5of3", []string{first, keys[2], other, keys[3], keys[4]}, "unseal keys 1 and 3 of 5 are wrong: they do not belong to the others, which open it"},
		{"the right one and its like", "5of3", []string{keys[0], first, keys[2], keys[3]}, "unseal key 2 of 4 is wrong: it does not belong to the others, which open it"},
		{"three mistyped", "5of3", []string{first, other, mistyped(t, keys[2]), keys[3], keys[4]}, together},
		{"two for one", "1of1", []string{mistyped(t, single[0]), single[0]}, "unseal key 1 of 2 is wrong: it does not belong to the others, which open it"},
		{"twice", "5of3", []string{keys[0], keys[1], keys[0]}, "unseal key 3 of 3 is the same as key 1"},
		{"twice, once in hex", "5of3", []string{keys[0], keys[1], inHex(t, keys[1])}, "unseal key 3 of 3 is the same as key 2"},
		{"the only one twice", "1of1", []string{single[0], single[0]}, "unseal key 2 of 2 is the same as key 1"},
		{"empty", "5of3", []string{keys[0], "", keys[1]}, "unseal key 2 of 3 is empty"},
		{"no key", "5of3", []string{keys[0], "correct horse", keys[1]}, "unseal key 2 of 3 is neither hex nor base64"},
		{"with its line's end in hex", "5of3", []string{inHex(t, keys[0]) + "\n", keys[1], keys[2]}, "unseal key 1 of 3 is neither hex nor base64"},
		{"cut off", "5of3", []string{keys[0], keys[1], keys[2][:40]}, "unseal key 3 of 3 has 30 bytes, and this server's have 33"},
		{"another kind", "5of3", []string{keys[0], single[0], keys[2]}, "unseal key 2 of 3 has 32 bytes, and this server's have 33"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := snapshotOf(t, test.snapshot).Prove(test.keys)
			if test.says == "" {
				require.NoError(t, err)
				return
			}
			assert.EqualError(t, err, test.says)
			var few *TooFewKeysError
			var wrong *WrongKeysError
			assert.True(t, errors.As(err, &few) || errors.As(err, &wrong))
			for _, key := range slices.Concat(keys, single, rekeyed, test.keys) {
				if key != "" {
					assert.NotContains(t, err.Error(), key)
				}
			}
		})
	}
}

func TestProveAutoSeal(t *testing.T) {
	snapshot := archive(t, members(strings.ReplaceAll(sealEntries(), `:"shamir"`, `:"awskms"`)))
	read, err := ReadSnapshot(bytes.NewReader(snapshot))
	require.NoError(t, err)
	var auto *AutoSealError
	require.ErrorAs(t, read.Prove(keysOf(t, "5of3")), &auto)
	assert.Equal(t, "awskms", auto.Type)
}

// The right keys do not make right what they open.
func TestProveDamaged(t *testing.T) {
	keys := keysOf(t, "5of3")

	snapshot := snapshotOf(t, "5of3")
	snapshot.Seal.keyring[20] ^= 1
	require.EqualError(t, snapshot.Prove(keys), "the unseal keys are right, but what they open is damaged: core/keyring: cipher: message authentication failed; take it again")

	// The keyring of the same server, but after a rekey.
	snapshot = snapshotOf(t, "5of3")
	snapshot.Seal.keyring = snapshotOf(t, "rekeyed").Seal.keyring
	require.ErrorContains(t, snapshot.Prove(keys), "what they open is damaged: core/keyring")

	snapshot = snapshotOf(t, "5of3")
	snapshot.sealed = snapshotOf(t, "rotated").sealed
	require.EqualError(t, snapshot.Prove(keys), "the raft snapshot is damaged: SHA256SUMS.sealed: the sum of meta.json is another one; take it again")

	snapshot.sealed = snapshotOf(t, "1of1").sealed
	require.EqualError(t, snapshot.Prove(keys), "the raft snapshot is damaged: the unseal keys are right, but SHA256SUMS.sealed does not open: cipher: message authentication failed; take it again")
}

func TestReadFileStorage(t *testing.T) {
	storage := os.DirFS("testdata/seals/file")
	keys := keysOf(t, "file")
	seal, err := ReadFileStorage(func(name string) ([]byte, error) { return fs.ReadFile(storage, name) })
	require.NoError(t, err)
	assert.Equal(t, 3, seal.Shares)
	assert.Equal(t, 2, seal.Threshold)
	require.NoError(t, seal.Prove(keys[1:]))
	require.NoError(t, seal.Prove(keys))
	require.Error(t, seal.Prove([]string{keys[0], mistyped(t, keys[2])}))

	broken := errors.New("connection reset")
	for _, test := range []struct {
		name string
		read func(name string) ([]byte, error)
		says string
	}{
		{"another directory", func(string) ([]byte, error) { return nil, fs.ErrNotExist },
			"OpenBao's file storage: core/seal-config is missing (how the server is unsealed); check that this is the directory that the server's storage is configured with"},
		{"empty files", func(string) ([]byte, error) { return nil, nil },
			"OpenBao's file storage: core/seal-config is missing (how the server is unsealed); check that this is the directory that the server's storage is configured with"},
		{"unreadable", func(string) ([]byte, error) { return nil, broken }, "reading OpenBao's file storage: connection reset"},
		{"no JSON", func(string) ([]byte, error) { return []byte("x"), nil },
			"reading OpenBao's file storage: core/_seal-config: invalid character 'x' looking for beginning of value"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := ReadFileStorage(test.read)
			assert.EqualError(t, err, test.says)
		})
	}
}

// Shares by hand: 42 + 7x + 3x², in GF(2^8).
func TestInterpolate(t *testing.T) {
	share := func(x byte) []byte {
		return []byte{42 ^ multiply(7, x) ^ multiply(3, multiply(x, x)), x}
	}
	assert.Equal(t, []byte{42}, interpolate([][]byte{share(1), share(77), share(255)}, 0))
	assert.Equal(t, share(200)[:1], interpolate([][]byte{share(3), share(2), share(128)}, 200))
	assert.EqualValues(t, 0xc1, multiply(0x57, 0x83), "the example of FIPS 197")
	for a := 1; a < 256; a++ {
		require.EqualValues(t, 1, multiply(byte(a), invert(byte(a))))
	}
}

func TestNextCombination(t *testing.T) {
	places, seen := []int{0, 1, 2}, [][]int{}
	for ok := true; ok; ok = nextCombination(places, 5) {
		seen = append(seen, slices.Clone(places))
	}
	assert.Len(t, seen, 10)
	assert.Equal(t, []int{0, 1, 3}, seen[1])
	assert.Equal(t, []int{2, 3, 4}, seen[9])
}
