//go:build unix

package start

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// spawnProcess executes s.Path. syscall.ForkExec clones with CLONE_VFORK|CLONE_VM on Linux, so that a start
// does not depend on how much memory the host has.
func spawnProcess(s Spec) (*Process, error) {
	if err := checkKernel(); err != nil {
		return nil, err
	}
	payload := -1
	if s.Payload != nil {
		var err error
		if payload, err = payloadFile(s.Payload); err != nil {
			return nil, fmt.Errorf("start: payload of %d bytes: %w", len(s.Payload), explain(err))
		}
		defer func() { _ = unix.Close(payload) }()
		s.Files = append(slices.Clone(s.Files), payload)
	}
	files, null, err := childFiles(&s)
	if err != nil {
		return nil, err
	}
	if null >= 0 {
		defer func() { _ = unix.Close(null) }()
	}

	if err := children.enter(); err != nil {
		return nil, fmt.Errorf("start: supervising children: %w", explain(err))
	}
	defer children.leave()

	pid, h, err := forkExec(&s, &syscall.ProcAttr{Dir: s.Dir, Env: s.tell(payload), Files: files})
	if pid == 0 {
		return nil, failure(&s, err)
	}
	if err == nil {
		p := newProcess(pid, h)
		if err = children.adopt(p); err == nil {
			return p, nil
		}
		p.leak.Stop()
		h.close()
	}
	// A child that cannot be supervised must not go on. The system is out of memory here, or of descriptors.
	_ = unix.Kill(pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			break
		}
	}
	return nil, fmt.Errorf("start: supervising process %d: %w", pid, explain(err))
}

var errTableFull = errors.New("no file descriptor is free (RLIMIT_NOFILE)")

// explain adds what the errno's own text leaves out.
func explain(err error) error {
	switch err {
	case syscall.EMFILE:
		return fmt.Errorf("%w: %w", errTableFull, err)
	case syscall.EAGAIN:
		return fmt.Errorf("the limit of processes is reached (RLIMIT_NPROC, pids.max): %w", err)
	case syscall.EFBIG:
		return fmt.Errorf("the limit of a file's size is lower (RLIMIT_FSIZE): %w", err)
	}
	return err
}
