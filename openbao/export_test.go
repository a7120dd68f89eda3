package openbao_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sunbeam.pt/k3s-dualstack/openbao"
)

const smallExport = `{"head":{"format":1,"time":"2026-01-02T03:04:05Z","server":{"initialised":true,"sealed":false}}}
{"mount":{"path":"secret/","type":"kv","kv":2,"exported":true,"config":{"max_versions":0,"cas_required":false,"delete_version_after":"0s"}}}
{"secret":{"mount":"secret/","path":"a","metadata":{"max_versions":0,"cas_required":false,"delete_version_after":"0s","current_version":2,"oldest_version":0,"created_time":"","updated_time":""},"versions":[{"version":1,"deleted":true},{"version":2,"data":{"v":2}}]}}
{"end":{"mounts":1,"secrets":1,"versions":2,"deleted":1,"destroyed":0}}
`

func TestReadExport(t *testing.T) {
	read := func(s string) (openbao.Summary, error) {
		return openbao.ReadExport(strings.NewReader(s), func(openbao.Record) error { return nil })
	}
	sum, err := read(smallExport)
	require.NoError(t, err)
	require.Equal(t, openbao.Summary{Mounts: 1, Secrets: 1, Versions: 2, Deleted: 1}, sum)
	for _, change := range [][2]string{
		{`"format":1`, `"format":2`}, {`{"head"`, `{"tail"`}, {`"secrets":1`, `"secrets":2`}, {`"version":2`, `"version":1`},
		{`,"deleted":true`, ``}, {`,"data":{"v":2}`, ``}, {`"mount":"secret/"`, `"mount":"secret"`}, {`"path":"a"`, `"path":""`},
		{"\n{\"end\"", "\n{\"head\":{\"format\":1,\"time\":\"2026-01-02T03:04:05Z\",\"server\":{\"initialised\":true,\"sealed\":false}}}\n{\"end\""},
		{"\n{\"end\"", "\n{}\n{\"end\""}, {"\n{\"end\"", "\n\n{\"end\""},
	} {
		require.Contains(t, smallExport, change[0])
		_, err := read(strings.Replace(smallExport, change[0], change[1], 1))
		var damaged *openbao.DamagedExport
		require.ErrorAs(t, err, &damaged, "%q for %q", change[1], change[0])
	}
}

func FuzzReadExport(f *testing.F) {
	f.Add([]byte(smallExport))
	f.Add([]byte(`{"head":{"format":1}}` + "\n" + `{"end":{}}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		secrets := 0
		sum, err := openbao.ReadExport(bytes.NewReader(b), func(r openbao.Record) error {
			if r.Secret != nil {
				secrets++
				r.Secret.Latest()
			}
			return nil
		})
		if err == nil && secrets != sum.Secrets {
			t.Fatalf("%d secrets were shown, and %d counted", secrets, sum.Secrets)
		}
	})
}

func TestCheckVersion(t *testing.T) {
	for _, ok := range [][2]string{{"2.4.1", "2.4.1"}, {"2.5.0", "2.4.9"}, {"", "2.4.1"}, {"2.4.1", "unknown"}} {
		require.NoError(t, openbao.CheckVersion(ok[0], ok[1]))
	}
	var older *openbao.OlderError
	require.ErrorAs(t, openbao.CheckVersion("2.3.2", "2.4.1"), &older)
	require.Equal(t, openbao.OlderError{Server: "2.3.2", Snapshot: "2.4.1"}, *older)
}

func TestNewRefusesAddresses(t *testing.T) {
	for _, address := range []string{"", "bao:8200", "ftp://bao", "http://", "https://user:password@bao:8200", "http://bao/path", "http://bao?x=1", "http://bao#x", "http://[::1"} {
		_, err := openbao.New(openbao.Options{Address: address})
		require.ErrorContains(t, err, "http(s)://host:port", address)
		require.NotContains(t, err.Error(), "password")
	}
	for _, address := range []string{"http://bao", "https://[2001:db8::1]:8200/"} {
		_, err := openbao.New(openbao.Options{Address: address})
		require.NoError(t, err, address)
	}
}
