package steps

import "syscall"

// ownGroup starts a process as the leader of its own group; macOS has no way to
// end it should migrate be killed.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
