package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

const (
	maxFile  = 64 << 20 // what ReadFile takes; larger files are streamed with Run
	noFile   = 44       // exit status of readScript for a file that is not there
	shortErr = 45       // exit status of writeScript for content that broke off
)

// ReadFile returns the content of a file of the host, at most 64 MiB. errors.Is(err, fs.ErrNotExist) holds
// when it is not there.
func (h *Host) ReadFile(ctx context.Context, name string) ([]byte, error) {
	out := &bounded{left: maxFile}
	script := fmt.Sprintf("f=%s; if [ -e \"$f\" ] || [ -L \"$f\" ]; then cat <\"$f\"; else exit %d; fi", Quote(name), noFile)
	err := h.Run(ctx, script, Stdout(out))
	var exit *ExitError
	if errors.As(err, &exit) && exit.Code == noFile {
		return nil, &fs.PathError{Op: "read", Path: h.Name() + ":" + name, Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, fmt.Errorf("host %s: reading %s: %w", h.Name(), name, err)
	}
	return out.buf.Bytes(), nil
}

// WriteFile puts data in the place of a file of the host in one step: whoever reads it, and whatever is lost
// on the way, there is the old content or the new. The file belongs to root; a symbolic link is replaced, not
// followed. Missing parent directories are made with mode
// 0755, within StateDir with 0700. It is durable when WriteFile returns.
func (h *Host) WriteFile(ctx context.Context, name string, data []byte, mode fs.FileMode) error {
	if !path.IsAbs(name) {
		return fmt.Errorf("host %s: writing %s: the path is not absolute", h.Name(), name)
	}
	name = path.Clean(name)
	umask := "022"
	if strings.HasPrefix(name, h.settings.stateDir+"/") {
		umask = "077"
	}
	script := "umask " + umask + "; name=" + Quote(name) + " dir=" + Quote(path.Dir(name)) + " mode=" + fmt.Sprintf("%04o", unixMode(mode)) + " size=" + strconv.Itoa(len(data)) + writeScript
	err := h.Run(ctx, script, Stdin(bytes.NewReader(data)))
	var exit *ExitError
	if errors.As(err, &exit) && exit.Code == shortErr {
		err = ErrConnectionLost
	}
	if err != nil {
		return fmt.Errorf("host %s: writing %s: %w", h.Name(), name, err)
	}
	return nil
}

// The content is counted because input that breaks off looks to cat like input that ends.
const writeScript = `
set -eu
mkdir -p -- "$dir"
temp=$(mktemp -- "$dir/.migrate.XXXXXXXX")
trap 'rm -f -- "$temp"' EXIT
chmod -- "$mode" "$temp"
cat >"$temp"
[ "$(wc -c <"$temp")" -eq "$size" ] || exit 45
sync -- "$temp"
mv -f -T -- "$temp" "$name"
trap - EXIT
sync -- "$dir"
`

func unixMode(mode fs.FileMode) uint32 {
	m := uint32(mode.Perm())
	for _, bit := range []struct {
		go_  fs.FileMode
		unix uint32
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if mode&bit.go_ != 0 {
			m |= bit.unix
		}
	}
	return m
}
