package runner

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Event is what a record says.
type Event string

// The events of a journal.
const (
	Begin          Event = "begin"      // a run begins; data is its Bind
	Confirmed      Event = "confirmed"  // a person agreed at the step's gate
	Intent         Event = "intent"     // an attempt of the action is about to start
	Done           Event = "done"       // the action is complete; data is what it returned
	Failed         Event = "failed"     // the attempt returned an error
	StepComplete   Event = "complete"   // all actions of the step are done
	StepCheckpoint Event = "checkpoint" // the same, at a step that is a checkpoint
	Finished       Event = "finished"   // all steps are complete

	Rollback   Event = "rollback"    // a rollback to the checkpoint named as the step begins, or goes on to an earlier one
	Undoing    Event = "undoing"     // an attempt of an undo action of the step is about to start
	Undone     Event = "undone"      // the undo action is complete
	UndoFailed Event = "undo failed" // the attempt returned an error
	Reverted   Event = "reverted"    // all undo actions of the step are done: it is as if it had never begun
	RolledBack Event = "rolled back" // all steps after the checkpoint are reverted
)

var events = []Event{
	Begin, Confirmed, Intent, Done, Failed, StepComplete, StepCheckpoint, Finished,
	Rollback, Undoing, Undone, UndoFailed, Reverted, RolledBack,
}

// Record is one line of the journal.
type Record struct {
	Seq    int             `json:"seq"`  // from 1, without gaps
	Time   time.Time       `json:"time"` // UTC; for people, the order is Seq's
	Run    string          `json:"run"`  // made at begin and kept when the run is continued
	Step   string          `json:"step,omitempty"`
	Action string          `json:"action,omitempty"`
	Event  Event           `json:"event"`
	Found  bool            `json:"found,omitempty"` // done: found done by asking reality
	Took   time.Duration   `json:"tookNanos,omitempty"`
	Data   json.RawMessage `json:"data,omitempty"`
	Error  string          `json:"error,omitempty"`

	// Sum is the hex SHA-256 of the previous record's Sum followed by this
	// record's JSON without its sum. In the line it is always the last member.
	Sum string `json:"sum,omitempty"`
}

const (
	sumOpen  = `,"sum":"`
	sumClose = `"}`
	sumSize  = len(sumOpen) + 2*sha256.Size + len(sumClose)
)

// seal computes the record's sum and returns its line, newline included.
func seal(r *Record, previous string) ([]byte, error) {
	r.Sum = ""
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	r.Sum = sum(previous, body)
	return slices.Concat(body[:len(body)-1], []byte(sumOpen+r.Sum+sumClose+"\n")), nil
}

func sum(previous string, body []byte) string {
	h := sha256.New()
	h.Write([]byte(previous))
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}

var errSum = errors.New("its checksum does not match")

// unseal reads a line without its newline. The error is errSum when the line
// is not what was written after the record with the previous sum; any other
// error means that it is, and that this version does not understand it.
func unseal(line []byte, previous string, seq int) (Record, error) {
	cut := len(line) - sumSize
	if cut < 0 {
		return Record{}, errSum
	}
	body := slices.Concat(line[:cut], []byte("}"))
	if string(line[cut:]) != sumOpen+sum(previous, body)+sumClose {
		return Record{}, errSum
	}
	var r Record
	if err := json.Unmarshal(line, &r); err != nil {
		return Record{}, err
	}
	if r.Seq != seq {
		return Record{}, fmt.Errorf("its sequence number is %d instead of %d", r.Seq, seq)
	}
	if !slices.Contains(events, r.Event) {
		return Record{}, fmt.Errorf("its event %q is unknown to this version: use the version that wrote it, or a newer one", r.Event)
	}
	return r, nil
}

// parse reads a journal. Records come with their lines; whole is the length
// of what they take of data, and less than len(data) when the tail is torn.
func parse(data []byte) (records []Record, lines [][]byte, whole int, err error) {
	previous := ""
	for line := range bytes.Lines(data) {
		n := len(records) + 1
		last := whole+len(line) == len(data)
		text, ended := bytes.CutSuffix(line, []byte("\n"))
		r, err := unseal(text, previous, n)
		switch {
		case last && (!ended || errors.Is(err, errSum)) && !runsOn(text, previous, n):
			return records, lines, whole, nil
		case err != nil:
			return nil, nil, 0, fmt.Errorf("line %d: %w", n, err)
		}
		whole += len(line)
		records = append(records, r)
		lines = append(lines, line)
		previous = r.Sum
	}
	return records, lines, whole, nil
}

// runsOn says whether a whole record and more are in text: then it is not a
// torn line, but two whose newline was damaged.
func runsOn(text []byte, previous string, seq int) bool {
	for at := 0; ; at++ {
		i := bytes.Index(text[at:], []byte(sumOpen))
		if i < 0 {
			return false
		}
		at += i
		if end := at + sumSize; end < len(text) {
			if _, err := unseal(text[:end], previous, seq); !errors.Is(err, errSum) {
				return true
			}
		}
	}
}

// file is what the journal needs of an *os.File; tests cut it off.
type file interface {
	Seek(offset int64, whence int) (int64, error)
	Write(p []byte) (int, error)
	Sync() error
	Truncate(size int64) error
	Close() error
}

