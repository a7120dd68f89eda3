package k3s

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The sources of a setting, from weakest to strongest (K3s: "Configuration
// File", value precedence). A file's source is its path.
const (
	SourceDefault = "default"
	SourceEnv     = "environment"
	SourceFlag    = "ExecStart"
)

// DefaultConfigFile is read unless --config or K3S_CONFIG_FILE names another;
// its drop-ins lie in the same path with ".d" appended.
const DefaultConfigFile = "/etc/rancher/k3s/config.yaml"

// ConfigFile is one YAML file of K3s's configuration.
type ConfigFile struct {
	Path string
	Data []byte
}

// Config is everything K3s reads its settings from.
type Config struct {
	// Args are the unit's ExecStart arguments after "k3s server".
	Args []string
	// Env are the K3S_* variables of the unit's env files.
	Env map[string]string
	// Files are config.yaml, when there is one, and its drop-ins in name order.
	Files []ConfigFile
}

// Setting is one setting in force and where its last word was said.
type Setting struct {
	Values []string `json:"values"`
	Source string   `json:"source"`
}

// String joins the values the way a flag takes them.
func (s Setting) String() string { return strings.Join(s.Values, ",") }

// secretSettings never leave the host outside the encrypted set.
var secretSettings = map[string]bool{
	"token": true, "agent-token": true, "datastore-endpoint": true,
	"etcd-s3-access-key": true, "etcd-s3-secret-key": true, "etcd-s3-session-token": true, "vpn-auth": true,
}

// shortNames are the one-letter names of K3s's server flags; a configuration
// file may use them, too.
var shortNames = map[string]string{
	"c": "config", "d": "data-dir", "i": "node-ip", "l": "log", "o": "write-kubeconfig", "s": "server", "t": "token",
}

func longName(key string) string {
	if long, ok := shortNames[key]; ok {
		return long
	}
	return key
}

// Secret tells whether a setting's value may not be shown or kept in the facts.
func Secret(key string) bool { return secretSettings[key] }

// switches are K3s's boolean server flags: they take no following word.
var switches = map[string]bool{
	"alsologtostderr": true, "cluster-init": true, "cluster-reset": true, "debug": true,
	"disable-apiserver": true, "disable-cloud-controller": true, "disable-controller-manager": true,
	"disable-etcd": true, "disable-helm-controller": true, "disable-kube-proxy": true,
	"disable-network-policy": true, "disable-scheduler": true, "docker": true,
	"embedded-registry": true, "enable-pprof": true, "etcd-disable-snapshots": true,
	"etcd-expose-metrics": true, "etcd-s3": true, "etcd-s3-insecure": true, "etcd-s3-skip-ssl-verify": true,
	"flannel-external-ip": true, "flannel-ipv6-masq": true, "kine-tls": true,
	"multi-cluster-cidr": true, "nonroot-devices": true, "prefer-bundled-bin": true,
	"protect-kernel-defaults": true, "rootless": true, "secrets-encryption": true,
	"selinux": true, "servicelb": true, "supervisor-metrics": true, "tls-san-security": true,
}

// argument is one flag as it stands in the ExecStart arguments.
type argument struct {
	key, value string
	first, n   int // the words args[first:first+n] that make it up
}

func parseArgs(args []string) []argument {
	var out []argument
	for i := 0; i < len(args); i++ {
		word := args[i]
		if !strings.HasPrefix(word, "-") {
			continue
		}
		name := strings.TrimLeft(word, "-")
		a := argument{first: i, n: 1}
		if key, value, ok := strings.Cut(name, "="); ok {
			a.key, a.value = key, value
		} else if a.key = name; switches[name] || i+1 >= len(args) || strings.HasPrefix(args[i+1], "-") {
			a.value = "true"
		} else {
			a.value, a.n = args[i+1], 2
			i++
		}
		a.key = longName(a.key)
		out = append(out, a)
	}
	return out
}

// listSettings are the settings whose values K3s splits at commas.
var listSettings = map[string]bool{
	"cluster-cidr": true, "service-cidr": true, "node-ip": true, "node-external-ip": true,
	"cluster-dns": true, "disable": true, "tls-san": true,
}

func split(key, value string) []string {
	if !listSettings[key] {
		return []string{value}
	}
	var out []string
	for v := range strings.SplitSeq(value, ",") {
		if v = strings.TrimSpace(v); v != "" {
			out = append(out, v)
		}
	}
	return out
}

// Effective merges the sources as K3s does. Its configuration files become
// arguments in front of the unit's own (k3s, pkg/configfilearg), so that they
// beat the environment, and a flag beats them, or adds to them where it takes a
// list. Among files a later one wins, and "key+" adds. A file that is no YAML
// mapping is an error naming it.
func (c Config) Effective() (map[string]Setting, error) {
	out := map[string]Setting{}
	for name, value := range c.Env {
		if key, ok := envSettings[name]; ok && value != "" {
			out[key] = Setting{Values: split(key, value), Source: SourceEnv}
		}
	}
	files, err := c.fromFiles()
	if err != nil {
		return nil, err
	}
	maps.Copy(out, files)
	fromFlags := map[string][]string{}
	for _, a := range parseArgs(c.Args) {
		fromFlags[a.key] = append(fromFlags[a.key], split(a.key, a.value)...)
	}
	for key, values := range fromFlags {
		if addsUp(key) {
			values = append(slices.Clone(files[key].Values), values...)
		}
		out[key] = Setting{Values: values, Source: SourceFlag}
	}
	return out, nil
}

// addsUp tells whether a flag given more than once is a list and not replaced.
func addsUp(key string) bool {
	return listSettings[key] || strings.HasSuffix(key, "-arg") || key == "node-label" || key == "node-taint"
}

// fromFiles are the settings that the files make.
func (c Config) fromFiles() (map[string]Setting, error) {
	out := map[string]Setting{}
	for _, f := range c.Files {
		doc, err := parseMapping(f)
		if err != nil {
			return nil, err
		}
		for _, e := range entries(doc, 0) {
			key, more := strings.CutSuffix(e.key, "+")
			key = longName(key)
			var values []string
			for _, v := range scalars(e.value) {
				values = append(values, split(key, v)...)
			}
			if more {
				values = append(slices.Clone(out[key].Values), values...)
			}
			out[key] = Setting{Values: values, Source: f.Path}
		}
	}
	return out, nil
}

// envSettings maps the environment variables that K3s documents for its server
// to the settings they stand for. The address ranges have none.
var envSettings = map[string]string{
	"K3S_TOKEN": "token", "K3S_TOKEN_FILE": "token-file", "K3S_AGENT_TOKEN": "agent-token",
	"K3S_DATA_DIR": "data-dir", "K3S_NODE_NAME": "node-name", "K3S_DATASTORE_ENDPOINT": "datastore-endpoint",
	"K3S_CLUSTER_INIT": "cluster-init", "K3S_KUBECONFIG_MODE": "write-kubeconfig-mode",
	"K3S_KUBECONFIG_OUTPUT": "write-kubeconfig", "K3S_URL": "server", "K3S_DEBUG": "debug",
}

// Change is one setting that the rebuild alters.
type Change struct {
	Key    string `json:"key"`
	Before string `json:"before"`
	After  string `json:"after"`
	Source string `json:"source"` // where it is written
}

// Want is one setting the dual-stack configuration must have.
type Want struct {
	Key    string
	Values []string
	// Add keeps the values there are and adds the missing ones (disable lists).
	Add bool
}

// With returns the configuration in which every wanted setting is in force,
// and what changed. A setting is written to the last file that makes it, and
// taken out of the flags, which would add to it; one that flags alone make stays
// a flag. One that no source makes goes to config.yaml, or to the flags of a
// server that was installed with flags alone.
func (c Config) With(wants []Want) (Config, []Change, error) {
	have, err := c.Effective()
	if err != nil {
		return c, nil, err
	}
	files, err := c.fromFiles()
	if err != nil {
		return c, nil, err
	}
	next := Config{Args: slices.Clone(c.Args), Env: c.Env, Files: slices.Clone(c.Files)}
	var changes []Change
	for _, w := range wants {
		before := have[w.Key]
		values := w.Values
		if w.Add {
			values = slices.Clone(before.Values)
			for _, v := range w.Values {
				if !slices.Contains(values, v) {
					values = append(values, v)
				}
			}
		}
		if slices.Equal(values, before.Values) {
			continue
		}
		source := files[w.Key].Source
		if source == "" && before.Source == SourceFlag {
			source = SourceFlag
		}
		if source == "" {
			source = next.home()
		}
		if source == SourceFlag {
			next.setFlag(w.Key, values)
		} else {
			next.dropFlag(w.Key)
			if err := next.setFile(source, w.Key, values); err != nil {
				return c, nil, err
			}
		}
		changes = append(changes, Change{Key: w.Key, Before: before.String(), After: strings.Join(values, ","), Source: source})
	}
	return next, changes, nil
}

// home is where a setting goes that no source has yet.
func (c Config) home() string {
	if len(c.Files) > 0 && !strings.Contains(c.Files[0].Path, ".d/") {
		return c.Files[0].Path
	}
	if len(parseArgs(c.Args)) > 0 {
		return SourceFlag
	}
	return c.main()
}

// main is the file that K3s reads as its configuration, whether it exists or not.
func (c Config) main() string {
	file := DefaultConfigFile
	if v := c.Env["K3S_CONFIG_FILE"]; v != "" {
		file = v
	}
	for _, a := range parseArgs(c.Args) {
		if a.key == "config" {
			file = a.value
		}
	}
	return file
}

// WithArgs returns the configuration with further server flags behind those
// there are, and what changed. A flag that stands there already with the same
// value is not repeated. A flag and its value may be one word or two.
func (c Config) WithArgs(extra []string) (Config, []Change) {
	next := Config{Args: slices.Clone(c.Args), Env: c.Env, Files: c.Files}
	var changes []Change
	for _, a := range parseArgs(extra) {
		same := func(b argument) bool { return b.key == a.key && b.value == a.value }
		if slices.ContainsFunc(parseArgs(next.Args), same) {
			continue
		}
		next.Args = append(next.Args, extra[a.first:a.first+a.n]...)
		changes = append(changes, Change{Key: a.key, After: a.value, Source: SourceFlag})
	}
	return next, changes
}

// dropFlag takes every occurrence of a flag out and returns where the first
// stood, or where one would be appended.
func (c *Config) dropFlag(key string) int {
	var args []string
	at := -1
	last := 0
	for _, a := range parseArgs(c.Args) {
		if a.key != key {
			continue
		}
		args = append(args, c.Args[last:a.first]...)
		if at < 0 {
			at = len(args)
		}
		last = a.first + a.n
	}
	c.Args = append(args, c.Args[last:]...)
	if at < 0 {
		at = len(c.Args)
	}
	return at
}

func (c *Config) setFlag(key string, values []string) {
	at := c.dropFlag(key)
	word := "--" + key + "=" + strings.Join(values, ",")
	if switches[key] && len(values) == 1 && values[0] == "true" {
		word = "--" + key
	}
	c.Args = slices.Insert(c.Args, at, word)
}

func (c *Config) setFile(name, key string, values []string) error {
	at := slices.IndexFunc(c.Files, func(f ConfigFile) bool { return f.Path == name })
	if at < 0 {
		// config.yaml is read before its drop-ins.
		c.Files = slices.Insert(c.Files, 0, ConfigFile{Path: name})
		at = 0
	}
	data, err := setKey(c.Files[at], key, values)
	if err != nil {
		return err
	}
	c.Files[at].Data = data
	return nil
}

// setKey rewrites one key of a YAML mapping and leaves comments, order and
// other keys alone.
func setKey(f ConfigFile, key string, values []string) ([]byte, error) {
	mapping, err := parseMapping(f)
	if err != nil {
		return nil, err
	}
	var before []byte
	if mapping == nil {
		mapping = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		if before = f.Data; !onlyComments(before) {
			before = nil
		} else if len(before) > 0 && before[len(before)-1] != '\n' {
			before = append(slices.Clone(before), '\n')
		}
	}
	var content, dropped []*yaml.Node
	var kept *yaml.Node // the key, once it is written
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		k, v := mapping.Content[i], mapping.Content[i+1]
		if longName(strings.TrimSuffix(k.Value, "+")) != key {
			content = append(content, k, v)
			continue
		}
		dropped = append(dropped, v)
		if kept != nil {
			// The whole list is written once; an append would double it.
			walk(k, func(n *yaml.Node) { moveComments(kept, n) })
			walk(v, func(n *yaml.Node) { moveComments(kept, n) })
			continue
		}
		value := newValue(key, values, v)
		if value.Kind == yaml.SequenceNode && v.Kind != yaml.SequenceNode {
			moveComments(k, value) // behind a block list they would be the next key's
		}
		kept, k.Value = k, key
		content = append(content, k, value)
	}
	if kept == nil {
		content = append(content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, newValue(key, values, &yaml.Node{}))
	}
	for _, n := range content {
		if n.Tag == "!!merge" {
			n.Tag = "" // the encoder would spell it out
		}
	}
	mapping.Content = content
	rescueAnchors(mapping, dropped)
	var buf bytes.Buffer
	buf.Write(before)
	enc := yaml.NewEncoder(&buf)
	enc.SetIndent(2)
	if err := enc.Encode(mapping); err != nil {
		return nil, fmt.Errorf("writing %s into %s: %w", key, f.Path, err)
	}
	return buf.Bytes(), nil
}

