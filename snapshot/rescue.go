package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/scaleway/scaleway-sdk-go/api/baremetal/v1"
	"github.com/scaleway/scaleway-sdk-go/api/dedibox/v1"
	"github.com/scaleway/scaleway-sdk-go/scw"
	"golang.org/x/sys/unix"

	"sunbeam.pt/k3s-dualstack/backup"
	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
)

// scwRescue makes images of a dedicated server's disks from its rescue system, to a backup set of their own on the
// laptop: encrypted, with sums, read again and compared before the server may start from its disks. The return writes
// them back from there. The server is away meanwhile.
//
// All images are made in one rescue session, so that no disk is younger than another; what was cut off is made anew.
// A disk that is being written cannot be started from: its first mebibyte is empty until all else is written, and the last
// one, of whose copy of the partition table the first could be made again, until all before it is. The
// file [marker] lies beside the images from before the first byte is written until all disks are written and compared:
// while it is there, nothing but the whole return ends the server's rescue mode.
type scwRescue struct {
	scaleway
	machine machine
	port    int // of the rescue system's SSH server
	tools   tools
	free    func() int64 // for tests: what is free where the images are kept
}

// machine is a server that has a rescue mode.
type machine interface {
	// look tells how the server is started.
	look(context.Context, *scw.Client) (mode, error)
	// rescue and normal order a start of that kind.
	rescue(context.Context, *scw.Client) error
	normal(context.Context, *scw.Client) error
	// access tells how to log in to the rescue system that runs.
	access(context.Context, *scw.Client) (access, error)
	// commands are the CLI's for starting the rescue system, and the server's own.
	commands() (rescue, normal string)
}

// mode is how a server is started.
type mode struct {
	rescue, normal bool // neither while it is on its way, or switched off
	off            bool
	broken         string // why it will be neither
	state          string
}

// access is how to log in to a rescue system. It is never printed.
type access struct{ address, user, password string }

// tools are the commands of the rescue system that tests, whose disks are files, cannot use.
type tools struct {
	size, flush string // of a device
	// release lets go of what the rescue system has opened of the disks by itself.
	release string
	btrfs   string // where the kernel lists the devices of each btrfs that is mounted
}

var rescueTools = tools{
	size: "blockdev --getsize64", flush: "blockdev --flushbufs",
	release: "swapoff -a; ! command -v vgchange >/dev/null || vgchange -q -an; ! command -v mdadm >/dev/null || mdadm -q --stop --scan; true",
	btrfs:   "/sys/fs/btrfs",
}

// elasticMetal is an Elastic Metal server.
type elasticMetal struct{ *scaleway }

func (e elasticMetal) get(ctx context.Context, c *scw.Client) (*baremetal.Server, error) {
	return baremetal.NewAPI(c).GetServer(&baremetal.GetServerRequest{Zone: e.zone(), ServerID: e.at.ID}, scw.WithContext(ctx))
}

func (e elasticMetal) look(ctx context.Context, c *scw.Client) (mode, error) {
	s, err := e.get(ctx, c)
	if err != nil {
		return mode{}, err
	}
	m := mode{state: fmt.Sprintf("%s, boot type %s", s.Status, s.BootType)}
	switch s.Status {
	case baremetal.ServerStatusReady:
		m.rescue = s.BootType == baremetal.ServerBootTypeRescue
		m.normal = !m.rescue
	case baremetal.ServerStatusStopped:
		m.off = true
	case baremetal.ServerStatusError, baremetal.ServerStatusLocked, baremetal.ServerStatusDeleting, baremetal.ServerStatusOutOfStock:
		m.broken = string(s.Status)
	}
	return m, nil
}

func (e elasticMetal) start(ctx context.Context, c *scw.Client, kind baremetal.ServerBootType) error {
	s, err := e.get(ctx, c)
	if err != nil {
		return err
	}
	if s.Status == baremetal.ServerStatusStopped {
		_, err = baremetal.NewAPI(c).StartServer(&baremetal.StartServerRequest{Zone: e.zone(), ServerID: e.at.ID, BootType: kind}, scw.WithContext(ctx))
		return err
	}
	_, err = baremetal.NewAPI(c).RebootServer(&baremetal.RebootServerRequest{Zone: e.zone(), ServerID: e.at.ID, BootType: kind}, scw.WithContext(ctx))
	return err
}

func (e elasticMetal) rescue(ctx context.Context, c *scw.Client) error {
	return e.start(ctx, c, baremetal.ServerBootTypeRescue)
}

func (e elasticMetal) normal(ctx context.Context, c *scw.Client) error {
	return e.start(ctx, c, baremetal.ServerBootTypeNormal)
}

func (e elasticMetal) access(ctx context.Context, c *scw.Client) (access, error) {
	s, err := e.get(ctx, c)
	if err != nil || s.RescueServer == nil {
		return access{}, err
	}
	var addresses []net.IP
	for _, ip := range s.IPs {
		addresses = append(addresses, ip.Address)
	}
	return access{address: public(addresses), user: s.RescueServer.User, password: s.RescueServer.Password}, nil
}

