package runner

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestJournalReadsBackWhatWasAppended(t *testing.T) {
	path := filepath.Join(t.TempDir(), "work", "journal.jsonl")
	j := open(t, path)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening made the file: %v", err)
	}
	// The clock goes backwards; the order of records does not.
	clock := epoch
	j.now = func() time.Time { clock = clock.Add(-time.Hour); return clock }
	for _, r := range []Record{
		{Event: Begin, Data: []byte(`{"plan":"a<b"}`)},
		{Event: Intent, Step: "s", Action: "a\n\x00é"},
		{Event: Done, Step: "s", Action: "a\n\x00é", Took: 1, Data: []byte(`[1,null]`)},
	} {
		if err := j.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	again := open(t, path)
	if d := cmp.Diff(j.Records(), again.Records()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(j.State(), again.State()); d != "" {
		t.Error(d)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if n := again.Notices(); n != nil {
		t.Errorf("notices %q", n)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(Record{Event: Finished}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
}

func TestTornTailIsSaidAndCutByTheNextAppend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	data := writeSample(t, path)
	torn := data[:len(data)-20]
	if err := os.WriteFile(path, torn, 0o600); err != nil {
		t.Fatal(err)
	}
	j := open(t, path)
	notices := j.Notices()
	if len(notices) != 1 || len(j.Records()) != 9 {
		t.Fatalf("%d records, notices %q", len(j.Records()), notices)
	}
	golden(t, "torn-tail.txt", notices[0])
	if now, _ := os.ReadFile(path); !bytes.Equal(now, torn) {
		t.Error("reading changed the file")
	}
	if err := j.Append(Record{Event: Finished}); err != nil {
		t.Fatal(err)
	}
	again := open(t, path)
	if d := cmp.Diff(j.Records(), again.Records()); d != "" || len(again.Notices()) > 0 {
		t.Errorf("after the append: %s", d)
	}
}

func TestDamageInTheMiddleRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal.jsonl")
	data := writeSample(t, path)
	data[bytes.Index(data, []byte("no space"))] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := OpenJournal(path)
	if err == nil {
		t.Fatal("opened")
	}
	golden(t, "damaged.txt", strings.ReplaceAll(err.Error(), dir, "WORK"))
}

func TestDamageAtEveryByte(t *testing.T) {
	data := writeSample(t, filepath.Join(t.TempDir(), "journal.jsonl"))
	want, lines, _, err := parse(data)
	if err != nil {
		t.Fatal(err)
	}
	last := len(data) - len(lines[len(lines)-1])
	t.Run("flip", func(t *testing.T) {
		for at := range data {
			for _, bits := range []byte{1, 1 << 5} {
				damaged := bytes.Clone(data)
				damaged[at] ^= bits
				got, _, whole, err := parse(damaged)
				switch {
				case err != nil:
					if line := fmt.Sprintf("line %d:", 1+bytes.Count(data[:at], []byte("\n"))); !strings.HasPrefix(err.Error(), line) {
						t.Fatalf("byte %d: %v, want %s", at, err, line)
					}
				case at < last || whole != last:
					t.Fatalf("byte %d, bits %x: read as whole up to %d", at, bits, whole)
				default:
					if d := len(got); d != len(want)-1 {
						t.Fatalf("byte %d: %d records", at, d)
					}
				}
			}
		}
	})
	t.Run("truncate", func(t *testing.T) {
		for n := range len(data) + 1 {
			got, _, whole, err := parse(data[:n])
			if err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			lines := bytes.Count(data[:n], []byte("\n"))
			if whole != bytes.LastIndexByte(data[:n], '\n')+1 {
				t.Fatalf("%d bytes: whole %d", n, whole)
			}
			if !slices.EqualFunc(want[:lines], got, func(a, b Record) bool { return a.Sum == b.Sum }) {
				t.Fatalf("%d bytes: %d records, want %d", n, len(got), lines)
			}
		}
	})
	t.Run("insert", func(t *testing.T) {
		for at := range last { // a line more at the end is a torn one
			for _, b := range []byte("\n{") {
				damaged := slices.Insert(bytes.Clone(data), at, b)
				if _, _, _, err := parse(damaged); err == nil {
					t.Fatalf("%q inserted at %d: read", b, at)
				}
			}
		}
	})
	t.Run("lines", func(t *testing.T) {
		for i := range len(lines) - 1 {
			for name, damaged := range map[string][][]byte{
				"removed":  slices.Delete(slices.Clone(lines), i, i+1),
				"repeated": slices.Insert(slices.Clone(lines), i, lines[i], lines[i]),
			} {
				if got, _, _, err := parse(slices.Concat(damaged...)); err == nil && len(got) != i {
					t.Errorf("line %d %s: read %d records", i+1, name, len(got))
				}
			}
			swapped := slices.Clone(lines)
			swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
			if got, _, _, err := parse(slices.Concat(swapped...)); err == nil && len(got) > i {
				t.Errorf("lines %d and %d swapped: read", i+1, i+2)
			}
		}
	})
}

func TestLineOfAnotherJournalIsDamage(t *testing.T) {
	data := writeSample(t, filepath.Join(t.TempDir(), "journal.jsonl"))
	lines := bytes.SplitAfter(data, []byte("\n"))
	// As it would stand there, had the record before been another.
	r, err := unseal(bytes.TrimSpace(lines[4]), mustSum(t, lines[:4]), 5)
	if err != nil {
		t.Fatal(err)
	}
	if lines[4], err = seal(&r, "another"); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := parse(bytes.Join(lines, nil)); !errors.Is(err, errSum) || !strings.HasPrefix(err.Error(), "line 5:") {
		t.Errorf("error %v", err)
	}
}

// mustSum is the sum of the last of a journal's lines.
func mustSum(t *testing.T, lines [][]byte) string {
	t.Helper()
	records, _, _, err := parse(bytes.Join(lines, nil))
	if err != nil {
		t.Fatal(err)
	}
	return records[len(records)-1].Sum
}

func TestUnknownRecordsAreNeverDropped(t *testing.T) {
	for name, r := range map[string]Record{
		"event of a newer version": {Seq: 1, Event: "paused"},
		"sequence":                 {Seq: 7, Event: Begin},
	} {
		line, err := seal(&r, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := parse(line); err == nil {
			t.Errorf("%s: read", name)
		}
	}
}

// faulty is a file whose operations fail as told.
type faulty struct {
	file
	short    int // a write stops after so many bytes with ENOSPC; -1: it does not
	sync     error
	truncate error
}

func (f *faulty) Write(p []byte) (int, error) {
	if f.short < 0 {
		return f.file.Write(p)
	}
	n, _ := f.file.Write(p[:f.short])
	return n, syscall.ENOSPC
}

func (f *faulty) Sync() error {
	if f.sync != nil {
		return f.sync
	}
	return f.file.Sync()
}

func (f *faulty) Truncate(n int64) error {
	if f.truncate != nil {
		return f.truncate
	}
	return f.file.Truncate(n)
}

func TestFailedAppendLeavesTheFileWhole(t *testing.T) {
	for name, fault := range map[string]struct {
		faulty
		left bool // the file keeps a tail until the next append
	}{
		"no space at all":    {faulty: faulty{short: 0}},
		"short write":        {faulty: faulty{short: 40}},
		"sync fails":         {faulty: faulty{short: -1, sync: syscall.EIO}, left: true},
		"nothing works":      {faulty: faulty{short: 40, sync: syscall.EIO, truncate: syscall.EIO}, left: true},
		"cannot be cut back": {faulty: faulty{short: 40, truncate: syscall.EROFS}, left: true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal.jsonl")
			before := writeSample(t, path)
			f := &fault.faulty
			j := open(t, path)
			j.open = func(path string) (file, error) {
				inner, err := openFile(path)
				f.file = inner
				return f, err
			}
			err := j.Append(Record{Event: Finished})
			if err == nil || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EIO) {
				t.Fatalf("error %v", err)
			}
			if !strings.Contains(err.Error(), "record 11 is not recorded") {
				t.Errorf("error %v", err)
			}
			if now, _ := os.ReadFile(path); !bytes.Equal(now, before) && !fault.left {
				t.Error("the file was not put back")
			}
			if n := len(j.Records()); n != 10 {
				t.Errorf("%d records in memory", n)
			}
			// Space is made, the disk comes back: appending works again.
			*f = faulty{file: f.file, short: -1}
			if err := j.Append(Record{Event: Finished}); err != nil {
				t.Fatal(err)
			}
			again := open(t, path)
			if n := len(again.Records()); n != 11 || again.Notices() != nil {
				t.Errorf("%d records on disk", n)
			}
		})
	}
}

func TestAppendRefusesAFileThatAnotherRunWrote(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal.jsonl")
	writeSample(t, path)
	one, two := open(t, path), open(t, path)
	if err := one.Append(Record{Event: Finished}); err != nil {
		t.Fatal(err)
	}
	err := two.Append(Record{Event: Finished})
	if err == nil {
		t.Fatal("appended")
	}
	golden(t, "written-by-another-run.txt", strings.ReplaceAll(err.Error(), dir, "WORK"))
	if n := len(open(t, path).Records()); n != 11 {
		t.Errorf("%d records", n)
	}
}

func TestMirrorGetsEachLineInOrderOverOutagesAndRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.jsonl")
	var mirrored []byte
	var down error
	mirror := func(line []byte) error {
		if down == nil {
			mirrored = append(mirrored, line...)
		}
		return down
	}
	var j *Journal
	add := func(e Event) []string {
		t.Helper()
		if err := j.Append(Record{Event: e, Step: "s", Action: "a"}); err != nil {
			t.Fatal(err)
		}
		return j.Notices()
	}
	same := func(lag int) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.SplitAfter(data, []byte("\n"))
		if want := bytes.Join(lines[:len(lines)-1-lag], nil); !bytes.Equal(mirrored, want) {
			t.Fatalf("mirrored %d bytes, want %d", len(mirrored), len(want))
		}
	}
	j = open(t, path)
	add(Begin) // before there is a mirror
	j.Mirror = mirror
	add(Intent)
	same(0)
	down = errors.New("host is away")
	if n := add(Done); len(n) != 1 || !strings.Contains(n[0], "lacks the last 1 records, which wait here: host is away") {
		t.Errorf("notices %q", n)
	}
	if n := add(Intent); n != nil {
		t.Errorf("the outage is said twice: %q", n)
	}
	same(2)

	j = open(t, path) // a new process
	j.Mirror = mirror
	add(Done)
	same(3)
	down = nil
	if n := add(Intent); len(n) != 1 || n[0] != "the journal's mirror is complete again" {
		t.Errorf("notices %q", n)
	}
	same(0)

	// A mark that was lost or torn only means that lines are sent again.
	if err := os.WriteFile(path+".mirrored", []byte("0f"), 0o600); err != nil {
		t.Fatal(err)
	}
	mirrored = nil
	j = open(t, path)
	j.Mirror = mirror
	j.catchUp()
	same(0)

	// A journal that lost what its mirror has is not continued.
	data, _ := os.ReadFile(path)
	if err := os.WriteFile(path, data[:len(data)-5], 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := OpenJournal(path)
	if err == nil {
		t.Fatal("opened")
	}
	golden(t, "behind-mirror.txt", strings.ReplaceAll(err.Error(), filepath.Dir(path), "WORK"))
}

