package engine

import (
	"slices"
	"strings"
	"testing"
)

func TestCapabilityFlags(t *testing.T) {
	const all = uint64(1)<<41 - 1
	const resource = 24
	flags := capabilityFlags(all &^ (1 << resource))
	if slices.Contains(flags, "SYS_RESOURCE") {
		t.Error("asks for a capability that the machine cannot give")
	}
	for _, want := range []string{"CHOWN", "SYS_ADMIN", "NET_ADMIN", "AUDIT_READ"} {
		if !slices.Contains(flags, want) {
			t.Errorf("does not ask for %s", want)
		}
	}
	if len(flags) != 2*(len(capabilities)-1) {
		t.Errorf("%d flags", len(flags))
	}
	if flags := capabilityFlags(0); len(flags) != 0 {
		t.Errorf("got %v for none", flags)
	}
	// The kernel's numbers: a name out of its place would ask for another capability.
	for bit, name := range map[int]string{0: "CHOWN", 12: "NET_ADMIN", 21: "SYS_ADMIN", 24: "SYS_RESOURCE", 27: "MKNOD", 31: "SETFCAP", 37: "AUDIT_READ"} {
		if capabilities[bit] != name {
			t.Errorf("capability %d is %s, not %s", bit, capabilities[bit], name)
		}
	}
}

func TestTail(t *testing.T) {
	long := strings.Repeat("x", 5000) + " the reason\n"
	if got := Tail([]byte(long)); len(got) > 2000 || !strings.HasSuffix(got, "the reason") {
		t.Errorf("got %d bytes, …%s", len(got), got[len(got)-20:])
	}
}
