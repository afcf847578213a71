package shm

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Memory is asked for before it is touched: full memory is an error, and neither SIGBUS nor the end
// of some process by the kernel's hand. capi/front/storage.c is the same in C, and says how
// requests are granted.

const (
	// One fallocate at most: a signal makes it give up and undo all it did, so that a large one
	// might never end.
	reserveStep = 4 << 20
	ample       = 64 << 20 // more than this left: pages that could be dropped need not be counted
	figuresAge  = 10 * time.Millisecond
	sharedPart  = 4
	ownPart     = 64
	stepPart    = 8
	budgetTries = 4
)

// ReserveVar sets how much memory growth leaves to others: bytes, with or without K, M, G or T, or
// a percentage, of the machine's memory and of the limit of each control group. By default it is
// 256 MiB or 5 %, whichever is more, but at most an eighth, or 8 MiB if that is more. It is ignored
// in set-user-ID programs and those with file capabilities.
const ReserveVar = "POLYPROC_MEMORY_RESERVE"

// figures is what this process has last seen of the machine's memory and its control groups'.
var figures struct {
	sync.Mutex
	left   uint64
	readAt time.Time
	own    uint64 // the budget where there is no heap
}

// stepOf is how much of n bytes is reserved at once: less as memory gets less, so that little is
// granted that the figures do not show yet.
func stepOf(n, left uint64) uint64 {
	return min(n, max(storageStep, min(left/stepPart/storageStep*storageStep, reserveStep)))
}

// admit grants the first step of n bytes and returns how many it is. budget is the word of a heap;
// nil: there is none. Errors: [ErrNoMemory] (the machine or a control group has not got n bytes).
func admit(budget *uint64, n uint64) (step uint64, err error) {
	f := &figures
	f.Lock()
	defer f.Unlock()
	part := uint64(sharedPart)
	if budget == nil {
		budget, part = &f.own, ownPart
	}
	for range budgetTries {
		granted := atomic.LoadUint64(budget)
		rest := granted
		step = stepOf(n, f.left)
		if time.Since(f.readAt) > figuresAge || n > f.left || step > granted {
			f.left, f.readAt = memoryLeft(), time.Now()
			step = stepOf(n, f.left)
			rest = max(f.left/part, step)
		}
		if n > f.left {
			return 0, fmt.Errorf("%w: %d bytes asked for, %d left beyond the reserve (%s)", ErrNoMemory, n, f.left, ReserveVar)
		}
		// Another process that has taken something, or looked, meanwhile: once more, for the
		// figures may not show it.
		if atomic.CompareAndSwapUint64(budget, granted, rest-step) {
			break
		}
	}
	if f.left != math.MaxUint64 {
		f.left -= step
	}
	return step, nil
}

// reserve gets storage for n bytes from off of a file.
func reserve(fd int, budget *uint64, off, n int64) error {
	for n > 0 {
		granted, err := admit(budget, uint64(n))
		if err != nil {
			return err
		}
		step := int64(granted)
		for {
			err := unix.Fallocate(fd, 0, off, step)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EINTR) {
				return err
			}
		}
		off, n = off+step, n-step
	}
	return nil
}

// memoryLeft is how many more bytes the machine and the control groups have beyond the reserve;
// what cannot be read limits nothing.
func memoryLeft() uint64 {
	left := uint64(math.MaxUint64)
	if available, total := memAvailable(); total > 0 {
		left = minus(available, reserveOf(total))
	}
	for _, g := range groups() {
		if l, ok := g.left(); ok {
			left = min(left, l)
		}
	}
	return left
}

func minus(a, b uint64) uint64 { return a - min(a, b) }

// wantedReserve is what the environment says.
var wantedReserve = sync.OnceValues(func() (f func(total uint64) uint64, ok bool) {
	if Privileged() {
		return nil, false
	}
	return parseReserve(os.Getenv(ReserveVar))
})

func parseReserve(text string) (f func(total uint64) uint64, ok bool) {
	digits := strings.TrimRight(text, "%kKmMgGtT")
	value, err := strconv.ParseUint(digits, 10, 64)
	unit := text[len(digits):]
	if err != nil || len(unit) > 1 {
		return nil, false
	}
	if unit == "%" {
		return func(total uint64) uint64 { return total / 100 * value }, value <= 100
	}
	shift := 10 * (1 + strings.Index("KMGT", strings.ToUpper(unit)))
	if unit == "" {
		shift = 0
	}
	if bits.Len64(value)+shift > 64 {
		return nil, false
	}
	return func(uint64) uint64 { return value << shift }, true
}

