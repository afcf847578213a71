package shm

import (
	"fmt"
	"path/filepath"
	"strconv"
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
		h, err = AttachHeap(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	if err = unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
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
	fd, err := unix.Open(filepath.Join(shmDir, name), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	return aboveStdio(fd)
}

// mapHeap maps as much as there is room for. A limit on address space is the program's too: it gets at least three quarters.
func mapHeap(fd int, size uint64) ([]byte, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_AS, &limit); err == nil && limit.Cur != unix.RLIM_INFINITY {
		size = min(size, max(limit.Cur/4, 2*heapLeast))
	}
	for size = size / slabSize * slabSize; ; size = max(size/2/slabSize*slabSize, heapLeast) {
		p, err := unix.MmapPtr(fd, 0, nil, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
		if err == nil {
			b := unsafe.Slice((*byte)(p), size)
			_ = unix.Madvise(b, unix.MADV_DONTDUMP)
			return b, nil
		}
		if size == heapLeast {
			return nil, err
		}
	}
}

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
	seals, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GET_SEALS, 0)
	if err != nil {
		return fds, err
	}
	kind, err := unix.GetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fds, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || uint64(st.Dev) != device || st.Ino != inode || seals&unix.F_SEAL_SHRINK == 0 ||
		st.Size < heapLeast || kind != unix.SOCK_DGRAM {
		return fds, fmt.Errorf("%w: descriptors %d and %d are not those of the family %q", ErrInvalid, fds[0], fds[1], value)
	}
	unix.CloseOnExec(fds[0])
	unix.CloseOnExec(fds[1])
	return fds, nil
}
