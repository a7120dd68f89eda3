package main

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/backup/index"
)

// makeset makes a backup set in a directory, and the private keys that open it: age.key,
// and locked, an SSH key with the passphrase "secret"; other.key opens nothing.
//
// No host is there to take volumes from, so their archives are made by hand:
// pvc-1 was taken completely, of pvc-2 there is the full pass alone.
func makeset(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: makeset DIR")
	}
	save := func(name, text string) { ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600)) }
	own, err := age.GenerateX25519Identity()
	ts.Check(err)
	save("age.key", own.String()+"\n")
	other, err := age.GenerateX25519Identity()
	ts.Check(err)
	save("other.key", other.String()+"\n")
	pub, private, err := ed25519.GenerateKey(rand.Reader)
	ts.Check(err)
	block, err := ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte("secret"))
	ts.Check(err)
	save("locked", string(pem.EncodeToMemory(block)))
	sshPub, err := ssh.NewPublicKey(pub)
	ts.Check(err)
	authorized := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshPub))) + " ana@laptop"

	set, err := backup.Open(ts.MkAbs(args[0]), []string{own.Recipient().String(), authorized}, nil)
	ts.Check(err)
	put := func(name string, kind backup.Kind, text string, meta map[string]string) backup.Artifact {
		w, err := set.Create(name, kind, backup.Compressed())
		ts.Check(err)
		defer w.Abort()
		_, err = io.WriteString(w, text)
		ts.Check(err)
		a, err := w.Commit(meta)
		ts.Check(err)
		return a
	}
	put("tls-secrets", backup.KindSecrets, `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"shop-tls"}}`+"\n", nil)
	put("objects", backup.KindObjects, `{"apiVersion":"v1","kind":"Node","metadata":{"name":"dedi"}}`+"\n", nil)
	put("k3s/node-password", backup.KindFile, "hunter2\n", nil)
	noise := make([]byte, 600<<10) // several pieces, of which the first come out before the last is read
	_, _ = rand.Read(noise)
	put("k3s/bin", backup.KindFile, string(noise), nil)

	archive := func(name string, meta map[string]string, members ...string) backup.Artifact {
		var out, list bytes.Buffer
		w, l := tar.NewWriter(&out), index.NewWriter(&list)
		for _, m := range members {
			file, text, _ := strings.Cut(m, "=")
			ts.Check(w.WriteHeader(&tar.Header{Name: "./" + file, Mode: 0o600, Size: int64(len(text)), ModTime: time.Unix(1, 0)}))
			_, err := io.WriteString(w, text)
			ts.Check(err)
			sum := sha256.Sum256([]byte(text))
			ts.Check(l.Write(index.Member{Path: file, Type: 'f', Size: int64(len(text)), Sum: hex.EncodeToString(sum[:])}.Record()))
		}
		ts.Check(w.Close())
		put(backup.ListName(name), backup.KindList, list.String(), nil)
		return put(name, backup.KindTar, out.String(), meta)
	}
	one := backup.VolumeRef{ID: "pvc-1", Path: "/var/lib/rancher/k3s/storage/pvc-1", Claim: "data/store"}
	meta := map[string]string{backup.MetaPath: one.Path, backup.MetaClaim: one.Claim}
	full := archive(one.Full(), meta, "changed=before", "gone=gone", "kept=kept")
	delta := archive(one.Delta(), map[string]string{"full": full.ContentSHA256}, "changed=after", "new=new")
	var entries bytes.Buffer
	w := index.NewWriter(&entries)
	for _, m := range []string{"changed=after", "kept=kept", "new=new"} {
		file, text, _ := strings.Cut(m, "=")
		ts.Check(w.Write(index.Entry{Path: file, Type: 'f', Size: strconv.Itoa(len(text))}.Lasting()))
	}
	put(one.Index(), backup.KindIndex, entries.String(), map[string]string{"full": full.ContentSHA256, "delta": delta.ContentSHA256, backup.MetaEntries: "3"})
	two := backup.VolumeRef{ID: "pvc-2", Path: "/srv/pvc-2"}
	archive(two.Full(), map[string]string{backup.MetaPath: two.Path}, "file=hot")
}
