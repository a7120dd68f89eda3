package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// authorities are the CAs of a K3s server, as names below server/tls without
// extension, and what their certificates are called.
var authorities = []struct{ file, name string }{
	{"server-ca", "k3s-server-ca"},
	{"client-ca", "k3s-client-ca"},
	{"request-header-ca", "k3s-request-header-ca"},
	{"etcd/server-ca", "etcd-server-ca"},
	{"etcd/peer-ca", "etcd-peer-ca"},
}

// identityFiles are the files below server/ that make a cluster's identity and
// that the datastore therefore keeps.
func identityFiles() []string {
	list := []string{"tls/service.key", "cred/passwd"}
	for _, a := range authorities {
		list = append(list, "tls/"+a.file+".crt", "tls/"+a.file+".key")
	}
	return list
}

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	// renewBefore is when K3s renews a certificate at a start.
	renewBefore = 120 * 24 * time.Hour
)

// ensureAuthorities makes the CAs and the service account key that are not
// there. A CA of which only one half lies there is an error: to replace either
// half would cut off every client.
func ensureAuthorities(tls string, now time.Time) error {
	for _, a := range authorities {
		crt, key := filepath.Join(tls, a.file+".crt"), filepath.Join(tls, a.file+".key")
		haveCrt, haveKey := exists(crt), exists(key)
		switch {
		case haveCrt && haveKey:
			if _, err := loadAuthority(crt, key); err != nil {
				return err
			}
			continue
		case haveCrt != haveKey:
			return fmt.Errorf("only one of %s and %s exists: put the other beside it, or remove it to have a new CA", crt, key)
		}
		if err := os.MkdirAll(filepath.Dir(crt), 0o700); err != nil {
			return fmt.Errorf("make the CA %s: %w", a.file, err)
		}
		priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return fmt.Errorf("make the CA %s: %w", a.file, err)
		}
		t := &x509.Certificate{
			SerialNumber: serial(),
			Subject:      pkix.Name{CommonName: fmt.Sprintf("%s@%d", a.name, now.Unix())},
			NotBefore:    now.Add(-time.Minute), NotAfter: now.Add(caLife),
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
			IsCA:     true, BasicConstraintsValid: true,
		}
		der, err := x509.CreateCertificate(rand.Reader, t, t, priv.Public(), priv)
		if err != nil {
			return fmt.Errorf("make the CA %s: %w", a.file, err)
		}
		if err := writePair(crt, key, encode("CERTIFICATE", der), priv); err != nil {
			return err
		}
	}
	path := filepath.Join(tls, "service.key")
	if exists(path) {
		return nil
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("make the service account key: %w", err)
	}
	return write(path, encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)), 0o600)
}

// authority is a CA that can sign.
type authority struct {
	cert  *x509.Certificate
	chain []byte // the file: the CA and whatever stands behind it
	key   crypto.Signer
}

func loadAuthority(crt, key string) (*authority, error) {
	chain, err := os.ReadFile(crt)
	if err != nil {
		return nil, fmt.Errorf("load a CA: %w", err)
	}
	cert, err := firstCertificate(chain)
	if err != nil {
		return nil, fmt.Errorf("load the CA %s: %w", crt, err)
	}
	data, err := os.ReadFile(key)
	if err != nil {
		return nil, fmt.Errorf("load a CA: %w", err)
	}
	signer, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("load the key %s: %w", key, err)
	}
	if pub, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of %s", key, crt)
	}
	return &authority{cert, chain, signer}, nil
}

func firstCertificate(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("it holds no PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

func parseKey(data []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			return nil, errors.New("it holds no PEM private key")
		}
		if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
			return key, nil
		}
		if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
			return key, nil
		}
		if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			if signer, ok := key.(crypto.Signer); ok {
				return signer, nil
			}
		}
	}
}

// leaf describes a certificate to have at base.crt and base.key.
type leaf struct {
	base   string
	cn     string
	org    string
	server bool
	names  []string
	ips    []net.IP
}

// ensure keeps a certificate that is still good and makes it anew otherwise.
func (a *authority) ensure(l leaf, now time.Time) error {
	crt, key := l.base+".crt", l.base+".key"
	if a.good(l, now) {
		return nil
	}
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the certificate %s: %w", crt, err)
	}
	t := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: l.cn},
		NotBefore:    now.Add(-time.Minute), NotAfter: now.Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:    l.names, IPAddresses: l.ips,
	}
	if l.org != "" {
		t.Subject.Organization = []string{l.org}
	}
	if l.server {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, priv.Public(), a.key)
	if err != nil {
		return fmt.Errorf("make the certificate %s: %w", crt, err)
	}
	return writePair(crt, key, append(encode("CERTIFICATE", der), a.chain...), priv)
}

func (a *authority) good(l leaf, now time.Time) bool {
	data, err := os.ReadFile(l.base + ".crt")
	if err != nil || !exists(l.base+".key") {
		return false
	}
	cert, err := firstCertificate(data)
	if err != nil || cert.CheckSignatureFrom(a.cert) != nil || now.After(cert.NotAfter.Add(-renewBefore)) || cert.Subject.CommonName != l.cn {
		return false
	}
	for _, n := range l.names {
		if !slices.Contains(cert.DNSNames, n) {
			return false
		}
	}
	for _, ip := range l.ips {
		if !slices.ContainsFunc(cert.IPAddresses, ip.Equal) {
			return false
		}
	}
	return true
}

// caHash is the middle part of a K10 token: how a joining node recognises the
// server's CA.
func caHash(serverCA []byte) string {
	sum := sha256.Sum256(serverCA)
	return hex.EncodeToString(sum[:])
}

// kubeconfig is a client configuration with everything inline.
func kubeconfig(ca, cert, key string) ([]byte, error) {
	var parts [3]string
	for i, path := range []string{ca, cert, key} {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("write a kubeconfig: %w", err)
		}
		parts[i] = base64.StdEncoding.EncodeToString(data)
	}
	return fmt.Appendf(nil, `apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: %s
    server: https://127.0.0.1:6443
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
users:
- name: default
  user:
    client-certificate-data: %s
    client-key-data: %s
`, parts[0], parts[1], parts[2]), nil
}

func serial() *big.Int {
	n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 62)) // the reader does not fail
	return n
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func writePair(crt, key string, cert []byte, priv *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(priv)
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	if err := write(key, encode("EC PRIVATE KEY", der), 0o600); err != nil {
		return err
	}
	return write(crt, cert, 0o644)
}

// write puts data at path whole or not at all; an equal file is left alone.
func write(path string, data []byte, mode fs.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return os.Chmod(path, mode)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
