package plans

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateSnapshot(path *field.Path, s *Snapshot) field.ErrorList {
	if s == nil {
		return nil
	}
	var errs field.ErrorList
	only := func(child string, set bool, method SnapshotMethod) {
		if set && s.Method != method {
			errs = append(errs, field.Forbidden(path.Child(child), fmt.Sprintf("belongs to method %s, and the method is %s; remove it", method, s.Method)))
		}
	}
	switch s.Method {
	case SnapshotNone:
		if strings.TrimSpace(s.Reason) == "" {
			errs = append(errs, field.Required(path.Child("reason"), "say why no snapshot is taken; the journal keeps it"))
		}
	case SnapshotLVM, SnapshotBtrfs, SnapshotZFS:
	case SnapshotScaleway:
		if s.Scaleway == nil {
			errs = append(errs, field.Required(path.Child("scaleway"), "name the server: product, zone, id"))
		}
	case SnapshotCommand:
		if s.Command == nil {
			errs = append(errs, field.Required(path.Child("command"), "name the commands that make a snapshot, look at it, return to it and remove it"))
		}
	case "":
		return field.ErrorList{field.Required(path.Child("method"), fmt.Sprintf("one of %s", joined(snapshotMethods)))}
	default:
		return field.ErrorList{field.NotSupported(path.Child("method"), s.Method, snapshotMethods)}
	}
	only("reason", s.Reason != "", SnapshotNone)
	only("size", s.Size != "", SnapshotLVM)
	only("command", s.Command != nil, SnapshotCommand)
	only("scaleway", s.Scaleway != nil, SnapshotScaleway)
	if s.Keep && s.Method == SnapshotNone {
		errs = append(errs, field.Forbidden(path.Child("keep"), "there is no snapshot to keep with method none; remove it"))
	}
	if s.Size != "" {
		switch n, err := s.SizeBytes(); {
		case err != nil:
			errs = append(errs, field.Invalid(path.Child("size"), s.Size, "not a size; write it as in 20Gi"))
		case n < leastSize || n > mostSize:
			errs = append(errs, field.Invalid(path.Child("size"), s.Size, "not between 64Mi and 1Pi; write it with its unit, as in 20Gi"))
		}
	}
	if s.Scaleway != nil {
		errs = append(errs, validateScaleway(path.Child("scaleway"), *s.Scaleway)...)
	}
	if c := s.Command; c != nil {
		at := path.Child("command")
		switch c.On {
		case OnHost, OnLaptop:
		default:
			errs = append(errs, field.NotSupported(at.Child("on"), c.On, []Place{OnHost, OnLaptop}))
		}
		for _, part := range c.programs() {
			switch {
			case len(part.command) == 0:
				errs = append(errs, field.Required(at.Child(part.name), "program and arguments; without it a snapshot cannot be trusted to be there, be returned to or be removed"))
			case part.command[0] == "":
				errs = append(errs, field.Required(at.Child(part.name).Index(0), "the program"))
			}
		}
	}
	return errs
}

var (
	zonePattern = regexp.MustCompile(`^[a-z]{2}-[a-z]{3,7}-[0-9]{1,2}$`)
	uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	diskPattern = regexp.MustCompile(`^/dev/[A-Za-z0-9._:+@/-]+$`)
)

