package labs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

type object = map[string]any

const sentinel = "secret/sentinel"

// seed fills a fresh server: every form that a KV secret can have, names that need escaping, and what
// a cluster's applications log in with. The contents are the same in every lab; times are not.
func (b *bao) seed(ctx context.Context) error {
	if err := b.writeAll(ctx, mounts()); err != nil {
		return err
	}
	for _, mount := range []string{"secret", "team/apps"} {
		if err := b.waitVersioned(ctx, mount); err != nil {
			return err
		}
	}
	if err := b.writeAll(ctx, contents()); err != nil {
		return err
	}
	// From now on all stays as it is: the version that deletes itself after a second has
	// done so.
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(1500 * time.Millisecond):
		return nil
	}
}

type request struct {
	path string
	body object
}

func (b *bao) writeAll(ctx context.Context, requests []request) error {
	for _, r := range requests {
		if err := b.write(ctx, r.path, r.body, nil); err != nil {
			return err
		}
	}
	return nil
}

func mounts() []request {
	return []request{
		{"sys/mounts/secret", object{"type": "kv", "description": "Sunbeam's secrets", "options": object{"version": "2"}}},
		{"sys/mounts/team/apps", object{"type": "kv", "options": object{"version": "2"}}},
		{"sys/mounts/legacy", object{"type": "kv", "options": object{"version": "1"}}},
		{"sys/auth/kubernetes", object{"type": "kubernetes"}},
		{"sys/auth/approle", object{"type": "approle"}},
		{"sys/policies/acl/apps-reader", object{"policy": "path \"secret/data/apps/*\" {\n  capabilities = [\"read\"]\n}\n"}},
		{"sys/policies/acl/team", object{"policy": "path \"team/apps/*\" {\n  capabilities = [\"create\", \"read\", \"update\", \"delete\", \"list\"]\n}\n"}},
		// Neither CA nor reviewer token: both are read in the pod, again and again.
		{"auth/kubernetes/config", object{"kubernetes_host": "https://kubernetes.default.svc"}},
		{"auth/kubernetes/role/apps", object{
			"bound_service_account_names": []string{"default"}, "bound_service_account_namespaces": []string{"devtools", "matrix"},
			"token_policies": []string{"apps-reader"}, "token_ttl": "1h"}},
		{"auth/approle/role/backup", object{"token_policies": []string{"team"}, "token_ttl": "20m"}},
	}
}

