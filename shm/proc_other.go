//go:build !linux

package shm

import "os"

// What follows needs a proof of death and a look at another process's mappings, which only Linux offers here.

// Identify returns the identity of a process: Linux only, else [ErrUnsupported].
func Identify(int) (Identity, error) { return 0, wrap("identify", ErrUnsupported) }

// Gone reports whether a process is proven dead: on Linux only, else nothing is ever proven.
func (i Identity) Gone() bool { return false }

// Privileged reports whether the system gave this program rights that its caller lacks. Such a program believes nothing that its environment
// says.
func Privileged() bool { return os.Getuid() != os.Geteuid() || os.Getgid() != os.Getegid() }

// CheckInherited has something to check on Linux only.
func CheckInherited(int) error { return nil }

// UnmappedBy proves nothing here.
func (s *Segment) UnmappedBy(int) bool { return false }

type fileID struct{}

func identify(int) (fileID, error) { return fileID{}, ErrUnsupported }
func unmapped(int, fileID) bool    { return false }
func pidSpace() (uint64, error)    { return 0, ErrUnsupported }
func openOf(int, int) (int, error) { return -1, ErrUnsupported }
