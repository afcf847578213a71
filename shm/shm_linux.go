package shm

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const shmDir = "/dev/shm"

func createAnonymous(size int64) (int, error) {
	if err := checkFileSize(size); err != nil {
		return -1, err
	}
	fd, err := unix.MemfdCreate("polyproc", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // Linux < 6.3 does not know MFD_NOEXEC_SEAL
		fd, err = unix.MemfdCreate("polyproc", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return -1, err
	}
	if fd, err = aboveStdio(fd); err != nil {
		return -1, err
	}
	if err = unix.Ftruncate(fd, size); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// aboveStdio moves a descriptor out of 0..2, where a host that closed them would let a child take it for its standard streams.
func aboveStdio(fd int) (int, error) {
	if fd > 2 {
		return fd, nil
	}
	moved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	_ = unix.Close(fd)
	return moved, err
}

func mapGranularity() int { return unix.Getpagesize() }

// createNamed makes the file without a name, readies it, and then links it: nobody opens it half made, and a process that is
// killed on the way leaves nothing.
func createNamed(name string, size int64) (*Segment, error) {
	path := filepath.Join(shmDir, name)
	if _, err := os.Lstat(path); err == nil {
		return nil, unix.EEXIST
	}
	if err := checkFileSize(size); err != nil {
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
	if err = unix.Ftruncate(fd, size); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	s, err := (&Segment{fd: fd, size: size}).complete()
	if err != nil {
		return nil, err
	}
	if err = nameFile(from, path); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

var tmpfile = unix.O_TMPFILE // tests try a system without it

// unnamed opens a new file in shmDir: without a name, or where the system cannot (gVisor), with one that is to be removed.
func unnamed() (fd int, name string, err error) {
	fd, err = unix.Open(shmDir, tmpfile|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		name = fmt.Sprintf("%s/.polyproc-%d-%x", shmDir, os.Getpid(), rand.Uint64())
		fd, err = unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	}
	if err == nil {
		fd, err = aboveStdio(fd)
	}
	return fd, name, err
}

func openNamed(name string) (*Segment, error) {
	fd, err := openOwn(filepath.Join(shmDir, name))
	if err != nil {
		return nil, err
	}
	s, err := Attach(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return s, nil
}

// nameFile gives a file its name: from a name that unnamed has returned, or from /proc/self/fd. Never two: a file with another link is not opened.
func nameFile(from, path string) error {
	if strings.HasPrefix(from, shmDir) {
		return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	}
	return unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
}

// openOwn opens a file by its name and checks whose it is: anybody can make one in /dev/shm. Errors: [fs.ErrPermission].
func openOwn(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err == unix.ELOOP || err == unix.EISDIR {
		return -1, fmt.Errorf("%w: %w", fs.ErrPermission, err)
	}
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	switch err = unix.Fstat(fd, &st); {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = fmt.Errorf("it is no regular file: %w", fs.ErrPermission)
	case int(st.Uid) != os.Geteuid():
		err = fmt.Errorf("it belongs to user %d, not to user %d: %w", st.Uid, os.Geteuid(), fs.ErrPermission)
	case st.Mode&0o077 != 0:
		err = fmt.Errorf("it has mode %04o, and others have access to it: %w", st.Mode&0o7777, fs.ErrPermission)
	case st.Nlink > 1:
		err = fmt.Errorf("it has another link: %w", fs.ErrPermission)
	default:
		return aboveStdio(fd)
	}
	_ = unix.Close(fd)
	return -1, err
}

func unlinkNamed(name string) error { return unix.Unlink(filepath.Join(shmDir, name)) }

// adopt checks a descriptor that somebody else made and returns its size.
func adopt(fd int) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size < 1 || int64(int(st.Size)) != st.Size {
		return 0, fmt.Errorf("%w: descriptor %d is no regular file with a size", ErrCorrupt, fd)
	}
	// A file of /dev/shm reports F_SEAL_SEAL alone: it cannot be sealed, and only its owner's programs can shrink it.
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err == nil && seals&(unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK) == 0 {
		return 0, fmt.Errorf("%w: descriptor %d can shrink", ErrCorrupt, fd)
	}
	unix.CloseOnExec(fd)
	return st.Size, nil
}

// Privileged reports whether the kernel gave this program rights that its caller lacks, because it is set-uid or set-gid or has file
// capabilities (AT_SECURE). Such a program believes nothing that its environment says.
func Privileged() bool {
	const atSecure = 23
	auxv, err := unix.Auxv()
	for _, entry := range auxv {
		if entry[0] == atSecure {
			return entry[1] != 0
		}
	}
	return err != nil || os.Getuid() != os.Geteuid() || os.Getgid() != os.Getegid()
}

// CheckInherited checks a descriptor that the environment names: it must be such as only this user, or root, can have made, a memory file that
// nobody can shrink. Errors: [ErrCorrupt], [fs.ErrPermission].
func CheckInherited(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return wrap("an inherited descriptor", err)
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || seals&unix.F_SEAL_SHRINK == 0 {
		return fmt.Errorf("%w: descriptor %d is no sealed memory file", ErrCorrupt, fd)
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("shm: descriptor %d belongs to user %d: %w", fd, st.Uid, fs.ErrPermission)
	}
	return nil
}

func openOf(pid, fd int) (int, error) {
	path := fmt.Sprintf("/proc/%d/fd/%d", pid, fd)
	info, err := os.Stat(path)
	if err != nil {
		return -1, err
	}
	if !info.Mode().IsRegular() { // opening a device or a FIFO may have effects
		return -1, fmt.Errorf("%w: no regular file", ErrCorrupt)
	}
	own, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return aboveStdio(own)
}

func mapRange(fd int, off, n int64) ([]byte, error) {
	p, err := unix.MmapPtr(fd, off, nil, uintptr(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	b := unsafe.Slice((*byte)(p), n)
	_ = unix.Madvise(b, unix.MADV_DONTDUMP) // arguments, and keys, are not for core files
	return b, nil
}

func unmapRange(b []byte) error { return unix.MunmapPtr(addressOf(b), uintptr(len(b))) }

func prefault(b []byte) { _ = unix.Madvise(b, unix.MADV_POPULATE_WRITE) }

func closeFD(fd int) error { return unix.Close(fd) }

func punch(fd int, off, n int64) error {
	if n == 0 {
		return nil
	}
	return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func isNoMemory(err error) bool {
	return errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EDQUOT)
}

// checkFileSize refuses what RLIMIT_FSIZE would answer with SIGXFSZ, which ends a process that does not expect it.
func checkFileSize(size int64) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	if uint64(size) > limit.Cur {
		return fmt.Errorf("%w: %d bytes are more than the limit on file size, %d (RLIMIT_FSIZE)", ErrNoMemory, size, limit.Cur)
	}
	return nil
}

// Identify returns the identity of the process that has this number now. Errors: [ErrUnsupported] if there is none.
func Identify(pid int) (Identity, error) {
	if pid <= 0 || pid >= 1<<memberPIDBits {
		return 0, fmt.Errorf("%w: process id %d", ErrUnsupported, pid)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		defer func() { _ = unix.Close(fd) }()
		if id, ok := pidfdID(fd); ok {
			return Identity(memberWordOf(uint32(pid), id, memberByPidfd)), nil
		}
	} else if errors.Is(unix.Tgkill(pid, pid, 0), unix.ESRCH) {
		return 0, fmt.Errorf("%w: there is no process %d", ErrUnsupported, pid)
	}
	id := uint64(0)
	if ownProc() && BootTime() {
		if stat, err := readStat(pid); err == nil {
			id = stat.start & memberIDMask
		}
	}
	return Identity(memberWordOf(uint32(pid), id, memberByStart)), nil
}

// pidfdID reads the inode of a pidfd: since Linux 6.9 it names one process until the machine is booted again, and is the same for every
// reader. Before, all pidfds have one inode in common: false.
func pidfdID(fd int) (uint64, bool) {
	const pidfs = 0x50494446
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Fstatfs(fd, &fs) != nil || fs.Type != pidfs || unix.Fstat(fd, &st) != nil {
		return 0, false
	}
	return st.Ino & memberIDMask, true
}

// procStat is what /proc/PID/stat says.
type procStat struct {
	state   byte
	threads int
	start   uint64 // clock ticks after the boot, as the reader's time namespace has it
}

func readStat(pid int) (s procStat, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return s, err
	}
	// Field 2 is the name in parentheses and may hold anything, parentheses and spaces too.
	field := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(field) < 20 {
		return s, fmt.Errorf("shm: /proc/%d/stat has %d fields", pid, len(field))
	}
	s.state = field[0][0]
	if s.threads, err = strconv.Atoi(string(field[17])); err == nil {
		s.start, err = strconv.ParseUint(string(field[19]), 10, 64)
	}
	return s, err
}

// ownProc reports whether /proc is that of this process's pid namespace, so that /proc/PID is the process that PID names here.
func ownProc() bool {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	pid, well := strconv.Itoa(os.Getpid()), false
	for line := range strings.Lines(string(text)) {
		switch name, rest, _ := strings.Cut(line, ":"); name {
		case "Pid":
			well = strings.TrimSpace(rest) == pid
		case "NSpid": // one number for each namespace from that of /proc down to ours
			return well && strings.TrimSpace(rest) == pid
		}
	}
	return well
}

// BootTime reports whether this process counts time from the boot, as processes outside of time namespaces do: else the start times that it
// reads are not those that others read.
//
// The time of day is the same in all time namespaces. So as long as it is as far from the time since
// the boot as before, this process is in the namespace in which it has looked, or in one that differs
// from it by less than a tick.
func BootTime() bool {
	const initial = 0xEFFFFFFA // TIME_NS_INIT_INO
	var day, boot unix.Timespec
	if unix.ClockGettime(unix.CLOCK_REALTIME, &day) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil {
		return false
	}
	now, before := day.Nano()-boot.Nano(), bootTimeSeen.Load()
	if before != 0 && max(now-before, before-now) < int64(time.Millisecond) {
		return before&1 != 0
	}
	var st unix.Stat_t
	err := unix.Stat("/proc/self/ns/time", &st)
	is := errors.Is(err, unix.ENOENT) || (err == nil && st.Ino == initial)
	now &^= 1
	if is {
		now |= 1
	}
	bootTimeSeen.Store(now)
	return is
}

// bootTimeSeen is how far the time of day was from the time since the boot, in ns, with the answer in
// bit 0; 0: BootTime has never looked.
var bootTimeSeen atomic.Int64

// Gone reports whether the process is proven dead: no process has its number, another one has it, or all its threads have ended (a
// zombie that nobody collected yet is dead too). What cannot be found out is not proof: a process that /proc does not show lives, and
// so does a stopped one.
func (i Identity) Gone() bool {
	pid := i.PID()
	if pid <= 0 {
		return true
	}
	fd, err := unix.PidfdOpen(pid, 0) // before anything else: what it names cannot change any more
	if err != nil {
		return errors.Is(err, unix.ESRCH) || i.endedUnseen()
	}
	defer func() { _ = unix.Close(fd) }()
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll(poll, 0)
	}
	if err == nil && n == 1 && poll[0].Revents&unix.POLLIN != 0 {
		return true
	}
	// A process with this number lives. Only what proves that it is another one counts now; that /proc does not show it proves nothing.
	if i&memberKinds == memberByPidfd {
		id, ok := pidfdID(fd)
		return ok && id != i.id()
	}
	now, err := readStat(pid)
	return err == nil && i.anotherStart(now) && ownProc()
}

// anotherStart: it is proven that the process which has the number now started at another time.
func (i Identity) anotherStart(now procStat) bool {
	return i&memberKinds == memberByStart && i.id() != 0 && now.start&memberIDMask != i.id() && BootTime()
}

// endedUnseen does without a pidfd: a filter denies it, the kernel is older than 5.3, or there is no descriptor free.
func (i Identity) endedUnseen() bool {
	pid := i.PID()
	// Not kill(2), which also knows the numbers of threads: of this number's group, is this thread there?
	if errors.Is(unix.Tgkill(pid, pid, 0), unix.ESRCH) {
		return true
	}
	// A child of ours that nobody has collected.
	var child unix.Siginfo
	if unix.Waitid(unix.P_PID, pid, &child, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) == nil && child.Signo == int32(unix.SIGCHLD) {
		return true
	}
	now, err := readStat(pid)
	if err != nil {
		return false
	}
	// The first thread of a process may end before the others: then it is a zombie, too.
	zombie := (now.state == 'Z' || now.state == 'X') && now.threads <= 1
	return (zombie || i.anotherStart(now)) && ownProc()
}

// unmapped reports whether it is proven that process pid does not map the file: it executed another program, which keeps process id, start
// time and pidfd. Maps that cannot be read prove nothing, nor do those of a /proc that does not show that we map it ourselves.
func unmapped(pid int, id fileID) bool {
	mapped, err := maps(pid, id)
	if err != nil || mapped || !ownProc() {
		return false
	}
	mapped, err = maps(os.Getpid(), id)
	return err == nil && mapped
}

// UnmappedBy reports whether it is proven that process pid does not map the segment, of which this process must map a part. A process that
// did, and lives, has executed another program. Linux only, elsewhere nothing is proven.
func (s *Segment) UnmappedBy(pid int) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	id, err := identify(s.fd)
	return err == nil && unmapped(pid, id)
}

// maps looks for a file among the mappings of a process. About 150 us.
func maps(pid int, id fileID) (bool, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return false, err
	}
	defer func() { _ = file.Close() }()
	lines := 0
	scan := bufio.NewScanner(file)
	scan.Buffer(nil, 1<<16)
	for scan.Scan() {
		lines++
		// address perms offset dev inode path
		field := bytes.Fields(scan.Bytes())
		if len(field) < 5 {
			return false, ErrCorrupt
		}
		if string(field[4]) == id.inode && string(field[3]) == id.device {
			return true, nil
		}
	}
	if scan.Err() == nil && lines == 0 { // a zombie, or in the middle of an exec
		return false, os.ErrProcessDone
	}
	return false, scan.Err()
}

// fileID names a file as /proc/PID/maps does.
type fileID struct{ device, inode string }

func identify(fd int) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fileID{}, err
	}
	device := fmt.Sprintf("%02x:%02x", unix.Major(st.Dev), unix.Minor(st.Dev))
	return fileID{device, strconv.FormatUint(st.Ino, 10)}, nil
}

