package backup

import (
	"context"
	"errors"
	"fmt"
	"io"

	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
)

// Meta of KindSQLite.
const (
	metaWAL   = "wal"   // content SHA-256 of the log that belongs to the database, or "none"
	metaTable = "table" // table that must have rows
)

const noWAL = "none"

// WALName is the name of the artifact with the write-ahead log of the database name.
func WALName(name string) string { return name + "-wal" }

// KineTable is the table in which K3s keeps the cluster's objects.
const KineTable = "kine"

// Datastore takes an SQLite database of the host with its write-ahead log:
// K3s's is server/db/state.db below its data directory. Nobody may have it open. When the
// set can be read, the database is opened and checked at once. table is one
// that must have rows; "" for none.
func Datastore(ctx context.Context, host *remote.Host, set *Set, name, file, table string, r *progress.Reporter) error {
	wal := file + "-wal"
	// An empty log is as good as none.
	out, err := host.Output(ctx, "if [ -s "+remote.Quote(wal)+" ]; then echo yes; else echo no; fi")
	if err != nil {
		return fmt.Errorf("host %s: looking for %s: %w", host.Name(), wal, err)
	}
	meta := map[string]string{metaWAL: noWAL, metaTable: table}
	if out == "yes" {
		if err := takeFile(ctx, host, set, WALName(name), KindSQLiteWAL, wal, nil, r); err != nil {
			return err
		}
		a, err := set.lookup(WALName(name))
		if err != nil {
			return err
		}
		meta[metaWAL] = a.ContentSHA256
	}
	if err := takeFile(ctx, host, set, name, KindSQLite, file, meta, r); err != nil {
		return err
	}
	if out == "yes" {
		// The log must not have moved under the copy of the main file.
		sum, err := hostSum(ctx, host, wal)
		if err != nil {
			return err
		}
		if sum != meta[metaWAL] {
			return fmt.Errorf("host %s: %s changed while the database was read; stop K3s, then run again", host.Name(), wal)
		}
	} else if err := set.Remove(WALName(name)); err != nil {
		return err
	}
	if !set.CanRead() {
		return nil
	}
	_, err = set.CheckDatabase(ctx, name)
	return err
}

// HasWAL tells whether the database artifact name has a write-ahead log that belongs to it.
func (s *Set) HasWAL(name string) bool {
	a, ok := s.Artifact(name)
	return ok && a.Meta[metaWAL] != noWAL && a.Meta[metaWAL] != ""
}

// CheckDatabase opens an SQLite artifact, with its log, out of the encrypted
// files, checks its integrity, and counts the rows of the table that it was
// taken with.
func (s *Set) CheckDatabase(ctx context.Context, name string) (rows int64, err error) {
	a, err := s.lookup(name)
	if err != nil {
		return 0, err
	}
	fail := func(err error) (int64, error) {
		var damaged *DamagedError
		if errors.As(err, &damaged) {
			return 0, err
		}
		return 0, &DamagedError{Name: a.Name, File: a.File, Err: err}
	}
	main, size, c, err := s.ReaderAt(name)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	var idx walIndex
	var wal io.ReaderAt
	if s.HasWAL(name) {
		w, err := s.lookup(WALName(name))
		if err != nil {
			return 0, err
		}
		if w.ContentSHA256 != a.Meta[metaWAL] {
			return fail(errors.New("its write-ahead log in the set belongs to another copy of it"))
		}
		r, n, wc, err := s.ReaderAt(WALName(name))
		if err != nil {
			return 0, err
		}
		defer wc.Close()
		if idx, err = readWAL(io.NewSectionReader(r, 0, n)); err != nil {
			return 0, &DamagedError{Name: w.Name, File: w.File, Err: err}
		}
		wal = r
	}
	im, err := newImage(main, size, wal, idx)
	if err != nil {
		return fail(err)
	}
	if rows, err = checkSQLite(ctx, im, a.Meta[metaTable]); err != nil {
		return fail(err)
	}
	return rows, nil
}
