//go:build linux

package shm_test

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/polyproc/polyproc/shm"
)

const anyKind = shm.KindBarrier // one that nothing in this program brings

func newHeap(t testing.TB) *shm.Heap {
	t.Helper()
	h, err := shm.CreateHeap()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
}

// another maps the heap once more, as another member.
func another(t testing.TB, h *shm.Heap) *shm.Heap {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(h.FD()), unix.F_DUPFD_CLOEXEC, 3)
	require.NoError(t, err)
	other, err := shm.AttachHeap(fd)
	require.NoError(t, err)
	_, err = other.Join()
	require.NoError(t, err)
	return other
}

func storedIn(t testing.TB, h *shm.Heap) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(h.FD(), &st))
	return st.Blocks * 512
}

func TestBlocks(t *testing.T) {
	h := newHeap(t)
	type block struct {
		off  uint64
		tag  uint32
		size uint64
	}
	var blocks []block
	r := rand.New(rand.NewPCG(3, 4))
	used := map[uint64]bool{}
	for range 3000 {
		if len(blocks) > 200 || (len(blocks) > 0 && r.IntN(3) == 0) {
			i := r.IntN(len(blocks))
			b := blocks[i]
			mem, ok := h.At(b.off, b.size)
			require.True(t, ok)
			require.Equal(t, byte(b.tag), mem[0])
			require.Equal(t, byte(b.tag), mem[b.size-1])
			require.False(t, h.Free(b.off, b.tag+1), "another tag")
			require.True(t, h.Free(b.off, b.tag))
			require.False(t, h.Free(b.off, b.tag), "twice")
			delete(used, b.off)
			blocks = append(blocks[:i], blocks[i+1:]...)
			continue
		}
		size := uint64(1 + r.IntN(1<<(7+r.IntN(14))))
		tag := h.Tag()
		off, room, err := h.Alloc(size, tag)
		require.NoError(t, err)
		require.GreaterOrEqual(t, room, size)
		require.Zero(t, off%128)
		require.False(t, used[off])
		used[off] = true
		mem, ok := h.At(off, size)
		require.True(t, ok)
		mem[0], mem[size-1] = byte(tag), byte(tag)
		blocks = append(blocks, block{off, tag, size})
	}
	n, _ := h.InUse()
	require.Equal(t, len(blocks), n)
	for _, b := range blocks {
		require.True(t, h.Retag(b.off, b.tag, 99))
		require.True(t, h.Free(b.off, 99))
	}
	n, _ = h.InUse()
	require.Zero(t, n)
	for _, off := range []uint64{0, 1, 32 << 20, 32<<20 + 1, 1 << 35, 1 << 63, ^uint64(0)} {
		require.False(t, h.Free(off, 5))
	}
	for _, size := range []uint64{0, 1 << 62} {
		_, _, err := h.Alloc(size, 5)
		require.Error(t, err)
	}
}

func TestStorageGoesBack(t *testing.T) {
	h := newHeap(t)
	for range 3 {
		var offs []uint64
		for range 20 {
			off, _, err := h.Alloc(10<<20, 7)
			require.NoError(t, err)
			offs = append(offs, off)
		}
		require.Greater(t, storedIn(t, h), int64(200<<20))
		for _, off := range offs {
			require.True(t, h.Free(off, 7))
		}
		require.Less(t, storedIn(t, h), int64(80<<20), "what stays is kept warm")
	}
}

// What one member has left warm does not make all others go cold.
func TestWarmthGoesToThoseWhoWork(t *testing.T) {
	idle := newHeap(t)
	busy := another(t, idle)
	defer func() { require.NoError(t, busy.Close()) }()
	var offs []uint64
	for range 6 {
		off, _, err := idle.Alloc(10<<20, 7)
		require.NoError(t, err)
		offs = append(offs, off)
	}
	large, _, err := idle.Alloc(300<<10, 7)
	require.NoError(t, err)
	for _, off := range append(offs, large) {
		require.True(t, idle.Free(off, 7))
	}
	first, _, err := busy.Alloc(10<<20, 7)
	require.NoError(t, err)
	require.True(t, busy.Free(first, 7))
	second, _, err := busy.Alloc(10<<20, 7)
	require.NoError(t, err)
	require.Equal(t, first, second, "it was kept warm")
	require.Less(t, storedIn(t, idle), int64(80<<20))
	require.True(t, busy.Free(second, 7))
	for _, size := range []uint64{10 << 20, 300 << 10} { // who has lost something finds something else
		for range 8 {
			_, _, err := idle.Alloc(size, 7)
			require.NoError(t, err)
		}
	}
}

