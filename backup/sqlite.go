package backup

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"time"

	_ "modernc.org/sqlite" // the database/sql driver "sqlite"
	"modernc.org/sqlite/vfs"
)

// An SQLite database in WAL mode is a main file and a write-ahead log, which
// together are its state. Both lie encrypted in the set and shall not be
// decrypted to the laptop's disk. Therefore this file joins them into one
// readable image: the main file with the pages of the log's committed
// transactions laid over it, as https://www.sqlite.org/fileformat2.html#the_write_ahead_log
// defines them. SQLite reads that image through a file system of one file.

const (
	walHeader   = 32
	frameHeader = 24
	dbHeader    = 100
)

// walIndex finds pages in a write-ahead log.
type walIndex struct {
	pageSize int64
	pages    int64            // size of the database after the last commit, in pages
	frames   map[uint32]int64 // page number → offset of its content in the log
}

// readWAL reads the frames up to the last valid commit. A log without any, such
// as one that was reset, is empty and no error: SQLite ignores it as well. Memory is a few
// dozen bytes for each page in the log.
func readWAL(r io.Reader) (walIndex, error) {
	idx := walIndex{frames: map[uint32]int64{}}
	head := make([]byte, walHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			return idx, nil
		}
		return idx, err
	}
	be := binary.BigEndian
	magic := be.Uint32(head)
	if magic&^1 != 0x377f0682 || be.Uint32(head[4:]) != 3007000 {
		return idx, nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	if magic&1 == 1 {
		order = binary.BigEndian
	}
	sum := walSum{order: order}
	sum.add(head[:24])
	if !sum.is(head[24:]) {
		return idx, nil
	}
	idx.pageSize = int64(be.Uint32(head[8:]))
	if idx.pageSize < 512 || idx.pageSize > 65536 || idx.pageSize&(idx.pageSize-1) != 0 {
		return idx, nil
	}
	frame := make([]byte, frameHeader+idx.pageSize)
	pending := map[uint32]int64{}
	for at := int64(walHeader); ; at += int64(len(frame)) {
		if _, err := io.ReadFull(r, frame); err != nil {
			if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
				return idx, nil
			}
			return idx, err
		}
		sum.add(frame[:8])
		sum.add(frame[frameHeader:])
		// A frame of an older round of the log has other salts or another sum.
		if string(frame[8:16]) != string(head[16:24]) || !sum.is(frame[16:24]) {
			return idx, nil
		}
		page := be.Uint32(frame)
		if page == 0 {
			return idx, nil
		}
		pending[page] = at + frameHeader
		if size := be.Uint32(frame[4:]); size != 0 {
			for p, off := range pending {
				idx.frames[p] = off
			}
			clear(pending)
			idx.pages = int64(size)
		}
	}
}

// walSum is the running checksum of a write-ahead log.
type walSum struct {
	order  binary.ByteOrder
	s0, s1 uint32
}

func (s *walSum) add(p []byte) {
	for ; len(p) >= 8; p = p[8:] {
		s.s0 += s.order.Uint32(p) + s.s1
		s.s1 += s.order.Uint32(p[4:]) + s.s0
	}
}

func (s *walSum) is(p []byte) bool {
	return binary.BigEndian.Uint32(p) == s.s0 && binary.BigEndian.Uint32(p[4:]) == s.s1
}

// image is a database with its log laid over it.
type image struct {
	main io.ReaderAt
	wal  io.ReaderAt
	idx  walIndex
	size int64

	mu  sync.Mutex
	err error // the first one; SQLite passes on a number only
}

func newImage(main io.ReaderAt, size int64, wal io.ReaderAt, idx walIndex) (*image, error) {
	im := &image{main: main, wal: wal, idx: idx, size: size}
	if idx.pages > 0 {
		im.size = idx.pages * idx.pageSize
		if size >= dbHeader {
			head := make([]byte, dbHeader)
			if _, err := main.ReadAt(head, 0); err != nil {
				return nil, err
			}
			of := int64(binary.BigEndian.Uint16(head[16:]))
			if of == 1 {
				of = 65536
			}
			if of != idx.pageSize {
				return nil, fmt.Errorf("the database has pages of %d bytes, and its log of %d", of, idx.pageSize)
			}
		}
	}
	return im, nil
}

