package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
)

// Files of the store at the top of its volumes.
const (
	markerFile    = "identity.json" // on both volumes, written when the fill is complete
	fillingFile   = ".filling"      // on both volumes while they are filled
	heartbeatFile = "heartbeat.log" // on the small volume
)

// identity tells one fill from every other: a store that was lost and filled anew
// has another.
type identity struct {
	ID     string    `json:"id"`
	Filled time.Time `json:"filled"`
	Files  int       `json:"files"`
	MiB    int       `json:"mib"`
}

type store struct {
	small, large string
	files, mib   int
	beats        atomic.Int64
}

func storeCommand() *cobra.Command {
	var s store
	var listen string
	c := &cobra.Command{
		Use:   "store",
		Short: "Data worth keeping: two volumes, filled once, and a line a second",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithCancel(c.Context())
			defer cancel()
			who, err := s.open()
			if err != nil {
				return err
			}
			log.Printf("store %s of %s", who.ID, who.Filled.Format(time.RFC3339))
			beating := make(chan error, 1)
			go func() {
				beating <- s.beat(ctx)
				cancel()
			}()
			mux := http.NewServeMux()
			mux.HandleFunc("GET /healthz", health)
			mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_ = writeJSON(w, struct {
					identity
					Heartbeats int64    `json:"heartbeats"`
					Addresses  []string `json:"addresses"`
				}{who, s.beats.Load(), addresses()})
			})
			err = serve(ctx, &http.Server{Addr: listen, Handler: mux})
			cancel()
			return errors.Join(err, <-beating)
		},
	}
	flags := c.Flags()
	flags.StringVar(&listen, "listen", ":8080", "address to listen on")
	flags.StringVar(&s.small, "small", "/small", "volume of many odd files")
	flags.StringVar(&s.large, "large", "/large", "volume of large files")
	flags.IntVar(&s.files, "files", 5000, "how many small files")
	flags.IntVar(&s.mib, "mib", 300, "how much on the large volume, in MiB")
	return c
}

// open fills empty volumes, and otherwise insists that they are what an earlier fill left:
// anything else is loss, and writing over it would hide that.
func (s *store) open() (identity, error) {
	small, err := s.look(s.small)
	if err != nil {
		return identity{}, err
	}
	large, err := s.look(s.large)
	if err != nil {
		return identity{}, err
	}
	switch {
	case small == nil && large == nil:
		return s.fill()
	case small == nil || large == nil || small.ID != large.ID:
		return identity{}, fmt.Errorf("the volumes do not belong together (%s: %v, %s: %v): one of them was lost", s.small, small, s.large, large)
	}
	return *small, nil
}

// look returns the identity on a volume; none when it is empty, or was being filled when
// that was cut off.
func (s *store) look(volume string) (*identity, error) {
	data, err := os.ReadFile(filepath.Join(volume, markerFile))
	if err == nil {
		var found identity
		if err := json.Unmarshal(data, &found); err != nil {
			return nil, fmt.Errorf("reading the identity of %s: %w", volume, err)
		}
		return &found, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	entries, err := os.ReadDir(volume)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, nil
	}
	if _, err := os.Stat(filepath.Join(volume, fillingFile)); err != nil {
		return nil, fmt.Errorf("%s holds files but no %s: it was not restored completely", volume, markerFile)
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(volume, entry.Name())); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (s *store) fill() (identity, error) {
	start := time.Now()
	who := identity{ID: rand.Text(), Filled: start.UTC(), Files: s.files, MiB: s.mib}
	volumes := []string{s.small, s.large}
	for _, volume := range volumes {
		if err := os.WriteFile(filepath.Join(volume, fillingFile), nil, 0o600); err != nil {
			return who, err
		}
	}
	if err := fillSmall(s.small, s.files); err != nil {
		return who, fmt.Errorf("filling %s: %w", s.small, err)
	}
	if err := fillLarge(s.large, s.mib); err != nil {
		return who, fmt.Errorf("filling %s: %w", s.large, err)
	}
	marker, err := json.Marshal(who)
	if err != nil {
		return who, err
	}
	for _, volume := range volumes {
		if err := os.WriteFile(filepath.Join(volume, markerFile), append(marker, '\n'), 0o644); err != nil {
			return who, err
		}
	}
	for _, volume := range volumes {
		if err := os.Remove(filepath.Join(volume, fillingFile)); err != nil {
			return who, err
		}
	}
	log.Printf("filled in %s", time.Since(start).Round(time.Millisecond))
	return who, nil
}

// beat appends a numbered line each second. The numbers go on where an earlier
// life ended, so that a line that was written and later lost leaves a gap or a repetition.
func (s *store) beat(ctx context.Context) error {
	file, err := os.OpenFile(filepath.Join(s.small, heartbeatFile), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	var last int64
	for lines.Scan() {
		if _, err := fmt.Sscanf(lines.Text(), "%d ", &last); err != nil {
			return fmt.Errorf("reading %s, line %q: %w", heartbeatFile, lines.Text(), err)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		last++
		if _, err := fmt.Fprintf(file, "%d %s\n", last, time.Now().UTC().Format(time.RFC3339Nano)); err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			return err
		}
		s.beats.Store(last)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