// A process that has read a slab's word some time ago leaves alone what the slab has become since.
func TestSlabThatHasChangedHands(t *testing.T) {
	const half, run = 512 << 10, 3 << 20
	for _, c := range []struct {
		name          string
		before, after uint64
	}{
		{"another class", 64 << 10, half},
		{"a run becomes large", run, half},
		{"large becomes a run", 64 << 10, run},
	} {
		t.Run(c.name, func(t *testing.T) {
			looker := newHeap(t)
			_, err := looker.Join()
			require.NoError(t, err)
			owner := another(t, looker)
			defer func() { require.NoError(t, owner.Close()) }()
			off, _, err := owner.Alloc(c.before, 7)
			require.NoError(t, err)
			require.True(t, owner.Free(off, 7))
			word, _ := looker.Slab(off)
			owner.Trim()
			first, _, err := owner.Alloc(c.after, 7)
			require.NoError(t, err)
			second, _, err := owner.Alloc(c.after, 7)
			require.NoError(t, err)
			low, high := min(first, second), max(first, second)
			require.Equal(t, off&^(1<<20-1), low)
			live, ok := owner.At(high, c.after)
			require.True(t, ok)
			for i := range live {
				live[i] = 0xaa
			}
			require.True(t, owner.Free(low, 7))
			require.Zero(t, looker.EvictSlab(off, word))
			for i := range live {
				require.Equal(t, byte(0xaa), live[i])
			}
			now, state := looker.Slab(off)
			require.NotEqual(t, word, now)
			require.Equal(t, uint32(1), state, "free, with storage, as before")
		})
	}
	t.Run("a run that another got meanwhile", func(t *testing.T) {
		owner := newHeap(t)
		other := another(t, owner)
		defer func() { require.NoError(t, other.Close()) }()
		off, _, err := owner.Alloc(run, 7)
		require.NoError(t, err)
		require.True(t, owner.Free(off, 7))
		require.False(t, owner.CommitLate(run, 8, func() {
			word, _ := other.Slab(off)
			require.Equal(t, uint64(run), other.EvictSlab(off, word))
			theirs, _, err := other.Alloc(run, 7)
			require.NoError(t, err)
			require.Equal(t, off, theirs)
			require.True(t, other.Free(theirs, 7))
		}))
		_, state := owner.Slab(off)
		require.Equal(t, uint32(1), state)
	})
}

func TestManyGoroutines(t *testing.T) {
	h := newHeap(t)
	other := another(t, h)
	defer func() { require.NoError(t, other.Close()) }()
	passed := make(chan [2]uint64, 100) // allocated by one, freed by another
	var producers, consumers sync.WaitGroup
	for i := range 4 {
		from := []*shm.Heap{h, other}[i%2]
		producers.Go(func() {
			for n := range 3000 {
				tag := from.Tag()
				off, _, err := from.Alloc(uint64(1)<<(n%18), tag)
				if err != nil {
					t.Error(err)
					return
				}
				passed <- [2]uint64{off, uint64(tag)}
			}
		})
		consumers.Go(func() {
			for b := range passed {
				if !from.Free(b[0], uint32(b[1])) {
					t.Error("a block was not in use")
				}
			}
		})
	}
	producers.Wait()
	close(passed)
	consumers.Wait()
	n, _ := h.InUse()
	require.Zero(t, n)
}

func init() {
	roles["heap-user"] = func(_ *shm.Segment, args []string) {
		h, err := shm.Family()
		must(err)
		size, err := strconv.ParseUint(args[0], 10, 64)
		must(err)
		for range 10 {
			_, _, err := h.Alloc(size, 1234)
			must(err)
		}
		o, err := h.NewObject(anyKind, 200)
		must(err)
		fmt.Println(o.Off())
		select {}
	}
	roles["family-again"] = func(*shm.Segment, []string) {
		asked := false
		shm.RegisterKind(anyKind, 16, func(*shm.Heap, uint64) {
			_, err := shm.Family()
			must(err)
			asked = true
		})
		_, err := shm.Family()
		must(err)
		fmt.Println(asked)
	}
	roles["family-env"] = func(*shm.Segment, []string) {
		_, set := os.LookupEnv(shm.FamilyVar)
		files, _, err := shm.Inherit()
		must(err)
		flags, err := unix.FcntlInt(uintptr(files[0]), unix.F_GETFD, 0)
		must(err)
		h, err := shm.Family()
		must(err)
		fmt.Println(set, flags&unix.FD_CLOEXEC != 0, h.ID())
	}
	roles["small-space"] = func(*shm.Segment, []string) {
		var limit unix.Rlimit
		must(unix.Getrlimit(unix.RLIMIT_AS, &limit))
		limit.Cur = 2 << 30
		must(unix.Setrlimit(unix.RLIMIT_AS, &limit))
		h, err := shm.CreateHeap()
		must(err)
		_, _, err = h.Alloc(100<<20, 5)
		must(err)
		if _, _, err = h.Alloc(1<<30, 5); err == nil {
			must(fmt.Errorf("%d bytes are mapped and 1 GiB fits", h.Mapped()))
		}
		fmt.Println(h.Mapped() <= 512<<20)
	}
	roles["small-files"] = func(*shm.Segment, []string) {
		must(unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 100 << 20, Max: 100 << 20}))
		h, err := shm.CreateHeap()
		must(err)
		n := 0
		for ; err == nil; n++ {
			_, _, err = h.Alloc(1<<20, 5)
		}
		fmt.Println(n, h.Mapped()>>20)
	}
}

