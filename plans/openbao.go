package plans

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// setOpenBaoDefaults fills in what is left open and gives mounts and address the one form in which they are compared.
func setOpenBaoDefaults(o *OpenBao) {
	setDefault(&o.Namespace, "openbao")
	o.Address = strings.TrimSuffix(o.Address, "/")
	if o.Address == "" {
		setDefault(&o.Port, 8200)
		if len(o.Pods) == 0 {
			setDefault(&o.Service, "openbao")
		}
		if o.TLS != nil && o.Service != "" {
			setDefault(&o.TLS.ServerName, o.Service+"."+o.Namespace+".svc")
		}
	}
	for i, mount := range o.Mounts {
		if mount = strings.Trim(mount, "/"); mount != "" {
			o.Mounts[i] = mount + "/"
		}
	}
}

func validateOpenBao(path *field.Path, o *OpenBao) field.ErrorList {
	errs := invalid(path.Child("namespace"), o.Namespace, validation.IsDNS1123Label(o.Namespace))
	var found []string
	if o.Service != "" {
		found = append(found, "service")
		errs = append(errs, invalid(path.Child("service"), o.Service, validation.IsDNS1123Label(o.Service))...)
	}
	if len(o.Pods) > 0 {
		found = append(found, "pods")
	}
	for i, pod := range o.Pods {
		errs = append(errs, invalid(path.Child("pods").Index(i), pod, validation.IsDNS1123Subdomain(pod))...)
		if slices.Contains(o.Pods[:i], pod) {
			errs = append(errs, field.Duplicate(path.Child("pods").Index(i), pod))
		}
	}
	if o.Address != "" {
		found = append(found, "address")
		errs = append(errs, validateAddress(path.Child("address"), o.Address)...)
		if o.Port != 0 {
			errs = append(errs, field.Forbidden(path.Child("port"), "the port of a server's pods; with an address, write it there, as in https://bao.example.org:8200, and remove it here"))
		}
	}
	if len(found) > 1 {
		errs = append(errs, field.Forbidden(path.Child(found[len(found)-1]), fmt.Sprintf("the server is found by %s at once; leave one of them", strings.Join(found, " and "))))
	}
	if o.Port < 0 || o.Port > 65535 {
		errs = append(errs, field.Invalid(path.Child("port"), o.Port, "must be between 1 and 65535"))
	}
	errs = append(errs, validateOpenBaoTLS(path.Child("tls"), o)...)
	errs = append(errs, validateSecret(path.Child("token"), o.Token)...)
	for i, key := range o.UnsealKeys {
		at := path.Child("unsealKeys").Index(i)
		problems := validateSecret(at, key)
		errs = append(errs, problems...)
		same := slices.IndexFunc(o.UnsealKeys[:i], func(other Secret) bool { return reflect.DeepEqual(key, other) })
		if same >= 0 && len(problems) == 0 && !key.Prompt { // each question is one of its own
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("the same source as unsealKeys[%d], which gives the same key; name another one or remove it", same)))
		}
	}
	for i, mount := range o.Mounts {
		at := path.Child("mounts").Index(i)
		switch problem := pathProblem(strings.TrimSuffix(mount, "/")); {
		case strings.Trim(mount, "/") == "":
			errs = append(errs, field.Required(at, "name a KV mount, such as secret/, or leave mounts out for all"))
		case problem != "":
			errs = append(errs, field.Invalid(at, mount, problem))
		case slices.Contains(o.Mounts[:i], mount):
			errs = append(errs, field.Duplicate(at, mount))
		}
	}
	return append(errs, validateSentinel(path.Child("sentinel"), o)...)
}

