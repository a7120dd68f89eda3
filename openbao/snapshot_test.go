package openbao

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
)

func sealsFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "seals", name))
	require.NoError(t, err)
	return data
}

func TestReadSnapshot(t *testing.T) {
	for _, test := range []struct {
		name              string
		shares, threshold int
	}{
		{"1of1", 1, 1},
		{"5of3", 5, 3},
		{"rotated", 5, 3},
		{"rekeyed", 4, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			// One byte at a time, as from a slow connection.
			snapshot, err := ReadSnapshot(iotest.OneByteReader(bytes.NewReader(sealsFile(t, test.name+".snap"))))
			require.NoError(t, err)
			assert.Equal(t, "bolt-snapshot", snapshot.ID)
			assert.NotZero(t, snapshot.Index)
			assert.NotZero(t, snapshot.Term)
			assert.Greater(t, snapshot.Entries, 20)
			assert.Greater(t, snapshot.Size, int64(10_000))
			assert.Zero(t, snapshot.Namespaces)
			assert.Equal(t, "shamir", snapshot.Seal.Type)
			assert.Equal(t, test.shares, snapshot.Seal.Shares)
			assert.Equal(t, test.threshold, snapshot.Seal.Threshold)
		})
	}
}

func TestReadSnapshotCutOff(t *testing.T) {
	whole := sealsFile(t, "5of3.snap")
	for length := 0; length < len(whole); length += 1 + length/400 {
		_, err := ReadSnapshot(bytes.NewReader(whole[:length]))
		var damaged *DamagedSnapshot
		require.ErrorAs(t, err, &damaged, "cut off after %d bytes", length)
	}
	for cut := 1; cut < 40; cut++ {
		_, err := ReadSnapshot(bytes.NewReader(whole[:len(whole)-cut]))
		require.ErrorContains(t, err, "it is cut off", "without the last %d bytes", cut)
	}
	_, err := ReadSnapshot(bytes.NewReader(append(bytes.Clone(whole), 0)))
	require.EqualError(t, err, "the raft snapshot is damaged: there is more after its end; take it again")
	_, err = ReadSnapshot(bytes.NewReader(append(bytes.Clone(whole), whole...)))
	require.EqualError(t, err, "the raft snapshot is damaged: there is more after its end; take it again")
}

// Every changed bit is found, or changes nothing of what is packed: gzip's
// header has a time, a system and flags that nobody reads, and the bits
// between the end of the compressed data and the next byte mean nothing.
func TestReadSnapshotChangedBit(t *testing.T) {
	whole := sealsFile(t, "5of3.snap")
	content := unpack(t, whole)
	harmless := 0
	change := func(bit int) {
		changed := bytes.Clone(whole)
		changed[bit/8] ^= 1 << (bit % 8)
		_, err := ReadSnapshot(bytes.NewReader(changed))
		if err == nil {
			harmless++
			require.Equal(t, content, unpack(t, changed), "changed bit %d of byte %d", bit%8, bit/8)
		}
	}
	head, tail := 64, 64 // bytes of which every bit is changed
	for bit := range head * 8 {
		change(bit)
	}
	for bit := (len(whole) - tail) * 8; bit < len(whole)*8; bit++ {
		change(bit)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		change(head*8 + random.IntN((len(whole)-head-tail)*8))
	}
	assert.Less(t, harmless, 80, "of the header: 4 bytes of time, 1 of compression level, 1 of system, 4 bits of flags; at the end: 7 bits")
}

// Past gzip's own sum, a changed bit is found by what is inside, or changes
// nothing of the tar's members: some bytes only fill up its blocks, and its headers
// can be written in several ways. Of the members, nobody reads the empty name of the key that
// SHA256SUMS.sealed is encrypted by.
func TestReadSnapshotChangedInside(t *testing.T) {
	content := unpack(t, sealsFile(t, "5of3.snap"))
	all := membersOf(t, content)
	name := "\x2a\x00" // field 5 of BlobInfo
	require.True(t, strings.HasSuffix(all[3].content, name))
	state := bytes.Index(content, []byte(all[1].content))
	keys := keysOf(t, "5of3")[:3]
	random := rand.New(rand.NewPCG(3, 4))
	for place := range content {
		one := 2 // in so many
		if place >= state && place < state+len(all[1].content) {
			one = 64 // it all looks the same
		}
		if random.IntN(one) > 0 {
			continue
		}
		changed := bytes.Clone(content)
		changed[place] ^= 1 << random.IntN(8)
		snapshot, err := ReadSnapshot(bytes.NewReader(pack(t, changed)))
		if err == nil {
			err = snapshot.Prove(keys)
		}
		if err == nil {
			read := membersOf(t, changed)
			read[3].content = read[3].content[:len(read[3].content)-len(name)] + name
			require.Equal(t, all, read, "changed byte %d", place)
		}
	}
}