// waitVersioned waits until a new mount of KV version 2 has readied itself, which it does on its
// own after having been mounted.
func (b *bao) waitVersioned(ctx context.Context, mount string) error {
	for {
		err := b.read(ctx, mount+"/config", nil)
		var refused *refusal
		if !errors.As(err, &refused) || refused.status != http.StatusBadRequest {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// seeding collects what is written to make the secrets.
type seeding []request

func (s *seeding) post(mount, endpoint, path string, body object) {
	*s = append(*s, request{mount + "/" + endpoint + "/" + escape(path), body})
}

// put writes a version of a secret for each of the data.
func (s *seeding) put(mount, path string, versions ...object) {
	for _, data := range versions {
		s.post(mount, "data", path, object{"data": data})
	}
}

// numbered is the data of the n versions of a secret.
func numbered(n int) []object {
	var versions []object
	for i := range n {
		versions = append(versions, object{"password": fmt.Sprintf("pass-%d", i+1)})
	}
	return versions
}

func contents() seeding {
	var s seeding
	s.put("secret", strings.TrimPrefix(sentinel, "secret/"), object{"written": "before the migration"})
	// A name can be a secret and a directory at once.
	s.put("secret", "apps/gitea", object{"admin": "gitea-admin"})
	s.put("secret", "apps/gitea/database", object{"user": "gitea", "password": "p1"}, object{"user": "gitea", "password": "p2"})
	s.put("secret", "apps/matrix/tuwunel/registration", object{"token": "deep down"})
	for _, name := range []string{"with space", "schön/日本語/🔑", "100%", "a+b", "c#d", "why?", "a%2Fb", "x&y=z;w", "quo\"ted'", "back\\slash", "@home~:x,(y)!*$", "[br]{ac}|es^`<>", ".hidden", "...", "UPPER", "upper"} {
		s.put("secret", "names/"+name, object{"name": name})
	}

	s.put("secret", "versions/several", numbered(4)...)
	s.put("secret", "versions/deleted", numbered(3)...)
	s.post("secret", "delete", "versions/deleted", object{"versions": []int{2}})
	s.put("secret", "versions/latest-deleted", numbered(2)...)
	s.post("secret", "delete", "versions/latest-deleted", object{"versions": []int{2}})
	s.put("secret", "versions/undeleted", numbered(2)...)
	s.post("secret", "delete", "versions/undeleted", object{"versions": []int{1}})
	s.post("secret", "undelete", "versions/undeleted", object{"versions": []int{1}})
	s.put("secret", "versions/destroyed", numbered(3)...)
	s.post("secret", "destroy", "versions/destroyed", object{"versions": []int{1}})
	s.put("secret", "versions/latest-destroyed", numbered(2)...)
	s.post("secret", "destroy", "versions/latest-destroyed", object{"versions": []int{2}})
	s.put("secret", "versions/all-deleted", numbered(3)...)
	s.post("secret", "delete", "versions/all-deleted", object{"versions": []int{1, 2, 3}})
	s.put("secret", "versions/all-destroyed", numbered(2)...)
	s.post("secret", "destroy", "versions/all-destroyed", object{"versions": []int{1, 2}})
	s.put("secret", "versions/deleted-then-destroyed", numbered(3)...)
	s.post("secret", "delete", "versions/deleted-then-destroyed", object{"versions": []int{1, 2}})
	s.post("secret", "destroy", "versions/deleted-then-destroyed", object{"versions": []int{2}})
	s.post("secret", "metadata", "versions/none-yet", object{"custom_metadata": object{"state": "reserved"}})

	s.post("secret", "metadata", "metadata/custom", object{"custom_metadata": object{"owner": "Ada", "purpose": "grüße & <tags>"}})
	s.put("secret", "metadata/custom", numbered(1)...)
	s.post("secret", "metadata", "metadata/max-versions", object{"max_versions": 3})
	s.put("secret", "metadata/max-versions", numbered(5)...)
	s.post("secret", "metadata", "metadata/cas-required", object{"cas_required": true})
	for i, data := range numbered(2) {
		s.post("secret", "data", "metadata/cas-required", object{"data": data, "options": object{"cas": i}})
	}
	s.post("secret", "metadata", "metadata/deleted-in-years", object{"delete_version_after": "87600h"})
	s.put("secret", "metadata/deleted-in-years", numbered(2)...)
	// Long gone when anybody looks.
	s.post("secret", "metadata", "metadata/deleted-at-once", object{"delete_version_after": "1s"})
	s.put("secret", "metadata/deleted-at-once", numbered(1)...)

	s.put("secret", "data/nested", object{"list": []any{1, "two", nil, []any{}, object{"three": true}}, "map": object{"deep": object{"deeper": 3.25}}, "null": nil})
	s.put("secret", "data/numbers", object{"beyond 2^53": json.Number("9007199254740993"), "long": json.Number("123456789012345678901234567890"), "small": json.Number("1e-30"), "negative": -1, "zero": 0})
	s.put("secret", "data/empty", object{}, object{"empty": "", "": "no name"})
	s.put("secret", "data/unicode", object{"ключ": "значение", "nul": "a\x00b", "html": "<a href=\"x\">&</a>", "lines": "one\r\ntwo\u2028three", "emoji": "👩‍🚀"})
	s.put("secret", "data/large", object{"blob": blob(200 << 10)})

	s = append(s, request{"team/apps/config", object{"max_versions": 20}})
	s.put("team/apps", "frontend", numbered(2)...)
	s.put("team/apps", "backend/key", numbered(1)...)

	legacy := func(path string, data object) { s = append(s, request{"legacy/" + escape(path), data}) }
	legacy("app", object{"user": "app"})
	legacy("app/db", object{"password": "old", "port": 5432})
	legacy("app/db/replica", object{"password": "older"})
	legacy("with space/and%2Fslash", object{"x": "y"})
	legacy("numbers", object{"beyond 2^53": json.Number("9007199254740993")})
	return s
}

// blob is text that no compression makes small, the same every time.
func blob(size int) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	source := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, size)
	for i := range text {
		text[i] = alphabet[source.IntN(len(alphabet))]
	}
	return string(text)
}

// dump writes what can be read: mounts' secrets with all versions and metadata, policies, and
// the configuration of auth methods.
func (b *bao) dump(ctx context.Context, w io.Writer) error {
	d := dumper{bao: b, encoder: json.NewEncoder(w)}
	d.encoder.SetEscapeHTML(false)
	var mounts map[string]struct {
		Type    string
		Options map[string]string
	}
	if err := d.line(ctx, "sys/mounts", "", &mounts); err != nil {
		return err
	}
	for _, mount := range slices.Sorted(maps.Keys(mounts)) {
		if mounts[mount].Type != "kv" {
			continue
		}
		read, list := d.plain, mount
		if mounts[mount].Options["version"] == "2" {
			if err := d.line(ctx, mount+"config", "", nil); err != nil {
				return err
			}
			read, list = d.versions, mount+"metadata/"
		}
		if err := d.walk(ctx, list, "", func(path string) error { return read(ctx, mount, path) }); err != nil {
			return err
		}
	}
	for _, list := range []string{"sys/policies/acl/", "auth/approle/role/", "auth/kubernetes/role/"} {
		if err := d.walk(ctx, list, "", func(path string) error { return d.line(ctx, list+path, "", nil) }); err != nil {
			return err
		}
	}
	for _, path := range []string{"sys/auth", "auth/kubernetes/config"} {
		if err := d.line(ctx, path, "", nil); err != nil {
			return err
		}
	}
	return nil
}

type dumper struct {
	bao     *bao
	encoder *json.Encoder
}

// line asks for a path, writes what the answer holds, and decodes it as well.
func (d dumper) line(ctx context.Context, path, query string, decoded any) error {
	data, err := d.bao.data(ctx, escape(path)+query)
	if err != nil {
		return err
	}
	line := struct {
		Path string          `json:"path"`
		Data json.RawMessage `json:"data"`
	}{path + query, data}
	if err := d.encoder.Encode(line); err != nil || decoded == nil {
		return err
	}
	return json.Unmarshal(data, decoded)
}

func (d dumper) plain(ctx context.Context, mount, path string) error {
	return d.line(ctx, mount+path, "", nil)
}

func (d dumper) versions(ctx context.Context, mount, path string) error {
	var metadata struct {
		Versions map[string]struct {
			Deletion  string `json:"deletion_time"`
			Destroyed bool   `json:"destroyed"`
		} `json:"versions"`
	}
	if err := d.line(ctx, mount+"metadata/"+path, "", &metadata); err != nil {
		return err
	}
	numbers := make([]int, 0, len(metadata.Versions))
	for version := range metadata.Versions {
		number, err := strconv.Atoi(version)
		if err != nil {
			return fmt.Errorf("a version of %s%s: %w", mount, path, err)
		}
		numbers = append(numbers, number)
	}
	slices.Sort(numbers)
	for _, number := range numbers {
		if err := d.line(ctx, mount+"data/"+path, fmt.Sprintf("?version=%d", number), nil); err != nil {
			return err
		}
	}
	return nil
}

// walk visits every name below a directory, in order.
func (d dumper) walk(ctx context.Context, list, dir string, visit func(path string) error) error {
	data, err := d.bao.data(ctx, escape(list+dir)+"?list=true")
	var refused *refusal
	if errors.As(err, &refused) && refused.status == http.StatusNotFound {
		return nil // nothing there
	}
	if err != nil {
		return err
	}
	var found struct{ Keys []string }
	if err := json.Unmarshal(data, &found); err != nil {
		return fmt.Errorf("listing %s%s: %w", list, dir, err)
	}
	slices.Sort(found.Keys)
	for _, name := range found.Keys {
		if strings.HasSuffix(name, "/") {
			err = d.walk(ctx, list, dir+name, visit)
		} else {
			err = visit(dir + name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// data is what an answer holds. That of a deleted or destroyed version comes with the status of what is not
// there.
func (b *bao) data(ctx context.Context, path string) (json.RawMessage, error) {
	var answer struct{ Data json.RawMessage }
	err := b.read(ctx, path, &answer)
	var refused *refusal
	if errors.As(err, &refused) && refused.status == http.StatusNotFound && json.Unmarshal(refused.body, &answer) == nil && len(answer.Data) > 0 && !bytes.Equal(answer.Data, []byte("null")) {
		err = nil
	}
	return answer.Data, err
}
