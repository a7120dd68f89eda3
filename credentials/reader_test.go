package credentials

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"sunbeam.pt/k3s-dualstack/plans"
)

const value = "s.hunter2hunter2hunter2"

func write(t *testing.T, data string, mode os.FileMode) plans.Secret {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte(data), 0o600))
	require.NoError(t, os.Chmod(file, mode))
	return plans.Secret{File: file}
}

func shell(script string) plans.Secret { return plans.Secret{Command: []string{"sh", "-c", script}} }

func kubernetes(data string, err error) *Reader {
	return &Reader{Kubernetes: func(context.Context, plans.SecretKey) ([]byte, error) { return []byte(data), err }}
}

func asking(answer string, err error) *Reader {
	return &Reader{Ask: func(string) ([]byte, error) { return []byte(answer), err }}
}

var (
	inCluster = plans.Secret{Kubernetes: &plans.SecretKey{Namespace: "openbao", Name: "token", Key: "token"}}
	prompted  = plans.Secret{Prompt: true}
)

func TestRead(t *testing.T) {
	t.Setenv("CREDENTIALS_TEST", value)
	t.Setenv("CREDENTIALS_TEST_BLANKS", " \t"+value+"\r\n\n")
	for name, test := range map[string]struct {
		reader *Reader
		secret plans.Secret
	}{
		"variable":                {&Reader{}, plans.Secret{Env: "CREDENTIALS_TEST"}},
		"blanks around":           {&Reader{}, plans.Secret{Env: "CREDENTIALS_TEST_BLANKS"}},
		"file":                    {&Reader{}, write(t, value+"\n", 0o600)},
		"file that a group reads": {&Reader{}, write(t, value, 0o640)},
		"file to read only":       {&Reader{}, write(t, value, 0o400)},
		"answer":                  {asking(value, nil), prompted},
		"command":                 {&Reader{}, plans.Secret{Command: []string{"echo", value}}},
		"command of a pipeline":   {&Reader{}, shell("echo " + value + " | cat")},
		"Kubernetes Secret":       {kubernetes(value+"\n", nil), inCluster},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.reader.Read(t.Context(), "spec.token", test.secret)
			require.NoError(t, err)
			require.Equal(t, value, got)
		})
	}
}