func membersOf(t *testing.T, content []byte) []member {
	t.Helper()
	var all []member
	for in := tar.NewReader(bytes.NewReader(content)); ; {
		header, err := in.Next()
		if err == io.EOF {
			return all
		}
		require.NoError(t, err)
		data, err := io.ReadAll(in)
		require.NoError(t, err)
		all = append(all, member{header.Name, string(data)})
	}
}

func unpack(t testing.TB, snapshot []byte) []byte {
	t.Helper()
	in, err := gzip.NewReader(bytes.NewReader(snapshot))
	require.NoError(t, err)
	content, err := io.ReadAll(in)
	require.NoError(t, err)
	return content
}

func pack(t testing.TB, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	require.NoError(t, err)
	_, err = w.Write(content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

type member struct{ name, content string }

// members are those of a snapshot that fits together but opens by no key.
func members(state string) []member {
	meta := fmt.Sprintf(`{"Version":1,"ID":"bolt-snapshot","Index":7,"Term":2,"Size":%d}`, len(state))
	return []member{
		{metaMember, meta},
		{stateMember, state},
		{sumsMember, fmt.Sprintf("%x  %s\n%x  %s\n", sha256.Sum256([]byte(state)), stateMember, sha256.Sum256([]byte(meta)), metaMember)},
		{sealedMember, "sealed"},
	}
}

func archive(t testing.TB, all []member) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range all {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: m.name, Mode: 0o600, Size: int64(len(m.content))}))
		_, err := io.WriteString(w, m.content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return pack(t, out.Bytes())
}

func entry(key, value string) string {
	data := protowire.AppendTag(nil, 1, protowire.BytesType)
	data = protowire.AppendString(data, key)
	data = protowire.AppendTag(data, 2, protowire.BytesType)
	data = protowire.AppendString(data, value)
	return string(protowire.AppendBytes(nil, data))
}

func sealEntries() string {
	rootKey := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "encrypted")
	return entry(rootKeyEntry, string(rootKey)) + entry(keyringEntry, "encrypted") +
		entry(sealConfigEntry, `{"type":"shamir","secret_shares":3,"secret_threshold":2}`)
}