func validateAddress(path *field.Path, address string) field.ErrorList {
	// Not quoted where it may hold a password.
	if strings.Contains(address, "@") {
		return field.ErrorList{field.Forbidden(path, "an address holds no user and no password; write scheme, host and port alone, as in https://bao.example.org:8200")}
	}
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https"):
		return field.ErrorList{field.Invalid(path, address, "not the URL of a server; write scheme, host and port, as in https://bao.example.org:8200")}
	case u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return field.ErrorList{field.Invalid(path, address, "nothing follows a server's address; write "+u.Scheme+"://"+u.Host)}
	case !isHost(u.Hostname()):
		return field.ErrorList{field.Invalid(path, address, "its host is neither a DNS name nor an IP address; an IPv6 address stands in brackets")}
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return field.ErrorList{field.Invalid(path, address, "its port must be between 1 and 65535")}
		}
	}
	return nil
}

func validateOpenBaoTLS(path *field.Path, o *OpenBao) field.ErrorList {
	if o.TLS == nil {
		return nil
	}
	if strings.HasPrefix(o.Address, "http:") {
		return field.ErrorList{field.Forbidden(path, "the address begins with http, which is without TLS; write https there, or remove tls")}
	}
	errs := validatePath(path.Child("caFile"), o.TLS.CAFile)
	name := path.Child("serverName")
	_, notAddress := netip.ParseAddr(o.TLS.ServerName)
	switch {
	case o.TLS.ServerName == "" && len(o.Pods) > 0:
		errs = append(errs, field.Required(name, "no name leads to the pods; write the one that their certificate is for"))
	case o.TLS.ServerName != "" && notAddress != nil:
		errs = append(errs, invalid(name, o.TLS.ServerName, validation.IsDNS1123Subdomain(strings.ToLower(o.TLS.ServerName)))...)
	}
	return errs
}

func validateSentinel(path *field.Path, o *OpenBao) field.ErrorList {
	if o.Sentinel == "" {
		return nil
	}
	problem := pathProblem(o.Sentinel)
	switch {
	case problem != "":
	case !strings.Contains(o.Sentinel, "/"):
		problem = "must be mount and path, as `bao kv get` takes them: secret/sentinel"
	case len(o.Mounts) > 0 && !slices.ContainsFunc(o.Mounts, func(mount string) bool { return strings.HasPrefix(o.Sentinel, mount) }):
		problem = "lies in none of the mounts that are exported; add its mount to mounts"
	default:
		return nil
	}
	return field.ErrorList{field.Invalid(path, o.Sentinel, problem)}
}

// pathProblem says what keeps a path from being one inside a server.
func pathProblem(path string) string {
	switch {
	case strings.HasPrefix(path, "/"), strings.HasSuffix(path, "/"), strings.Contains(path, "//"):
		return "has a slash without a name on both sides; write the path without it"
	case strings.TrimSpace(path) != path, strings.ContainsFunc(path, unicode.IsControl):
		return "has a blank around it or a character that cannot be seen; write it without"
	}
	return ""
}

// What is said where a plan holds a secret value itself. None of these errors quotes anything: what was put into a plan by
// mistake must not go on to terminals and logs.
const (
	neverHeld = "the plan never holds a token or key itself; write where it is found, by one of env, file, prompt, command and kubernetes, and take one that stood here as exposed"
	looksHeld = "what stands here looks like a token or key, which the plan never holds; write where it is found instead, and take this one as exposed"
	noPath    = `not the path of a file on this machine; only "~/" is expanded, not another user's home directory`
)

func othersHome(path string) bool {
	user, tilde := strings.CutPrefix(path, "~")
	return tilde && user != "" && user[0] != '/'
}

