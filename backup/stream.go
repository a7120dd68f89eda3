package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"sunbeam.pt/k3s-dualstack/backup/index"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
)

// streamTail sends what the function archive prints through a compressor to
// the laptop, and as the last line of stderr the SHA-256 of what was sent
// with the stages that failed.
const streamTail = `
mkfifo "$run/sum.in"
sha256sum <"$run/sum.in" >"$run/sum" &
summer=$!
stage tar archive | stage pack %s | stage send tee "$run/sum.in"
wait "$summer"
echo "` + streamMark + `$(cut -c 1-64 "$run/sum")$(failed tar pack send)" >&2
`

const streamMark = "k3s-dualstack stream "

// packers are the compressors on the host.
var packers = map[Codec]string{None: "cat", Zstd: "zstd -q -c -3 -T0", Gzip: "gzip -c -1"}

// hostCodec is the best compression that the host can do.
func hostCodec(ctx context.Context, host *remote.Host) (Codec, error) {
	out, err := host.Output(ctx, "command -v zstd >/dev/null 2>&1 && echo zstd || echo gzip")
	if err != nil {
		return None, fmt.Errorf("looking for a compressor: %w", err)
	}
	return Codec(out), nil
}

// stderrLog keeps the first lines of a script's stderr and its last line apart.
type stderrLog struct {
	mu    sync.Mutex
	part  []byte
	lines []string // the first ones
	more  int      // lines that were not kept
	mark  string   // what followed streamMark
	bad   []string // lines that no rule allows
	allow func(line string) bool
}

const keepLines = 20

func (l *stderrLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			if len(l.part) < 8<<10 {
				l.part = append(l.part, p...)
			}
			return n, nil
		}
		line := string(append(l.part, p[:i]...))
		l.part, p = l.part[:0], p[i+1:]
		if rest, ok := strings.CutPrefix(line, streamMark); ok {
			l.mark = rest
			continue
		}
		if l.allow == nil || !l.allow(line) {
			if len(l.bad) < keepLines {
				l.bad = append(l.bad, line)
			}
		}
		if len(l.lines) < keepLines {
			l.lines = append(l.lines, line)
		} else {
			l.more++
		}
	}
}

func (l *stderrLog) count() int { return len(l.lines) + l.more }

// verdict reads the trailer: the sum that the host saw, and an error when a
// stage failed otherwise than tolerated ("tar=1" and the like).
func (l *stderrLog) verdict(tolerated ...string) (sum string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fields := strings.Fields(l.mark)
	if len(fields) == 0 {
		return "", errors.New("the host's side ended without saying how it went")
	}
	for _, f := range fields[1:] {
		if !slices.Contains(tolerated, f) {
			return "", fmt.Errorf("on the host %s: %s", strings.Replace(f, "=", " failed with status ", 1), strings.Join(l.lines, "; "))
		}
	}
	if len(l.bad) > 0 {
		return "", fmt.Errorf("on the host tar said: %s", strings.Join(l.bad, "; "))
	}
	return fields[0], nil
}

// source is a tar archive that a host makes.
type source struct {
	name    string // of the artifact; its list is name + ".list"
	state   string // state directory on the host
	archive string // shell: defines the function archive
	// live says that files may change or vanish under tar.
	live bool
	// allow accepts lines of tar's stderr.
	allow    func(line string) bool
	expected int64
}

type listed struct {
	Entries, Files, Bytes int64
	Warnings              int
}

// ListName is the name of the artifact that lists the members of the tar artifact name.
func ListName(name string) string { return name + ".list" }

