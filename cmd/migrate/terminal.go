package main

import (
	"fmt"
	"os"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sunbeam.pt/k3s-dualstack/progress"
	"sunbeam.pt/k3s-dualstack/remote"
)

// askSecret asks a person for a value without echo; nil where there is no terminal. A
// question stands alone on its line, whatever is under way, and an interrupt ends it.
func askSecret(c *cobra.Command, p *progress.Reporter) func(question string) ([]byte, error) {
	k := typedAt(c.InOrStdin())
	in, ok := k.in.(*os.File)
	if !ok || !isTerminal(in) {
		return nil
	}
	return func(question string) ([]byte, error) {
		defer k.alone()()
		fd := int(in.Fd())
		before, err := term.GetState(fd)
		if err != nil {
			return nil, fmt.Errorf("asking on the terminal: %w", err)
		}
		done := p.Question(question + ": ")
		defer done()
		type answer struct {
			value []byte
			err   error
		}
		answers := make(chan answer, 1)
		go func() { // ends with the process when nobody ever answers
			value, err := term.ReadPassword(fd)
			answers <- answer{value, err}
		}()
		select {
		case a := <-answers:
			return a.value, a.err
		case <-c.Context().Done():
			_ = term.Restore(fd, before) // whoever comes next on this terminal sees what is typed
			return nil, c.Context().Err()
		}
	}
}

// askPassphrase asks for the passphrase of each key file once.
func askPassphrase(c *cobra.Command, p *progress.Reporter) remote.AskFunc {
	ask := askSecret(c, p)
	if ask == nil {
		return nil
	}
	var mu sync.Mutex
	answers := map[string][]byte{}
	return func(keyFile string) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if answer, ok := answers[keyFile]; ok {
			return answer, nil
		}
		answer, err := ask("Passphrase of " + keyFile)
		if err == nil {
			answers[keyFile] = answer
		}
		return answer, err
	}
}
