// Package index is the list of a directory tree's entries as backup and
// restore exchange it with a host: the form of its records, their order, and
// merging of ordered lists without holding any of them in memory.
//
// It stands below backup and restore and knows neither; the shell that writes
// such lists on a host is in this package too, so that the form is written down
// in one place.
//
// A record is "path//fields" and ends with NUL. A path is relative to the tree
// ("" is the tree's root), never begins or ends with "/" and hence never
// contains "//"; names may hold any other byte, new lines included. Records are
// ordered by path, component for component in byte order: a directory comes
// right before what is below it. GNU tar's --sort=name visits a tree in the
// same order.
package index

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Record is one entry: its path and the fields after it.
type Record struct {
	Path   string
	Fields string
}

// maxRecord bounds what one record may take in memory. Linux paths have at most
// 4096 bytes in one call; deeper trees exist, none that is a mebibyte deep.
const maxRecord = 1 << 20

// Compare orders paths: component for component, parents before children.
func Compare(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			// The separator sorts before every byte of a name.
			switch {
			case a[i] == '/':
				return -1
			case b[i] == '/':
				return 1
			case a[i] < b[i]:
				return -1
			default:
				return 1
			}
		}
	}
	return len(a) - len(b)
}

// Topmost puts paths in order and drops repeated ones and those below others.
func Topmost(paths []string) []string {
	paths = slices.Clone(paths)
	slices.SortFunc(paths, Compare)
	var out []string
	for _, p := range paths {
		if len(out) == 0 || (p != out[len(out)-1] && !strings.HasPrefix(p, out[len(out)-1]+"/")) {
			out = append(out, p)
		}
	}
	return out
}

// Writer writes records in order.
type Writer struct {
	w    io.Writer
	last string
	any  bool
}

// NewWriter writes to w, which should be buffered.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write appends a record; one out of order is an error.
func (w *Writer) Write(r Record) error {
	if w.any && Compare(w.last, r.Path) >= 0 {
		return fmt.Errorf("%q comes after %q: the list is not in order", r.Path, w.last)
	}
	w.last, w.any = r.Path, true
	_, err := io.WriteString(w.w, r.Path+"//"+r.Fields+"\x00")
	return err
}

// Reader reads records and sees that they are in order.
type Reader struct {
	r       *bufio.Reader
	last    string
	any     bool
	sorted  bool
	pending []byte
}

// NewReader reads an ordered list.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 64<<10), sorted: true} }

// NewUnorderedReader reads records that are ordered in another way.
func NewUnorderedReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 64<<10)} }

// Next returns the next record, or io.EOF.
func (r *Reader) Next() (Record, error) {
	r.pending = r.pending[:0]
	for {
		part, err := r.r.ReadSlice(0)
		r.pending = append(r.pending, part...)
		if err == nil {
			break
		}
		if errors.Is(err, bufio.ErrBufferFull) && len(r.pending) <= maxRecord {
			continue
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return Record{}, fmt.Errorf("a record of the list is longer than %d bytes", maxRecord)
		case err == io.EOF && len(r.pending) > 0:
			return Record{}, fmt.Errorf("the list ends within a record: %w", io.ErrUnexpectedEOF)
		}
		return Record{}, err
	}
	line := r.pending[:len(r.pending)-1]
	i := bytes.Index(line, []byte("//"))
	if i < 0 {
		return Record{}, fmt.Errorf("record %.80q of the list has no separator", line)
	}
	rec := Record{Path: string(line[:i]), Fields: string(line[i+2:])}
	if strings.HasPrefix(rec.Path, "/") {
		return Record{}, fmt.Errorf("record %.80q of the list has an absolute path", line)
	}
	if r.sorted {
		if r.any && Compare(r.last, rec.Path) >= 0 {
			return Record{}, fmt.Errorf("%q comes after %q: the list is not in order", rec.Path, r.last)
		}
		r.last, r.any = rec.Path, true
	}
	return rec, nil
}

// Lists is what Merge reads; *Reader is one.
type Lists interface{ Next() (Record, error) }

// Merge walks several ordered lists at once and calls visit once for every
// path that occurs, with the record of each list or nil where it has none.
func Merge(visit func(path string, records []*Record) error, lists ...Lists) error {
	heads := make([]*Record, len(lists))
	advance := func(i int) error {
		rec, err := lists[i].Next()
		switch {
		case err == io.EOF:
			heads[i] = nil
		case err != nil:
			return err
		default:
			heads[i] = &rec
		}
		return nil
	}
	for i := range lists {
		if err := advance(i); err != nil {
			return err
		}
	}
	for {
		var low *Record
		for _, h := range heads {
			if h != nil && (low == nil || Compare(h.Path, low.Path) < 0) {
				low = h
			}
		}
		if low == nil {
			return nil
		}
		found := make([]*Record, len(lists))
		for i, h := range heads {
			if h != nil && h.Path == low.Path {
				found[i] = h
			}
		}
		if err := visit(low.Path, found); err != nil {
			return err
		}
		for i := range found {
			if found[i] != nil {
				if err := advance(i); err != nil {
					return err
				}
			}
		}
	}
}
