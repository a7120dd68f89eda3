package plans

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// parse turns the file's bytes into the one document in it.
func parse(data []byte) (ast.Node, *SyntaxError) {
	fail := func(at position, message string) *SyntaxError {
		return &SyntaxError{Line: at.line, Column: at.column, Message: hideSecrets(message), Excerpt: excerpt(data, at)}
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // the byte order mark that some editors write
	if len(data) > maxSize {
		return nil, &SyntaxError{Line: 1, Column: 1, Message: fmt.Sprintf("the file is larger than %d KiB, which no plan is; name the plan file", maxSize>>10)}
	}
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n")) // YAML means the same by both; the parser miscounts lines
	if i := invalidUTF8(data); i >= 0 {
		line := 1 + bytes.Count(data[:i], []byte("\n"))
		return nil, &SyntaxError{Line: line, Column: 1, Message: "the file is not UTF-8 text; name the plan file"}
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		var located yaml.Error
		if errors.As(err, &located) && located.GetToken() != nil {
			return nil, fail(positionOf(located.GetToken()), "not valid YAML: "+located.GetMessage())
		}
		return nil, fail(position{1, 1}, "not valid YAML: "+err.Error())
	}
	var root ast.Node
	for _, document := range file.Docs {
		if document.Body == nil || document.Body.Type() == ast.CommentType {
			continue
		}
		if root != nil {
			return nil, fail(positionOf(start(document.Body)), "a second document begins here; a plan file holds one plan, write each plan into a file of its own")
		}
		root = document.Body
	}
	if root == nil {
		return nil, fail(position{1, 1}, "the file is empty; a plan needs at least what plans/minimal.yaml shows")
	}
	switch root.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return root, nil
	}
	return nil, fail(positionOf(start(root)), "a plan begins with fields, each on a line of its own as \"name: value\"; begin as plans/minimal.yaml does")
}

// invalidUTF8 is the offset of the first byte that is not UTF-8, or -1.
func invalidUTF8(data []byte) int {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

func positionOf(t *token.Token) position {
	if t == nil || t.Position == nil {
		return position{1, 1}
	}
	return position{t.Position.Line, t.Position.Column}
}

// decoder fills a plan from YAML nodes. It goes on after a mistake, so that all mistakes are known at
// once; a JSON or YAML library's decoder stops at the first or forgets where it stood.
type decoder struct {
	errs   field.ErrorList
	at     map[string]position
	secret bool // inside a Secret, of which no error quotes anything
}

var (
	durationType = reflect.TypeFor[Duration]()
	secretType   = reflect.TypeFor[Secret]()
	secretsType  = reflect.TypeFor[[]Secret]()
)

// value sets v from n. A mistake leaves v as it is.
func (d *decoder) value(path *field.Path, n ast.Node, v reflect.Value) {
	switch n := n.(type) {
	case nil, *ast.NullNode:
		return // as if the field were not there
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		d.fail(field.Forbidden(path, "YAML anchors, aliases and tags have no place in a plan; write the value itself"))
		return
	case *ast.LiteralNode:
		d.value(path, n.Value, v)
		return
	}
	if v.Kind() == reflect.Pointer {
		elem := reflect.New(v.Type().Elem())
		d.value(path, n, elem.Elem())
		v.Set(elem)
		return
	}
	switch v.Type() {
	case durationType:
		d.duration(path, n, v)
		return
	case secretType, secretsType:
		if _, scalar := n.(ast.ScalarNode); scalar {
			d.fail(field.Forbidden(path, neverHeld))
			return
		}
		outside := d.secret
		d.secret = true
		defer func() { d.secret = outside }()
	}
	switch v.Kind() {
	case reflect.Struct:
		d.object(path, n, v)
	case reflect.Map:
		d.dictionary(path, n, v)
	case reflect.Slice:
		d.list(path, n, v)
	case reflect.String:
		s, ok := n.(*ast.StringNode)
		if !ok {
			d.wrongType(path, n, "a string; put it in quotes")
			return
		}
		v.SetString(s.Value)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.wrongType(path, n, "true or false, without quotes")
			return
		}
		v.SetBool(b.Value)
	case reflect.Int:
		d.integer(path, n, v)
	default:
		panic("plans: no decoding for " + v.Type().String()) // a field of a new kind; any test of the examples hits this
	}
}