// reserveOf is how much of total, the machine's memory or a group's limit, is left to others.
func reserveOf(total uint64) uint64 {
	if wanted, ok := wantedReserve(); ok {
		return wanted(total)
	}
	return min(max(total/20, 256<<20), max(total/8, 8<<20))
}

// memAvailable reads what /proc/meminfo says: memory that can be had without swap, and all memory.
// 0, 0: unknown.
func memAvailable() (available, total uint64) {
	text, err := readFile("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	seen := 0
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(line, ":")
		var into *uint64
		switch name {
		case "MemTotal":
			into = &total
		case "MemAvailable":
			into = &available
		default:
			continue
		}
		kib, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
		if err != nil {
			return 0, 0
		}
		*into = kib << 10
		if seen++; seen == 2 {
			return available, total
		}
	}
	return 0, 0
}

// group is one control group that limits this process, of version 1 or 2 by the names of its files.
type group struct {
	dir, limit, usage, cache string
	old                      bool
}

var (
	groupV1 = group{"", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", true}
	groupV2 = group{"", "memory.max", "memory.current", "inactive_file", false}
)

// groups lists the control groups above this process; they hardly ever change.
var groups = sync.OnceValue(func() []group {
	text, err := readFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	var list []group
	for line := range strings.Lines(text) {
		field := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(field) != 3 {
			continue
		}
		switch {
		case field[0] == "0" && field[1] == "":
			for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
				list = appendGroups(list, root, field[2], groupV2)
			}
		case strings.Contains(","+field[1]+",", ",memory,"):
			list = appendGroups(list, "/sys/fs/cgroup/memory", field[2], groupV1)
		}
	}
	return list
})

// appendGroups adds the group at path below root and all above it. In a container path may be that
// of the host; then only the root, which is the container's own group, is there.
func appendGroups(list []group, root, path string, g group) []group {
	for path = filepath.Clean("/" + path); ; path = filepath.Dir(path) {
		g.dir = filepath.Join(root, path)
		if _, err := os.Stat(filepath.Join(g.dir, g.limit)); err == nil {
			list = append(list, g)
		}
		if path == "/" {
			return list
		}
	}
}

// left returns how many bytes the group may still take beyond its reserve. Above memory.high the
// kernel kills nobody but lets everybody crawl. What version 1 limits together with swap is a limit
// of its own. File pages that nobody uses count as free: the kernel drops them first.
func (g group) left() (uint64, bool) {
	limit, ok := g.read(g.limit)
	if !ok { // "max"
		limit = math.MaxUint64
	}
	if !g.old {
		if high, ok := g.read("memory.high"); ok {
			limit = min(limit, high)
		}
	}
	if limit >= 1<<60 { // version 1's word for no limit
		return 0, false
	}
	usage, ok := g.read(g.usage)
	if !ok {
		return 0, false
	}
	left := minus(limit, usage)
	if g.old {
		if most, ok := g.read("memory.memsw.limit_in_bytes"); ok {
			if both, ok := g.read("memory.memsw.usage_in_bytes"); ok {
				left = min(left, minus(most, both))
			}
		}
	}
	reserve := reserveOf(limit)
	if minus(left, reserve) >= ample {
		return left - reserve, true
	}
	if stat, err := readFile(filepath.Join(g.dir, "memory.stat")); err == nil {
		for line := range strings.Lines(stat) {
			if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name == g.cache {
				idle, _ := strconv.ParseUint(value, 10, 64)
				left += idle
			}
		}
	}
	return minus(left, reserve), true
}

func (g group) read(name string) (uint64, bool) {
	text, err := readFile(filepath.Join(g.dir, name))
	if err != nil {
		return 0, false
	}
	value, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
	return value, err == nil
}

// readFile returns the first 8 KiB of a file of /proc or /sys. [os.ReadFile] would hand each of them to
// the runtime's poller and take it back, which costs more than the reading.
func readFile(name string) (string, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	text := make([]byte, 0, 8192)
	for len(text) < cap(text) {
		n, err := unix.Read(fd, text[len(text):cap(text)])
		if err == nil && n == 0 {
			break
		}
		if err == nil {
			text = text[:len(text)+n]
		} else if !errors.Is(err, unix.EINTR) {
			return "", err
		}
	}
	return string(text), nil
}
