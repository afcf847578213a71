package shm

import "sync/atomic"

// GroupLeft returns what a control group whose files are in dir may still take, and the reserve of
// a limit.
func GroupLeft(dir string, version int) (uint64, bool) {
	g := groupV2
	if version == 1 {
		g = groupV1
	}
	g.dir = dir
	return g.left()
}

// ReserveOf returns the reserve of total bytes as a value of [ReserveVar] has it.
func ReserveOf(text string, total uint64) (uint64, bool) {
	f, ok := parseReserve(text)
	if !ok {
		return reserveOf(total), false
	}
	return f(total), true
}

// Unmapped tells whether process pid is proven not to map the segment.
func Unmapped(pid int, s *Segment) bool {
	id, err := identify(s.FD())
	return err == nil && unmapped(pid, id)
}

// WithoutTmpfile has named segments made as on a system that knows no files without a name.
func WithoutTmpfile() (restore func()) {
	was := tmpfile
	tmpfile = 0
	return func() { tmpfile = was }
}

// CloseFamily gives the family up, which else stays as long as the process.
func CloseFamily() {
	family.Lock()
	defer family.Unlock()
	if family.heap != nil {
		_ = family.heap.Close()
	} else if family.have {
		_ = closeFD(family.fds[0])
	}
	if family.have {
		_ = closeFD(family.fds[1])
	}
	family.heap, family.have = nil, false
}

// Trim gives back all that is free and this process's, as a shortage has it.
func (h *Heap) Trim() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trim()
}

// Slab returns what stands for the MiB of an offset: its word, and the state of its first block.
func (h *Heap) Slab(off uint64) (word uint64, state uint32) {
	i := uint32(off >> slabShift)
	return h.slabWord(i), atomic.LoadUint32(&h.slab(i).state[0])
}

// EvictSlab gives back the free blocks of a slab as a process does that has read its word some time
// ago.
func (h *Heap) EvictSlab(off, word uint64) uint64 {
	return h.evictSlab(uint32(off>>slabShift), word, h.Me())
}

// CommitLate allocates a run that is free and warm, and lets others go on between the look at it
// and the commit.
func (h *Heap) CommitLate(size uint64, tag uint32, others func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	var p pick
	return h.warmRun(uint32(size>>slabShift), size, &p) && func() bool { others(); return h.commit(&p, tag) }()
}

// EndedUnseen is Gone where there are no pidfds.
func (i Identity) EndedUnseen() bool { return i.endedUnseen() }

// ByStart is the identity of a process as kernels before 6.9 have it.
func ByStart(pid int) (Identity, error) {
	stat, err := readStat(pid)
	return Identity(memberWordOf(uint32(pid), stat.start&memberIDMask, memberByStart)), err
}
