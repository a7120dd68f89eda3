package plans

import (
	"fmt"
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
		if n, err := s.SizeBytes(); err != nil || n <= 0 {
			errs = append(errs, field.Invalid(path.Child("size"), s.Size, "not a size; write it as in 20Gi"))
		}
	}
	if c := s.Command; c != nil {
		at := path.Child("command")
		switch c.On {
		case OnHost, OnLaptop:
		default:
			errs = append(errs, field.NotSupported(at.Child("on"), c.On, []Place{OnHost, OnLaptop}))
		}
		for _, part := range []struct {
			name    string
			command []string
		}{{"create", c.Create}, {"status", c.Status}, {"restore", c.Restore}, {"delete", c.Delete}} {
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

var snapshotMethods = []SnapshotMethod{SnapshotNone, SnapshotLVM, SnapshotBtrfs, SnapshotZFS, SnapshotScaleway, SnapshotCommand}

func joined(methods []SnapshotMethod) string {
	var out []string
	for _, m := range methods {
		out = append(out, string(m))
	}
	return strings.Join(out, ", ")
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
