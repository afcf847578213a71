package pipe

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/shm"
)

// The depot: descriptors of the family on their way, a datagram for each in the socket that all of the family have, under a name of 32 bytes. capi/front/depot.c is
// the same in C.
type depot struct {
	heap *shm.Heap
	fd   int
	lock *shm.Mutex
	died atomic.Bool
}

// socketRoom is what one process lets lie there, as far as the system's limit allows, bytes.
const socketRoom = 4 << 20

var theDepot = sync.OnceValues(func() (*depot, error) {
	h, err := shm.Family()
	if err != nil {
		return nil, err
	}
	files, _, err := shm.Inherit()
	if err != nil {
		return nil, err
	}
	d := &depot{heap: h, fd: files[1]}
	d.lock = h.NewMutex(h.DepotLock(), func(shm.Owner) { d.died.Store(true) })
	_ = unix.SetsockoptInt(d.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketRoom)
	return d, nil
})

func openDepot() (*depot, error) {
	d, err := theDepot()
	if err != nil {
		return nil, err
	}
	if err = d.lock.Lock(context.Background(), -1); err != nil {
		return nil, err
	}
	if d.died.Swap(false) {
		d.dropDoubles()
	}
	return d, nil
}

// leaveFile leaves a copy of a descriptor in the depot.
func leaveFile(h *shm.Heap, n name, fd int) error {
	d, err := openDepot()
	if err != nil {
		return err
	}
	defer d.lock.Unlock()
	if h != d.heap {
		return fmt.Errorf("%w: descriptors travel within the family only, and this pipe is not in its heap", shm.ErrInvalid)
	}
	switch err = d.put(n, fd); {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ETOOMANYREFS):
		return fmt.Errorf("%w: too many descriptors are on their way between processes: %w", shm.ErrNoMemory, err)
	case err != nil:
		return fmt.Errorf("descriptor %d cannot be sent: %w", fd, err)
	}
	return nil
}

// takeFile takes a descriptor out: the caller's.
func takeFile(n name) (int, error) { return withdraw(n, true) }

func forgetFile(n name) { _, _ = withdraw(n, false) }

func withdraw(n name, keep bool) (fd int, err error) {
	d, err := openDepot()
	if err != nil {
		return -1, err
	}
	defer d.lock.Unlock()
	var stop name
	for turned := false; ; {
		first, _, err := d.look(unix.MSG_PEEK, false)
		switch {
		case err == unix.EAGAIN || (turned && first == stop):
			return -1, fmt.Errorf("%w: the descriptor is not on its way: it was received before, or never sent", shm.ErrGone)
		case err != nil:
			return -1, err
		case first == n:
			return d.takeFirst(keep)
		}
		if !turned {
			stop, turned = first, true
		}
		if err := d.turn(); err != nil {
			return -1, err
		}
	}
}

// takeFirst looks first: if there is no number for the descriptor, it stays.
func (d *depot) takeFirst(keep bool) (fd int, err error) {
	fd = -1
	if keep {
		if _, fd, err = d.look(unix.MSG_PEEK, true); err == nil && fd < 0 {
			err = fmt.Errorf("%w: no descriptor is free", shm.ErrNoMemory)
		}
		if err != nil {
			return -1, err
		}
	}
	_, _, _ = d.look(0, false)
	return fd, nil
}

// look receives the first datagram, or only looks at it; EAGAIN: there is none. fd is -1 if there was no descriptor, or it is not wanted.
func (d *depot) look(flags int, wanted bool) (n name, fd int, err error) {
	var control []byte
	if wanted {
		control = make([]byte, unix.CmsgSpace(4))
	}
	size, controls, _, _, err := unix.Recvmsg(d.fd, n.bytes(), control, flags|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return n, -1, err
	}
	for i := size; i < int(sizeName); i++ { // not ours
		n.bytes()[i] = 0xff
	}
	messages, err := unix.ParseSocketControlMessage(control[:controls])
	if err != nil || len(messages) == 0 {
		return n, -1, nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return n, -1, nil
	}
	return n, fds[0], nil
}

// put sends a datagram, without a descriptor if fd is -1.
func (d *depot) put(n name, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	return unix.Sendmsg(d.fd, n.bytes(), rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

// turn puts the first datagram behind the last. Whoever dies in it leaves two of it.
func (d *depot) turn() error {
	first, fd, err := d.look(unix.MSG_PEEK, true)
	if err != nil {
		return err
	}
	if fd >= 0 {
		defer closeFD(fd)
	}
	if err = d.put(first, fd); err == nil {
		_, _, err = d.look(0, false)
	}
	return err
}

// dropDoubles goes once around and drops what is there twice. It may die too: then the next one does it.
func (d *depot) dropDoubles() {
	// A mark tells where the round ends; one that a dead tidier left is dropped as it comes by.
	mark := name{[4]uint64{0, 0, uint64(unix.Getpid()), clock(unix.CLOCK_MONOTONIC)}}
	if d.put(mark, -1) != nil {
		return
	}
	seen := map[name]bool{}
	for {
		first, _, err := d.look(unix.MSG_PEEK, false)
		if err != nil {
			return
		}
		if first.name[0] == 0 || seen[first] {
			if _, _, err = d.look(0, false); err != nil || first == mark {
				return
			}
			continue
		}
		seen[first] = true
		if d.turn() != nil {
			return
		}
	}
}
