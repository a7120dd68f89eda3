package index

import (
	"fmt"
	"strconv"
	"strings"
)

// Entry is the metadata of one directory entry, in GNU find's words.
type Entry struct {
	Path string
	// Type is f, d, l, p, c or b. Sockets are never listed.
	Type     byte
	Mode     string // octal, with setuid, setgid and sticky bits
	UID, GID string
	Size     string // bytes; "-" for anything but regular files
	MTime    string // seconds since 1970 with a fraction
	Target   string // of a symbolic link

	// What a restore cannot bring back, and only a list fresh from a host has.
	// CTime is "!" when it is too young to tell changes by.
	CTime, Inode, Links string
}

// ParseHost reads a record as Shell's list_tree writes it.
func ParseHost(r Record) (Entry, error) {
	f := strings.SplitN(r.Fields, " ", 10)
	if len(f) != 10 || len(f[3]) != 1 {
		return Entry{}, fmt.Errorf("%q: the record %.80q is not one of a fresh index", r.Path, r.Fields)
	}
	return Entry{Path: r.Path, CTime: f[0], Inode: f[1], Links: f[2],
		Type: f[3][0], Mode: f[4], UID: f[5], GID: f[6], Size: f[7], MTime: f[8], Target: f[9]}, nil
}

// Lasting is the record of what a restore must bring back.
func (e Entry) Lasting() Record {
	return Record{Path: e.Path, Fields: strings.Join([]string{string(e.Type), e.Mode, e.UID, e.GID, e.Size, e.MTime, e.Target}, " ")}
}

// ParseLasting reads what Lasting wrote.
func ParseLasting(r Record) (Entry, error) {
	f := strings.SplitN(r.Fields, " ", 7)
	if len(f) != 7 || len(f[0]) != 1 {
		return Entry{}, fmt.Errorf("%q: the record %.80q is not one of an index", r.Path, r.Fields)
	}
	return Entry{Path: r.Path, Type: f[0][0], Mode: f[1], UID: f[2], GID: f[3], Size: f[4], MTime: f[5], Target: f[6]}, nil
}

// Differs says in words how got differs from e in what lasts; "" when it does not.
func (e Entry) Differs(got Entry) string {
	if e.Type != got.Type {
		return fmt.Sprintf("is of type %c instead of %c", got.Type, e.Type)
	}
	var words []string
	note := func(what, want, have string) {
		if want != have {
			words = append(words, fmt.Sprintf("%s is %s instead of %s", what, have, want))
		}
	}
	note("mode", e.Mode, got.Mode)
	note("owner", e.UID+":"+e.GID, got.UID+":"+got.GID)
	note("size", e.Size, got.Size)
	note("time of change", e.MTime, got.MTime)
	if e.Target != got.Target {
		words = append(words, fmt.Sprintf("link points to %q instead of %q", got.Target, e.Target))
	}
	return strings.Join(words, ", ")
}

// Later tells whether the time a, as find prints it, is after b.
func Later(a, b string) bool {
	as, an := splitTime(a)
	bs, bn := splitTime(b)
	return as > bs || (as == bs && an > bn)
}

func splitTime(t string) (sec, nsec int64) {
	whole, frac, _ := strings.Cut(t, ".")
	sec, _ = strconv.ParseInt(whole, 10, 64)
	frac = (frac + "000000000")[:9]
	nsec, _ = strconv.ParseInt(frac, 10, 64)
	return sec, nsec
}

// Member is one entry of a tar archive's list.
type Member struct {
	Path string
	// Type is f, d, l, p, c or b as in Entry, and h for a hard link to an
	// earlier member.
	Type byte
	Size int64  // of regular files, holes included
	Sum  string // SHA-256 of a regular file's content, hex; else "-"
}

// Record is the member's form in a list.
func (m Member) Record() Record {
	return Record{Path: m.Path, Fields: fmt.Sprintf("%c %d %s", m.Type, m.Size, m.Sum)}
}

// ParseMember reads what Record wrote.
func ParseMember(r Record) (Member, error) {
	f := strings.Split(r.Fields, " ")
	if len(f) == 3 && len(f[0]) == 1 {
		if size, err := strconv.ParseInt(f[1], 10, 64); err == nil {
			return Member{Path: r.Path, Type: f[0][0], Size: size, Sum: f[2]}, nil
		}
	}
	return Member{}, fmt.Errorf("%q: the record %.80q is not one of an archive's list", r.Path, r.Fields)
}