func validateScaleway(at *field.Path, s ScalewayServer) field.ErrorList {
	var errs field.ErrorList
	products := []ScalewayProduct{ScalewayInstance, ScalewayElasticMetal, ScalewayDedibox}
	switch {
	case s.Product == "":
		errs = append(errs, field.Required(at.Child("product"), "instance, elastic-metal or dedibox"))
	case !slices.Contains(products, s.Product):
		errs = append(errs, field.NotSupported(at.Child("product"), s.Product, products))
	}
	switch {
	case s.Zone == "":
		errs = append(errs, field.Required(at.Child("zone"), "the server's zone, such as fr-par-1"))
	case !zonePattern.MatchString(s.Zone):
		errs = append(errs, field.Invalid(at.Child("zone"), s.Zone, "not a zone; write it as in fr-par-1"))
	}
	switch {
	case s.ID == "":
		errs = append(errs, field.Required(at.Child("id"), "the server's ID: a UUID, or a Dedibox's number"))
	case s.Product == ScalewayDedibox:
		if n, err := strconv.ParseUint(s.ID, 10, 64); err != nil || n == 0 {
			errs = append(errs, field.Invalid(at.Child("id"), s.ID, "a Dedibox's ID is a number"))
		}
	case !uuidPattern.MatchString(s.ID):
		errs = append(errs, field.Invalid(at.Child("id"), s.ID, "not a UUID, in small letters; the console shows it on the server's page"))
	}
	if !s.Rescue() {
		for _, only := range []struct {
			child string
			set   bool
		}{{"disks", len(s.Disks) > 0}, {"images", s.Images != ""}, {"imagesFit", s.ImagesFit}, {"trustRescueHostKey", s.TrustRescueHostKey}} {
			if only.set && s.Product == ScalewayInstance {
				errs = append(errs, field.Forbidden(at.Child(only.child), "belongs to elastic-metal and dedibox: an instance has snapshots of all its volumes; remove it"))
			}
		}
		return errs
	}
	if len(s.Disks) == 0 {
		errs = append(errs, field.Required(at.Child("disks"), "name the disks to image, best as /dev/disk/by-id/…"))
	}
	seen := map[string]bool{}
	for i, disk := range s.Disks {
		switch {
		case !diskPattern.MatchString(disk) || path.Clean(disk) != disk:
			errs = append(errs, field.Invalid(at.Child("disks").Index(i), disk, "not the path of a device; write it as in /dev/disk/by-id/…"))
		case seen[disk]:
			errs = append(errs, field.Duplicate(at.Child("disks").Index(i), disk))
		}
		seen[disk] = true
	}
	if !s.TrustRescueHostKey {
		errs = append(errs, field.Required(at.Child("trustRescueHostKey"), "the rescue system makes a new host key with each start, so that nobody can know it beforehand; write true to trust the one that it shows first, otherwise choose another spec.snapshot.method"))
	}
	return append(errs, validatePath(at.Child("images"), s.Images)...)
}

var snapshotMethods = []SnapshotMethod{SnapshotNone, SnapshotLVM, SnapshotBtrfs, SnapshotZFS, SnapshotScaleway, SnapshotCommand}

func joined(methods []SnapshotMethod) string {
	var out []string
	for _, m := range methods {
		out = append(out, string(m))
	}
	return strings.Join(out, ", ")
}

// What the room for a snapshot may be, in bytes: less would not outlast the backup, more is a mistake.
const (
	leastSize = 64 << 20
	mostSize  = 1 << 50
)

// snapshotProgram is one of the commands, by its field.
type snapshotProgram struct {
	name    string
	command []string
}

func (c *SnapshotCommands) programs() []snapshotProgram {
	return []snapshotProgram{{"create", c.Create}, {"status", c.Status}, {"restore", c.Restore}, {"delete", c.Delete}}
}

// checkSnapshot looks for the programs that run on this machine, in the platform's directory as all of the plan's do.
func checkSnapshot(path *field.Path, s *Snapshot, directory string) (errs field.ErrorList) {
	if s == nil || s.Command == nil || s.Command.On != OnLaptop {
		return nil
	}
	for _, p := range s.Command.programs() {
		errs = append(errs, checkProgram(path.Child("command", p.name), p.command, directory, "missing command of the snapshot: ")...)
	}
	return errs
}

// SizeBytes is the size in bytes, 0 when the plan leaves it open.
func (s *Snapshot) SizeBytes() (int64, error) {
	if s.Size == "" {
		return 0, nil
	}
	q, err := resource.ParseQuantity(s.Size)
	if err != nil {
		return 0, err
	}
	return q.Value(), nil
}