func (e elasticMetal) commands() (rescue, normal string) {
	reboot := fmt.Sprintf("scw baremetal server reboot %s zone=%s boot-type=", e.at.ID, e.at.Zone)
	return reboot + "rescue", reboot + "normal"
}

// public is the first address that is, IPv4 before IPv6; "" for none.
func public(addresses []net.IP) string {
	for _, v4 := range []bool{true, false} {
		for _, ip := range addresses {
			if ip != nil && !ip.IsPrivate() && (ip.To4() != nil) == v4 {
				return ip.String()
			}
		}
	}
	return ""
}

// box is a Dedibox.
type box struct{ *scaleway }

func (b box) get(ctx context.Context, c *scw.Client) (*dedibox.Server, error) {
	return dedibox.NewAPI(c).GetServer(&dedibox.GetServerRequest{Zone: b.zone(), ServerID: b.number()}, scw.WithContext(ctx))
}

func (b box) look(ctx context.Context, c *scw.Client) (mode, error) {
	s, err := b.get(ctx, c)
	if err != nil {
		return mode{}, err
	}
	m := mode{state: string(s.Status)}
	switch s.Status {
	case dedibox.ServerStatusRescue:
		m.rescue = true
	case dedibox.ServerStatusReady:
		m.normal = true
	case dedibox.ServerStatusStopped:
		m.off = true
	case dedibox.ServerStatusError, dedibox.ServerStatusLocked:
		m.broken = string(s.Status)
	}
	return m, nil
}

// system is the rescue system to start: the one that the server has chosen, otherwise the newest Ubuntu that it may have.
func (b box) system(ctx context.Context, c *scw.Client) (uint64, error) {
	s, err := b.get(ctx, c)
	if err != nil {
		return 0, err
	}
	if s.RescueOs != nil && s.RescueOs.ID != 0 {
		return s.RescueOs.ID, nil
	}
	id := s.ID
	list, err := dedibox.NewAPI(c).ListOS(&dedibox.ListOSRequest{Zone: b.zone(), Type: dedibox.OSTypeRescue, ServerID: &id, OrderBy: dedibox.ListOSRequestOrderByReleasedAtDesc}, scw.WithAllPages(), scw.WithContext(ctx))
	if err != nil {
		return 0, err
	}
	for _, os := range list.Os {
		if strings.Contains(strings.ToLower(os.Name), "ubuntu") {
			return os.ID, nil
		}
	}
	return 0, final("the API lists no Ubuntu among its rescue systems: choose another spec.snapshot.method")
}

func (b box) rescue(ctx context.Context, c *scw.Client) error {
	id, err := b.system(ctx, c)
	if err != nil {
		return err
	}
	_, err = dedibox.NewAPI(c).StartRescue(&dedibox.StartRescueRequest{Zone: b.zone(), ServerID: b.number(), OsID: id}, scw.WithContext(ctx))
	return err
}

func (b box) normal(ctx context.Context, c *scw.Client) error {
	s, err := b.get(ctx, c)
	if err != nil {
		return err
	}
	if s.Status == dedibox.ServerStatusStopped {
		return dedibox.NewAPI(c).StartServer(&dedibox.StartServerRequest{Zone: b.zone(), ServerID: b.number()}, scw.WithContext(ctx))
	}
	return dedibox.NewAPI(c).StopRescue(&dedibox.StopRescueRequest{Zone: b.zone(), ServerID: b.number()}, scw.WithContext(ctx))
}

func (b box) access(ctx context.Context, c *scw.Client) (access, error) {
	s, err := b.get(ctx, c)
	if err != nil {
		return access{}, err
	}
	r, err := dedibox.NewAPI(c).GetRescue(&dedibox.GetRescueRequest{Zone: b.zone(), ServerID: b.number()}, scw.WithContext(ctx))
	switch {
	case status(err) == http.StatusNotFound:
		return access{}, nil // not known yet
	case err != nil:
		return access{}, err
	}
	if r.Protocol != dedibox.RescueProtocolSSH {
		return access{}, final("its rescue system is reached by %s, not by SSH: choose an Ubuntu as rescue system at %s, then repeat the command", r.Protocol, b.console())
	}
	var addresses []net.IP
	for _, card := range s.Interfaces {
		for _, ip := range card.IPs {
			addresses = append(addresses, ip.Address)
		}
	}
	return access{address: public(addresses), user: r.Login, password: r.Password}, nil
}

func (b box) commands() (rescue, normal string) {
	at := fmt.Sprintf(" server-id=%s zone=%s", b.at.ID, b.at.Zone)
	return "scw dedibox rescue start" + at, "scw dedibox rescue stop" + at
}

// byHand is how to get the server back.
func (r *scwRescue) byHand() string {
	_, normal := r.machine.commands()
	return fmt.Sprintf("repeat the command, which goes on from there; to have the server as it was, start it from its disks (`%s`, or %s, or its remote console)", normal, r.console())
}