// Journal is the append-only record of a run: one JSON line a record, each
// checksummed over itself and its predecessor, each on disk before Append
// returns. It is safe for concurrent use within one process; a Lock keeps
// other processes out.
type Journal struct {
	// Mirror, if set, gets each line (newline included) after it is durable
	// here, in order. A line is sent again when it is not certain that it
	// arrived, so Mirror ignores sequence numbers that it has. Its failure
	// is a notice and no error: lines wait, over restarts too, for the next
	// Append or Runner.Run. Appending waits for it, so it gives up soon. It
	// is not set while the journal is in use; lines wait for one set later.
	Mirror func(line []byte) error

	path string
	open func(path string) (file, error)
	now  func() time.Time

	mu       sync.Mutex
	file     file // nil until the first append
	records  []Record
	size     int64    // of the whole records in the file
	read     int64    // size of the file when it was read
	torn     bool     // the file may be longer than size
	waiting  [][]byte // lines that the mirror does not have
	mirrorUp bool
	greeted  bool // inherited has said yes
	notices  []string
}

// OpenJournal reads the journal at path; one that does not exist is empty.
// Nothing on disk changes before the first Append.
//
// A last line that is cut off or damaged is what a crash during a write
// leaves: it is left out, said in Notices, and cut off by the next Append.
// Damage before it is an error, as is a journal that lacks records which its
// mirror is known to have.
func OpenJournal(path string) (*Journal, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	records, lines, whole, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("read the journal %s: %w; nothing was changed: put back an undamaged copy (the host mirrors the journal), do not edit it", path, err)
	}
	j := &Journal{
		path: path, open: openFile, now: time.Now,
		records: records, size: int64(whole), read: int64(len(data)), torn: whole < len(data),
		mirrorUp: true,
	}
	if j.torn {
		j.notices = append(j.notices, fmt.Sprintf(
			"the journal's last line (line %d, %d bytes) is cut off or damaged, as a crash during its write leaves it; it is left out, and what it was to record is settled by asking reality",
			len(records)+1, len(data)-whole))
	}
	if j.waiting, err = j.unmirrored(lines); err != nil {
		return nil, err
	}
	return j, nil
}

// inherited tells, once, that an earlier process began the run: only then is a
// person told that it is continued.
func (j *Journal) inherited() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	first := j.read > 0 && !j.greeted
	j.greeted = true
	return first
}

func openFile(path string) (file, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// Always, not only on creation: the process that created the file may
	// have died before its directory was on disk.
	if err := syncDir(dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Append makes a record durable. The caller gives Step, Action, Event, Found,
// Took, Data and Error; the journal gives the rest. When the record cannot be
// written, the file is put back to its whole records and the error says why;
// appending may be tried again.
func (j *Journal) Append(r Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	r.Seq = len(j.records) + 1
	r.Time = j.now().UTC().Round(0)
	previous := ""
	if len(j.records) > 0 {
		last := j.records[len(j.records)-1]
		previous, r.Run = last.Sum, last.Run
	}
	if r.Event == Begin {
		r.Run = rand.Text()
	}
	line, err := seal(&r, previous)
	if err == nil {
		// Nothing is written that could not be read, and in memory is what
		// is on disk (JSON escapes, and replaces bad UTF-8).
		r, err = unseal(line[:len(line)-1], previous, r.Seq)
	}
	if err == nil {
		err = j.write(line)
	}
	if err != nil {
		return fmt.Errorf("write the journal %s: record %d is not recorded: %w", j.path, len(j.records)+1, err)
	}
	j.records = append(j.records, r)
	j.waiting = append(j.waiting, line)
	j.send()
	return nil
}

// write appends a line with one write and one sync, after cutting off what is
// torn. On an error it cuts off what was written of the line.
func (j *Journal) write(line []byte) error {
	if j.file == nil {
		f, err := j.open(j.path)
		if err != nil {
			return err
		}
		// Cutting off what another run has added would destroy its records.
		size, err := f.Seek(0, io.SeekEnd)
		if err == nil && size != j.read {
			err = errors.New("another run has written it since it was read: take the lock, then open the journal")
		}
		if err != nil {
			return errors.Join(err, f.Close())
		}
		j.file = f
	}
	if j.torn {
		if err := j.cut(); err != nil {
			return fmt.Errorf("cut off the torn last line: %w", err)
		}
	}
	j.torn = true
	_, err := j.file.Write(line)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		// When this fails too, the tail stays marked as torn: the next
		// append cuts it first, and so does the next process.
		return errors.Join(err, j.cut())
	}
	j.torn = false
	j.size += int64(len(line))
	return nil
}

func (j *Journal) cut() error {
	if err := j.file.Truncate(j.size); err != nil {
		return err
	}
	if err := j.file.Sync(); err != nil {
		return err
	}
	j.torn = false
	return nil
}

// Records returns the records in order.
func (j *Journal) Records() []Record {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.records)
}

// Notices returns what a person should know about the journal (a torn tail, a
// mirror that is behind) and was not returned before.
func (j *Journal) Notices() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := j.notices
	j.notices = nil
	return n
}

// Close closes the file, in which every record is durable already. No record
// can be appended after it.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.open = func(string) (file, error) { return nil, os.ErrClosed }
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}