func TestReadSnapshotForm(t *testing.T) {
	good := sealEntries()
	replaced := func(at int, m member) []member {
		all := members(good)
		all[at] = m
		return all
	}
	for _, test := range []struct {
		name    string
		members []member
		says    string // "" for none
	}{
		{"as it should be", members(good), ""},
		{"fields of a later version", members(good + "\x06\x0a\x01k\x20\x96\x01"), ""},
		{"an entry without a value", members(good + "\x03\x0a\x01k"), ""},
		{"not in order", []member{members(good)[1], members(good)[0]}, `it holds "state.bin" where meta.json should be`},
		{"nothing", nil, "meta.json is missing"},
		{"no sealed sums", members(good)[:3], "SHA256SUMS.sealed is missing"},
		{"a member more", append(members(good), member{"more", ""}), `it holds "more" after its last member`},
		{"another size", replaced(1, member{stateMember, good + good}), "state.bin has 294 bytes, and meta.json says 147"},
		{"no meta", replaced(0, member{metaMember, "{"}), "meta.json: unexpected end of JSON input"},
		{"a later version", replaced(0, member{metaMember, `{"Version":2}`}), "meta.json: its version is 2, and only 1 is known"},
		{"never written", replaced(0, member{metaMember, `{"Version":1}`}), "meta.json: it says that the server never wrote anything"},
		{"a large meta", replaced(0, member{metaMember, strings.Repeat(" ", 9000)}), "meta.json: it has 9000 bytes, more than a server reads"},
		{"another sum", replaced(2, member{sumsMember, strings.Replace(members(good)[2].content, "  state", "0  state", 1)}), "SHA256SUMS: the sum of state.bin is another one"},
		{"one sum", replaced(2, member{sumsMember, members(good)[2].content[:76]}), "SHA256SUMS: the sum of meta.json is another one"},
		{"three sums", replaced(2, member{sumsMember, members(good)[2].content + "00  more\n"}), "SHA256SUMS: it is no list of two sums"},
		{"not initialised", members(entry("core/lock", "x")), "state.bin: core/seal-config is missing (how the server is unsealed)"},
		{"no keyring", members(strings.ReplaceAll(good, "core/keyring", "core/kezring")), "state.bin: core/keyring is missing (the keyring that all else is encrypted by)"},
		{"no root key", members(strings.ReplaceAll(good, "core/hsm/", "core/hsn/")), "state.bin: core/hsm/barrier-unseal-keys is missing (the root key that opens the keyring; a server from before Vault 1.3 has it only after a rekey)"},
		{"no state", members(""), "state.bin: core/seal-config is missing (how the server is unsealed)"},
		{"an entry cut off", members(good + "\x05\x0a\x01k"), "state.bin: entry 4: it is cut off"},
		{"a length cut off", members(good + "\x85"), "state.bin: entry 4: it is cut off"},
		{"an entry without a key", members(good + "\x02\x12\x00"), "state.bin: entry 4: it has no key"},
		{"a key that is no text", members(good + "\x03\x0a\x01\xff"), "state.bin: entry 4: it has no key"},
		{"a field past its entry", members(good + "\x03\x0a\x02kk"), "state.bin: entry 4: a field of 2 bytes where 1 are left"},
		{"an unknown kind of field", members(good + "\x01\x0b"), "state.bin: entry 4: a field of the unknown kind 3"},
		{"a field without a number", members(good + "\x02\x00\x00"), "state.bin: entry 4: it has a field without a number"},
		{"an impossible length", members(good + "\xff\xff\xff\xff\x7f"), "state.bin: entry 4: it cannot be 34359738367 bytes long"},
		{"an impossible key", members(good + entry(strings.Repeat("k", maxKey+1), "")), "state.bin: entry 4: a field of 32769 bytes, which no server writes"},
		{"an impossible threshold", members(strings.ReplaceAll(good, `threshold":2`, `threshold":4`)), "state.bin: core/seal-config: a threshold of 4 for 3 unseal keys cannot be"},
	} {
		t.Run(test.name, func(t *testing.T) {
			snapshot, err := ReadSnapshot(bytes.NewReader(archive(t, test.members)))
			if test.says == "" {
				require.NoError(t, err)
				assert.GreaterOrEqual(t, snapshot.Entries, 3)
				return
			}
			var damaged *DamagedSnapshot
			require.ErrorAs(t, err, &damaged)
			assert.EqualError(t, err, "the raft snapshot is damaged: "+test.says+"; take it again")
		})
	}
	t.Run("no snapshot", func(t *testing.T) {
		_, err := ReadSnapshot(strings.NewReader("<html>502 Bad Gateway</html>"))
		assert.EqualError(t, err, "the raft snapshot is damaged: its compression: gzip: invalid header; take it again")
	})
	t.Run("namespaces", func(t *testing.T) {
		own := entry("namespaces/5c2c6a7e-0000-0000-0000-000000000000/core/hsm/barrier-unseal-keys", "x")
		snapshot, err := ReadSnapshot(bytes.NewReader(archive(t, members(good+own+entry("namespaces/x/core/keyring", "x")))))
		require.NoError(t, err)
		assert.Equal(t, 1, snapshot.Namespaces)
	})
	t.Run("a reader that fails", func(t *testing.T) {
		broken := errors.New("connection reset")
		_, err := ReadSnapshot(io.MultiReader(bytes.NewReader(archive(t, members(good))[:100]), iotest.ErrReader(broken)))
		require.ErrorIs(t, err, broken)
		assert.EqualError(t, err, "reading the raft snapshot: connection reset")
	})
}

// A large entry takes time, not memory.
func TestReadSnapshotMemory(t *testing.T) {
	const large = 64 << 20
	snapshot := archive(t, members(sealEntries()+entry("logical/large", strings.Repeat("x", large))))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	read, err := ReadSnapshot(bytes.NewReader(snapshot))
	runtime.ReadMemStats(&after)
	require.NoError(t, err)
	assert.Equal(t, 4, read.Entries)
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4<<20), "bytes that were ever allocated")
}

func FuzzReadState(f *testing.F) {
	f.Add([]byte(sealEntries()))
	f.Add([]byte("\x05\x0a\x01k\x12\x00"))
	f.Add([]byte("\x06\x0a\x01k\x20\x96\x01"))
	f.Add(binary.AppendUvarint(nil, 1<<40))
	f.Fuzz(func(t *testing.T, state []byte) {
		snapshot := &Snapshot{}
		if err := snapshot.readState(bytes.NewReader(state)); err == nil {
			assert.GreaterOrEqual(t, snapshot.Entries, 3)
			assert.Error(t, snapshot.Seal.Prove([]string{strings.Repeat("00", keyLength+1)}))
		}
	})
}

// What is packed is what varies: most changes of the packed form fail at once.
func FuzzReadSnapshot(f *testing.F) {
	f.Add(unpack(f, sealsFile(f, "1of1.snap")))
	f.Add(unpack(f, archive(f, members(sealEntries()))))
	f.Fuzz(func(t *testing.T, content []byte) {
		if snapshot, err := ReadSnapshot(bytes.NewReader(pack(t, content))); err == nil {
			assert.Error(t, snapshot.Prove([]string{"00"}))
		}
	})
}