// newValue is what takes old's place, its comments included.
func newValue(key string, values []string, old *yaml.Node) *yaml.Node {
	text := strings.Join(values, ",")
	value := &yaml.Node{}
	switch {
	case text == "true" || text == "false":
		*value = yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: text}
	case key == "disable":
		*value = yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Style: old.Style & yaml.FlowStyle}
		for _, v := range values {
			item := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: v}
			for _, was := range old.Content {
				if was.Kind == yaml.ScalarNode && was.Value == v {
					item.HeadComment, item.LineComment, item.FootComment = was.HeadComment, was.LineComment, was.FootComment
				}
			}
			value.Content = append(value.Content, item)
		}
	default:
		value.SetString(text)
		for _, was := range old.Content { // a list that becomes one word
			moveComments(old, was)
		}
	}
	value.HeadComment, value.LineComment, value.FootComment = old.HeadComment, old.LineComment, old.FootComment
	return value
}

// moveComments puts the comments of a node that goes above the one that stays.
func moveComments(stays, goes *yaml.Node) {
	for _, c := range []*string{&goes.HeadComment, &goes.LineComment, &goes.FootComment} {
		if *c != "" && stays.HeadComment != "" {
			*c = "\n" + *c
		}
		stays.HeadComment += *c
		*c = ""
	}
}

