package shm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Members is a table in shared memory of the processes that take part: slot -> who. It gives each an [Owner] to stamp its locks with,
// and tells whether the one behind a stamp is proven dead. Zeros are an empty table.
//
// A slot is one 64-bit word that names the whole identity, so that joining is one CAS and no process that dies leaves half an entry:
//
//	bits  0..1   0 = free, 1 = taken, and the id is a start time, 3 = taken, and the id is an inode
//	bits  2..20  generation: how often the slot was taken
//	bits 21..41  id: the low bits of the inode of the process's pidfd (Linux 6.9), else of its start time; a start time of 0 is not known
//	bits 42..63  process id (the kernel's maximum is 2^22); 0: it was proven dead, and is being swept up behind
//
// But for the generation this is an [Identity].
//
// Dead members stay in the table until somebody reaps them, which sweeps up behind them first: an Owner is not given again before
// that. Process ids mean something only within one pid namespace, so all members must be in the one of the first.
type Members struct {
	slots []uint64
	file  fileID
	id    uint64 // of the table
}

// Owner names a member: slot + 1 in bits 0..11, generation in bits 12..30. 0 is nobody, bit 31 is never set.
//
//c:extern uint32_t
type Owner uint32

// Slot returns the member's index in the table, 0 <= Slot < n of [NewMembers].
func (o Owner) Slot() int { return int(int32(ownerIndex(o))) }

// Generation tells members that had the same slot one after the other apart.
func (o Owner) Generation() uint32 { return uint32(o >> ownerSlotBits) }

// MembersMax is the largest number of slots.
const MembersMax = ownerSlot - 1

// Identity names one process among all that have its number, one after the other. It means the same in every process of a pid namespace, and
// has the bits of a slot of [Members], but for the generation, which is 0.
type Identity uint64

// PID returns the number of the process.
func (i Identity) PID() int { return int(memberPID(uint64(i))) }

func (i Identity) id() uint64 { return memberID(uint64(i)) }

// identityIn returns who is in a slot.
func identityIn(word uint64) Identity { return Identity(word &^ memberGenMask) }

// MembersSize returns how many bytes of shared memory a table of n slots takes.
func MembersSize(n int) int { return sizeMembersHead + 8*n }

// own has the slots that this program took, by the id of the table. It is kept here and not in shared memory on purpose: after
// execve the new program has the same process id and start time, and its own slots are those that it does not know.
var own = struct {
	sync.Mutex
	slots map[uint64]map[Owner]bool
}{slots: map[uint64]map[Owner]bool{}}

// NewMembers returns the table in b, which is in shared memory of the segment and aligned to 8, with as many slots as fit
// (at most [MembersMax]). Every process must give the same range. Errors: [ErrInvalid], [ErrUnsupported] (another pid namespace, or a
// system without a proof of death).
func NewMembers(s *Segment, b []byte) (*Members, error) {
	p := addressOf(b)
	n := (len(b) - sizeMembersHead) / 8
	if n < 1 || uintptr(p)%8 != 0 {
		return nil, fmt.Errorf("%w: table of members of %d bytes", ErrInvalid, len(b))
	}
	head := (*membersHeader)(p)
	space, err := pidSpace()
	if err != nil {
		return nil, wrap("members", err)
	}
	if !atomic.CompareAndSwapUint64(&head.space, 0, space) && atomic.LoadUint64(&head.space) != space {
		return nil, fmt.Errorf("%w: members in different pid namespaces", ErrUnsupported)
	}
	atomic.CompareAndSwapUint64(&head.id, 0, rand.Uint64()|1)
	m := &Members{slots: unsafe.Slice((*uint64)(unsafe.Add(p, sizeMembersHead)), min(n, MembersMax)), id: atomic.LoadUint64(&head.id)}
	if m.file, err = identify(s.FD()); err != nil {
		return nil, wrap("members", err)
	}
	return m, nil
}