func validateSecret(path *field.Path, s Secret) field.ErrorList {
	var given []string
	for _, source := range []struct {
		name  string
		given bool
	}{{"env", s.Env != ""}, {"file", s.File != ""}, {"prompt", s.Prompt}, {"command", len(s.Command) > 0}, {"kubernetes", s.Kubernetes != nil}} {
		if source.given {
			given = append(given, source.name)
		}
	}
	switch len(given) {
	case 0:
		return field.ErrorList{field.Required(path, "write where the value is found, by one of env, file, prompt, command and kubernetes")}
	case 1:
	default:
		return field.ErrorList{field.Forbidden(path, fmt.Sprintf("the value is found by %s at once; leave one of them", strings.Join(given, " and ")))}
	}
	var errs field.ErrorList
	forbid := func(path *field.Path, value string, wrong bool, problem string) {
		switch {
		case hideSecrets(value) != value:
			errs = append(errs, field.Forbidden(path, looksHeld))
		case wrong && value == "":
			errs = append(errs, field.Required(path, problem))
		case wrong:
			errs = append(errs, field.Forbidden(path, problem))
		}
	}
	forbid(path.Child("env"), s.Env, s.Env != "" && !variablePattern.MatchString(s.Env),
		"not the name of an environment variable, such as BAO_TOKEN; the variable holds the value, the plan only its name")
	forbid(path.Child("file"), s.File, len(validatePath(nil, s.File)) > 0 || othersHome(s.File), noPath)
	for i, arg := range s.Command {
		at := path.Child("command").Index(i)
		if i == 0 && othersHome(arg) {
			forbid(at, arg, true, noPath)
			continue
		}
		forbid(at, arg, i == 0 && arg == "" || strings.Contains(arg, "\x00"), "must be the program, followed by its arguments, without zero bytes")
	}
	if k := s.Kubernetes; k != nil {
		at := path.Child("kubernetes")
		forbid(at.Child("namespace"), k.Namespace, len(validation.IsDNS1123Label(k.Namespace)) > 0, "must be the name of a namespace")
		forbid(at.Child("name"), k.Name, len(validation.IsDNS1123Subdomain(k.Name)) > 0, "must be the name of a Kubernetes Secret")
		forbid(at.Child("key"), k.Key, len(validation.IsConfigMapKey(k.Key)) > 0, "must be a key of the Kubernetes Secret's data")
	}
	return errs
}

func resolveOpenBao(r *resolver, path *field.Path, o *OpenBao) {
	if o.TLS != nil {
		r.path(path.Child("tls", "caFile"), &o.TLS.CAFile)
	}
	resolveSecret(r, path.Child("token"), &o.Token)
	for i := range o.UnsealKeys {
		resolveSecret(r, path.Child("unsealKeys").Index(i), &o.UnsealKeys[i])
	}
}

// resolveSecret makes paths absolute; a program without a slash is searched for in PATH.
func resolveSecret(r *resolver, path *field.Path, s *Secret) {
	r.path(path.Child("file"), &s.File)
	if len(s.Command) > 0 && strings.Contains(s.Command[0], "/") {
		r.path(path.Child("command").Index(0), &s.Command[0])
	}
}

var (
	wordPattern  = regexp.MustCompile(`[A-Za-z0-9+/._-]+=*`)
	tokenPattern = regexp.MustCompile(`^(hv)?[sbr]\.[A-Za-z0-9_-]{20,}(\.[A-Za-z0-9]+)?$`)
)

// hideSecrets puts dots in place of what looks like a token or unseal key of OpenBao or Vault.
func hideSecrets(s string) string {
	return wordPattern.ReplaceAllStringFunc(s, func(word string) string {
		if isSecret(word) {
			return "…"
		}
		return word
	})
}

// isSecret recognises tokens, and unseal keys in hexadecimal and base64. Paths of the same length and letters as a key are left
// alone: they begin with a slash, or lack one kind of letter.
func isSecret(word string) bool {
	if tokenPattern.MatchString(word) {
		return true
	}
	key, err := hex.DecodeString(word)
	if err != nil {
		if strings.HasPrefix(word, "/") || strings.Contains(word, "//") || !hasEachKind(word) {
			return false
		}
		key, err = base64.StdEncoding.DecodeString(word)
	}
	// 32 bytes are a whole key, a share has one more.
	return err == nil && (len(key) == 32 || len(key) == 33)
}

func hasEachKind(word string) bool {
	return strings.ContainsFunc(word, unicode.IsLower) && strings.ContainsFunc(word, unicode.IsUpper) && strings.ContainsFunc(word, unicode.IsDigit)
}