// onlyComments tells whether something may be written below the data: there is
// no value in it, not even an explicit null.
func onlyComments(data []byte) bool {
	for line := range strings.SplitSeq(string(data), "\n") {
		if line = strings.TrimSpace(line); line != "" && line != "---" && line[0] != '#' {
			return false
		}
	}
	return true
}

// rescueAnchors moves an anchor that stood in a dropped value to its first
// alias in the mapping, which would lead nowhere without it.
func rescueAnchors(mapping *yaml.Node, dropped []*yaml.Node) {
	lost := map[*yaml.Node]*yaml.Node{} // to where it is now, nil for nowhere yet
	for _, d := range dropped {
		walk(d, func(n *yaml.Node) {
			if n.Anchor != "" {
				lost[n] = nil
			}
		})
	}
	walk(mapping, func(n *yaml.Node) {
		if n.Kind != yaml.AliasNode {
			return
		}
		now, ok := lost[n.Alias]
		switch {
		case !ok:
		case now != nil:
			n.Alias = now
		default:
			was := n.Alias
			walk(was, func(inner *yaml.Node) { delete(lost, inner) })
			comments := [3]string{n.HeadComment, n.LineComment, n.FootComment}
			*n = *was
			n.HeadComment, n.LineComment, n.FootComment = comments[0], comments[1], comments[2]
			lost[was] = n
		}
	})
}