// Join takes a slot for this process. If none is free it reaps the dead, calling sweep for each, see Reap. A process may join
// more than once. Errors: [ErrNoMemory] (all slots are taken by the living), [ErrUnsupported].
func (m *Members) Join(sweep func(dead Owner)) (Owner, error) {
	pid := os.Getpid()
	who, err := Identify(pid)
	if err != nil {
		return 0, err
	}
	m.reapOwn(pid, sweep)
	for range 2 {
		for i := range m.slots {
			old := atomic.LoadUint64(&m.slots[i])
			if old&memberTaken != 0 {
				continue
			}
			word := uint64(who) | memberNext(old)
			o := memberOwner(word, uint32(i))
			remember(m.id, o)
			if atomic.CompareAndSwapUint64(&m.slots[i], old, word) {
				return o, nil
			}
			forget(m.id, o)
		}
		m.Reap(sweep)
	}
	return 0, fmt.Errorf("%w: all %d slots of the table of members are taken", ErrNoMemory, len(m.slots))
}

// Leave gives the slot back. The member must hold no lock.
func (m *Members) Leave(o Owner) {
	if word, ok := m.word(o); ok {
		m.free(o, word)
	}
	forget(m.id, o)
}

// Gone reports whether the member is proven dead: the process has ended, or executes another program and so cannot touch the
// memory any more; or it left. A member that is stopped, or that cannot be looked at, is not gone.
func (m *Members) Gone(o Owner) bool {
	word, ok := m.word(o)
	if !ok {
		return true
	}
	if identityIn(word).Gone() {
		return true
	}
	pid := int(memberPID(word))
	if pid == os.Getpid() {
		return !remembered(m.id, o)
	}
	return unmapped(pid, m.file)
}

// Reap frees the slots of dead members and returns how many. For each, sweep is called first: it must end what the member has left, by
// [Lock.Sweep] for every lock that it may hold. Several processes may sweep up behind the same member at the same time, and one that dies is
// followed by the next, so sweep must be idempotent and may touch only what belongs to exactly this Owner.
func (m *Members) Reap(sweep func(dead Owner)) int {
	n := 0
	m.words(func(o Owner, word uint64) {
		if m.Gone(o) && m.bury(o, word, sweep) {
			n++
		}
	})
	return n
}

// Each calls f for every member, dead or alive.
func (m *Members) Each(f func(o Owner, pid int)) {
	m.words(func(o Owner, word uint64) { f(o, int(memberPID(word))) })
}

func (m *Members) words(f func(o Owner, word uint64)) {
	for i := range m.slots {
		if word := atomic.LoadUint64(&m.slots[i]); word&memberTaken != 0 {
			f(memberOwner(word, uint32(i)), word)
		}
	}
}

// reapOwn reaps what the program that this process executed before has left: nobody else can tell that it is gone once we map the segment.
func (m *Members) reapOwn(pid int, sweep func(dead Owner)) {
	m.words(func(o Owner, word uint64) {
		if int(memberPID(word)) == pid && !remembered(m.id, o) {
			m.bury(o, word, sweep)
		}
	})
}

// bury frees the slot of a member that is dead: word is what the slot held before that was proven.
func (m *Members) bury(o Owner, word uint64, sweep func(dead Owner)) bool {
	// A process that forks takes a slot for its child, which puts its own name there (capi/front/objects.c). If the parent has died meanwhile, the child must
	// come before the sweep, and then nothing is swept, or not at all: else it would believe in references that it has not any more.
	nobody := word & (memberGenMask | memberTaken)
	if word != nobody && !atomic.CompareAndSwapUint64(&m.slots[o.Slot()], word, nobody) {
		return false
	}
	if sweep != nil {
		sweep(o)
	}
	return m.free(o, nobody)
}

// word returns the member's word if it has not left.
func (m *Members) word(o Owner) (uint64, bool) {
	i := o.Slot()
	if i < 0 || i >= len(m.slots) {
		return 0, false
	}
	word := atomic.LoadUint64(&m.slots[i])
	return word, word&memberTaken != 0 && memberOwner(word, uint32(i)) == o
}

func (m *Members) free(o Owner, word uint64) bool {
	return atomic.CompareAndSwapUint64(&m.slots[o.Slot()], word, word&memberGenMask)
}

func remember(id uint64, o Owner) {
	own.Lock()
	defer own.Unlock()
	if own.slots[id] == nil {
		own.slots[id] = map[Owner]bool{}
	}
	own.slots[id][o] = true
}

func forget(id uint64, o Owner) {
	own.Lock()
	defer own.Unlock()
	if delete(own.slots[id], o); len(own.slots[id]) == 0 {
		delete(own.slots, id)
	}
}

func remembered(id uint64, o Owner) bool {
	own.Lock()
	defer own.Unlock()
	return own.slots[id][o]
}

var errNotHeld = errors.New("shm: release of a lock that is not held")