// stay is byHand for a server whose disks are being written.
func (r *scwRescue) stay() string {
	return fmt.Sprintf("its disks are written in part, so that it stays in its rescue system: do not start it from its disks, repeat the command, which writes them all anew; the images are in %s", r.dir())
}

// enter starts the rescue system, or uses one that runs, and logs in to it.
func (r *scwRescue) enter(ctx context.Context, next string) (*remote.Host, error) {
	own := r.ownSystem(ctx)
	if err := r.bring(ctx, "Starting the rescue system", next, r.machine.rescue, func(m mode) bool { return m.rescue }); err != nil {
		return nil, err
	}
	return r.connect(ctx, own, next)
}

// system is by what one that runs is told from another; "" for what is not known.
type system struct{ hostKey, bootID string }

// ownSystem is the server's, where it answers. What its page cache holds, which a reset would lose, is on its disks then.
func (r *scwRescue) ownSystem(ctx context.Context) (own system) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	h, err := r.Host(ctx)
	if err != nil {
		return own
	}
	own.hostKey = h.HostKey()
	own.bootID, _ = h.Output(ctx, "sync; "+bootID)
	return own
}

// leave starts the server from its disks and waits until it answers.
func (r *scwRescue) leave(ctx context.Context) error {
	if err := r.bring(ctx, "Starting the server from its disks", r.byHand(), r.machine.normal, func(m mode) bool { return m.normal }); err != nil {
		return err
	}
	return r.answers(ctx, "", r.byHand())
}

// bring orders a start of the server and waits until it is started that way.
func (r *scwRescue) bring(ctx context.Context, what, next string, order func(context.Context, *scw.Client) error, reached func(mode) bool) error {
	ordered := orders{}
	return r.until(ctx, what, r.pace.state, next, func(ctx context.Context, c *scw.Client) (bool, string, error) {
		m, err := r.machine.look(ctx, c)
		switch {
		case err != nil:
			return false, "", err
		case m.broken != "":
			return false, "", final("its status is %s: ask Scaleway's support", m.broken)
		case reached(m):
			return true, m.state, nil
		case (m.rescue || m.normal || m.off) && ordered.due("start", r.pace.again):
			if err := order(ctx, c); err != nil {
				delete(ordered, "start")
				return false, "", err
			}
		}
		return false, m.state, nil
	})
}

// connect logs in to the rescue system. That the API calls it started is no proof: its own system may answer until the
// reset takes place.
func (r *scwRescue) connect(ctx context.Context, own system, next string) (h *remote.Host, err error) {
	err = r.until(ctx, "Waiting for the rescue system to answer", r.pace.start, next, func(ctx context.Context, c *scw.Client) (bool, string, error) {
		a, err := r.machine.access(ctx, c)
		switch {
		case err != nil:
			return false, "", err
		case a.user == "" || a.password == "":
			return false, "the API does not tell how to log in yet", nil
		}
		target := r.Server
		target.User, target.Port, target.Sudo = a.user, r.port, true
		if a.address != "" {
			target.Address = a.address
		}
		look, cancel := context.WithTimeout(ctx, rebootAsk)
		defer cancel()
		h, err = remote.Dial(look, target, remote.Rescue(a.password, own.hostKey))
		if err != nil {
			return false, firstLine(err.Error()), nil
		}
		now := ""
		if h.HostKey() != own.hostKey {
			now, err = h.Output(look, bootID)
		}
		switch {
		case err != nil:
			h.Close()
			return false, firstLine(err.Error()), nil
		case now == "" || now == own.bootID:
			h.Close()
			return false, "it is its own system still that answers", nil
		}
		return true, "", nil
	})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(r.Progress.Writer(), "   note: the rescue system of %s is trusted by the host key that it showed first: %s\n", r.name(), h.HostKey())
	return h, nil
}

// dir is the directory below the plan's in which nothing but the images is kept.
func (r *scwRescue) dir() string { return filepath.Join(r.at.Images, r.Name+".disks") }

// marker lies beside the images while the server's disks are not to be started from.
const marker = "being-written-back"

func (r *scwRescue) marked() (bool, error) {
	_, err := os.Stat(filepath.Join(r.dir(), marker))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// mark sets the marker, or takes it away, for good.
func (r *scwRescue) mark(set bool) error {
	file := filepath.Join(r.dir(), marker)
	var err error
	if set {
		err = os.WriteFile(file, nil, 0o600)
	} else if err = os.Remove(file); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		var d *os.File
		if d, err = os.Open(r.dir()); err == nil {
			err = d.Sync()
			d.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("noting whether the disks of %s are being written: %w", r.name(), err)
	}
	return nil
}

// set opens the images; to write, too, or as they are.
func (r *scwRescue) set(write bool) (*backup.Set, error) {
	var recipients []string
	if write {
		recipients = r.Encryption.Recipients
	}
	set, err := backup.OpenAsking(r.dir(), recipients, r.Encryption.Identities, backup.Passphrase(r.Passphrase))
	if err != nil {
		return nil, fmt.Errorf("opening the images of %s: %w", r.name(), err)
	}
	return set, nil
}

// artifact is the name of a disk's image.
func (r *scwRescue) artifact(i int) string {
	plain := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' {
			return c
		}
		return '_'
	}, filepath.Base(r.at.Disks[i]))
	return fmt.Sprintf("disks/%d-%s", i, plain)
}

