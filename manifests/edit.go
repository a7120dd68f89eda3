package manifests

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const key = "ipFamilyPolicy"

// Change is one change of a file's bytes: Text takes the place of Length bytes at
// Offset. Length is 0 but for a SingleStack that is replaced.
type Change struct {
	Offset, Length int
	Text           string
}

// Source is one file, and where it stands.
type Source struct {
	// Name is what the file is called in results.
	Name string
	Data []byte
	// Template is set for a file of a Helm chart's templates.
	Template bool
	// Patch names the kustomization that uses the file as a patch.
	Patch string

	uses []use
}

// Edit finds the Services of a file and the changes that set the policy on those
// where it can be done. It never fails: what it cannot read or edit is ByHand.
func Edit(src Source, o Options) ([]Service, []Change) {
	if !bytes.Contains(src.Data, []byte("Service")) {
		return nil, nil
	}
	if src.Template && bytes.Contains(src.Data, []byte("{{")) {
		return scanText(src, o, "a Helm template: set it there, or the chart's value for it"), nil
	}
	documents, err := parse(src.Data)
	if err != nil {
		reason := "the file is not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")
		if bytes.Contains(src.Data, []byte("{{")) || bytes.Contains(src.Data, []byte("{%")) {
			reason = "a template"
		}
		return scanText(src, o, reason), nil
	}
	f := &file{source: src, options: o, documents: documents, lines: lineStarts(src.Data), budget: maxProofs}
	f.generated = generatedBy(src.Data)
	for i, d := range documents {
		f.visit(d.root(), place{document: i}, "")
	}
	changes := f.settle()
	services := make([]Service, len(f.found))
	for i, c := range f.found {
		services[i] = c.Service
	}
	return services, changes
}

// apply returns data with changes, which are in order of their offsets.
func apply(data []byte, changes []Change) []byte {
	var out bytes.Buffer
	at := 0
	for _, c := range changes {
		out.Write(data[at:c.Offset])
		out.WriteString(c.Text)
		at = c.Offset + c.Length
	}
	out.Write(data[at:])
	return out.Bytes()
}

// document is one document of a file: its nodes and, where it can be decoded, its value with
// aliases and merge keys worked in.
type document struct {
	node  *yaml.Node
	value any
	err   error
}

func (d document) root() *yaml.Node {
	if len(d.node.Content) == 0 {
		return &yaml.Node{}
	}
	return d.node.Content[0]
}

var errUTF16 = errors.New("it is UTF-16; Kubernetes tools want UTF-8")

func parse(data []byte) ([]document, error) {
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return nil, errUTF16
	}
	var documents []document
	for decoder := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var d document
		var node yaml.Node
		err := decoder.Decode(&node)
		if errors.Is(err, io.EOF) {
			return documents, nil
		}
		if err != nil {
			return nil, err
		}
		d.node = &node
		d.err = node.Decode(&d.value)
		documents = append(documents, d)
	}
}

// place is where a Service is: the document, and the item of each List on the way.
type place struct {
	document int
	items    []int
}

// candidate is a Service of a file with the changes that may set its policy, the most
// readable first.
type candidate struct {
	Service
	place   place
	changes []Change
}

type file struct {
	source    Source
	options   Options
	documents []document
	lines     []int
	generated string
	found     []*candidate
	budget    int // bytes that may still be parsed for proofs
}

// maxProofs bounds what a file with many Services that no edit fits may cost, in bytes
// parsed: some seconds.
const maxProofs = 256 << 20

