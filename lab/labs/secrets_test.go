package labs

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
)

func TestNamesOfSecretsSurviveTheirURL(t *testing.T) {
	for _, path := range []string{"a/b", "with space/x", "100%", "a%2Fb", "why?", "c#d", "a+b", "日本語/🔑", "x&y=z;w"} {
		parsed, err := url.Parse("http://openbao/v1/" + escape(path))
		if err != nil || parsed.Path != "/v1/"+path || parsed.RawQuery != "" || parsed.Fragment != "" {
			t.Errorf("%q: got %+v, %v", path, parsed, err)
		}
	}
}

func TestEveryLabHasTheSameSecrets(t *testing.T) {
	if !reflect.DeepEqual(contents(), contents()) {
		t.Error("the contents differ from one call to the next")
	}
	written := map[string]bool{}
	for _, r := range contents() {
		written[r.path] = true
	}
	for _, path := range []string{"secret/data/sentinel", "secret/data/names/a%252Fb", "secret/destroy/versions/all-destroyed", "team/apps/data/frontend", "legacy/app/db"} {
		if !written[path] {
			t.Errorf("nothing is written to %s", path)
		}
	}
}

// The answers are such as Vault 1.14 gives.
func TestDumpGoesIntoDirectoriesAndDeletedVersions(t *testing.T) {
	type answer struct {
		status int
		body   string
	}
	answers := map[string]answer{
		"sys/mounts":                      {200, `{"data":{"secret/":{"type":"kv","options":{"version":"2"}},"legacy/":{"type":"kv","options":{"version":"1"}},"sys/":{"type":"system","options":null}}}`},
		"secret/config":                   {200, `{"data":{"max_versions":0}}`},
		"secret/metadata/?list=true":      {200, `{"data":{"keys":["a","a/"]}}`},
		"secret/metadata/a/?list=true":    {200, `{"data":{"keys":["b c"]}}`},
		"secret/metadata/a":               {200, `{"data":{"versions":{}}}`},
		"secret/metadata/a/b%20c":         {200, `{"data":{"versions":{"9":{},"10":{}}}}`},
		"secret/data/a/b%20c?version=9":   {404, `{"data":{"data":null,"metadata":{"version":9}},"warnings":null}`},
		"secret/data/a/b%20c?version=10":  {200, `{"data":{"data":{"n":9007199254740993},"metadata":{"version":10}}}`},
		"legacy/?list=true":               {404, `{"errors":[]}`},
		"sys/policies/acl/?list=true":     {200, `{"data":{"keys":["default"]}}`},
		"sys/policies/acl/default":        {200, `{"data":{"policy":""}}`},
		"auth/approle/role/?list=true":    {404, `{"errors":[]}`},
		"auth/kubernetes/role/?list=true": {404, `{"errors":[]}`},
		"sys/auth":                        {200, `{"data":{}}`},
		"auth/kubernetes/config":          {200, `{"data":{}}`},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, ok := answers[strings.TrimPrefix(r.RequestURI, "/v1/")]
		if !ok || r.Header.Get("X-Vault-Token") != "t" {
			t.Errorf("an unexpected request for %s", r.RequestURI)
			given.status = http.StatusBadRequest
		}
		w.WriteHeader(given.status)
		_, _ = w.Write([]byte(given.body))
	}))
	defer server.Close()
	b := bao{http: server.Client(), url: server.URL, token: "t", close: func() {}}
	var out strings.Builder
	if err := b.dump(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`{"path":"secret/metadata/a","data":{"versions":{}}}`,
		`{"path":"secret/metadata/a/b c","data":{"versions":{"9":{},"10":{}}}}`,
		`{"path":"secret/data/a/b c?version=9","data":{"data":null,"metadata":{"version":9}}}`,
		`{"path":"secret/data/a/b c?version=10","data":{"data":{"n":9007199254740993},"metadata":{"version":10}}}`,
		`{"path":"sys/policies/acl/default"`,
	}
	rest := out.String()
	for _, line := range want {
		_, after, found := strings.Cut(rest, line)
		if !found {
			t.Fatalf("%s is missing or out of order in\n%s", line, out.String())
		}
		rest = after
	}
	if strings.Contains(out.String(), `{"path":"legacy/`) {
		t.Error("an empty mount has secrets")
	}

	answers["sys/mounts"] = answer{503, `{"errors":["Vault is sealed"]}`}
	err := b.dump(t.Context(), &out)
	var refused *refusal
	if !errors.As(err, &refused) || refused.status != 503 || !strings.Contains(err.Error(), "Vault is sealed") {
		t.Errorf("got %v", err)
	}
}

func TestUnsealTakesNoMoreKeysThanNeeded(t *testing.T) {
	var keys int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/sys/unseal":
			keys++
			if keys < 3 {
				_, _ = w.Write([]byte(`{"initialized":true,"sealed":true}`))
				return
			}
			_, _ = w.Write([]byte(`{"initialized":true,"sealed":false}`))
		case "/v1/sys/health":
			_, _ = w.Write([]byte(`{}`))
		}
	}))
	defer server.Close()
	b := bao{http: server.Client(), url: server.URL, close: func() {}}
	if err := b.unseal(t.Context(), []string{"1", "2", "3", "4", "5"}); err != nil || keys != 3 {
		t.Errorf("got %v after %d keys", err, keys)
	}
	keys = 0
	if err := b.unseal(t.Context(), []string{"1", "2"}); err == nil || !strings.Contains(err.Error(), "still sealed after 2 keys") {
		t.Errorf("got %v", err)
	}
}