// walk visits a node and all below it in the order of the file; aliases are not
// followed.
func walk(n *yaml.Node, visit func(*yaml.Node)) {
	visit(n)
	for _, c := range n.Content {
		walk(c, visit)
	}
}

// parseMapping returns the file's mapping, nil for an empty file.
func parseMapping(f ConfigFile) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(f.Data, &doc); err != nil {
		return nil, fmt.Errorf("K3s configuration %s: %w: correct the file on the host, K3s itself cannot read it either", f.Path, err)
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil, nil
	}
	if doc.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("K3s configuration %s: line %d: not a mapping of settings", f.Path, doc.Content[0].Line)
	}
	m := doc.Content[0]
	if len(m.Content) > 0 && m.HeadComment == "" {
		m.HeadComment = doc.HeadComment
	}
	m.FootComment = strings.TrimSpace(m.FootComment + "\n" + doc.FootComment)
	return m, nil
}

// entry is a key of a mapping with its value.
type entry struct {
	key   string
	value *yaml.Node
}

// entries are the mapping's keys in order, those that merge keys (<<) bring
// before its own, which override them.
func entries(mapping *yaml.Node, depth int) (out []entry) {
	if mapping == nil || depth > maxDepth {
		return nil
	}
	var own []entry
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		k, v := mapping.Content[i], mapping.Content[i+1]
		if k.Tag != "!!merge" {
			own = append(own, entry{k.Value, v})
			continue
		}
		from := []*yaml.Node{v}
		if v.Kind == yaml.SequenceNode {
			from = slices.Clone(v.Content)
			slices.Reverse(from) // the first of several wins
		}
		for _, m := range from {
			if m.Kind == yaml.AliasNode {
				m = m.Alias
			}
			if m.Kind == yaml.MappingNode {
				out = append(out, entries(m, depth+1)...)
			}
		}
	}
	return append(out, own...)
}

