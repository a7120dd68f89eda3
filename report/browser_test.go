package report_test

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// faults is a script that lists what is wrong with the page as it is laid out.
//
//go:embed testdata/faults.js
var faults string

// browser is Chromium without a window; the test is skipped where there is none, and fails there when CHROMIUM
// says that there is.
func browser(t *testing.T) context.Context {
	t.Helper()
	name := os.Getenv("CHROMIUM")
	for _, n := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if _, err := exec.LookPath(n); err == nil && name == "" {
			name = n
		}
	}
	if name == "" {
		t.Skip("there is no Chromium here to look at the report with")
	}
	path, err := exec.LookPath(name)
	require.NoError(t, err, "CHROMIUM")
	// Root has no sandbox, and the page is ours. On a busy machine the first start takes its time.
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.WSURLReadTimeout(2*time.Minute))
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	require.NoError(t, chromedp.Run(ctx)) // starts it; each page is a tab
	return ctx
}

// look is how somebody looks at the page.
type look struct {
	width  int64
	scheme string
	media  string
}

// seen is what became of a page.
type seen struct {
	faults []string
	text   string
	pdf    []byte

	mu   sync.Mutex
	said []string // by the console, the browser's own checks, and requests other than for the page
}

func open(t *testing.T, browser context.Context, html string, l look) *seen {
	t.Helper()
	file := filepath.Join(t.TempDir(), "report.html")
	require.NoError(t, os.WriteFile(file, []byte(html), 0o600))
	url := "file://" + file
	ctx, cancel := chromedp.NewContext(browser)
	defer cancel()
	s := &seen{}
	say := func(format string, args ...any) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.said = append(s.said, fmt.Sprintf(format, args...))
	}
	chromedp.ListenTarget(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventConsoleAPICalled:
			say("console: %s, %d arguments", e.Type, len(e.Args))
		case *runtime.EventExceptionThrown:
			say("exception: %s", e.ExceptionDetails)
		case *cdplog.EventEntryAdded:
			say("log: %s", e.Entry.Text)
		case *audits.EventIssueAdded:
			say("issue: %s", e.Issue.Code)
		case *network.EventRequestWillBeSent:
			if e.Request.URL != url {
				say("request: %s", e.Request.URL)
			}
		}
	})
	err := chromedp.Run(ctx,
		network.Enable(), cdplog.Enable(), audits.Enable(),
		emulation.SetDeviceMetricsOverride(l.width, 900, 2, l.width < 600),
		emulation.SetEmulatedMedia().WithMedia(l.media).WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.scheme}}),
		chromedp.Navigate(url),
		chromedp.Evaluate(faults, &s.faults),
		chromedp.Evaluate("document.body.innerText", &s.text),
		chromedp.ActionFunc(func(ctx context.Context) (err error) {
			if dir := os.Getenv("SCREENSHOTS"); dir != "" {
				var png []byte
				if err := chromedp.FullScreenshot(&png, 100).Do(ctx); err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-")+".png"), png, 0o600); err != nil {
					return err
				}
			}
			if l.media == "print" {
				s.pdf, _, err = page.PrintToPDF().Do(ctx)
			}
			return err
		}),
	)
	require.NoError(t, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s
}

// Somebody opens the report at a desk, and somebody on a phone.
func TestInABrowser(t *testing.T) {
	chromium := browser(t)
	wanted := map[string][]string{
		"finished": {
			"sunbeam is dual-stack.", "The migration is complete and verified.", "migrate verify -f plan.yaml", "K3s was stopped where the ground is tinted",
			`✕ failed: spec.platform.command "sunbeam platform up": exit status 7`, "10.42.0.0/24, fd42::/64", "at least 1 min 55 s",
			"the disk is grown tonight", strings.Repeat("0123456789abcdef", 4), "migrate rollback -f plan.yaml --to protect --dry-run",
		},
		"rolled-back": {"it is the IPv4-only cluster that it was", "⌁ cut off", "✓ found done", "Take back: Uninstall K3s", "the availability: line 3 is damaged", "QRSTUVWXYZ"},
		"hostile":     {"<script>alert(1)</script>"},
	}
	for name, sample := range samples {
		for _, l := range []look{{1280, "light", ""}, {1280, "dark", ""}, {390, "light", ""}, {390, "dark", ""}, {794, "light", "print"}} {
			t.Run(strings.TrimSpace(fmt.Sprintf("%s at %d %s %s", name, l.width, l.scheme, l.media)), func(t *testing.T) {
				html, _ := render(t, sample())
				s := open(t, chromium, html, l)
				assert.Empty(t, s.faults)
				assert.Empty(t, s.said)
				for _, text := range wanted[name] {
					assert.True(t, strings.Contains(s.text, text), "%q is not to be seen", text)
				}
				if l.media == "print" {
					assert.NotEmpty(t, s.pdf)
				}
			})
		}
	}
	// What the test would miss, it would not be worth anything.
	for name, bad := range map[string]string{
		"a script":       `<script>console.log("x")</script>`,
		"a picture":      `<img src="https://example.invalid/x.png" alt="">`,
		"a wide element": `<div style="width:3000px">wide</div>`,
		"clipped text":   `<p style="width:3rem;overflow:hidden;white-space:nowrap">far too long for its box</p>`,
		"a flat bar":     `<svg role="img" aria-label="x"><rect class="bar" width="0" height="3"/></svg>`,
		"pale text":      `<p style="color:#bbb">pale</p>`,
		"a lost heading": `<h6>too deep</h6>`,
	} {
		t.Run("it notices "+name, func(t *testing.T) {
			html, _ := render(t, finished())
			s := open(t, chromium, strings.Replace(html, "</main>", bad+"</main>", 1), look{1280, "light", ""})
			assert.NotEmpty(t, append(s.faults, s.said...))
		})
	}
}