// inFamily is a child of our family.
func inFamily(t testing.TB, role string, args ...string) *process {
	t.Helper()
	files, env, err := shm.Inherit()
	require.NoError(t, err)
	p := &process{t: t, cmd: command(role, nil, args...), lines: make(chan string, 64)}
	p.cmd.Env = append(p.cmd.Env, env)
	// The same numbers: what lies between is closed there.
	p.cmd.ExtraFiles = make([]*os.File, max(files[0], files[1])-2)
	for _, fd := range files {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		require.NoError(t, err)
		p.cmd.ExtraFiles[fd-3] = os.NewFile(uintptr(d), "family")
	}
	run(t, p)
	return p
}

func TestFamily(t *testing.T) {
	h, err := shm.Family()
	require.NoError(t, err)
	p := inFamily(t, "family-env")
	require.Equal(t, fmt.Sprint("false true ", h.ID()), p.line())
	// Somebody who has the variable and not the descriptors makes a family of his own.
	_, env, err := shm.Inherit()
	require.NoError(t, err)
	cmd := command("family-env", nil)
	cmd.Env = append(cmd.Env, env)
	out, err := cmd.Output()
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(out), "false true "), "%s", out)
	require.NotContains(t, string(out), fmt.Sprint(h.ID()))
}

func TestTheDeadAreSweptBehind(t *testing.T) {
	h, err := shm.Family()
	require.NoError(t, err)
	for _, size := range []int{100, 3000, 100_000, 3 << 20} {
		before, _ := h.InUse()
		p := inFamily(t, "heap-user", strconv.Itoa(size))
		off, err := strconv.ParseUint(p.line(), 10, 64)
		require.NoError(t, err)
		o, err := h.ObjectAt(off, anyKind, 0)
		require.NoError(t, err)
		p.kill()
		h.Reap()
		again, err := h.ObjectAt(off, anyKind, 0)
		require.NoError(t, err, "it is there while somebody has it")
		again.Drop()
		ref, err := o.Send()
		require.NoError(t, err)
		o.Drop()
		// Nobody has the object, but it is on its way; the kind is not known here, so what the dead held stays too.
		received, err := shm.Receive(ref, anyKind)
		require.NoError(t, err)
		received.Drop()
		after, _ := h.InUse()
		require.Equal(t, before+11, after, "blocks that were in use stay, whoever has died")
	}
}

// What destroys an object of the dead may ask for the family, also while the family is asked for: as a pipe does that has a descriptor in it.
func TestWhoSweepsAsksForTheFamily(t *testing.T) {
	p := inFamily(t, "heap-user", "100")
	p.line()
	p.kill()
	q := inFamily(t, "family-again")
	require.Equal(t, "true", q.line())
}

// Who dies between the last reference and the end of the object leaves its cell, by which others go on.
func TestLastReferenceOfTheDead(t *testing.T) {
	destroyed := 0
	shm.RegisterKind(shm.KindEvent, 64, func(*shm.Heap, uint64) { destroyed++ })
	h := newHeap(t)
	before, _ := h.InUse()
	o, err := h.NewObject(shm.KindEvent, 1000)
	require.NoError(t, err)
	o.DieDropping()
	require.Equal(t, 1, destroyed)
	after, _ := h.InUse()
	require.Equal(t, before, after)

	// The same for what is whole, and what others have too.
	o, err = h.NewObject(shm.KindEvent, 1000)
	require.NoError(t, err)
	other, err := h.ObjectAt(o.Off(), shm.KindEvent, 0)
	require.NoError(t, err)
	o.Drop()
	require.Equal(t, 1, destroyed)
	other.Drop()
	require.Equal(t, 2, destroyed)
	after, _ = h.InUse()
	require.Equal(t, before, after)
}