// What is noted with an image.
const (
	metaDisk    = "disk"
	metaSize    = "bytes"
	metaSum     = "diskSHA256" // of the disk from its first byte to its last
	metaSerial  = "serial"
	metaSession = "session" // boot id of the rescue system in which it was made
	metaServer  = "server"
)

// drive is a disk as a system sees it.
type drive struct {
	path, serial string
	size         int64
}

// drives are the plan's disks as the system sees them that runs on the host now.
func (r *scwRescue) drives(ctx context.Context, h *remote.Host) ([]drive, error) {
	var out []drive
	for n, disk := range r.at.Disks {
		said, err := h.Output(ctx, fmt.Sprintf(`d=$(readlink -e -- %s) || { echo missing; exit 0; }
size=$(%s "$d") || exit
echo "$size $(lsblk -dnro SERIAL "$d" 2>/dev/null | head -n 1)"`, remote.Quote(disk), r.tools.size))
		if err != nil {
			return nil, failed(h, "reading the size of "+disk, err)
		}
		fields := strings.Fields(said)
		if len(fields) == 0 || fields[0] == "missing" {
			return nil, fmt.Errorf("spec.snapshot.scaleway.disks[%d]: there is no %s on %s; `lsblk -o NAME,SIZE,SERIAL` and `ls -l /dev/disk/by-id` list what there is", n, disk, h.Name())
		}
		d := drive{path: disk}
		if d.size, err = strconv.ParseInt(fields[0], 10, 64); err != nil || d.size <= 0 {
			return nil, fmt.Errorf("spec.snapshot.scaleway.disks[%d]: the size of %s cannot be read: %.100q", n, disk, said)
		}
		if len(fields) > 1 {
			d.serial = fields[1]
		}
		out = append(out, d)
	}
	return out, nil
}

// Ready looks for the server, and whether the plan's disks are there, are those on which lies what the rebuild touches, and
// have room on the laptop.
func (r *scwRescue) Ready(ctx context.Context) error {
	if err := r.find(ctx); err != nil {
		return err
	}
	if b, ok := r.machine.(box); ok {
		err := r.ask(ctx, "looking for a rescue system", func(c *scw.Client, _ scw.RequestOption) error {
			_, err := b.system(ctx, c)
			return err
		})
		if err != nil {
			return err
		}
	}
	h, err := r.Host(ctx)
	if err != nil {
		return err
	}
	drives, err := r.drives(ctx, h)
	if err != nil {
		return err
	}
	if err := r.covered(ctx, h); err != nil {
		return err
	}
	return r.room(drives)
}

// covered looks whether what the rebuild touches lies on the plan's disks alone. Where no disk can be told, as with ZFS, that is the user's to know.
func (r *scwRescue) covered(ctx context.Context, h *remote.Host) error {
	listed, err := h.Output(ctx, "readlink -e -- "+remote.Quote(r.at.Disks...))
	if err != nil {
		return failed(h, "looking at its disks", err)
	}
	for _, f := range r.Storage.FileSystems {
		source, _, _ := strings.Cut(f.Source, "[") // of btrfs, with the subvolume
		if !strings.HasPrefix(source, "/dev/") {
			continue
		}
		below, err := h.Output(ctx, "lsblk -snrpo NAME,TYPE "+remote.Quote(source))
		if err != nil {
			return failed(h, "looking on which disks "+source+" lies", err)
		}
		for line := range strings.Lines(below) {
			fields := strings.Fields(line)
			if len(fields) == 2 && fields[1] == "disk" && !slices.Contains(strings.Fields(listed), fields[0]) {
				return fmt.Errorf("spec.snapshot.scaleway.disks: %s lies on %s, which is not among them: add it, best as /dev/disk/by-id/…", strings.Join(f.Paths, ", "), fields[0])
			}
		}
	}
	return nil
}

// room refuses images for which the laptop may have no room. What images of an earlier attempt take counts as free.
func (r *scwRescue) room(drives []drive) error {
	var need int64
	for _, d := range drives {
		need += d.size
	}
	dir := r.dir()
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return fmt.Errorf("spec.snapshot.scaleway.images: looking how much is free in %s: %w", dir, err)
		}
		dir = filepath.Dir(dir)
	}
	free := int64(st.Bavail) * int64(st.Bsize) //nolint:unconvert // other systems have other types
	if r.free != nil {
		free = r.free()
	}
	theirs, err := r.size()
	if err != nil {
		return fmt.Errorf("spec.snapshot.scaleway.images: looking how much is in %s: %w", r.dir(), err)
	}
	if free += theirs; free >= need || r.at.ImagesFit {
		return nil
	}
	return fmt.Errorf("spec.snapshot.scaleway.images: %s has %s free, and the disks have %s; images are compressed, but nobody knows by how much: name a directory with more room, or, where you know that they will fit, write imagesFit: true", dir, bytes(free), bytes(need))
}