func FuzzReadJournal(f *testing.F) {
	f.Add(writeSample(f, filepath.Join(f.TempDir(), "journal.jsonl")))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, _, whole, err := parse(data)
		if err == nil {
			again, _, n, err := parse(data[:whole])
			if err != nil || n != whole || len(again) != len(records) {
				t.Fatalf("whole part read again: %d of %d bytes, %v", n, whole, err)
			}
			derive(records)
		}
		// The same lines with right checksums reach what lies behind them.
		var sealed []byte
		previous := ""
		for line := range bytes.Lines(data) {
			line = bytes.TrimSuffix(line, []byte("\n"))
			if cut := len(line) - sumSize; cut > 0 {
				line = append(bytes.Clone(line[:cut]), '}')
			}
			if len(line) == 0 {
				continue
			}
			s := sum(previous, line)
			if line[len(line)-1] != '}' {
				continue
			}
			sealed = append(sealed, line[:len(line)-1]...)
			sealed = append(sealed, sumOpen+s+sumClose+"\n"...)
			previous = s
		}
		if records, _, whole, err := parse(sealed); err == nil {
			if whole != len(sealed) {
				t.Fatalf("sealed lines are torn at %d of %d", whole, len(sealed))
			}
			derive(records)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	j := open(b, filepath.Join(b.TempDir(), "journal.jsonl"))
	for b.Loop() {
		if err := j.Append(Record{Event: Done, Step: "back up volumes", Action: "volume data/db", Data: []byte(`{"bytes":123456789,"sha256":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}`)}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen10k(b *testing.B) {
	path := filepath.Join(b.TempDir(), "journal.jsonl")
	var data []byte
	previous := ""
	for i := range 10_000 {
		r := Record{Seq: i + 1, Run: "RUN", Time: epoch, Event: []Event{Intent, Done}[i%2], Step: "s", Action: fmt.Sprint(i / 2)}
		line, err := seal(&r, previous)
		if err != nil {
			b.Fatal(err)
		}
		data, previous = append(data, line...), r.Sum
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		j, err := OpenJournal(path)
		if err != nil {
			b.Fatal(err)
		}
		j.State()
	}
}
