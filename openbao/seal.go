package openbao

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"google.golang.org/protobuf/encoding/protowire"
)

// What a server's storage holds of its seal. Read in the sources of Vault
// 1.14 and of OpenBao 2.0 to 2.6 (August 2026), where all of it is the same but
// for two things: 2.6 no longer writes stored_shares into core/seal-config, and
// since 2.1 nothing opens a seal without core/hsm/barrier-unseal-keys (Vault
// before 1.3, never rekeyed since). A namespace with a seal of its own (2.6) has the
// same entries under namespaces/UUID/.
const (
	// JSON, not encrypted.
	sealConfigEntry = "core/seal-config"
	// The root key: a BlobInfo of go-kms-wrapping, encrypted by the key that the
	// unseal keys are shares of.
	rootKeyEntry = "core/hsm/barrier-unseal-keys"
	// The keys of all other entries, encrypted by the root key.
	keyringEntry = "core/keyring"
)

const (
	shamir = "shamir"
	// The key that is shared out is always as long: AES-256.
	keyLength = 32
	// As many choices of keys are tried to find the wrong ones, no more: enough
	// for any 5 of 15.
	maxCombinations = 5000
)

// Seal is what a server's storage says of how it is unsealed, with what it
// takes to prove unseal keys.
type Seal struct {
	// Type is shamir, or what unseals the server by itself, such as awskms,
	// transit or static.
	Type string
	// Shares is how many unseal keys there are, Threshold how many it takes.
	Shares, Threshold int

	rootKey, keyring []byte // encrypted
}

// newSeal makes sense of the entries of a server's storage.
func newSeal(entries map[string][]byte) (*Seal, error) {
	for _, needed := range []struct{ entry, what string }{
		{sealConfigEntry, "how the server is unsealed"},
		{keyringEntry, "the keyring that all else is encrypted by"},
		{rootKeyEntry, "the root key that opens the keyring; a server from before Vault 1.3 has it only after a rekey"},
	} {
		if len(entries[needed.entry]) == 0 {
			return nil, fmt.Errorf("%s is missing (%s)", needed.entry, needed.what)
		}
	}
	var config struct {
		Type      string `json:"type"`
		Shares    int    `json:"secret_shares"`
		Threshold int    `json:"secret_threshold"`
	}
	if err := json.Unmarshal(entries[sealConfigEntry], &config); err != nil {
		return nil, fmt.Errorf("%s: %w", sealConfigEntry, err)
	}
	if config.Type == "" {
		config.Type = shamir
	}
	if config.Type == shamir && (config.Threshold < 1 || config.Threshold > config.Shares || config.Shares > 255 || config.Threshold == 1 && config.Shares > 1) {
		return nil, fmt.Errorf("%s: a threshold of %d for %d unseal keys cannot be", sealConfigEntry, config.Threshold, config.Shares)
	}
	seal := &Seal{Type: config.Type, Shares: config.Shares, Threshold: config.Threshold, keyring: entries[keyringEntry]}
	if seal.Type == shamir {
		var err error
		if seal.rootKey, err = blob(entries[rootKeyEntry]); err != nil {
			return nil, fmt.Errorf("%s: %w", rootKeyEntry, err)
		}
	}
	return seal, nil
}

// ReadFileStorage reads the seal of a server with file storage. read gives a
// file by its path below the storage's directory, such as core/_keyring, and
// fs.ErrNotExist when there is none.
func ReadFileStorage(read func(name string) ([]byte, error)) (*Seal, error) {
	entries := map[string][]byte{}
	for _, entry := range []string{sealConfigEntry, rootKeyEntry, keyringEntry} {
		directory, base := path.Split(entry)
		file := directory + "_" + base
		data, err := read(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading OpenBao's file storage: %w", err)
		}
		var content struct{ Value []byte }
		// A full disk leaves empty files behind, which the server takes for none.
		if len(data) > 0 {
			if err := json.Unmarshal(data, &content); err != nil {
				return nil, fmt.Errorf("reading OpenBao's file storage: %s: %w", file, err)
			}
		}
		entries[entry] = content.Value
	}
	seal, err := newSeal(entries)
	if err != nil {
		return nil, fmt.Errorf("OpenBao's file storage: %w; check that this is the directory that the server's storage is configured with", err)
	}
	return seal, nil
}

// Prove tells whether the keys unseal the server: as many as the threshold
// asks for, hex or base64, as `bao operator unseal` takes them. All keys must be right,
// also those that are more than it takes. The error is a [*WrongKeysError], a
// [*TooFewKeysError] or an [*AutoSealError] where one of these says what is wrong.
func (s *Seal) Prove(keys []string) error {
	_, err := s.open(keys)
	return err
}

// open returns the key that the unseal keys are shares of.
func (s *Seal) open(keys []string) ([]byte, error) {
	if s.Type != shamir {
		return nil, &AutoSealError{Type: s.Type}
	}
	shares, err := s.decode(keys)
	if err != nil {
		return nil, err
	}
	if len(shares) < s.Threshold {
		return nil, &TooFewKeysError{Have: len(shares), Need: s.Threshold}
	}
	key, wrong := s.search(shares)
	switch {
	case key == nil:
		return nil, &WrongKeysError{Given: len(keys)}
	case len(wrong) > 0:
		return nil, &WrongKeysError{Wrong: wrong, Given: len(keys)}
	}
	if err := s.openKeyring(key); err != nil {
		return nil, fmt.Errorf("the unseal keys are right, but what they open is damaged: %w; take it again", err)
	}
	return key, nil
}

