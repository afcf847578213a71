package shm

// GroupLeft returns what a control group whose files are in dir may still take.
func GroupLeft(dir string, version int) (int64, bool) {
	g := group{dir, "memory.max", "memory.current", "inactive_file"}
	if version == 1 {
		g = group{dir, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"}
	}
	return g.left()
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
