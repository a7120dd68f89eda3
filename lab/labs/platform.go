package labs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sunbeam.pt/k3s-dualstack/lab/engine"
	"sunbeam.pt/k3s-dualstack/lab/parts"
)

// Platform says what is deployed on the node.
type Platform struct {
	// From is "demo" (the lab's own), "none", or a directory with an executable
	// named platform, or else of manifests.
	From string
	// StoreMiB is how much the demo's store keeps on its large volume.
	StoreMiB int
}

// check resolves a directory before anything is made.
func (p *Platform) check() error {
	switch p.From {
	case "demo", "none":
		return nil
	}
	info, err := os.Stat(p.From)
	if err != nil {
		return fmt.Errorf("taking the platform from a directory (--platform takes a directory, demo or none): %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("taking the platform from %s: not a directory", p.From)
	}
	p.From, err = filepath.Abs(p.From)
	return err
}

// deploy fills in the platform's command and runs it, as a person would once the node
// is up.
func (l *Lab) deploy(ctx context.Context, platform Platform, shop *parts.Shop, say func(string, ...any)) error {
	dir := platform.From
	l.PlatformEnvironment = map[string]string{"KUBECTL": l.Kubectl}
	switch dir {
	case "none":
		l.PlatformEnvironment = nil
		return nil
	case "demo":
		dir = filepath.Join(shop.Source, "platform")
		l.PlatformEnvironment["STORE_MIB"] = fmt.Sprint(platform.StoreMiB)
		if err := l.issueCertificate(ctx); err != nil {
			return err
		}
		l.OpenBao = &OpenBao{
			Namespace: "openbao", Sentinel: sentinel,
			Token: filepath.Join(l.StateDir, "openbao", "token"), Keys: filepath.Join(l.StateDir, "openbao", "keys"),
		}
	}
	l.Platform = []string{filepath.Join(dir, "platform"), "up"}
	if _, err := os.Stat(l.Platform[0]); errors.Is(err, fs.ErrNotExist) {
		l.Platform = []string{l.Kubectl, "apply", "--recursive", "--filename", dir}
	}
	say("platform: %s", strings.Join(l.Platform, " "))
	cmd := exec.CommandContext(ctx, l.Platform[0], l.Platform[1:]...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+l.Kubeconfig)
	for _, key := range slices.Sorted(maps.Keys(l.PlatformEnvironment)) {
		cmd.Env = append(cmd.Env, key+"="+l.PlatformEnvironment[key])
	}
	// The command ends only when OpenBao is ready, which somebody makes it meanwhile.
	meanwhile, stop := context.WithCancel(ctx)
	defer stop()
	initialised := make(chan error, 1)
	go func() {
		if l.OpenBao == nil {
			initialised <- nil
			return
		}
		initialised <- l.initialiseOpenBao(meanwhile)
	}()
	out, err := cmd.CombinedOutput()
	if err != nil {
		stop() // what fails then is no reason of its own
		err = fmt.Errorf("deploying the platform: %w: %s", err, engine.Tail(out))
	}
	if other := <-initialised; !errors.Is(other, context.Canceled) {
		err = errors.Join(err, other)
	}
	return err
}

// certificateValidity is that of the certificates that Let's Encrypt gives.
const certificateValidity = 90 * 24 * time.Hour

// issueCertificate makes the proxy's certificate and its secret, as cert-manager
// would have, long before: no manifest of the platform brings it back.
func (l *Lab) issueCertificate(ctx context.Context) error {
	certificate, key, err := selfSigned(sunbeamName, "*."+sunbeamName)
	if err != nil {
		return fmt.Errorf("making the proxy's certificate: %w", err)
	}
	type object = map[string]any
	list := object{"apiVersion": "v1", "kind": "List", "items": []object{
		{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": "ingress"}},
		{"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
			"metadata": object{
				"name": "pingora-tls", "namespace": "ingress",
				"labels": object{"controller.cert-manager.io/fao": "true"},
				"annotations": object{
					"cert-manager.io/alt-names":        sunbeamName + ",*." + sunbeamName,
					"cert-manager.io/certificate-name": "pingora-tls",
					"cert-manager.io/common-name":      sunbeamName,
					"cert-manager.io/ip-sans":          "",
					"cert-manager.io/issuer-group":     "cert-manager.io",
					"cert-manager.io/issuer-kind":      "ClusterIssuer",
					"cert-manager.io/issuer-name":      "letsencrypt-production",
					"cert-manager.io/uri-sans":         "",
				},
			},
			"data": object{"tls.crt": certificate, "tls.key": key}},
	}}
	data, err := json.Marshal(list)
	if err != nil {
		return err
	}
	_, err = l.kubectl(ctx, bytes.NewReader(data), "create", "--filename", "-")
	return err
}

func selfSigned(names ...string) (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certificateValidity),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}