// size is what the images take that are there, which new ones replace.
func (r *scwRescue) size() (sum int64, err error) {
	err = filepath.WalkDir(filepath.Join(r.dir(), "disks"), func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				sum += info.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return sum, err
}

func (r *scwRescue) Take() []Operation {
	rescue, normal := r.machine.commands()
	return []Operation{
		{
			Name: Unused, Place: OnLaptop, Command: "ls " + remote.Quote(r.dir()),
			Summary: "See that no images are there of another run, in " + r.dir(),
			Run: func(context.Context) error {
				if _, err := os.Stat(filepath.Join(r.dir(), "manifest.json")); err == nil {
					return fmt.Errorf("there are images in %s already, of an earlier run: remove that directory when they are not needed any more, or name another in spec.snapshot.scaleway.images", r.dir())
				} else if !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("looking for images of an earlier run: %w", err)
				}
				return nil
			},
		},
		{
			Name: "image", Place: OnLaptop,
			Command: fmt.Sprintf("%s; ssh RESCUE_SYSTEM 'dd if=DISK bs=4M | zstd' | age --encrypt --recipient … >%s/…; %s", rescue, remote.Quote(r.dir()), normal),
			Summary: fmt.Sprintf("Restart %s into its rescue system, make images of %s to %s, compare them with the disks' sums, and restart it from its disks: restarts the host twice, as by its reset button, and it is away until all is copied; when that is cut off, the next run or rollback restarts it from its disks before all else", r.name(), strings.Join(r.at.Disks, ", "), r.dir()),
			Run:     r.take,
			// Since "unused" none can be older than this run. The server is back: that is what Reach is for.
			Done: func(ctx context.Context) (bool, error) {
				_, err := r.whole(ctx)
				return err == nil, ctx.Err()
			},
		},
	}
}

// take makes the images. Whatever becomes of that, the server is started from its disks again.
func (r *scwRescue) take(ctx context.Context) error { return r.backFrom(ctx, r.images(ctx)) }

// backFrom starts the server from its disks after what ended with err, nil included.
func (r *scwRescue) backFrom(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		back := r.leave(ctx)
		if err != nil && back != nil {
			return fmt.Errorf("%w; and then: %w", err, back)
		}
		return errors.Join(err, back)
	}
	// Whoever ended this waits: the order is given, and that the host answers is for the next attempt to see.
	if err == nil {
		err = context.Cause(ctx)
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	ordered := r.ask(last, "starting it from its disks", func(c *scw.Client, _ scw.RequestOption) error {
		now, err := r.machine.look(last, c)
		if err == nil && !now.normal {
			err = r.machine.normal(last, c)
		}
		return err
	})
	if ordered != nil {
		return fmt.Errorf("%w; it could not be told to start from its disks: %w; %s", err, ordered, r.byHand())
	}
	return fmt.Errorf("%w; %s was told to start from its disks", err, r.name())
}

// retries is how often a stream is begun anew whose connection was lost.
const retries = 3