// pidSpace returns a number for the pid namespace: process ids compare only within one.
func pidSpace() (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat("/proc/self/ns/pid", &st)
	if err == nil {
		return st.Ino, nil
	}
	if fd, failed := unix.PidfdOpen(os.Getpid(), 0); failed == nil { // without /proc
		defer func() { _ = unix.Close(fd) }()
		const getPIDNamespace = 0xff05 // PIDFD_GET_PID_NAMESPACE, Linux 6.11
		if ns, failed := unix.IoctlRetInt(fd, getPIDNamespace); failed == nil {
			defer func() { _ = unix.Close(ns) }()
			if unix.Fstat(ns, &st) == nil {
				return st.Ino, nil
			}
		}
	}
	return 0, fmt.Errorf("%w: the pid namespace of this process cannot be determined (mount /proc, or use Linux 6.11): %w", ErrUnsupported, err)
}

func futexWait(addr *uint32, val uint32, ts *unix.Timespec) syscall.Errno {
	// Not Raw: the scheduler must be able to give the processor to others, or a waiter would hold up the collector.
	_, _, e := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(addr)), futexOpWait, uintptr(val),
		uintptr(unsafe.Pointer(ts)), 0, 0)
	return e
}

func futexWake(addr *uint32, n int) int {
	woken, _, e := unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(addr)), futexOpWake, uintptr(n), 0, 0, 0)
	if e != 0 {
		return 0
	}
	return int(woken)
}

// linux/futex.h; without FUTEX_PRIVATE_FLAG, because other processes take part.
const (
	futexOpWait = 0
	futexOpWake = 1
)
