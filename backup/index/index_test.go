package index

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// names draws paths with the bytes that matter most for the order.
func names() *rapid.Generator[string] {
	name := rapid.StringOfN(rapid.SampledFrom([]rune{1, 2, '!', '.', '-', '0', 'a', 'b', '\n', ' ', 0x7f, 'é'}), 1, 4, -1)
	return rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(name, 0, 4).Draw(t, "parts"), "/")
	})
}

// TestOrderIsTheHosts compares Compare with what the host's shell does.
func TestOrderIsTheHosts(t *testing.T) {
	if out, err := exec.Command("sort", "--version").Output(); err != nil || !bytes.Contains(out, []byte("GNU")) {
		t.Skip("no GNU sort on this machine")
	}
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		paths := rapid.SliceOfNDistinct(names(), 0, 30, rapid.ID).Draw(t, "paths")
		var in bytes.Buffer
		for _, p := range paths {
			in.WriteString(p + "//x\x00")
		}
		cmd := exec.Command("sh", "-c", Script(dir, "t", "to_order | in_order | from_order"))
		cmd.Stdin = &in
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(paths, Compare)
		var got []string
		r := NewReader(bytes.NewReader(out))
		for {
			rec, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, rec.Path)
		}
		if !slices.Equal(paths, got) {
			t.Fatalf("Compare orders %q, the host %q", paths, got)
		}
	})
}

func TestParentsFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := names().Draw(t, "p")
		q := p + "/x"
		if p == "" {
			q = "x"
		}
		o := names().Draw(t, "other")
		if Compare(p, q) >= 0 {
			t.Fatalf("%q is not before %q", p, q)
		}
		if Compare(p, o) != -Compare(o, p) && (Compare(p, o) < 0) == (Compare(o, p) < 0) {
			t.Fatalf("order of %q and %q depends on the side", p, o)
		}
		if below := p == "" || strings.HasPrefix(o, p+"/"); !below && Compare(p, o) < 0 && Compare(o, q) < 0 {
			t.Fatalf("%q comes between %q and %q", o, p, q)
		}
	})
}

func list(recs ...string) *Reader {
	return NewReader(strings.NewReader(strings.Join(recs, "")))
}

func TestReader(t *testing.T) {
	for name, tc := range map[string]struct{ in, err string }{
		"cut":       {"a//x\x00b//y", "ends within a record"},
		"separator": {"abc\x00", "has no separator"},
		"order":     {"b//x\x00a//x\x00", "not in order"},
		"twice":     {"a//x\x00a//x\x00", "not in order"},
		"absolute":  {"/a//x\x00", "absolute path"},
		"long":      {strings.Repeat("x", 2<<20), "longer than"},
		"fine":      {"//root\x00a//\x00a/b//c//d\x00a!//new\nline\x00", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := list(tc.in)
			var err error
			for err == nil {
				_, err = r.Next()
			}
			if tc.err == "" {
				require.ErrorIs(t, err, io.EOF)
			} else {
				require.ErrorContains(t, err, tc.err)
			}
		})
	}
}

func TestMerge(t *testing.T) {
	var got []string
	err := Merge(func(p string, recs []*Record) error {
		line := p
		for _, r := range recs {
			if r == nil {
				line += " -"
			} else {
				line += " " + r.Fields
			}
		}
		got = append(got, line)
		return nil
	}, list("//1\x00", "a//2\x00"), list("a//3\x00", "a/b//4\x00", "a!//5\x00"), list())
	require.NoError(t, err)
	require.Equal(t, []string{" 1 - -", "a 2 3 -", "a/b - 4 -", "a! - 5 -"}, got)

	broken := errors.New("broken")
	require.ErrorIs(t, Merge(func(string, []*Record) error { return broken }, list("a//\x00")), broken)
	require.Error(t, Merge(func(string, []*Record) error { return nil }, list("a//\x00"), list("a")))
}

func TestLinkGroups(t *testing.T) {
	groups := func(groups ...[]string) string {
		var b strings.Builder
		for i, g := range groups {
			for _, name := range g {
				fmt.Fprintf(&b, "%s//%d\x00", name, i+100)
			}
		}
		g, err := ReadLinkGroups(strings.NewReader(b.String()))
		require.NoError(t, err)
		return g.String()
	}
	a, b := []string{"a", "b", "c//d"[:1]}, []string{"x", "y"}
	require.Equal(t, groups(a, b), groups(b, a), "inode numbers and their order do not matter")
	require.Equal(t, groups(a), groups(a, []string{"other name outside"}))
	require.NotEqual(t, groups(a, b), groups([]string{"a", "b"}, []string{"c", "x", "y"}))
	require.NotEqual(t, groups([]string{"ab", "c"}), groups([]string{"a", "bc"}))
	require.NotEqual(t, groups(a, a), groups())
}

func TestTopmost(t *testing.T) {
	require.Equal(t, []string{"/a", "/a!", "/b/c"}, Topmost([]string{"/b/c", "/a!", "/a/b/c", "/a", "/a", "/a/b"}))
	require.Empty(t, Topmost(nil))
}

func TestEntries(t *testing.T) {
	e, err := ParseHost(Record{Path: "p", Fields: "12.5 77 2 l 777 0 1 - 3.0000000010 to  some//where "})
	require.NoError(t, err)
	require.Equal(t, Entry{Path: "p", CTime: "12.5", Inode: "77", Links: "2", Type: 'l', Mode: "777", UID: "0", GID: "1", Size: "-", MTime: "3.0000000010", Target: "to  some//where "}, e)
	back, err := ParseLasting(e.Lasting())
	require.NoError(t, err)
	require.Empty(t, e.Differs(back))
	back.Mode = "700"
	require.Equal(t, "mode is 700 instead of 777", e.Differs(back))

	m := Member{Path: "x", Type: 'f', Size: 5, Sum: "abc"}
	got, err := ParseMember(m.Record())
	require.NoError(t, err)
	require.Equal(t, m, got)

	require.True(t, Later("10.0000000020", "10.000000001"))
	require.True(t, Later("11", "10.9"))
	require.False(t, Later("10.5", "10.5000000000"))
	require.False(t, Later("!", "10"))
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("//d 755\x00a//f 1\x00a/b//l x//y\x00"))
	f.Add([]byte("a//\x00a//\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewReader(bytes.NewReader(data))
		var out bytes.Buffer
		w := NewWriter(&out)
		for {
			rec, err := r.Next()
			if err == io.EOF {
				if !bytes.Equal(out.Bytes(), data) {
					t.Fatalf("%q was read as %q", data, out.Bytes())
				}
				return
			}
			if err != nil {
				return
			}
			if err := w.Write(rec); err != nil {
				t.Fatal(err)
			}
			ParseHost(rec)
			ParseLasting(rec)
			ParseMember(rec)
		}
	})
}
