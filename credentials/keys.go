package credentials

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"sunbeam.pt/k3s-dualstack/plans"
)

// Keys gets the unseal keys that list points to, in its order and each once. A source
// gives one key a line, or what `bao operator init` printed, as text or as JSON. Errors
// begin with field and the source's place in the list.
func (r *Reader) Keys(ctx context.Context, field string, list []plans.Secret) ([]string, error) {
	var keys []string
	seen := map[string]bool{} // by content: hexadecimal and base64 of the same are one key
	for i, s := range list {
		field := fmt.Sprintf("%s[%d]", field, i)
		data, err := r.value(ctx, field, s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
		found, err := keysIn(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %s %w", field, s, err)
		}
		for j, key := range found {
			content, err := decodeKey(key)
			if err != nil {
				return nil, fmt.Errorf("%s: what %s gives as key %d of %d %w", field, s, j+1, len(found), err)
			}
			if !seen[string(content)] {
				seen[string(content)] = true
				keys = append(keys, key)
			}
		}
	}
	return keys, nil
}

var printedKey = regexp.MustCompile(`(?m)^[ \t]*Unseal Key \d+:[ \t]*(\S+)[ \t]*\r?$`)

// keysIn finds the keys in what a source gives.
func keysIn(data []byte) ([]string, error) {
	if data[0] == '{' {
		return keysInJSON(data)
	}
	var keys []string
	for _, match := range printedKey.FindAllSubmatch(data, -1) {
		keys = append(keys, string(match[1]))
	}
	if len(keys) > 0 {
		return keys, nil
	}
	for line := range bytes.Lines(data) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			keys = append(keys, string(line))
		}
	}
	return keys, nil
}

func keysInJSON(data []byte) ([]string, error) {
	var printed struct {
		// Of `bao operator init -format=json`.
		UnsealBase64   []string `json:"unseal_keys_b64"`
		UnsealHex      []string `json:"unseal_keys_hex"`
		RecoveryBase64 []string `json:"recovery_keys_b64"`
		// Of the API's sys/init.
		Base64 []string `json:"keys_base64"`
		Hex    []string `json:"keys"`
	}
	// The JSON library quotes what it cannot read.
	if json.Unmarshal(data, &printed) != nil {
		return nil, errors.New("begins like JSON but is not what `bao operator init -format=json` prints; put the keys there, one a line")
	}
	for _, keys := range [][]string{printed.UnsealBase64, printed.UnsealHex, printed.Base64, printed.Hex} {
		if len(keys) > 0 {
			return keys, nil
		}
	}
	if len(printed.RecoveryBase64) > 0 {
		return nil, errors.New("holds recovery keys, which unseal nothing: such a server unseals itself; remove the source")
	}
	return nil, errors.New("holds no unseal keys; point to what `bao operator init -format=json` printed, or to the keys, one a line")
}

// decodeKey reads a key as servers do: hexadecimal, else base64. A whole key has 32 bytes, a
// share one more.
func decodeKey(key string) ([]byte, error) {
	content, err := hex.DecodeString(key)
	if err != nil {
		content, err = base64.StdEncoding.DecodeString(key)
	}
	switch {
	case err != nil:
		return nil, errors.New("is no unseal key: neither hexadecimal nor base64; put the keys there one a line, and nothing else")
	case len(content) != 32 && len(content) != 33:
		return nil, fmt.Errorf("is no unseal key: it has %d bytes, not 32 or 33; look whether it was cut off, and decrypt it first if it is encrypted", len(content))
	}
	return content, nil
}
