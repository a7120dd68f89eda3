package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A job is a directory StateDir/jobs/<name>, mode 0700, with these files, mode 0600:
//
//	script  what runs
//	run     the wrapper that runs it, the same for every job
//	pid     the wrapper's process id, the process's start time, the boot id, and when PID 1 started
//	out     standard output and error of the script
//	rc      its exit status, once it ended
//
// The directory appears by a rename, complete with its script, and durable. Whatever starts the wrapper may
// do so more than once: the wrapper that manages to link pid is the one that runs the script, and pid is
// durable before the script's first command. So a script runs at most once however often the laptop, the
// connection or the host fails in between, and a job that was written but never started is started by the
// next StartJob.

var jobName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

const (
	jobRunning = 45 // exit status of forgetScript for a job that still runs
	jobUnit    = "k3s-dualstack-job-"
)

// identityScript prints what tells one life of the host from the next. The boot id is the machine's; in a
// container the start of PID 1 tells a restart of the container.
// A process that has ended but was not collected counts as gone.
const identityScript = `
started() { sed -n 's/.*) \([^ZX] .*\)/\1/p' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
life() { echo "$(cat /proc/sys/kernel/random/boot_id) $(started 1)"; }
`

const jobWrapper = `#!/bin/sh
# Runs the job of this directory once; see k3s-dualstack's package remote.
set -u
umask 077
cd -- "$(dirname -- "$0")" || exit 1
job=$(pwd)
` + environment + identityScript + `
echo "$$ $(started $$) $(life)" >"pid.$$"
sync "pid.$$"
if ! ln "pid.$$" pid 2>/dev/null; then
	rm -f "pid.$$"
	exit 0
fi
rm -f "pid.$$"
: >out
sync .
export HOME=/root
(umask 022; cd / && exec sh "$job/script") >out 2>&1 </dev/null
echo $? >rc.new
sync out rc.new
mv -f rc.new rc
sync .
`

// startScript reads the job's script from standard input. With systemd the wrapper is a unit of its own, so
// that neither the end of the SSH session nor anything that kills K3s's processes reaches it.
const startScript = `
set -eu
umask 077
mkdir -p -- "$state" "$state/jobs"
chmod 700 "$state" "$state/jobs"
job=$state/jobs/$name
new=$(mktemp -d "$state/jobs/.new.XXXXXXXX")
trap 'rm -rf -- "$new"' EXIT
cat >"$new/script"
[ "$(wc -c <"$new/script")" -eq "$size" ] || exit 46
if ! [ -d "$job" ]; then
	printf %s "$wrapper" >"$new/run"
	sync "$new/script" "$new/run" "$new"
	mv -T -- "$new" "$job" 2>/dev/null || [ -d "$job" ]
	sync "$state/jobs"
fi
if ! [ -e "$job/pid" ]; then
	if ! { [ -d /run/systemd/system ] && command -v systemd-run >/dev/null &&
		systemd-run --quiet --collect --unit="$unit$name-$$" --description="migrate: $name" sh "$job/run" >&2; }; then
		cd /
		setsid nohup sh "$job/run" >/dev/null 2>&1 </dev/null &
	fi
	tries=0
	until [ -e "$job/pid" ]; do
		tries=$((tries + 1))
		[ $tries -le 150 ] || { echo "the job did not start within 30 s" >&2; exit 1; }
		sleep 0.2
	done
fi
`

// StartJob runs script as root on the host, detached: it goes on when the connection, the laptop or K3s goes
// away. The name, a DNS label, identifies it: a name that exists is left as it is, whatever its state, and its
// script is not run a second time. The script may hold secrets; it lies in a file of mode 0600 until
// ForgetJob and is in no process list.
func (h *Host) StartJob(ctx context.Context, name, script string) error {
	if !jobName.MatchString(name) {
		return fmt.Errorf("job name %q is not a DNS label (a-z, 0-9, -)", name)
	}
	set := fmt.Sprintf("state=%s name=%s size=%d unit=%s wrapper=%s", Quote(h.settings.stateDir), Quote(name), len(script), Quote(jobUnit), Quote(jobWrapper))
	if err := h.Run(ctx, set+startScript, Stdin(strings.NewReader(script))); err != nil {
		return fmt.Errorf("host %s: starting the job %s: %w", h.Name(), name, err)
	}
	return nil
}

