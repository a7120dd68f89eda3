package verify

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// SecretDigest is the SHA-256, in hexadecimal, of what must survive of a Secret: its type, its data, and the annotations
// by which cert-manager knows that it need not issue anew. It tells equality without telling data, as long as
// the data cannot be guessed: keys cannot.
func SecretDigest(s *corev1.Secret) string {
	h := sha256.New()
	put := func(b []byte) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	put([]byte(s.Type))
	for _, k := range slices.Sorted(maps.Keys(s.Data)) {
		put([]byte("data"))
		put([]byte(k))
		put(s.Data[k])
	}
	for _, k := range slices.Sorted(maps.Keys(s.Annotations)) {
		if strings.HasPrefix(k, "cert-manager.io/") {
			put([]byte("annotation"))
			put([]byte(k))
			put([]byte(s.Annotations[k]))
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// checkSecrets compares the secrets with their digests. Data is neither kept nor shown.
func checkSecrets(ctx context.Context, kube kubernetes.Interface, want map[string]string) ([]Check, error) {
	var out []Check
	for _, name := range slices.Sorted(maps.Keys(want)) {
		namespace, secret, ok := strings.Cut(name, "/")
		if !ok {
			return nil, fmt.Errorf("verify: %q is not namespace/name of a Secret", name)
		}
		s, err := kube.CoreV1().Secrets(namespace).Get(ctx, secret, metav1.GetOptions{})
		const remedy = "put it back from the backup set before cert-manager issues anew"
		switch {
		case apierrors.IsNotFound(err):
			out = append(out, fail(TLSSecrets, name, "", "the Secret is not there", remedy))
		case err != nil:
			return nil, fmt.Errorf("verify: reading Secret %s: %w", name, err)
		case SecretDigest(s) != want[name]:
			out = append(out, fail(TLSSecrets, name, "", "type, data or cert-manager annotations differ from what was backed up",
				"if it was not renewed on purpose, "+remedy))
		default:
			out = append(out, pass(TLSSecrets, name, "", "as it was backed up"))
		}
	}
	return out, nil
}
