package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// The sum of the last record that the mirror has is kept beside the journal.
// It is written without sync: when it is lost or older than the truth, lines
// are sent again and the mirror ignores them.
func (j *Journal) markPath() string { return j.path + ".mirrored" }

// unmirrored returns the lines that the mirror is not known to have.
func (j *Journal) unmirrored(lines [][]byte) ([][]byte, error) {
	mark, err := os.ReadFile(j.markPath())
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(mark) != len(sum("", nil)) {
		return lines, nil // never mirrored, or the mark was torn
	}
	if err != nil {
		return nil, fmt.Errorf("read how far the journal is mirrored: %w", err)
	}
	at := slices.IndexFunc(j.records, func(r Record) bool { return r.Sum == string(mark) })
	if at < 0 {
		return nil, fmt.Errorf("read the journal %s: it ends at record %d and lacks a later one that its mirror on the host has; nothing was changed: put back the host's copy", j.path, len(j.records))
	}
	return lines[at+1:], nil
}

// catchUp sends what earlier processes could not.
func (j *Journal) catchUp() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.send()
}

// send passes the waiting lines to the mirror.
func (j *Journal) send() {
	if j.Mirror == nil || len(j.waiting) == 0 {
		return
	}
	sent := 0
	var err error
	for sent < len(j.waiting) {
		if err = j.Mirror(j.waiting[sent]); err != nil {
			break
		}
		sent++
	}
	j.waiting = j.waiting[sent:]
	switch {
	case err != nil && j.mirrorUp:
		j.notices = append(j.notices, fmt.Sprintf("the journal's mirror lacks the last %d records, which wait here: %v", len(j.waiting), err))
	case err == nil && !j.mirrorUp:
		j.notices = append(j.notices, "the journal's mirror is complete again")
	}
	j.mirrorUp = err == nil
	if sent == 0 {
		return
	}
	mark := j.records[len(j.records)-1-len(j.waiting)].Sum
	if err := os.WriteFile(j.markPath(), []byte(mark), 0o600); err != nil {
		j.notices = append(j.notices, fmt.Sprintf("note how far the journal is mirrored: %v; what it has will be sent again", err))
	}
}