// Objects whose end asks for a name are destroyed by one who has just joined.
func TestWhoJoinsSweepsBehindItself(t *testing.T) {
	destroyed := make(chan error, 1)
	shm.RegisterKind(shm.KindEvent, 64, func(h *shm.Heap, _ uint64) {
		_, err := h.Join()
		destroyed <- err
	})
	h := newHeap(t)
	o, err := h.NewObject(shm.KindEvent, 1000)
	require.NoError(t, err)
	h.Executed()
	joined := make(chan struct{})
	go func() { _, _ = h.Join(); close(joined) }()
	select {
	case <-joined:
		require.Len(t, destroyed, 1)
		require.NoError(t, <-destroyed)
	case <-time.After(20 * time.Second):
		require.Fail(t, "who joins waits for himself")
	}
	_, err = h.Join()
	require.NoError(t, err)
	blocks, _ := h.InUse()
	require.Zero(t, blocks)
	o.Drop() // which the program before had
}

func TestObjects(t *testing.T) {
	h := newHeap(t)
	o, err := h.NewObject(anyKind, 1000)
	require.NoError(t, err)
	for _, off := range []uint64{0, o.Off() + 128, o.Off() + 1, 1 << 40, ^uint64(127)} {
		_, err = h.ObjectAt(off, anyKind, 0)
		require.ErrorIs(t, err, shm.ErrCorrupt, off)
	}
	_, err = h.ObjectAt(o.Off(), shm.KindLock, 0)
	require.ErrorIs(t, err, shm.ErrCorrupt)
	ref, err := o.Send()
	require.NoError(t, err)
	require.Len(t, ref, shm.RefSize)
	_, err = shm.Receive(ref, shm.KindLock)
	require.ErrorIs(t, err, shm.ErrInvalid)
	_, err = shm.Receive(ref[1:], anyKind)
	require.ErrorIs(t, err, shm.ErrInvalid)
	one, err := shm.Receive(ref, anyKind)
	require.NoError(t, err)
	two, err := shm.Receive(ref, anyKind) // nobody's any more: a reference of its own
	require.NoError(t, err)
	o.Drop()
	o.Drop()
	one.Drop()
	blocks, _ := h.InUse()
	require.Equal(t, 1, blocks)
	ref, err = two.Send()
	require.NoError(t, err)
	two.Drop()
	shm.Forget(ref)
	shm.Forget(ref)
	blocks, _ = h.InUse()
	require.Zero(t, blocks)
	_, err = shm.Receive(ref, anyKind)
	require.ErrorIs(t, err, shm.ErrGone)
}

func TestNamedHeaps(t *testing.T) {
	name := testName("heap")
	_, err := shm.OpenNamedHeap(name)
	require.ErrorIs(t, err, fs.ErrNotExist)
	h, err := shm.CreateNamedHeap(name)
	require.NoError(t, err)
	defer func() { require.NoError(t, shm.Unlink(name)) }()
	_, err = shm.CreateNamedHeap(name)
	require.ErrorIs(t, err, fs.ErrExist)
	other, err := shm.OpenNamedHeap(name)
	require.NoError(t, err)
	require.Equal(t, h.ID(), other.ID())
	off, _, err := h.Alloc(100, 5)
	require.NoError(t, err)
	require.True(t, other.Free(off, 5))
	o, err := other.NewObject(anyKind, 100)
	require.NoError(t, err)
	require.NoError(t, other.Close())
	require.NotPanics(t, func() { _ = *(*byte)(o.Pointer()) }, "an object keeps the heap mapped")
	o.Drop()
	require.NoError(t, h.Close())
}

func TestWhatIsNoHeap(t *testing.T) {
	for _, size := range []int64{4096, 32 << 20, 33<<20 + 1} {
		s, err := shm.CreateSparse(size)
		require.NoError(t, err)
		_, err = shm.AttachHeap(s.FD())
		require.ErrorIs(t, err, shm.ErrCorrupt)
		require.NoError(t, s.Close())
	}
	s, err := shm.CreateSparse(64 << 20)
	require.NoError(t, err)
	head, err := s.Map(0, 4096)
	require.NoError(t, err)
	copy(head, "something else")
	_, err = shm.AttachHeap(s.FD())
	require.ErrorIs(t, err, shm.ErrCorrupt)
	require.NoError(t, s.Unmap(head))
	require.NoError(t, s.Close())
}

func TestHeapLimits(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector needs more address space than that")
	}
	out, err := command("small-space", nil).Output()
	require.NoError(t, err)
	require.Equal(t, "true\n", string(out))
	out, err = command("small-files", nil).Output()
	require.NoError(t, err)
	require.Equal(t, "69 100\n", string(out), "68 MiB, and then an error")
}

func BenchmarkAllocFree(b *testing.B) {
	for _, size := range []uint64{128, 4096, 65536, 1 << 20} {
		b.Run(strconv.FormatUint(size, 10), func(b *testing.B) {
			h := newHeap(b)
			for b.Loop() {
				off, _, err := h.Alloc(size, 5)
				if err != nil || !h.Free(off, 5) {
					b.Fatal(err)
				}
			}
		})
	}
}