// followScript writes the job's output from offset on to standard output until the job ends, and then one
// line to standard error that says how.
const followScript = identityScript + `
say() { echo "migrate-job $*" >&2; exit 0; }
cd -- "$state/jobs/$name" 2>/dev/null || say none
[ -e pid ] || say none
read -r pid start boot init <pid
while :; do
	end=
	if [ -e rc ]; then
		end="rc $(cat rc)"
	elif [ "$(life)" != "$boot $init" ]; then
		end=rebooted
	elif [ "$(started "$pid")" != "$start" ]; then
		end=killed
		[ -e rc ] && end="rc $(cat rc)"
	fi
	size=$(wc -c 2>/dev/null <out || echo 0)
	if [ "$size" -gt "$offset" ]; then
		tail -c +$((offset + 1)) out | head -c $((size - offset))
		offset=$size
	fi
	[ -z "$end" ] || say "$end"
	sleep 0.3
done
`

// patience is how long WaitJob goes on trying to reach a host again after a lost connection.
const patience = 15 * time.Minute

// WaitJob waits for a job to end and writes what it prints to out, from its beginning, nothing twice. It
// survives lost connections. The error is an *ExitError when the job failed (Stderr then holds the tail of
// its output), ErrJobLost when it was killed or the host rebooted under it, ErrNoJob when it was never started.
func (h *Host) WaitJob(ctx context.Context, name string, out io.Writer) error {
	if !jobName.MatchString(name) {
		return fmt.Errorf("job name %q is not a DNS label (a-z, 0-9, -)", name)
	}
	if out == nil {
		out = io.Discard
	}
	tail := &tailBuffer{limit: stderrTail}
	written := &counter{w: io.MultiWriter(tail, out)}
	lastSeen := time.Now()
	for {
		before := written.n
		end := &tailBuffer{limit: stderrTail}
		set := fmt.Sprintf("state=%s name=%s offset=%d", Quote(h.settings.stateDir), Quote(name), written.n)
		err := h.Run(ctx, set+followScript, Stdout(written), Stderr(end))
		var unreachable *UnreachableError
		switch {
		case err == nil:
			return h.jobEnd(name, end.String(), tail.String())
		case errors.Is(err, ErrConnectionLost):
			lastSeen = time.Now()
		case errors.As(err, &unreachable) && time.Since(lastSeen) < patience:
		case errors.As(err, &unreachable):
			return fmt.Errorf("waiting for the job %s, which goes on on the host: %w", name, err)
		default:
			return fmt.Errorf("host %s: waiting for the job %s: %w", h.Name(), name, err)
		}
		if written.n == before {
			// A connection that is lost again at once must not be made anew in a busy loop.
			select {
			case <-time.After(h.settings.backoff):
			case <-ctx.Done():
				return fmt.Errorf("host %s: waiting for the job %s: %w", h.Name(), name, ctx.Err())
			}
		}
	}
}

func (h *Host) jobEnd(name, said, output string) error {
	fail := func(err error) error { return fmt.Errorf("host %s: job %s: %w", h.Name(), name, err) }
	_, end, _ := strings.Cut(said, "migrate-job ")
	end = strings.TrimSpace(end)
	switch end {
	case "none":
		return fail(ErrNoJob)
	case "rebooted":
		return fail(fmt.Errorf("%w: the host was restarted while it ran", ErrJobLost))
	case "killed":
		return fail(fmt.Errorf("%w: it was killed", ErrJobLost))
	}
	code, err := strconv.Atoi(strings.TrimPrefix(end, "rc "))
	if err != nil {
		return fail(fmt.Errorf("its exit status cannot be read from %q", said))
	}
	if code != 0 {
		return fail(&ExitError{Code: code, Stderr: output})
	}
	return nil
}

const forgetScript = identityScript + `
set -eu
cd -- "$state/jobs" 2>/dev/null || exit 0
[ -d "$name" ] || exit 0
if [ -e "$name/pid" ] && ! [ -e "$name/rc" ]; then
	read -r pid start boot init <"$name/pid"
	if [ "$(life)" = "$boot $init" ] && [ "$(started "$pid")" = "$start" ]; then
		exit 45
	fi
fi
gone=.gone.$name.$$
mv -T -- "$name" "$gone"
sync .
rm -rf -- "$gone"
`

// ForgetJob removes what a job that ended left on the host, so that its name can be used again. A job that
// runs is an error; one that does not exist is none.
func (h *Host) ForgetJob(ctx context.Context, name string) error {
	if !jobName.MatchString(name) {
		return fmt.Errorf("job name %q is not a DNS label (a-z, 0-9, -)", name)
	}
	err := h.Run(ctx, fmt.Sprintf("state=%s name=%s", Quote(h.settings.stateDir), Quote(name))+forgetScript)
	var exit *ExitError
	switch {
	case errors.As(err, &exit) && exit.Code == jobRunning:
		return fmt.Errorf("host %s: the job %s still runs; wait for its end first", h.Name(), name)
	case err != nil:
		return fmt.Errorf("host %s: forgetting the job %s: %w", h.Name(), name, err)
	}
	return nil
}

// counter counts what was written, the offset from which to go on.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