func (r *scwRescue) images(ctx context.Context) error {
	set, err := r.set(true)
	if err != nil {
		return err
	}
	// Before the reset, so that what is refused takes nothing away; a host that does not answer has nothing to say here.
	asked := false
	if own, err := r.Host(ctx); err == nil {
		drives, err := r.drives(ctx, own)
		if err == nil {
			err = r.room(drives)
		}
		if err != nil && !errors.Is(err, remote.ErrConnectionLost) {
			return err
		}
		asked = err == nil
	}
	h, err := r.enter(ctx, r.byHand())
	if err != nil {
		return err
	}
	defer h.Close()
	drives, session, err := r.prepare(ctx, h)
	if err != nil {
		return err
	}
	if !asked {
		if err := r.room(drives); err != nil {
			return err
		}
	}
	// Beside the new ones there may be no room for them.
	for i := range drives {
		if a, ok := set.Artifact(r.artifact(i)); ok && a.Meta[metaSession] != session {
			if err := set.Remove(a.Name); err != nil {
				return err
			}
		}
	}
	for i, d := range drives {
		for try := 1; ; try++ {
			err = r.image(ctx, h, set, i, d, session)
			if !errors.Is(err, remote.ErrConnectionLost) || try == retries || ctx.Err() != nil {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("%s: making the image of %s: %w", r.name(), d.path, err)
		}
	}
	return nil
}

// using lists what of the disks is used by the system that runs. Nothing is let go of while file systems of theirs are
// mounted or pools of theirs are imported. Of a btrfs lsblk tells a mount point at one of its devices, of a ZFS pool at none.
const using = `disks=$(readlink -e -- %[1]s)
used() {
  for d in $disks; do
    lsblk -nrpo NAME,MOUNTPOINT "$d" | awk '$2 != "" && $2 != "[SWAP]" { print $1 }'
    for k in $(lsblk -nro KNAME "$d"); do
      for member in %[2]s/*/devices/"$k"; do [ ! -e "$member" ] || echo "/dev/$k"; done
      [ "$(lsblk -dnro FSTYPE "/dev/$k")" = zfs_member ] || continue
      zpool list -H -o name | awk -v pool="$(lsblk -dnro LABEL "/dev/$k")" 'pool == "" || $0 == pool { n = 1 } END { exit !n }' && echo "/dev/$k"
    done
  done 2>/dev/null | sort -u
}
busy=$(used)
if [ -z "$busy" ]; then
  { %[3]s; } >/dev/null 2>&1
  busy=$(used; for d in $disks; do lsblk -nrpo NAME,TYPE,MOUNTPOINT "$d" 2>/dev/null | awk '(NR > 1 && $2 != "part") || $3 != "" { print $1 }'; done)
fi
printf %%s "$busy" | sort -u`

// prepare makes the disks quiet and tells what they are, and the session's boot id.
func (r *scwRescue) prepare(ctx context.Context, h *remote.Host) ([]drive, string, error) {
	drives, err := r.drives(ctx, h)
	if err != nil {
		return nil, "", err
	}
	busy, err := h.Output(ctx, fmt.Sprintf(using, remote.Quote(r.at.Disks...), r.tools.btrfs, r.tools.release))
	if err != nil {
		return nil, "", failed(h, "looking whether the rescue system uses the disks", err)
	}
	if busy != "" {
		return nil, "", fmt.Errorf("%s: its rescue system uses the disks itself (%s): unmount or stop that there, then repeat the command", r.name(), strings.Join(strings.Fields(busy), ", "))
	}
	session, err := h.Output(ctx, bootID)
	if err != nil {
		return nil, "", failed(h, "reading the rescue system's boot id", err)
	}
	return drives, session, nil
}

// imageMark begins the line that ends a stream, with the sum of what was read.
const imageMark = "k3s-dualstack image "

// reading prints a disk, compressed, and then the disk's sum to stderr, where every stage went well.
const reading = `run=$(mktemp -d) && mkfifo "$run/in" && : >"$run/failed" || exit
trap 'rm -rf "$run"' EXIT
sha256sum <"$run/in" >"$run/sum" & summer=$!
{ dd if=%[1]s bs=4194304 2>"$run/dd" || echo reading >>"$run/failed"; } |
  { tee "$run/in" || echo copying >>"$run/failed"; } |
  { %[2]s || echo compressing >>"$run/failed"; }
wait "$summer" || echo summing >>"$run/failed"
if [ -s "$run/failed" ]; then cat "$run/failed" >&2; head -n 1 "$run/dd" >&2; exit 1; fi
echo "` + imageMark + `$(cut -c 1-64 "$run/sum")" >&2`

// writing takes a compressed image from standard input. The disk's last mebibyte is empty until it is its turn, and the first
// until all else is written and on the disk.
const writing = `run=$(mktemp -d) && : >"$run/failed" || exit
trap 'rm -rf "$run"' EXIT
for at in 0 %[3]d; do
  dd if=/dev/zero of=%[1]s bs=1048576 count=1 seek="$at" oflag=seek_bytes conv=nocreat,notrunc,fsync 2>"$run/dd" || { cat "$run/dd" >&2; exit 1; }
done
{ %[2]s || echo decompressing >>"$run/failed"; } | {
  dd of="$run/first" bs=1048576 count=1 iflag=fullblock 2>"$run/dd1" || echo receiving >>"$run/failed"
  dd of=%[1]s bs=1048576 seek=1 iflag=fullblock conv=nocreat,notrunc,fsync 2>"$run/dd" || echo writing >>"$run/failed"
}
if [ -s "$run/failed" ]; then cat "$run/failed" >&2; head -n 1 "$run/dd" >&2; exit 1; fi
dd if="$run/first" of=%[1]s bs=1048576 conv=nocreat,notrunc,fsync 2>"$run/dd" || { cat "$run/dd" >&2; exit 1; }`

var (
	packs   = map[backup.Codec]string{backup.Zstd: "zstd -q -c -3 -T0", backup.Gzip: "gzip -c -1"}
	unpacks = map[backup.Codec]string{backup.Zstd: "zstd -q -d -c", backup.Gzip: "gzip -d -c"}
)

// image makes the image of a disk, reads it again and compares it with the disk. One that this session has made is only compared.
func (r *scwRescue) image(ctx context.Context, h *remote.Host, set *backup.Set, i int, d drive, session string) error {
	name := r.artifact(i)
	if a, ok := set.Artifact(name); ok && a.Meta[metaSession] == session && a.Meta[metaSerial] == d.serial {
		return r.compare(ctx, set, name)
	}
	packer, err := h.Output(ctx, "command -v zstd >/dev/null && echo zstd || echo gzip")
	if err != nil {
		return failed(h, "looking for a compressor", err)
	}
	codec := backup.Codec(packer)
	w, err := set.Create(name, backup.KindFile, backup.Encoded(codec), backup.Expect(d.size))
	if err != nil {
		return err
	}
	defer w.Abort()
	task := r.Progress.Bytes(fmt.Sprintf("Imaging %s, %s before compression", d.path, bytes(d.size)), -1)
	defer task.Done()
	out, said := remote.NewGate(io.MultiWriter(w, task)), &strings.Builder{}
	err = h.Run(ctx, fmt.Sprintf(reading, remote.Quote(d.path), packs[codec]), remote.Stdout(out), remote.Stderr(remote.NewGate(said)))
	out.Close()
	if err != nil {
		return err
	}
	_, sum, ok := strings.Cut(said.String(), imageMark)
	if sum = strings.TrimSpace(sum); !ok || len(sum) != 64 {
		return errors.New("the rescue system's side ended without saying how it went")
	}
	_, err = w.Commit(map[string]string{metaDisk: d.path, metaSize: fmt.Sprint(d.size), metaSum: sum, metaSerial: d.serial, metaSession: session, metaServer: r.name()})
	if err != nil {
		return err
	}
	return r.compare(ctx, set, name)
}

// counted passes on what is read, counts it, and ends with the context.
type counted struct {
	ctx  context.Context
	r    io.Reader
	task *progress.Task
}

func (c counted) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.r.Read(p)
	c.task.Add(int64(n))
	return n, err
}

