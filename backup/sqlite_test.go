package backup

import (
	"bytes"
	"database/sql"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// database makes a kine-like database with a log that was not checkpointed,
// as a process that was killed leaves it: copies of both files.
func database(t testing.TB, pageSize, before, after int) (main, wal []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "state.db")
	db, err := sql.Open("sqlite", "file:"+file)
	require.NoError(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	exec := func(q string, args ...any) {
		t.Helper()
		_, err := db.Exec(q, args...)
		require.NoError(t, err)
	}
	exec(fmt.Sprintf("PRAGMA page_size = %d", pageSize))
	exec("VACUUM")
	exec("PRAGMA journal_mode = WAL")
	exec("PRAGMA wal_autocheckpoint = 0")
	exec("CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, value BLOB)")
	exec("CREATE INDEX kine_name ON kine (name)")
	fill := func(n int) {
		for i := range n {
			exec("INSERT INTO kine (name, value) VALUES (?, ?)", fmt.Sprintf("/registry/%d", i), bytes.Repeat([]byte{byte(i)}, i%3000))
		}
	}
	fill(before)
	exec("PRAGMA wal_checkpoint(TRUNCATE)")
	fill(after)
	exec("DELETE FROM kine WHERE id % 7 = 0")
	main, err = os.ReadFile(file)
	require.NoError(t, err)
	wal, err = os.ReadFile(file + "-wal")
	require.NoError(t, err)
	require.Equal(t, uint32(pageSize), binary.BigEndian.Uint32(wal[8:]))
	return main, wal
}

// check opens the database out of a set.
func check(t testing.TB, main, wal []byte) (int64, error) {
	t.Helper()
	s := openIn(t, t.TempDir())
	meta := map[string]string{metaWAL: noWAL, metaTable: KineTable}
	put := func(name string, kind Kind, data []byte, meta map[string]string) Artifact {
		w, err := s.Create(name, kind)
		require.NoError(t, err)
		_, err = w.Write(data)
		require.NoError(t, err)
		a, err := w.Commit(meta)
		require.NoError(t, err)
		return a
	}
	if wal != nil {
		meta[metaWAL] = put("db-wal", KindSQLiteWAL, wal, nil).ContentSHA256
	}
	put("db", KindSQLite, main, meta)
	return s.CheckDatabase(t.Context(), "db")
}

func TestDatabaseWithItsLog(t *testing.T) {
	for _, pageSize := range []int{512, 4096, 65536} {
		t.Run(fmt.Sprint(pageSize), func(t *testing.T) {
			main, wal := database(t, pageSize, 300, 300)
			rows, err := check(t, main, wal)
			require.NoError(t, err)
			require.EqualValues(t, 600-600/7, rows)

			rows, err = check(t, main, nil)
			require.NoError(t, err, "the main file alone is the state of the last checkpoint")
			require.EqualValues(t, 300, rows)

			// A log that ends within a transaction ends with the last commit before it.
			rows, err = check(t, main, wal[:len(wal)-pageSize-frameHeader-5])
			require.NoError(t, err)
			require.Greater(t, rows, int64(300))

			// All in the log, nothing in the main file but its first pages.
			main, wal = database(t, pageSize, 0, 100)
			rows, err = check(t, main, wal)
			require.NoError(t, err)
			require.EqualValues(t, 100-100/7, rows)
		})
	}
}

func TestDatabaseDamage(t *testing.T) {
	main, wal := database(t, 4096, 400, 10)
	t.Run("page", func(t *testing.T) {
		bad := bytes.Clone(main)
		copy(bad[4096*5+200:], strings.Repeat("garbage", 300))
		_, err := check(t, bad, nil)
		require.ErrorContains(t, err, "artifact db")
	})
	t.Run("cut", func(t *testing.T) {
		_, err := check(t, main[:len(main)/2], nil)
		require.ErrorContains(t, err, "artifact db")
	})
	t.Run("empty", func(t *testing.T) {
		_, err := check(t, nil, nil)
		require.ErrorContains(t, err, "empty")
	})
	t.Run("other table", func(t *testing.T) {
		_, err := check(t, bytes.ReplaceAll(main, []byte("kine"), []byte("enik")), nil)
		require.Error(t, err)
	})
	t.Run("no database", func(t *testing.T) {
		_, err := check(t, bytes.Repeat([]byte("x"), 9000), nil)
		require.ErrorContains(t, err, "artifact db")
	})
	t.Run("page size", func(t *testing.T) {
		_, other := database(t, 512, 10, 10)
		_, err := check(t, main, other)
		require.ErrorContains(t, err, "pages of 4096 bytes")
	})
	t.Run("log of another round", func(t *testing.T) {
		stale := bytes.Clone(wal)
		binary.BigEndian.PutUint32(stale[16:], 1) // a salt, and with it the header's sum
		rows, err := check(t, main, stale)
		require.NoError(t, err)
		require.EqualValues(t, 400, rows, "SQLite ignores such a log, too")
	})
}

// FuzzWAL reads logs that may be anything.
func FuzzWAL(f *testing.F) {
	_, wal := database(f, 512, 1, 3)
	f.Add(wal)
	f.Add(wal[:40])
	f.Fuzz(func(t *testing.T, data []byte) {
		idx, err := readWAL(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		for page, at := range idx.frames {
			if page == 0 || at+idx.pageSize > int64(len(data)) {
				t.Fatalf("page %d lies at %d of %d", page, at, len(data))
			}
		}
	})
}