// ReadAt implements io.ReaderAt.
func (im *image) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) && off < im.size {
		part := p[n:min(int64(len(p)), int64(n)+im.size-off)]
		if im.idx.pages > 0 {
			part = part[:min(int64(len(part)), im.idx.pageSize-off%im.idx.pageSize)]
		}
		if err := im.page(part, off); err != nil {
			im.mu.Lock()
			if im.err == nil {
				im.err = err
			}
			im.mu.Unlock()
			return n, err
		}
		// Versions 2 would tell SQLite that there is a log to look for.
		for i := range part {
			if at := off + int64(i); at > 19 {
				break
			} else if at >= 18 {
				part[i] = 1
			}
		}
		n += len(part)
		off += int64(len(part))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// page reads a piece that does not cross a page's end.
func (im *image) page(p []byte, off int64) error {
	r := im.main
	if im.idx.pages > 0 {
		if at, ok := im.idx.frames[uint32(off/im.idx.pageSize)+1]; ok {
			r, off = im.wal, at+off%im.idx.pageSize
		}
	}
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	return err
}

// imageFS is a file system with the image as its only file.
type imageFS struct{ im *image }

const imageName = "db"

func (f imageFS) Open(name string) (fs.File, error) {
	if name != imageName {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &imageFile{SectionReader: io.NewSectionReader(f.im, 0, f.im.size)}, nil
}

type imageFile struct{ *io.SectionReader }

func (f *imageFile) Close() error               { return nil }
func (f *imageFile) Stat() (fs.FileInfo, error) { return f, nil }
func (f *imageFile) Name() string               { return imageName }
func (f *imageFile) Mode() fs.FileMode          { return 0o400 }
func (f *imageFile) ModTime() time.Time         { return time.Time{} }
func (f *imageFile) IsDir() bool                { return false }
func (f *imageFile) Sys() any                   { return nil }

// checkSQLite opens the image with SQLite, checks its integrity, and counts
// the rows of table.
func checkSQLite(ctx context.Context, im *image, table string) (rows int64, err error) {
	if im.size == 0 {
		return 0, errors.New("the database is empty")
	}
	name, fsys, err := vfs.New(imageFS{im})
	if err != nil {
		return 0, fmt.Errorf("opening the database: %w", err)
	}
	defer func() { err = errors.Join(err, fsys.Close()) }()
	db, err := sql.Open("sqlite", "file:"+imageName+"?vfs="+name+"&mode=ro&_pragma=temp_store(MEMORY)&_pragma=cache_size(-16384)")
	if err != nil {
		return 0, fmt.Errorf("opening the database: %w", err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	// An error of reading below SQLite is the cause of what SQLite says.
	explain := func(doing string, err error) error {
		im.mu.Lock()
		defer im.mu.Unlock()
		if im.err != nil {
			err = im.err
		}
		return fmt.Errorf("%s: %w", doing, err)
	}
	found, err := db.QueryContext(ctx, "PRAGMA integrity_check(10)")
	if err != nil {
		return 0, explain("checking the integrity of the database", err)
	}
	defer found.Close()
	var wrong []string
	for found.Next() {
		var line string
		if err := found.Scan(&line); err != nil {
			return 0, explain("checking the integrity of the database", err)
		}
		if line != "ok" {
			wrong = append(wrong, line)
		}
	}
	if err := found.Err(); err != nil {
		return 0, explain("checking the integrity of the database", err)
	}
	if len(wrong) > 0 {
		return 0, fmt.Errorf("SQLite's integrity check says: %s", strings.Join(wrong, "; "))
	}
	if table == "" {
		return 0, nil
	}
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM "`+strings.ReplaceAll(table, `"`, `""`)+`"`).Scan(&rows); err != nil {
		return 0, explain("counting the rows of table "+table, err)
	}
	if rows == 0 {
		return 0, fmt.Errorf("its table %s is empty", table)
	}
	return rows, nil
}