// compare reads an image to its end, decrypted and decompressed, and holds it against what was read from the disk.
func (r *scwRescue) compare(ctx context.Context, set *backup.Set, name string) error {
	a, ok := set.Artifact(name)
	if !ok {
		return &backup.NotFoundError{Dir: set.Dir(), Name: name}
	}
	size, _ := strconv.ParseInt(a.Meta[metaSize], 10, 64)
	plain, err := set.Reader(name)
	if err != nil {
		return err
	}
	defer plain.Close()
	task := r.Progress.Bytes("Comparing the image of "+a.Meta[metaDisk], size)
	defer task.Done()
	sum := sha256.New()
	n, err := io.Copy(sum, counted{ctx, plain, task})
	switch {
	case err != nil:
		return err
	case n != size:
		return &backup.DamagedError{Name: name, File: a.File, Err: fmt.Errorf("it holds %d bytes of a disk of %d", n, size)}
	case hex.EncodeToString(sum.Sum(nil)) != a.Meta[metaSum]:
		return &backup.DamagedError{Name: name, File: a.File, Err: errors.New("its SHA-256 is not that of what was read from the disk")}
	}
	return nil
}

func (r *scwRescue) Return() []Operation {
	rescue, normal := r.machine.commands()
	return []Operation{
		{
			Name: "look", Place: OnLaptop, Command: "sha256sum " + remote.Quote(r.dir()) + "/disks/*",
			Summary: "See that the server is there, and the images of all its disks, whole and with the sums that they had",
			Run: func(ctx context.Context) error {
				if err := r.find(ctx); err != nil {
					return err
				}
				_, err := r.whole(ctx)
				return err
			},
		},
		{
			Name: "write", Place: OnLaptop,
			Command: fmt.Sprintf("%s; age --decrypt --identity … %s/… | ssh RESCUE_SYSTEM 'zstd -d | dd of=DISK bs=1M'; %s", rescue, remote.Quote(r.dir()), normal),
			Summary: fmt.Sprintf("Restart %s into its rescue system, write the images over %s, read the disks again and compare their sums, and restart it from its disks: restarts the host twice, and overwrites the disks; when that is cut off, the next run or rollback restarts it from its disks before all else, which it writes anew before if they are written in part", r.name(), strings.Join(r.at.Disks, ", ")),
			Run:     r.write,
		},
	}
}

// whole opens the images and proves that all are there, sound and of one session.
func (r *scwRescue) whole(ctx context.Context) (*backup.Set, error) {
	set, err := r.set(false)
	if err != nil {
		return nil, fmt.Errorf("%w; %s", err, otherwise)
	}
	session := ""
	for i, disk := range r.at.Disks {
		a, ok := set.Artifact(r.artifact(i))
		switch {
		case !ok || a.Meta[metaDisk] != disk:
			return nil, fmt.Errorf("there is no image of %s in %s: %s", disk, r.dir(), otherwise)
		case a.Meta[metaServer] != r.name():
			return nil, fmt.Errorf("the image of %s in %s is of %s, not of %s: %s", disk, r.dir(), a.Meta[metaServer], r.name(), otherwise)
		case session != "" && a.Meta[metaSession] != session:
			return nil, fmt.Errorf("the images in %s were not made at one time: %s", r.dir(), otherwise)
		}
		session = a.Meta[metaSession]
	}
	for i := range r.at.Disks {
		if err := r.compare(ctx, set, r.artifact(i)); err != nil {
			return nil, fmt.Errorf("%w: %s", err, otherwise)
		}
	}
	return set, nil
}

// write writes all images back. Unless all of them are on their disks the server stays in its rescue system; before the
// first byte is written it is started from its disks.
func (r *scwRescue) write(ctx context.Context) error {
	begun, err := r.marked()
	if err != nil {
		return err
	}
	next := r.byHand()
	if begun {
		next = r.stay()
	}
	set, err := r.set(false)
	if err != nil {
		return r.stopped(ctx, err)
	}
	h, err := r.enter(ctx, next)
	if err != nil && begun && ctx.Err() == nil {
		return err // which says that it stays
	}
	if err == nil {
		err = r.writeAll(ctx, h, set)
		h.Close()
	}
	if err != nil {
		return r.stopped(ctx, err)
	}
	if err := r.mark(false); err != nil {
		return err
	}
	return r.backFrom(ctx, nil)
}