// visit finds the Services at and below an object: a List's items are objects too.
// Without a kind it is of the kind that its list says.
func (f *file) visit(node *yaml.Node, at place, listed string) {
	aliased := node.Kind == yaml.AliasNode
	if aliased {
		node = node.Alias
	}
	if node.Kind != yaml.MappingNode {
		return
	}
	document := f.documents[at.document]
	var object map[string]any
	err := document.err
	if err != nil || node.Decode(&object) != nil {
		object = plainFields(node)
	}
	kind, _ := object["kind"].(string)
	kind = cmp.Or(kind, listed)
	if object["apiVersion"] != "v1" && (object["apiVersion"] != nil || listed == "") {
		return
	}
	if kind == "List" || kind == "ServiceList" {
		listed = strings.TrimSuffix(kind, "List")
		if items := value(node, "items"); items != nil && items.Kind == yaml.SequenceNode {
			for i, item := range items.Content {
				f.visit(item, place{at.document, append(slices.Clip(at.items), i)}, listed)
			}
		}
		return
	}
	if kind != "Service" {
		return
	}
	c := &candidate{Service: Service{File: f.source.Name, Line: node.Line}, place: at}
	if k := keyNode(node, "spec"); k != nil {
		c.Line = k.Line
	}
	f.found = append(f.found, c)
	f.options.judge(&c.Service, object)
	if c.State == ToSet {
		c.patchable = err == nil && f.source.Patch == ""
	}
	if c.patchable && c.byComponent(f.source.uses) {
		return
	}
	if c.State != ToSet {
		if f.source.Patch != "" && c.Want != "" {
			c.partial = true
		}
		return
	}
	refuse := func(format string, args ...any) { c.State, c.Reason = ByHand, fmt.Sprintf(format, args...) }
	switch spec := value(node, "spec"); {
	case err != nil && bytes.Contains(f.source.Data, []byte("{{")):
		refuse("a template")
	case err != nil:
		refuse("its document is not valid: %s", oneLine(err))
	case value(document.root(), "sops") != nil:
		refuse("encrypted by SOPS, which would find an edit: use `sops edit`")
	case f.source.Patch != "":
		c.partial = true
		refuse("a patch of %s: set it where the Service is whole, else here", f.source.Patch)
	case f.generated != "":
		refuse("generated (%s): set it in what generates the file, or by a patch", f.generated)
	case aliased:
		refuse("it is an alias of line %d", node.Line)
	case spec == nil:
		refuse("its spec comes from a merge key")
	case spec.Kind == yaml.AliasNode:
		refuse("its spec is an alias of line %d", spec.Alias.Line)
	default:
		c.changes = f.candidates(keyNode(node, "spec"), spec)
	}
}

// candidates are the changes that may set the policy in a spec.
func (f *file) candidates(specKey, spec *yaml.Node) []Change {
	policy := string(f.options.Policy)
	if old := value(spec, key); old != nil { // SingleStack, to be replaced
		at := f.offset(old)
		quoted := old.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0
		if quoted {
			at++
		}
		if !bytes.HasPrefix(f.source.Data[at:], []byte("SingleStack")) {
			return nil
		}
		return []Change{{at, len("SingleStack"), policy}}
	}
	first := spec.Content[0]
	at := f.offset(first)
	pair, comma := key+": "+policy, ""
	if first.Style&yaml.DoubleQuotedStyle != 0 {
		pair = fmt.Sprintf("%q: %q", key, policy)
	}
	flow := spec.Style&yaml.FlowStyle != 0
	if flow {
		comma = ","
		if v := f.offset(spec.Content[1]); v > 0 && f.source.Data[v-1] == ':' { // as programs write JSON
			pair = strings.Replace(pair, ": ", ":", 1)
		}
	}
	before := f.source.Data[f.lines[first.Line-1]:at]
	ownLine := len(bytes.TrimLeft(before, " \t")) == 0
	opener := specKey.Line
	if flow {
		opener = spec.Line
	}
	var changes []Change
	if ownLine && first.Line > opener {
		// Right below "spec:", so that a comment stays with the key that it is about.
		changes = append(changes, Change{f.lines[opener], 0, string(before) + pair + comma + f.lineEnd(opener)})
	}
	switch {
	case ownLine:
		changes = append(changes, Change{at, 0, pair + comma + f.lineEnd(first.Line) + string(before)})
	case flow && !strings.Contains(pair, ": "):
		changes = append(changes, Change{at, 0, pair + comma})
	case flow:
		changes = append(changes, Change{at, 0, pair + comma + " "})
	default: // "- spec: …" within a compact form
		changes = append(changes, Change{at, 0, pair + f.lineEnd(first.Line) + strings.Repeat(" ", first.Column-1)})
	}
	return changes
}

