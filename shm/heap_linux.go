package shm

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// heapSize is how large a heap's file may be: all sizes cost the same.
func heapSize() (int64, error) {
	size := uint64(heapMost)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err == nil && limit.Cur < size {
		size = limit.Cur / slabSize * slabSize // beyond it there is a signal that ends the process, not an error
	}
	if size < heapLeast || uint64(int(size)) != size {
		return 0, fmt.Errorf("%w: a heap needs a file of %d bytes, the limit is %d (RLIMIT_FSIZE)", ErrNoMemory, heapLeast, limit.Cur)
	}
	return int64(size), nil
}

func createHeapFile() (int, error) {
	size, err := heapSize()
	if err != nil {
		return -1, err
	}
	return createAnonymous(size)
}

// createNamedHeap makes the file without a name, readies it, and then links it: nobody opens it half made, and who dies on the way leaves
// nothing.
func createNamedHeap(name string) (*Heap, error) {
	path := filepath.Join(shmDir, name)
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil {
		return nil, unix.EEXIST
	}
	size, err := heapSize()
	if err != nil {
		return nil, err
	}
	fd, from, err := unnamed()
	if err != nil {
		return nil, err
	}
	if from == "" {
		from = "/proc/self/fd/" + strconv.Itoa(fd)
	} else {
		defer func() { _ = unix.Unlink(from) }()
	}
	var h *Heap
	if err = unix.Ftruncate(fd, size); err == nil {
		h, err = attachHeap(fd, true)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	if err = nameFile(from, path); err != nil {
		_ = h.Close()
		return nil, err
	}
	return h, nil
}

// stored is how many bytes of storage a file has.
func stored(fd int) int64 {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

func openHeapFile(name string) (int, error) {
	return openOwn(filepath.Join(shmDir, name))
}

// How often openNamed asks for the exclusive lock, and about how long it waits in between.
const (
	openTries = 50
	openPause = 2 * time.Millisecond
)

// openNamed readies the table of members of a named heap whose descriptor this process has opened itself. Its file may be older than this
// pid namespace: if no process has it open any more, those in the table are dead, and the table is taken over.
//
// Each opener holds a shared lock on its own open file description: it ends when the last process that has the description, or maps the
// file by it, has ended. So who gets the exclusive lock is alone. Who does not get it has lost the shared one, too (flock(2)): nobody goes on
// without that, or the next from elsewhere would believe to be alone. And the other may be one that has just come here: so it asks more than once,
// after a pause without a lock.
func (h *Heap) openNamed() error {
	space, err := pidSpace()
	if err != nil {
		return err
	}
	head := (*uint64)(unsafe.Add(h.base, membersOff))
	slots := unsafe.Slice((*uint64)(unsafe.Add(h.base, membersOff+sizeMembersHead)), heapMembers)
	for tries := 0; ; tries++ {
		if err := lockFile(h.FD(), unix.LOCK_SH); err != nil {
			return err
		}
		is := atomic.LoadUint64(head)
		if is == 0 || is == space || tries == openTries {
			return nil // NewMembers says what is wrong
		}
		if err := lockFile(h.FD(), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
			time.Sleep(openPause/2 + rand.N(openPause))
			continue
		} else if err != nil {
			return err
		}
		if atomic.LoadUint64(head) != is { // between the two locks another one has come first
			continue
		}
		for i := range slots {
			if word := atomic.LoadUint64(&slots[i]); word&memberTaken != 0 {
				atomic.CompareAndSwapUint64(&slots[i], word, word&(memberGenMask|memberTaken))
			}
		}
		atomic.StoreUint64(head, space)
	}
}

func lockFile(fd, how int) error {
	for {
		if err := unix.Flock(fd, how); err != unix.EINTR {
			return err
		}
	}
}

// mapHeap maps as much as there is room for, closed: openRange opens what is used. A limit on address space is the program's too: it gets at least three quarters.
func mapHeap(fd int, size uint64) ([]byte, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_AS, &limit); err == nil && limit.Cur != unix.RLIM_INFINITY {
		size = min(size, max(limit.Cur/4, 2*heapLeast))
	}
	for size = size / slabSize * slabSize; ; size = max(size/2/slabSize*slabSize, heapLeast) {
		p, err := unix.MmapPtr(fd, 0, nil, uintptr(size), unix.PROT_NONE, unix.MAP_SHARED|unix.MAP_NORESERVE)
		if err == nil {
			b := unsafe.Slice((*byte)(p), size)
			_ = unix.Madvise(b, unix.MADV_DONTDUMP)
			_ = unix.Munlock(b) // mlockall(MCL_FUTURE) would have holes filled as they are opened
			return b, nil
		}
		if size == heapLeast {
			return nil, err
		}
	}
}

func openRange(b []byte) error { return unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE) }

// createDepot makes the socket where descriptors rest that are on their way, see capi/front/family.h: connected to itself, it takes datagrams from
// nobody else, and keeps them as long as somebody has it open.
func createDepot() (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if fd, err = aboveStdio(fd); err != nil {
		return -1, err
	}
	var name unix.Sockaddr
	if err = unix.Bind(fd, &unix.SockaddrUnix{}); err == nil { // no name: the system chooses an abstract one
		if name, err = unix.Getsockname(fd); err == nil {
			err = unix.Connect(fd, name)
		}
	}
	for drained := err != nil; !drained; { // until it was connected anybody could send to its name
		_, _, failed := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_DONTWAIT)
		drained = failed != nil
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func describeFamily(fds [2]int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fds[0], &st); err != nil {
		return "", wrap("the family's heap", err)
	}
	return fmt.Sprintf("%s=%d,%d,%x:%x", FamilyVar, fds[0], fds[1], uint64(st.Dev), st.Ino), nil
}

// takeFamily adopts the descriptors that a value of the variable names, if they are what it says: numbers may have been inherited by a program
// whose descriptors were not.
func takeFamily(value string) (fds [2]int, err error) {
	var device, inode uint64
	if _, err = fmt.Sscanf(value, "%d,%d,%x:%x", &fds[0], &fds[1], &device, &inode); err != nil {
		return fds, fmt.Errorf("%w: %q is no family", ErrInvalid, value)
	}
	var st unix.Stat_t
	if err = unix.Fstat(fds[0], &st); err != nil {
		return fds, err
	}
	if err = CheckInherited(fds[0]); err != nil {
		return fds, err
	}
	kind, err := unix.GetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fds, err
	}
	if uint64(st.Dev) != device || st.Ino != inode || st.Size < heapLeast || kind != unix.SOCK_DGRAM {
		return fds, fmt.Errorf("%w: descriptors %d and %d are not those of the family %q", ErrInvalid, fds[0], fds[1], value)
	}
	unix.CloseOnExec(fds[0])
	unix.CloseOnExec(fds[1])
	return fds, nil
}
