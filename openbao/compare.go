package openbao

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// shownDifferences is how many differences a comparison keeps; the rest is counted.
const shownDifferences = 20

// Comparison is what a server lacks of an export.
type Comparison struct {
	Secrets  int `json:"secrets"`  // compared
	Versions int `json:"versions"` // compared
	// Newer counts secrets that the server has newer versions of, which is no loss.
	Newer int `json:"newer,omitempty"`
	// Expired counts versions that are gone as they were meant to be: by their time, or
	// as newer ones took their place.
	Expired int `json:"expired,omitempty"`
	// Times counts secrets whose times differ, as those of imported ones do. That alone is
	// no difference.
	Times int `json:"times,omitempty"`
	// Total counts all differences, of which Differences holds the first ones, each
	// with the secret's path and without data.
	Total       int      `json:"total"`
	Differences []string `json:"differences,omitempty"`
}

// Same is whether the server holds all that was exported.
func (c Comparison) Same() bool { return c.Total == 0 }

// compared is the comparison of one secret.
type compared struct {
	secret       *Secret
	newer, times bool
	expired      int
	differences  []string // without the path
}

func (c *compared) differ(format string, args ...any) {
	c.differences = append(c.differences, fmt.Sprintf(format, args...))
}

// Compare looks whether every secret of the export, with versions and metadata, is
// in the server. What the server has besides is no difference. The end of a damaged
// export is a *DamagedExport, whatever was found before it.
func (s *Server) Compare(ctx context.Context, export io.Reader, t Detailer) (Comparison, error) {
	var c Comparison
	mounts, err := s.mounts(ctx)
	if err != nil {
		return c, err
	}
	err = inOrder(ctx,
		func(_ context.Context, yield func(*Secret) error) error {
			_, err := ReadExport(export, func(r Record) error {
				if r.Mount != nil && r.Mount.Exported {
					c.add(r.Mount.Path, mountDifferences(mounts, r.Mount.Mount))
				}
				if r.Secret != nil {
					return yield(r.Secret)
				}
				return nil
			})
			return err
		},
		func(ctx context.Context, secret *Secret) (*compared, error) {
			if len(mountDifferences(mounts, secret.kv())) > 0 { // told once, for the mount
				return &compared{secret: secret}, nil
			}
			return s.compare(ctx, secret)
		},
		func(one *compared) error {
			c.Secrets++
			c.Versions += len(one.secret.Versions)
			c.Expired += one.expired
			if one.newer {
				c.Newer++
			}
			if one.times {
				c.Times++
			}
			c.add(one.secret.name(), one.differences)
			detail(t, fmt.Sprintf("%d secrets", c.Secrets))
			return nil
		})
	if err != nil {
		return Comparison{}, err
	}
	return c, nil
}

func (c *Comparison) add(path string, differences []string) {
	for _, d := range differences {
		if c.Total++; len(c.Differences) < shownDifferences {
			c.Differences = append(c.Differences, path+": "+d)
		}
	}
}

// mountDifferences tells why secrets of a mount cannot be there.
func mountDifferences(have []MountRecord, want Mount) []string {
	at := slices.IndexFunc(have, func(m MountRecord) bool { return m.Path == want.Path })
	switch {
	case at < 0:
		return []string{"the mount is missing, and so are its secrets"}
	case have[at].KV != want.KV:
		return []string{fmt.Sprintf("the mount is %s and was %s", kind(have[at].Mount), kind(want))}
	}
	return nil
}

func kind(m Mount) string {
	if m.KV == 0 {
		return "of type " + m.Type
	}
	return fmt.Sprintf("KV version %d", m.KV)
}

// CompareSecret looks whether one secret of the export, named as `bao kv get` takes it,
// is in the server as it was; *DifferentError if not.
func (s *Server) CompareSecret(ctx context.Context, export io.Reader, path string) error {
	secret, err := FindSecret(export, path)
	if err != nil {
		return err
	}
	one, err := s.compare(ctx, secret)
	var denied *DeniedError
	if errors.As(err, &denied) {
		// A mount that is not there is denied to whoever may not all.
		mounts, e := s.mounts(ctx)
		if e != nil {
			return err
		}
		if d := mountDifferences(mounts, secret.kv()); len(d) > 0 {
			return &DifferentError{Path: secret.name(), What: d}
		}
	}
	if err != nil {
		return err
	}
	if len(one.differences) > 0 {
		return &DifferentError{Path: secret.name(), What: one.differences}
	}
	return nil
}

