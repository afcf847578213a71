//go:build !linux

package start

import "fmt"

// Adopt takes over a process that somebody else started; only Linux can do that.
func Adopt(pid, statusFD int) (*Process, error) {
	return nil, fmt.Errorf("start: adopting process %d: %w", pid, ErrUnsupported)
}

// report is where the parent of an adopted process tells its status.
type report struct{}

func (*report) read() (Status, bool) { return Status{}, true }