// stopped is for a return that cannot go on.
func (r *scwRescue) stopped(ctx context.Context, err error) error {
	if begun, markErr := r.marked(); begun || markErr != nil {
		return fmt.Errorf("%w; %s", err, r.stay())
	}
	return r.backFrom(ctx, fmt.Errorf("%w; nothing was written", err))
}

// writeAll writes the images over the disks as the rescue system has them.
func (r *scwRescue) writeAll(ctx context.Context, h *remote.Host, set *backup.Set) error {
	drives, _, err := r.prepare(ctx, h)
	if err != nil {
		return err
	}
	for i, d := range drives {
		a, ok := set.Artifact(r.artifact(i))
		switch {
		case !ok:
			return &backup.NotFoundError{Dir: set.Dir(), Name: r.artifact(i)}
		case a.Meta[metaSize] != fmt.Sprint(d.size):
			return fmt.Errorf("%s: %s has %d bytes, and the image is of a disk of %s: it is another disk; name it as the rescue system does, best as /dev/disk/by-id/…", r.name(), d.path, d.size, a.Meta[metaSize])
		case a.Meta[metaSerial] != d.serial:
			return fmt.Errorf("%s: %s has the serial number %q, and the image is of %q: it is another disk", r.name(), d.path, d.serial, a.Meta[metaSerial])
		}
	}
	if err := r.mark(true); err != nil {
		return err
	}
	for i, d := range drives {
		for try := 1; ; try++ {
			err = r.restore(ctx, h, set, i, d)
			if !errors.Is(err, remote.ErrConnectionLost) || try == retries || ctx.Err() != nil {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("%s: writing %s: %w", r.name(), d.path, err)
		}
	}
	return nil
}

// restore writes one image and compares what the disk then holds.
func (r *scwRescue) restore(ctx context.Context, h *remote.Host, set *backup.Set, i int, d drive) error {
	content, a, err := set.Content(r.artifact(i))
	if err != nil {
		return err
	}
	defer content.Close()
	unpack, ok := unpacks[a.Codec]
	if !ok {
		return fmt.Errorf("its image is compressed with %s, which is not known here", a.Codec)
	}
	task := r.Progress.Bytes("Writing "+d.path, a.ContentSize)
	err = h.Run(ctx, fmt.Sprintf(writing, remote.Quote(d.path), unpack, max(0, d.size-1<<20)), remote.Stdin(counted{ctx, content, task}))
	task.Done()
	if err != nil {
		return err
	}
	wait := r.Progress.Wait("Reading " + d.path + " again")
	defer wait.Done()
	sum, err := h.Output(ctx, fmt.Sprintf("%[1]s %[2]s || exit\nsha256sum <%[2]s | cut -c 1-64", r.tools.flush, remote.Quote(d.path)))
	if err != nil {
		return failed(h, "reading it again", err)
	}
	if sum != a.Meta[metaSum] {
		return fmt.Errorf("what it holds now has the SHA-256 %s, and the image %s: the disk may be failing", sum, a.Meta[metaSum])
	}
	return nil
}

// Pending tells of disks that are written in part.
func (r *scwRescue) Pending(context.Context) (string, error) {
	begun, err := r.marked()
	if err != nil || !begun {
		return "", err
	}
	return fmt.Sprintf("the disks of %s are written in part, and it is in its rescue system", r.name()), nil
}

// Reach starts the server from its disks, or, where these are written in part, writes them all anew before.
func (r *scwRescue) Reach(ctx context.Context, cut string) error {
	if cut != "image" && cut != "write" {
		return nil
	}
	begun, err := r.marked()
	switch {
	case err != nil:
		return err
	case begun:
		return r.write(ctx)
	}
	if cut == "write" { // without the directory nobody knows of a marker in it
		if _, err := os.Stat(r.dir()); err != nil {
			return fmt.Errorf("%s: its disks may be written in part, and the images are not where spec.snapshot.scaleway.images says: %w; put them back there, then repeat the command; do not start it from its disks before", r.name(), err)
		}
	}
	return r.leave(ctx)
}

func (r *scwRescue) Remove() []Operation {
	return []Operation{{
		Name: "remove", Place: OnLaptop, Command: "rm -r " + remote.Quote(r.dir()),
		Summary: "Remove the images in " + r.dir(),
		Run: func(context.Context) error {
			if begun, err := r.marked(); err != nil || begun {
				return errors.Join(err, fmt.Errorf("the images in %s are being written back to the disks of %s: complete the rollback, then repeat the command", r.dir(), r.name()))
			}
			if err := os.RemoveAll(r.dir()); err != nil {
				return fmt.Errorf("removing the images: %w", err)
			}
			return nil
		},
	}}
}