// decode turns unseal keys into shares as the server does, which takes for
// base64 what is hex of a length that no key has.
func (s *Seal) decode(keys []string) ([][]byte, error) {
	length := keyLength + 1
	if s.Threshold == 1 {
		length = keyLength
	}
	var shares [][]byte
	for i, key := range keys {
		wrong := func(format string, args ...any) error {
			return &WrongKeysError{Wrong: []int{i + 1}, Given: len(keys), Reason: fmt.Sprintf(format, args...)}
		}
		share, err := hex.DecodeString(key)
		if err != nil || len(share) != length {
			share, err = base64.StdEncoding.DecodeString(key)
		}
		switch {
		case key == "":
			return nil, wrong("is empty")
		case err != nil:
			return nil, wrong("is neither hex nor base64")
		case len(share) != length:
			return nil, wrong("has %d bytes, and this server's have %d", len(share), length)
		}
		for j, other := range shares {
			if bytes.Equal(other[:length], share) {
				return nil, wrong("is the same as key %d", j+1)
			}
		}
		if s.Threshold == 1 {
			// The key is the only share of itself and has no number.
			share = append(share, byte(i+1))
		}
		shares = append(shares, share)
	}
	return shares, nil
}

// search finds shares that open the root key together, in the order in which
// an unseal would use them, and which of all shares do not belong to these. It
// returns what they are shares of, nil when no choice of them opens it.
func (s *Seal) search(shares [][]byte) (key []byte, wrong []int) {
	chosen := make([][]byte, s.Threshold)
	places := make([]int, s.Threshold)
	for i := range places {
		places[i] = i
	}
	for range maxCombinations {
		for i, place := range places {
			chosen[i] = shares[place]
		}
		key = interpolate(chosen, 0)
		if _, err := decrypt(key, s.rootKey, nil); err == nil {
			for i, share := range shares {
				if !bytes.Equal(interpolate(chosen, number(share)), share[:len(share)-1]) {
					wrong = append(wrong, i+1)
				}
			}
			return key, wrong
		}
		if !nextCombination(places, len(shares)) {
			break
		}
	}
	return nil, nil
}

// nextCombination makes of ascending places the next ones below n, and tells
// whether there are any.
func nextCombination(places []int, n int) bool {
	for i := len(places) - 1; i >= 0; i-- {
		if places[i] < n-len(places)+i {
			places[i]++
			for j := i + 1; j < len(places); j++ {
				places[j] = places[j-1] + 1
			}
			return true
		}
	}
	return false
}

// openKeyring opens the root key by the key that the unseal keys are shares of,
// and the keyring by the root key.
func (s *Seal) openKeyring(key []byte) error {
	plain, err := decrypt(key, s.rootKey, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", rootKeyEntry, err)
	}
	var rootKeys [][]byte
	if json.Unmarshal(plain, &rootKeys) != nil || len(rootKeys) != 1 {
		return fmt.Errorf("%s does not hold one root key", rootKeyEntry)
	}
	plain, err = openBarrier(keyringEntry, s.keyring, rootKeys[0])
	if err != nil {
		return err
	}
	var keyring struct {
		MasterKey []byte
		Keys      []struct {
			Term  uint32
			Value []byte
		}
	}
	if json.Unmarshal(plain, &keyring) != nil || !bytes.Equal(keyring.MasterKey, rootKeys[0]) || len(keyring.Keys) == 0 {
		return fmt.Errorf("%s is no keyring of this root key", keyringEntry)
	}
	for _, key := range keyring.Keys {
		if len(key.Value) != keyLength {
			return fmt.Errorf("%s: the key of term %d has %d bytes instead of %d", keyringEntry, key.Term, len(key.Value), keyLength)
		}
	}
	return nil
}

// openBarrier decrypts an entry of the storage: the term of its key, the version
// of the encryption, a nonce, what is encrypted.
func openBarrier(entry string, value, key []byte) ([]byte, error) {
	const head = 4 + 1
	if len(value) < head {
		return nil, fmt.Errorf("%s is cut off", entry)
	}
	var bound []byte
	switch version := value[4]; version {
	case 1:
	case 2: // bound to its place
		bound = []byte(entry)
	default:
		return nil, fmt.Errorf("%s is encrypted in a way that is not known here (version %d)", entry, version)
	}
	plain, err := decrypt(key, value[head:], bound)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", entry, err)
	}
	return plain, nil
}

// blob returns what a BlobInfo holds of a seal's own key: a nonce and what is encrypted.
func blob(info []byte) ([]byte, error) {
	const ciphertext = 1
	var data []byte
	for len(info) > 0 {
		field, kind, tag := protowire.ConsumeTag(info)
		if tag < 0 {
			return nil, noEOF(protowire.ParseError(tag))
		}
		value := protowire.ConsumeFieldValue(field, kind, info[tag:])
		if value < 0 {
			return nil, noEOF(protowire.ParseError(value))
		}
		if field == ciphertext && kind == protowire.BytesType {
			data, _ = protowire.ConsumeBytes(info[tag:])
		}
		info = info[tag+value:]
	}
	if len(data) == 0 {
		return nil, errors.New("it holds nothing encrypted")
	}
	return data, nil
}

// decrypt opens AES-GCM after its nonce.
func decrypt(key, data, bound []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	if len(data) < gcm.NonceSize() {
		return nil, errors.New("it is cut off")
	}
	return gcm.Open(nil, data[:gcm.NonceSize()], data[gcm.NonceSize():], bound)
}
