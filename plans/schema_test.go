package plans

import (
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/invopop/jsonschema"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite the golden files and the schema")

// golden compares got with a file, or writes the file with -update.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err, "run: go test ./plans -update")
	require.Equal(t, string(want), got, "%s is out of date; run: go test ./plans -update", file)
}

// The schema comes from the types and their comments, which are only at hand here: the program embeds the result.
func TestSchemaIsCurrent(t *testing.T) {
	r := &jsonschema.Reflector{
		ExpandedStruct: true,
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			switch t {
			case durationType:
				return &jsonschema.Schema{Type: "string", Pattern: "^([0-9]+([.][0-9]+)?(ns|us|µs|ms|s|m|h))+$"}
			case reflect.TypeFor[Step]():
				s := &jsonschema.Schema{Type: "string"}
				for _, step := range Steps {
					s.Enum = append(s.Enum, step)
				}
				return s
			}
			return nil
		},
	}
	require.NoError(t, r.AddGoComments("sunbeam.pt/k3s-dualstack/plans", ".", jsonschema.WithFullComment()))
	s := r.Reflect(&Plan{})
	s.ID = "https://dualstack.sunbeam.pt/schemas/v1alpha1/migration.json"
	s.Title = "Plan of a dual-stack migration"
	data, err := json.MarshalIndent(s, "", "  ")
	require.NoError(t, err)
	golden(t, "schema.json", string(data)+"\n")
	if *update {
		return // the embedded one is the one before
	}
	embedded, err := Schema()
	require.NoError(t, err)
	require.JSONEq(t, string(data), string(embedded))
}

func TestSchemaDescribesEveryField(t *testing.T) {
	data, err := Schema()
	require.NoError(t, err)
	var s struct {
		Schema string `json:"$schema"`
		Defs   map[string]struct {
			AdditionalProperties *bool
			Properties           map[string]struct{ Description string }
		} `json:"$defs"`
	}
	require.NoError(t, json.Unmarshal(data, &s))
	require.Equal(t, "https://json-schema.org/draft/2020-12/schema", s.Schema)
	for name, def := range s.Defs {
		require.NotNil(t, def.AdditionalProperties, name)
		require.False(t, *def.AdditionalProperties, name)
		for field, property := range def.Properties {
			require.NotEmpty(t, strings.TrimSpace(property.Description), "%s.%s has no description", name, field)
		}
	}
}