// maxDepth ends the walk through an anchor that contains itself; K3s's own
// settings are lists of words, nested once. maxWords ends the one through
// anchors that multiply.
const (
	maxDepth = 4
	maxWords = 10_000
)

// scalars flattens a value to its words.
func scalars(n *yaml.Node) []string { return flatten(nil, n, 0) }

func flatten(words []string, n *yaml.Node, depth int) []string {
	if depth > maxDepth || len(words) >= maxWords {
		return words
	}
	switch {
	case n.Kind == yaml.SequenceNode:
		for _, c := range n.Content {
			words = flatten(words, c, depth+1)
		}
	case n.Kind == yaml.AliasNode:
		words = flatten(words, n.Alias, depth+1)
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		words = append(words, "")
	case n.Kind == yaml.ScalarNode:
		words = append(words, n.Value)
	}
	return words
}

// sortFiles puts config.yaml first and its drop-ins behind it in name order.
func sortFiles(files []ConfigFile, main string) {
	sort.Slice(files, func(i, j int) bool {
		if (files[i].Path == main) != (files[j].Path == main) {
			return files[i].Path == main
		}
		return path.Base(files[i].Path) < path.Base(files[j].Path)
	})
}

// splitWords splits a systemd ExecStart line into words: white space separates,
// single and double quotes group, a backslash before a newline joins lines and
// before anything else takes it as it is.
func splitWords(line string) []string {
	var words []string
	var word strings.Builder
	in := false
	var quote byte
	for i := 0; i < len(line); i++ {
		ch := line[i]
		switch {
		case ch == '\\' && quote != '\'' && i+1 < len(line):
			i++
			if line[i] != '\n' {
				word.WriteByte(line[i])
				in = true
			}
		case quote != 0:
			if ch == quote {
				quote = 0
			} else {
				word.WriteByte(ch)
			}
		case ch == '\'' || ch == '"':
			quote, in = ch, true
		case ch == ' ' || ch == '\t' || ch == '\n':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteByte(ch)
			in = true
		}
	}
	if in {
		words = append(words, word.String())
	}
	return words
}

// parseEnv reads a systemd EnvironmentFile as systemd does (systemd.exec(5);
// src/basic/env-file.c): # and ; begin comments; a value may consist of quoted
// parts and one unquoted tail, in which quotes mean themselves; a backslash
// takes the next character as it is, or joins lines. Lines whose name is no
// variable's are ignored.
func parseEnv(data []byte) map[string]string {
	out := map[string]string{}
	text := strings.ReplaceAll(string(data), "\r", "\n")
	for at := 0; at < len(text); {
		at += len(text[at:]) - len(strings.TrimLeft(text[at:], " \t\n"))
		if at < len(text) && (text[at] == '#' || text[at] == ';') {
			at = lineEnd(text, at)
			continue
		}
		end := lineEnd(text, at)
		name, _, ok := strings.Cut(text[at:end], "=")
		if !ok {
			at = end
			continue
		}
		var value string
		value, at = envValue(text, at+len(name)+1)
		if name = strings.TrimSpace(name); variableName.MatchString(name) {
			out[name] = value
		}
	}
	return out
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func lineEnd(text string, at int) int {
	if i := strings.IndexByte(text[at:], '\n'); i >= 0 {
		return at + i
	}
	return len(text)
}

// envValue reads a value from text[at:] and returns where it ends.
func envValue(text string, at int) (string, int) {
	var value []byte
	keep := 0 // so much of value is no white space at its end
	const start, bare, single, double = 0, 1, 2, 3
	state := start
	for ; at < len(text); at++ {
		ch := text[at]
		switch {
		case state == single && ch == '\'', state == double && ch == '"':
			state, keep = start, len(value)
		case state == double && ch == '\\' && at+1 < len(text):
			at++
			if next := text[at]; strings.IndexByte("\"\\`$", next) >= 0 {
				value = append(value, next)
			} else if next != '\n' {
				value = append(value, ch, next)
			}
		case state == single, state == double:
			value = append(value, ch)
		case ch == '\n':
			return string(value[:keep]), at
		case state == start && ch == '\'':
			state = single
		case state == start && ch == '"':
			state = double
		case ch == '\\':
			state = bare
			if at++; at < len(text) && text[at] != '\n' {
				value = append(value, text[at])
			}
			keep = len(value)
		case ch == ' ' || ch == '\t':
			if state == bare {
				value = append(value, ch)
			}
		default:
			state, value = bare, append(value, ch)
			keep = len(value)
		}
	}
	if state == single || state == double {
		keep = len(value)
	}
	return string(value[:keep]), at
}