// settle picks the changes that are proven to set the policies and nothing else. It tries all
// together, and halves of them where that fails.
func (f *file) settle() []Change {
	var pending []*candidate
	for _, c := range f.found {
		if c.State == ToSet {
			pending = append(pending, c)
		}
	}
	var done []*candidate
	chosen := map[*candidate]Change{}
	proven := func(more []*candidate) bool {
		all := append(slices.Clip(done), more...)
		changes := make([]Change, 0, len(all))
		for _, c := range all {
			changes = append(changes, chosen[c])
		}
		return f.proven(all, inOrder(changes))
	}
	var try func(group []*candidate) (refused []*candidate)
	try = func(group []*candidate) (refused []*candidate) {
		if len(group) == 0 {
			return nil
		}
		if len(group) > 1 {
			for _, c := range group {
				if len(c.changes) == 0 {
					continue
				}
				chosen[c] = c.changes[0]
			}
			if !slices.ContainsFunc(group, func(c *candidate) bool { return len(c.changes) == 0 }) && proven(group) {
				done = append(done, group...)
				return nil
			}
			half := len(group) / 2
			return append(try(group[:half]), try(group[half:])...)
		}
		for _, change := range group[0].changes {
			chosen[group[0]] = change
			if proven(group) {
				done = append(done, group...)
				return nil
			}
		}
		return group
	}
	// A spec that another one merges can be edited once the other has the key itself.
	for {
		before := len(done)
		pending = try(pending)
		if len(pending) == 0 || len(done) == before {
			break
		}
	}
	for _, c := range pending {
		c.State, c.Reason = ByHand, "no single inserted line sets it and nothing else (a shared anchor, or an unusual layout)"
	}
	changes := make([]Change, 0, len(done))
	for _, c := range done {
		changes = append(changes, chosen[c])
	}
	return inOrder(changes)
}

func inOrder(changes []Change) []Change {
	slices.SortFunc(changes, func(a, b Change) int { return a.Offset - b.Offset })
	return changes
}

// proven says whether the file with the changes holds the same documents as it
// does now, but for the policy of the edited Services.
func (f *file) proven(edited []*candidate, changes []Change) bool {
	if f.budget -= len(f.source.Data); f.budget < 0 {
		return false
	}
	after, err := parse(apply(f.source.Data, changes))
	if err != nil || len(after) != len(f.documents) {
		return false
	}
	for i, before := range f.documents {
		if before.err != nil || after[i].err != nil {
			if before.err == nil || after[i].err == nil || !sameNodes(before.node, after[i].node) {
				return false
			}
			continue
		}
		var want any
		if before.node.Decode(&want) != nil { // afresh: it is changed below
			return false
		}
		for _, c := range edited {
			if c.place.document == i && !set(want, c.place.items, string(f.options.Policy)) {
				return false
			}
		}
		if !reflect.DeepEqual(want, after[i].value) {
			return false
		}
	}
	return true
}

// set sets the policy on one Service of a decoded document.
func set(document any, items []int, policy string) bool {
	for _, i := range items {
		list, _ := document.(map[string]any)
		all, _ := list["items"].([]any)
		if i >= len(all) {
			return false
		}
		document = all[i]
	}
	object, _ := document.(map[string]any)
	spec, ok := object["spec"].(map[string]any)
	if ok {
		spec[key] = policy
	}
	return ok
}

func sameNodes(a, b *yaml.Node) bool {
	return a.Kind == b.Kind && a.Tag == b.Tag && a.Value == b.Value && a.Anchor == b.Anchor && a.Style == b.Style &&
		slices.EqualFunc(a.Content, b.Content, sameNodes)
}