// take streams the archive into the set. Beside it the same stream is decoded
// to list the members with their SHA-256 sums, which also proves that it opens.
// meta is entered with the archive.
func (src source) take(ctx context.Context, host *remote.Host, set *Set, task *progress.Task, meta map[string]string) (listed, error) {
	fail := func(err error) (listed, error) {
		return listed{}, fmt.Errorf("host %s: streaming %s: %w", host.Name(), src.name, err)
	}
	codec, err := hostCodec(ctx, host)
	if err != nil {
		return fail(err)
	}
	archive, err := set.Create(src.name, KindTar, Encoded(codec), Expect(src.expected))
	if err != nil {
		return listed{}, err
	}
	defer archive.Abort()
	list, err := set.Create(ListName(src.name), KindList, Compressed())
	if err != nil {
		return listed{}, err
	}
	defer list.Abort()

	pr, pw := io.Pipe()
	var got listed
	walked := make(chan error, 1)
	go func() {
		var err error
		got, err = listTar(pr, codec, list)
		pr.CloseWithError(err) // a failure stops the stream, the end of it does not come before its last byte
		walked <- err
	}()
	log := &stderrLog{allow: src.allow}
	var tolerated []string
	if src.live {
		tolerated = []string{"tar=1"}
	}
	sum, runErr := receive(ctx, host, src.state, src.archive, codec, log, io.MultiWriter(archive, pw), task, tolerated...)
	pw.CloseWithError(runErr) // nil is the end of the stream
	walkErr := <-walked
	if runErr != nil {
		return fail(runErr)
	}
	if walkErr != nil {
		return fail(walkErr)
	}
	if here := archive.content.hex(); here != sum {
		return fail(fmt.Errorf("the host sent SHA-256 %s and %s arrived", sum, here))
	}
	got.Warnings = log.count()
	if meta == nil {
		meta = map[string]string{}
	}
	meta["host"] = host.Name()
	meta["entries"] = fmt.Sprint(got.Entries)
	meta["files"] = fmt.Sprint(got.Files)
	meta["bytes"] = fmt.Sprint(got.Bytes)
	meta["warnings"] = fmt.Sprint(got.Warnings)
	// The list first: an archive in the manifest always has its list.
	if _, err := list.Commit(map[string]string{"archive": archive.content.hex(), "entries": meta["entries"]}); err != nil {
		return listed{}, err
	}
	_, err = archive.Commit(meta)
	return got, err
}

// receive runs what the shell function archive prints through the codec's
// compressor and writes it to w. It returns the SHA-256 of what the host sent.
// Nothing is written to w any more once it has returned.
func receive(ctx context.Context, host *remote.Host, state, archive string, codec Codec, log *stderrLog, w io.Writer, task *progress.Task, tolerated ...string) (string, error) {
	out := remote.NewGate(w)
	err := host.Run(ctx, index.Script(state, "stream", archive+fmt.Sprintf(streamTail, packers[codec])),
		remote.Stdout(io.MultiWriter(out, counter{task})), remote.Stderr(log))
	out.Close()
	if err != nil {
		return "", err
	}
	return log.verdict(tolerated...)
}

type counter struct{ task *progress.Task }

func (c counter) Write(p []byte) (int, error) {
	c.task.Add(int64(len(p)))
	return len(p), nil
}

// listTar decodes a tar stream to its very end and writes the list of its members.
func listTar(r io.Reader, codec Codec, w io.Writer) (listed, error) {
	var got listed
	in := bufio.NewReaderSize(r, 64<<10)
	plain, stop, err := decoder(in, codec)
	if err != nil {
		return got, fmt.Errorf("opening the archive: %w", err)
	}
	defer stop()
	out := bufio.NewWriterSize(w, 64<<10)
	list := index.NewWriter(out)
	err = walkTar(plain, func(m index.Member, _ *tar.Header, _ io.Reader) error {
		got.Entries++
		if m.Type == 'f' {
			got.Files++
			got.Bytes += m.Size
		}
		return list.Write(m.Record())
	})
	if err != nil {
		return got, err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return got, err
	}
	return got, out.Flush()
}

var tarTypes = map[byte]byte{
	tar.TypeReg: 'f', tar.TypeGNUSparse: 'f', tar.TypeLink: 'h', tar.TypeSymlink: 'l',
	tar.TypeDir: 'd', tar.TypeFifo: 'p', tar.TypeChar: 'c', tar.TypeBlock: 'b',
}

// walkTar visits all members, each with its content's sum, and reads r to its
// end. A visit that wants the content reads it from the reader before the
// sum can be known: such a member comes with an empty sum.
func walkTar(r io.Reader, visit func(m index.Member, hdr *tar.Header, content io.Reader) error) error {
	tr := tar.NewReader(r)
	sum := sha256.New()
	buf := make([]byte, 64<<10)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
		m := index.Member{Path: memberPath(hdr.Name), Sum: "-"}
		if m.Type = tarTypes[hdr.Typeflag]; m.Type == 0 {
			return fmt.Errorf("reading the archive: member %q has the unknown type %q", hdr.Name, hdr.Typeflag)
		}
		if m.Type == 'f' {
			m.Size = hdr.Size
			sum.Reset()
			n, err := io.CopyBuffer(sum, tr, buf)
			if err != nil {
				return fmt.Errorf("reading member %q of the archive: %w", hdr.Name, err)
			}
			if n != hdr.Size {
				return fmt.Errorf("member %q of the archive has %d bytes instead of %d", hdr.Name, n, hdr.Size)
			}
			m.Sum = hex.EncodeToString(sum.Sum(nil))
		}
		if err := visit(m, hdr, tr); err != nil {
			return err
		}
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf); err != nil {
		return fmt.Errorf("reading the archive's end: %w", err)
	}
	return nil
}

// memberPath is the path of a member relative to where the archive was made.
func memberPath(name string) string {
	name = strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	if name == "." {
		return ""
	}
	return name
}