// compare looks for what one exported secret has and the server's has not.
func (s *Server) compare(ctx context.Context, want *Secret) (*compared, error) {
	c := &compared{secret: want}
	have, err := s.secret(ctx, want.kv(), want.Path)
	if err != nil {
		return nil, err
	}
	if have == nil {
		c.differ("it is missing")
		return c, nil
	}
	if want.Metadata == nil {
		if !sameData(have.Versions[0].Data, want.Versions[0].Data) {
			c.differ("its data differ")
		}
		return c, nil
	}
	c.metadata(have.Metadata, want.Metadata)
	there := have.byNumber()
	for _, w := range want.Versions {
		h, ok := there[w.Version]
		switch {
		case ok:
			c.version(h, w)
		case w.Version < have.Metadata.OldestVersion && have.Metadata.CurrentVersion > want.Metadata.CurrentVersion:
			c.expired++
		default:
			c.differ("version %d is missing", w.Version)
		}
	}
	return c, nil
}

func (s *Secret) byNumber() map[int]Version {
	by := make(map[int]Version, len(s.Versions))
	for _, v := range s.Versions {
		by[v.Version] = v
	}
	return by
}

func (c *compared) metadata(have, want *Metadata) {
	if have.CurrentVersion < want.CurrentVersion {
		c.differ("its newest version is %d and was %d", have.CurrentVersion, want.CurrentVersion)
	}
	c.newer = have.CurrentVersion > want.CurrentVersion
	if !maps.Equal(have.CustomMetadata, want.CustomMetadata) {
		c.differ("its custom metadata differ")
	}
	if have.MaxVersions != want.MaxVersions {
		c.differ("its max_versions is %d and was %d", have.MaxVersions, want.MaxVersions)
	}
	if have.CASRequired != want.CASRequired {
		c.differ("its cas_required is %t and was %t", have.CASRequired, want.CASRequired)
	}
	if have.MetadataCASRequired != want.MetadataCASRequired {
		c.differ("its metadata_cas_required is %t and was %t", have.MetadataCASRequired, want.MetadataCASRequired)
	}
	if have.DeleteVersionAfter != want.DeleteVersionAfter {
		c.differ("its delete_version_after is %s and was %s", have.DeleteVersionAfter, want.DeleteVersionAfter)
	}
	c.times = have.CreatedTime != want.CreatedTime
}

func (c *compared) version(have, want Version) {
	if have.CreatedTime != want.CreatedTime {
		c.times = true
	}
	switch {
	case state(have) == state(want):
		if !sameData(have.Data, want.Data) {
			c.differ("the data of version %d differ", want.Version)
		}
		// An expiry is told by its time; that of a deletion by hand is a time like others.
		if want.Data != nil && have.DeletionTime != want.DeletionTime {
			if have.DeletionTime == "" || want.DeletionTime == "" {
				c.differ("version %d %s and %s", want.Version, expiry(have), was(expiry(want)))
			} else {
				c.times = true
			}
		}
	case want.Data != nil && have.Deleted && expired(want):
		c.expired++
	default:
		c.differ("version %d is %s and was %s", want.Version, state(have), state(want))
	}
}

func expiry(v Version) string {
	if v.DeletionTime == "" {
		return "does not expire"
	}
	return "expires"
}

func was(now string) string {
	return strings.NewReplacer("does not expire", "did not", "expires", "did").Replace(now)
}

func state(v Version) string {
	switch {
	case v.Destroyed:
		return "destroyed"
	case v.Deleted:
		return "deleted"
	}
	return "there"
}

// expired is whether the version was to be deleted by now.
func expired(v Version) bool {
	at, err := time.Parse(time.RFC3339Nano, v.DeletionTime)
	return err == nil && !at.After(time.Now())
}