// Every refusal says which field and source it is about and what to do, and none says what
// the source holds.
func TestRefusals(t *testing.T) {
	t.Setenv("CREDENTIALS_TEST_EMPTY", " \n")
	t.Setenv("CREDENTIALS_TEST_LINES", value+"\n"+value)
	t.Setenv("CREDENTIALS_TEST_LARGE", strings.Repeat(value, maxSize/len(value)+1))
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	gone, open, large := plans.Secret{File: filepath.Join(dir, "gone")}, write(t, value, 0o604), write(t, strings.Repeat(value, maxSize/len(value)+1), 0o600)
	utf16, blank := write(t, "\xff\xfes\x00.\x00h\x00", 0o600), write(t, value+" "+value, 0o600)

	for name, test := range map[string]struct {
		reader *Reader
		secret plans.Secret
		want   string
	}{
		"variable unset":  {&Reader{}, plans.Secret{Env: "CREDENTIALS_TEST_UNSET"}, "the environment variable CREDENTIALS_TEST_UNSET is not set; export it and repeat the command"},
		"variable empty":  {&Reader{}, plans.Secret{Env: "CREDENTIALS_TEST_EMPTY"}, "the environment variable CREDENTIALS_TEST_EMPTY gives an empty value; put the token or key there"},
		"several lines":   {&Reader{}, plans.Secret{Env: "CREDENTIALS_TEST_LINES"}, "the environment variable CREDENTIALS_TEST_LINES gives several lines, and one value is wanted; leave that one alone there"},
		"variable large":  {&Reader{}, plans.Secret{Env: "CREDENTIALS_TEST_LARGE"}, "the environment variable CREDENTIALS_TEST_LARGE gives more than 64 KiB, which no token or key is; point to the value alone"},
		"file gone":       {&Reader{}, gone, "there is no file " + gone.File + "; put it there, or correct the path"},
		"file open":       {&Reader{}, open, "the file " + open.File + " is open to every user of this machine (mode 0604); close it with chmod 600, and take what it holds as exposed if others use the machine"},
		"file large":      {&Reader{}, large, "the file " + large.File + " gives more than 64 KiB, which no token or key is; point to the value alone"},
		"file of UTF-16":  {&Reader{}, utf16, "the file " + utf16.File + " gives a value with a blank or a character outside ASCII, which no token or key has; check how it was put there (a text file must not be UTF-16)"},
		"blank inside":    {&Reader{}, blank, "the file " + blank.File + " gives a value with a blank or a character outside ASCII, which no token or key has; check how it was put there (a text file must not be UTF-16)"},
		"directory":       {&Reader{}, plans.Secret{File: dir}, "the file " + dir + " is not a regular file; name one that holds the value"},
		"named pipe":      {&Reader{}, plans.Secret{File: pipe}, "the file " + pipe + " is not a regular file; name one that holds the value"},
		"nobody to ask":   {&Reader{}, prompted, "nobody can be asked, as standard input is no terminal; repeat the command in one, or let the plan point to env, file, command or kubernetes"},
		"no answer":       {asking("", io.EOF), prompted, "asking in the terminal: EOF; repeat the command and answer"},
		"empty answer":    {asking("", nil), prompted, "the terminal gives an empty value; put the token or key there"},
		"command fails":   {&Reader{}, shell("echo " + value[:3] + "; exit 7"), `running the command "sh -c echo s.h; exit 7": exit status 7; repeat it by hand until it prints the value`},
		"command killed":  {&Reader{}, shell("kill -9 $$"), `running the command "sh -c kill -9 $$": signal: killed; repeat it by hand until it prints the value`},
		"command silent":  {&Reader{}, plans.Secret{Command: []string{"true"}}, `the command "true" gives an empty value; put the token or key there`},
		"command endless": {&Reader{}, plans.Secret{Command: []string{"yes"}}, `the command "yes" gives more than 64 KiB, which no token or key is; point to the value alone`},
		"no such program": {&Reader{}, plans.Secret{Command: []string{"no-such-program", "show"}}, `there is no program of that name in PATH for the command "no-such-program show"; install it, or write its path`},
		"no such path":    {&Reader{}, plans.Secret{Command: []string{"/no/such/program"}}, `running the command "/no/such/program": fork/exec /no/such/program: no such file or directory; repeat it by hand until it prints the value`},
		"no cluster":      {&Reader{}, inCluster, "the key token of the Kubernetes Secret openbao/token cannot be read, as this command speaks to no cluster; point to env, file, prompt or command"},
		"Secret gone":     {kubernetes("", errors.New("not found")), inCluster, "reading the key token of the Kubernetes Secret openbao/token: not found"},
		"Secret empty":    {kubernetes("", nil), inCluster, "the key token of the Kubernetes Secret openbao/token gives an empty value; put the token or key there"},
		"no source":       {&Reader{}, plans.Secret{}, "nothing says where the value is found; write one of env, file, prompt, command and kubernetes"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.reader.Read(t.Context(), "spec.token", test.secret)
			require.EqualError(t, err, "spec.token: "+test.want)
			require.Empty(t, got)
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
}

func TestWhatACommandSaysIsShownAndWhatItPrintsIsNot(t *testing.T) {
	var said bytes.Buffer
	r := &Reader{Stderr: &said}
	_, err := r.Read(t.Context(), "spec.token", shell("cat "+write(t, value, 0o600).File+"; echo locked >&2; exit 1"))
	require.Error(t, err)
	require.Equal(t, "locked\n", said.String())
	require.NotContains(t, err.Error(), value)
}

// What is piped into migrate, such as the answer at a gate, stays there.
func TestACommandTakesNothingOfAPipe(t *testing.T) {
	in, out, err := os.Pipe()
	require.NoError(t, err)
	stdin := os.Stdin
	os.Stdin = in
	t.Cleanup(func() { os.Stdin = stdin; in.Close() })
	_, err = out.WriteString("yes\n")
	require.NoError(t, err)
	require.NoError(t, out.Close())
	_, err = (&Reader{}).Read(t.Context(), "spec.token", plans.Secret{Command: []string{"cat"}})
	require.ErrorContains(t, err, "empty value")
	left, err := io.ReadAll(in)
	require.NoError(t, err)
	require.Equal(t, "yes\n", string(left))
}

func TestEverythingIsReadOnce(t *testing.T) {
	var asked, reads atomic.Int32
	count := filepath.Join(t.TempDir(), "count")
	r := &Reader{
		Ask: func(question string) ([]byte, error) {
			asked.Add(1)
			return []byte(strings.Fields(question)[0]), nil
		},
		Kubernetes: func(context.Context, plans.SecretKey) ([]byte, error) {
			reads.Add(1)
			return []byte(value), nil
		},
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, field := range []string{"spec.a", "spec.b"} {
				got, err := r.Read(t.Context(), field, prompted)
				if err != nil || got != field {
					t.Errorf("%s: %q, %v", field, got, err)
				}
				for _, s := range []plans.Secret{inCluster, shell("echo >> " + count + "; echo " + value)} {
					if got, err := r.Read(t.Context(), field, s); err != nil || got != value {
						t.Errorf("%s: %q, %v", s, got, err)
					}
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 2, asked.Load(), "one question for each field")
	require.EqualValues(t, 1, reads.Load())
	runs, err := os.ReadFile(count)
	require.NoError(t, err)
	require.Equal(t, "\n", string(runs))
}

func TestAFailureIsNotRemembered(t *testing.T) {
	s := plans.Secret{File: filepath.Join(t.TempDir(), "token")}
	r := &Reader{}
	_, err := r.Read(t.Context(), "spec.token", s)
	require.Error(t, err)
	require.NoError(t, os.WriteFile(s.File, []byte(value), 0o600))
	got, err := r.Read(t.Context(), "spec.token", s)
	require.NoError(t, err)
	require.Equal(t, value, got)
}

// A command ends with the context, and so does what it started.
func TestACommandEndsWithTheContext(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(t.Context())
	opened := make(chan *os.File, 1)
	go func() {
		f, _ := os.Open(pipe) // once the command's child has it open
		opened <- f
		cancel(stop)
	}()
	r := &Reader{}
	_, err := r.Read(ctx, "spec.token", shell("sleep 1000 >"+pipe+" & wait"))
	require.ErrorIs(t, err, stop)
	require.ErrorContains(t, err, "spec.token: waiting for the command")
	f := <-opened
	require.NotNil(t, f)
	defer f.Close()
	if !hasTerminal() { // on one, the keyboard's interrupt ends what the command started
		_, err := io.ReadAll(f) // its end is the child's
		require.NoError(t, err)
	}

	_, err = r.Read(ctx, "spec.token", prompted)
	require.ErrorIs(t, err, stop, "nobody is asked any more")
}

// Who waits for another's question waits no longer than its context.
func TestWaitingForATurnEndsWithTheContext(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	r := &Reader{Ask: func(string) ([]byte, error) { close(asked); <-answer; return []byte(value), nil }}
	done := make(chan error)
	go func() { _, err := r.Read(t.Context(), "spec.a", prompted); done <- err }()
	<-asked
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error)
	go func() { _, err := r.Read(ctx, "spec.b", plans.Secret{Env: "HOME"}); waiting <- err }()
	cancel()
	require.ErrorIs(t, <-waiting, context.Canceled)
	close(answer)
	require.NoError(t, <-done)
}

func key(fill byte, size int) []byte { return bytes.Repeat([]byte{fill}, size) }

func TestKeys(t *testing.T) {
	b64, hexa := base64.StdEncoding.EncodeToString, hex.EncodeToString
	a, b, c := key(1, 33), key(2, 33), key(3, 33)
	t.Setenv("CREDENTIALS_TEST_KEY", b64(c)+"\n")
	r := &Reader{}
	for name, test := range map[string]struct {
		list []plans.Secret
		want []string
	}{
		"none":              {nil, nil},
		"one each":          {[]plans.Secret{write(t, b64(a), 0o600), {Env: "CREDENTIALS_TEST_KEY"}}, []string{b64(a), b64(c)}},
		"lines":             {[]plans.Secret{write(t, b64(a)+"\r\n\r\n  "+hexa(b)+"\n", 0o600), shell("echo " + b64(c))}, []string{b64(a), hexa(b), b64(c)}},
		"the only key":      {[]plans.Secret{write(t, b64(key(7, 32)), 0o600)}, []string{b64(key(7, 32))}},
		"the same twice":    {[]plans.Secret{write(t, b64(a)+"\n"+b64(b), 0o600), write(t, hexa(a), 0o600)}, []string{b64(a), b64(b)}},
		"text of init":      {[]plans.Secret{write(t, "Unseal Key 1: "+b64(a)+"\nUnseal Key 2: "+b64(b)+"\r\n\nInitial Root Token: "+value+"\n\nVault initialized with 2 key shares\n", 0o600)}, []string{b64(a), b64(b)}},
		"JSON of init":      {[]plans.Secret{write(t, `{"unseal_keys_b64": ["`+b64(a)+`", "`+b64(b)+`"], "unseal_keys_hex": ["`+hexa(a)+`", "`+hexa(b)+`"], "unseal_threshold": 2, "recovery_keys_b64": [], "root_token": "`+value+`"}`, 0o600)}, []string{b64(a), b64(b)}},
		"JSON, hexadecimal": {[]plans.Secret{write(t, `{"unseal_keys_hex": ["`+hexa(a)+`"]}`, 0o600)}, []string{hexa(a)}},
		"JSON of the API":   {[]plans.Secret{write(t, `{"keys": ["`+hexa(a)+`"], "keys_base64": ["`+b64(a)+`"], "root_token": "`+value+`"}`, 0o600)}, []string{b64(a)}},
		"keys of the API":   {[]plans.Secret{write(t, `{"keys": ["`+hexa(a)+`"]}`, 0o600)}, []string{hexa(a)}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := r.Keys(t.Context(), "spec.unsealKeys", test.list)
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestKeysThatAreNone(t *testing.T) {
	good := base64.StdEncoding.EncodeToString(key(1, 33))
	for name, test := range map[string]struct{ data, want string }{
		"not a key":       {good + "\nhunter2!", "gives as key 2 of 2 is no unseal key: neither hexadecimal nor base64; put the keys there one a line, and nothing else"},
		"cut off":         {good[:40], "gives as key 1 of 1 is no unseal key: it has 30 bytes, not 32 or 33; look whether it was cut off, and decrypt it first if it is encrypted"},
		"two in a line":   {good + " " + good, "gives as key 1 of 1 is no unseal key: neither hexadecimal nor base64; put the keys there one a line, and nothing else"},
		"other JSON":      {`{"hunter2": "hunter2"}`, "holds no unseal keys; point to what `bao operator init -format=json` printed, or to the keys, one a line"},
		"JSON cut off":    {`{"unseal_keys_b64": ["hunter2`, "begins like JSON but is not what `bao operator init -format=json` prints; put the keys there, one a line"},
		"JSON of another": {`{"unseal_keys_b64": "hunter2"}`, "begins like JSON but is not what `bao operator init -format=json` prints; put the keys there, one a line"},
		"recovery keys":   {`{"unseal_keys_b64": [], "recovery_keys_b64": ["` + good + `"]}`, "holds recovery keys, which unseal nothing: such a server unseals itself; remove the source"},
		"empty":           {"\n", "gives an empty value; put the token or key there"},
	} {
		t.Run(name, func(t *testing.T) {
			s := write(t, test.data, 0o600)
			got, err := (&Reader{}).Keys(t.Context(), "spec.unsealKeys", []plans.Secret{write(t, good, 0o600), s})
			require.Empty(t, got)
			require.ErrorContains(t, err, "spec.unsealKeys[1]: ")
			require.ErrorContains(t, err, s.File+" "+test.want)
			require.NotContains(t, err.Error(), "hunter2")
			require.NotContains(t, err.Error(), good[:20])
		})
	}
}

func FuzzKeysIn(f *testing.F) {
	f.Add([]byte(`{"unseal_keys_b64": ["AA=="], "keys": []}`))
	f.Add([]byte("Unseal Key 1: AA==\nUnseal Key 2: 00\n"))
	f.Add([]byte("a\n\nb"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		keys, err := keysIn(data)
		if err != nil && keys != nil {
			t.Fatal("keys beside an error")
		}
		for _, k := range keys {
			_, _ = decodeKey(k)
		}
	})
}
