package remote

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestQuote(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, ""},
		{[]string{""}, "''"},
		{[]string{"/var/lib/rancher", "a-b_c.d:e,f@g%h+i"}, "/var/lib/rancher a-b_c.d:e,f@g%h+i"},
		{[]string{"two words"}, "'two words'"},
		{[]string{"it's"}, `'it'\''s'`},
		{[]string{"$(rm -rf /)", "`id`", "a=b", "~", "*"}, "'$(rm -rf /)' '`id`' 'a=b' '~' '*'"},
		{[]string{"line\nline"}, "'line\nline'"},
		{[]string{"ümläut"}, "'ümläut'"},
		{[]string{"nul\x00gone"}, "'nulgone'"},
	} {
		require.Equal(t, c.want, Quote(c.args...))
	}
}

// FuzzQuote sends two words through a real shell.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "'", "''", `\`, `\'`, "$x", "`", "!", "\n", " ", "-n", "%s", "\xff\xfe", "a'b\"c", "#", "=", "~root", "{a,b}", "\r", "\t"} {
		f.Add(s, "second")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		out, err := exec.Command("sh", "-c", "printf '%s\\001' "+Quote(a, b)).Output()
		if err != nil {
			t.Fatal(err)
		}
		want := strings.ReplaceAll(a, "\x00", "") + "\x01" + strings.ReplaceAll(b, "\x00", "") + "\x01"
		if string(out) != want {
			t.Fatalf("%q became %q", want, out)
		}
	})
}
