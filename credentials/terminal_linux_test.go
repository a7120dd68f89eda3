package credentials

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const childVariable = "CREDENTIALS_TEST_CHILD"

// TestMain lets a test run this program once more, on a terminal of its own.
func TestMain(m *testing.M) {
	if script := os.Getenv(childVariable); script != "" {
		got, err := (&Reader{Stderr: os.Stderr}).Read(context.Background(), "spec.token", shell(script))
		fmt.Printf("[%s] %v\n", got, err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A password manager asks for its own passphrase: on the terminal itself, or on standard
// input. In a background process group it would be stopped there.
func TestACommandAsksOnTheTerminal(t *testing.T) {
	for name, script := range map[string]string{
		"terminal":       `printf "Passphrase: " >/dev/tty; read -r answer </dev/tty; echo "$answer"`,
		"standard input": `printf "Passphrase: " >&2; read -r answer; echo "$answer"`,
	} {
		t.Run(name, func(t *testing.T) {
			outside, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
			require.NoError(t, err)
			defer outside.Close()
			require.NoError(t, unix.IoctlSetPointerInt(int(outside.Fd()), unix.TIOCSPTLCK, 0))
			number, err := unix.IoctlGetInt(int(outside.Fd()), unix.TIOCGPTN)
			require.NoError(t, err)
			inside, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
			require.NoError(t, err)
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), childVariable+"="+script)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = inside, inside, inside
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			require.NoError(t, cmd.Start())
			inside.Close()

			var shown bytes.Buffer
			part := make([]byte, 4096)
			for answered := false; ; {
				n, err := outside.Read(part)
				shown.Write(part[:n])
				if err != nil { // EIO: the terminal's last user has gone
					break
				}
				if !answered && strings.Contains(shown.String(), "Passphrase: ") {
					_, err := io.WriteString(outside, value+"\n")
					require.NoError(t, err)
					answered = true
				}
			}
			require.NoError(t, cmd.Wait())
			require.Contains(t, shown.String(), "["+value+"] <nil>")
		})
	}
}