func (d *decoder) object(path *field.Path, n ast.Node, v reflect.Value) {
	entries, ok := d.entries(path, n)
	if !ok {
		return
	}
	fields := map[string]int{}
	var names []string
	for i := range v.NumField() {
		if name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ","); name != "" {
			fields[name] = i
			names = append(names, name)
		}
	}
	for _, e := range entries {
		i, known := fields[e.key]
		name := e.key
		if !known && (d.secret || isSecret(name)) {
			name = "…" // a secret value where a name belongs
		}
		child := path.Child(name)
		d.at[child.String()] = e.at
		if !known {
			d.fail(field.Forbidden(child, "unknown field; the fields here are "+strings.Join(names, ", ")))
			continue
		}
		d.value(child, e.value, v.Field(i))
	}
}

func (d *decoder) dictionary(path *field.Path, n ast.Node, v reflect.Value) {
	entries, ok := d.entries(path, n)
	if !ok {
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for _, e := range entries {
		child := path.Key(e.key)
		d.at[child.String()] = e.at
		elem := reflect.New(v.Type().Elem()).Elem()
		d.value(child, e.value, elem)
		v.SetMapIndex(reflect.ValueOf(e.key), elem)
	}
}

func (d *decoder) list(path *field.Path, n ast.Node, v reflect.Value) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.wrongType(path, n, `a list: each item on a line of its own after "- "`)
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(s.Values), len(s.Values)))
	for i, item := range s.Values {
		child := path.Index(i)
		if item == nil {
			d.fail(field.Required(child, "the list has an empty item; fill it in or remove it"))
			continue
		}
		d.at[child.String()] = positionOf(start(item))
		if item.Type() == ast.NullType {
			d.fail(field.Required(child, "the list has an empty item; fill it in or remove it"))
			continue
		}
		d.value(child, item, v.Index(i))
	}
}

func (d *decoder) integer(path *field.Path, n ast.Node, v reflect.Value) {
	number, ok := n.(*ast.IntegerNode)
	if !ok {
		d.wrongType(path, n, "a whole number, without quotes")
		return
	}
	switch x := number.Value.(type) {
	case int64:
		if !v.OverflowInt(x) {
			v.SetInt(x)
			return
		}
	case uint64:
		if x < 1<<63 && !v.OverflowInt(int64(x)) {
			v.SetInt(int64(x))
			return
		}
	}
	d.fail(field.Invalid(path, number.String(), "the number is out of range"))
}

func (d *decoder) duration(path *field.Path, n ast.Node, v reflect.Value) {
	const want = `a length of time with its unit, such as "30m" or "1h30m"`
	s, ok := n.(*ast.StringNode)
	if !ok {
		d.wrongType(path, n, want)
		return
	}
	length, err := time.ParseDuration(s.Value)
	if err != nil {
		d.fail(field.Invalid(path, s.Value, "must be "+want))
		return
	}
	v.Set(reflect.ValueOf(Duration{Duration: length}))
}

type entry struct {
	key   string
	at    position
	value ast.Node
}

// entries lists what a mapping holds, in the file's order. The parser has refused duplicate keys already.
func (d *decoder) entries(path *field.Path, n ast.Node) ([]entry, bool) {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		d.wrongType(path, n, `fields, each on a line of its own as "name: value"`)
		return nil, false
	}
	var entries []entry
	for _, v := range values {
		key, ok := v.Key.(*ast.StringNode)
		if !ok {
			at := positionOf(v.Key.GetToken())
			name := v.Key.GetToken().Value
			if d.secret {
				name = "…"
			}
			d.fail(field.Forbidden(path.Child(name), fmt.Sprintf("the field name in line %d is not plain text; write the name itself, without merge keys, anchors or tags", at.line)))
			continue
		}
		entries = append(entries, entry{key.Value, positionOf(key.GetToken()), v.Value})
	}
	return entries, true
}

// wrongType reports a value of another kind than its field has.
func (d *decoder) wrongType(path *field.Path, n ast.Node, want string) {
	var value any = kindOf(n)
	if scalar, ok := n.(ast.ScalarNode); ok && !d.secret {
		value = scalar.GetValue()
	}
	d.fail(field.TypeInvalid(path, value, "must be "+want))
}

func (d *decoder) fail(err *field.Error) { d.errs = append(d.errs, err) }

// kindOf names the kind of a node for a person.
func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "fields"
	case *ast.SequenceNode:
		return "list"
	default:
		return "single value"
	}
}

// start is the first token of a node; a mapping's own token is the colon.
func start(n ast.Node) *token.Token {
	switch n := n.(type) {
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return start(n.Values[0])
		}
	case *ast.MappingValueNode:
		return n.Key.GetToken()
	}
	return n.GetToken()
}
