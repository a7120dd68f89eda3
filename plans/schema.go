package plans

import (
	"bytes"
	_ "embed"
)

//go:generate go test -run ^TestSchemaIsCurrent$ -update .

//go:embed schema.json
var schema []byte

// Schema is the JSON schema (draft 2020-12) of plan files, for editors and other programs. What only
// Load can judge (families, masks, overlaps, files) is left to Load.
func Schema() ([]byte, error) { return bytes.Clone(schema), nil }