// keyNode is the key of a mapping, as it is written there.
func keyNode(mapping *yaml.Node, name string) *yaml.Node {
	if mapping.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if k := mapping.Content[i]; k.Kind == yaml.ScalarNode && k.Value == name {
			return k
		}
	}
	return nil
}

// value is the value of a mapping's key, as it is written there.
func value(mapping *yaml.Node, name string) *yaml.Node {
	k := keyNode(mapping, name)
	if k == nil {
		return nil
	}
	return mapping.Content[slices.Index(mapping.Content, k)+1]
}

// plainFields is what can be told of an object that cannot be decoded.
func plainFields(node *yaml.Node) map[string]any {
	fields := map[string]any{}
	for _, name := range []string{"apiVersion", "kind"} {
		if v := value(node, name); v != nil && v.Kind == yaml.ScalarNode {
			fields[name] = v.Value
		}
	}
	if metadata := value(node, "metadata"); metadata != nil {
		m := map[string]any{}
		for _, name := range []string{"name", "namespace"} {
			if v := value(metadata, name); v != nil && v.Kind == yaml.ScalarNode {
				m[name] = v.Value
			}
		}
		fields["metadata"] = m
	}
	if spec := value(node, "spec"); spec != nil {
		m := map[string]any{"ports": []any{nil}} // taken for whole
		for _, name := range []string{"type", key} {
			if v := value(spec, name); v != nil && v.Kind == yaml.ScalarNode {
				m[name] = v.Value
			}
		}
		fields["spec"] = m
	}
	return fields
}

func oneLine(err error) string {
	text := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "yaml: "), "unmarshal errors:")
	return strings.Join(strings.Fields(text), " ")
}

// lineStarts are the offsets at which lines start, as the parser counts them. A
// byte order mark is before the first.
func lineStarts(data []byte) []int {
	starts := []int{0}
	if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
		starts[0] = 3
	}
	for i := starts[0]; i < len(data); {
		n := lineBreak(data[i:])
		if n > 0 {
			starts = append(starts, i+n)
		}
		i += max(n, 1)
	}
	return starts
}

// lineBreak is the length of the line break that data starts with; 0 for none.
func lineBreak(data []byte) int {
	for _, b := range []string{"\r\n", "\n", "\r", "\u0085", "\u2028", "\u2029"} {
		if bytes.HasPrefix(data, []byte(b)) {
			return len(b)
		}
	}
	return 0
}

// lineEnd is the line break at the end of a line, counted from 1; the file's
// first where the line has none.
func (f *file) lineEnd(line int) string {
	data := f.source.Data
	if line >= len(f.lines) {
		line = 1
	}
	if line >= len(f.lines) {
		return "\n"
	}
	for at := f.lines[line-1]; ; at++ {
		if n := lineBreak(data[at:]); n > 0 {
			return string(data[at : at+n])
		}
	}
}

// offset is where a node starts. The parser counts columns in characters.
func (f *file) offset(node *yaml.Node) int {
	data := f.source.Data
	at := f.lines[min(node.Line, len(f.lines))-1]
	for range node.Column - 1 {
		if at >= len(data) {
			break
		}
		_, size := utf8.DecodeRune(data[at:])
		at += size
	}
	return at
}

var generatedMark = regexp.MustCompile(`(?i)\bdo not (edit|modify|change)\b|\bcode generated by\b|@generated\b|\bauto-?generated\b|\bautomatically generated\b|\bthis (file|manifest) (was|is|has been) generated\b`)

// generatedBy is the comment at a file's head that says that it is generated.
func generatedBy(data []byte) string {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	for line := range bytes.Lines(data) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' && !bytes.HasPrefix(line, []byte("---")) {
			return ""
		}
		if generatedMark.Match(line) {
			return strings.TrimSpace(strings.TrimLeft(string(line), "#- "))
		}
	}
	return ""
}
