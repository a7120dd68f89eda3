package openbao

import (
	"fmt"
	"strconv"
	"strings"
)

// WrongKeysError says that unseal keys are not the server's.
type WrongKeysError struct {
	// Wrong are the places of the wrong ones, counted from 1; none when it
	// cannot be told which of them are.
	Wrong []int
	// Given is how many there are.
	Given int
	// Reason is what is wrong with those; empty when they just do not fit.
	Reason string
}

func (e *WrongKeysError) Error() string {
	switch {
	case len(e.Wrong) == 0 && e.Given == 1:
		return "the unseal key is wrong: it is mistyped, another server's, or from before a rekey"
	case len(e.Wrong) == 0:
		return "the unseal keys do not open it together: at least one is mistyped, another server's, or from before a rekey"
	}
	var places []string
	for _, place := range e.Wrong {
		places = append(places, strconv.Itoa(place))
	}
	what, is := "unseal key "+places[0], "is wrong: it does not belong to the others, which open it"
	if last := len(places) - 1; last > 0 {
		what = "unseal keys " + strings.Join(places[:last], ", ") + " and " + places[last]
		is = "are wrong: they do not belong to the others, which open it"
	}
	if e.Reason != "" {
		is = e.Reason
	}
	return fmt.Sprintf("%s of %d %s", what, e.Given, is)
}

// TooFewKeysError says that the server asks for more unseal keys than there are.
type TooFewKeysError struct{ Have, Need int }

func (e *TooFewKeysError) Error() string {
	return fmt.Sprintf("the server needs %d unseal keys, and %d are given; give the missing ones too", e.Need, e.Have)
}

// AutoSealError says that the server is unsealed by something else than
// people's keys, which therefore prove nothing.
type AutoSealError struct {
	// Type is what unseals it, for example awskms, transit or static.
	Type string
}

func (e *AutoSealError) Error() string {
	return fmt.Sprintf("the server unseals itself by its %q seal, and no unseal keys can be proven for it; give none, "+
		"and make sure that what unseals it is there when it starts again", e.Type)
}
