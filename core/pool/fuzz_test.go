//go:build linux

package pool

import (
	"encoding/binary"
	"math"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/start"
	"github.com/polyproc/polyproc/shm"
)

// counted is work that checks that each task has one outcome.
type counted struct {
	t        *testing.T
	outcomes []int
	bytes    int
}

func (c *counted) size(i uint64) int {
	if i%7 == 6 {
		return 40_000 // does not fit into the ring of a bare pool: a block
	}
	return int(i % 50)
}
func (c *counted) put(_ uint64, dst []byte) { clear(dst) }
func (c *counted) finish(i uint64, r *Result) {
	c.outcomes[i]++
	sum := 0
	for _, b := range r.Data { // reads it all: what is out of range would fault
		sum += int(b)
	}
	c.bytes += len(r.Data) + sum&1
}

// FuzzLane: whatever a worker leaves in its lane, reading it gives results or an error, and when the worker has died each task has one outcome.
func FuzzLane(f *testing.F) {
	record := func(kind, flags uint16, body ...[]byte) []byte {
		all := []byte{}
		for _, b := range body {
			all = append(all, b...)
		}
		head := binary.LittleEndian.AppendUint32(nil, uint32(len(all)))
		head = binary.LittleEndian.AppendUint16(head, kind)
		head = binary.LittleEndian.AppendUint16(head, flags)
		all = append(head, all...)
		for len(all)%8 != 0 {
			all = append(all, 0)
		}
		return all
	}
	result := func(number uint64) []byte {
		b := make([]byte, sizeResultHead)
		*at[resultHead](b) = resultHead{number: number, runNS: 1000}
		return b
	}
	p := bare(f, 1)
	p.geo.resultSize = 1 << 20
	p.terminated = true // no worker is started in place of one that has died
	block := func(off, size uint64, slot uint32) []byte {
		b := make([]byte, sizeBulkRef)
		*at[bulkRef](b) = bulkRef{off: uint64(p.geo.resultOff) + off, size: size, slot: slot}
		return b
	}
	join := func(parts ...[]byte) (all []byte) {
		for _, b := range parts {
			all = append(all, b...)
		}
		return all
	}
	add := func(ring []byte) {
		for _, n := range []uint8{0, 1, 10} {
			f.Add(ring, uint64(len(ring)), uint64(0), n, uint64(1), []byte{1, 0, 1}, uint64(0b101))
		}
	}
	add(nil)
	add(record(kindReady, 0))
	add(join(record(kindResult, 0, result(1), []byte("abc")), record(kindResult, 0, result(2))))
	add(join(record(kindResult, 0, result(1)), record(kindResult, 0, result(1))))
	add(join(record(kindResult, flagBulk, result(1), block(0, 100_000, 0)), record(kindResult, flagBulk, result(2), block(4096, 1, 511))))
	add(record(kindResult, flagBulk, result(1), block(1<<20, 1, 0)))
	add(record(kindResult, flagBulk, result(1), block(0, math.MaxUint64, 0)))
	add(record(kindResult, flagBulk, result(1), block(math.MaxUint64, 2, 600)))
	add(record(kindInitFailed, 0, []byte("no")))
	add(record(kindInitFailed, flagBulk, block(5, 500_000, 3)))
	add(record(0xffff, 0))
	add(record(12, 0, make([]byte, 100)))
	f.Add(record(kindResult, 0, result(1)), uint64(8), uint64(0), uint8(1), uint64(1), []byte{}, uint64(0))
	f.Add(record(kindResult, 0, result(1)), uint64(32), uint64(1<<40), uint8(1), uint64(1), []byte{}, uint64(0))
	f.Fuzz(func(t *testing.T, ring []byte, tail, taskHead uint64, tasks uint8, ready uint64, slots []byte, states uint64) {
		p.mu.Lock()
		defer p.mu.Unlock()
		ln, err := p.laneAt(0)
		require.NoError(t, err)
		ln.proc = &start.Process{}
		ln.state = laneStateStarting
		if states&1 != 0 {
			ln.state = laneStateReady
		}
		n := uint64(tasks % 40)
		c := &counted{t: t, outcomes: make([]int, n)}
		j := &job{work: c, n: n, next: n, open: n}
		staged := uint64(0)
		for ; staged < n; staged++ {
			if ok, err := ln.stage(j, staged, 1, nil); !ok {
				require.NoError(t, err)
				break
			}
		}
		j.n, j.next, j.open, p.open = staged, staged, staged, staged
		p.feed()
		// From here on the worker.
		copy(ln.mem[laneHead+p.ringCap:], ring)
		ln.head.resultTail, ln.head.taskHead = tail, taskHead
		for i, b := range slots {
			ln.head.slots[i%maxSlots].Store(uint32(b))
		}
		for i := range ln.pending.len() {
			e := ln.pending.at(i)
			switch states >> (2*i%62 + 1) & 3 {
			case 0:
				e.head.state.Store(taskTaken)
			case 1:
				ln.revokeFor(t, p, e)
			case 2:
				e.head.state.Store(uint32(states))
			}
		}
		for w := range p.board.ready {
			p.board.ready[w].Store(ready << w)
		}
		p.board.fore.waiters.Store(uint32(states))
		p.board.back.seq.Store(uint32(ready))
		p.poll()
		first := ln.drain()
		require.Equal(t, first, ln.drain(), "once spoilt, for ever")
		p.takeBack()
		p.mu.Unlock()
		p.onExit(ln, start.Status{Known: true, Signal: syscall.SIGKILL})
		p.mu.Lock()
		for i, k := range c.outcomes[:staged] {
			require.Equal(t, 1, k, "outcomes of task %d of %d", i, staged)
		}
		require.Zero(t, p.open)
		require.Zero(t, p.blocks)
		require.Empty(t, p.retry)
		require.Equal(t, laneStateEmpty, ln.state)
	})
}

// revokeFor takes a task back as Cancel does.
func (ln *lane) revokeFor(t *testing.T, p *Pool, e *entry) {
	block, ok := ln.revoke(e)
	require.True(t, ok)
	p.freeBlock(block)
	p.complete(e.job, e.i, &Result{Outcome: Cancelled})
}

type fuzzed struct {
	A int
	B []string
	C map[string]*fuzzed
	D float64
}

// FuzzCodec: decoding gives a value or an error; and what travels as it is comes back as it was.
func FuzzCodec(f *testing.F) {
	some, err := encoder[fuzzed]()(nil, &fuzzed{1, []string{"a", ""}, map[string]*fuzzed{"k": {A: 2}}, 1.5})
	require.NoError(f, err)
	for _, seed := range [][]byte{nil, {1}, {1, 2, 3, 4, 5, 6, 7, 8}, []byte("text"), some, some[:len(some)/2]} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		same[[]byte](t, b, true)
		same[string](t, b, true)
		same[int](t, b, len(b) == 8)
		same[int64](t, b, len(b) == 8)
		same[uint64](t, b, len(b) == 8)
		same[float64](t, b, len(b) == 8)
		var none struct{}
		require.NoError(t, decoder[struct{}]()(b, &none))
		var v, w fuzzed
		if decoder[fuzzed]()(b, &v) == nil {
			again, err := encoder[fuzzed]()(nil, &v)
			require.NoError(t, err)
			require.NoError(t, decoder[fuzzed]()(again, &w))
			require.True(t, v.D != v.D || v.C != nil || w.A == v.A && len(w.B) == len(v.B) && w.D == v.D)
		}
		var p *fuzzed
		_ = decoder[*fuzzed]()(b, &p)
		var l []int8
		_ = decoder[[]int8]()(b, &l)
	})
}

func same[T any](t *testing.T, b []byte, valid bool) {
	var v T
	err := decoder[T]()(b, &v)
	require.Equal(t, valid, err == nil, reflect.TypeOf(v))
	if valid {
		back, err := encoder[T]()(nil, &v)
		require.NoError(t, err)
		require.Equal(t, string(b), string(back), reflect.TypeOf(v))
	}
}

// FuzzAssignment: what a worker is told by its environment.
func FuzzAssignment(f *testing.F) {
	for _, seed := range []string{"", "3,0,1,100", "3,0,4294967295,2147483647", "-1,0,0,0", "3,0,1", "3,0,1,2,3", "3,,1,2", "99999999999999999999,0,0,0", "+3,0,1,1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		a, err := parseAssignment(value)
		if err != nil {
			return
		}
		require.True(t, a.fd >= 0 && a.lane >= 0 && a.parent >= 0)
		fields := strings.Split(value, ",")
		generation, err := strconv.ParseUint(fields[2], 10, 32)
		require.NoError(t, err)
		require.Equal(t, uint32(generation), a.generation)
	})
}

// FuzzServe: whatever a pool's memory holds, a worker that joins it takes tasks or gives up. The bytes are added to those of a real pool.
func FuzzServe(f *testing.F) {
	const size = 4 << 20
	p := bare(f, 2)
	ln, err := p.laneAt(1)
	require.NoError(f, err)
	c := &counted{outcomes: make([]int, 10)}
	for i := range uint64(5) {
		ok, err := ln.stage(&job{work: c, n: 5, open: 5}, i, 1, nil)
		require.NoError(f, err)
		require.True(f, ok)
	}
	p.feed()
	seg, err := shm.CreateSparse(size)
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, seg.Close()) })
	mem, err := seg.Map(0, size)
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, seg.Unmap(mem)) })
	restore := func() {
		clear(mem[:2<<20])
		copy(mem, p.boardMem)
		copy(mem[p.geo.laneOff+p.geo.laneSize:], ln.mem)
		b := at[board](mem)
		b.taskOff, b.taskSize = 1<<20, 1<<20
		b.resultOff, b.resultSize = 2<<20, 1<<20
		b.initFn, b.initOff, b.initSize = initFuzz(nil).id, 1<<20, 100
		at[laneHeader](mem[p.geo.laneOff+p.geo.laneSize:]).state.Store(laneClosing)
	}
	f.Add([]byte{}, []byte{}, []byte{}, 1, uint32(1))
	f.Add([]byte{0, 1}, []byte{}, []byte{}, 1, uint32(1))
	f.Add(make([]byte, 200), make([]byte, 1000), make([]byte, 1000), 0, uint32(0))
	for off := range 16 {
		seed := make([]byte, 128)
		binary.LittleEndian.PutUint64(seed[8*off:], 1<<63)
		f.Add(seed, []byte{}, []byte{}, 1, uint32(1))
		binary.LittleEndian.PutUint64(seed[8*off:], math.MaxUint64-3)
		f.Add(seed, []byte{}, []byte{1, 2, 3}, 1, uint32(1))
	}
	f.Fuzz(func(t *testing.T, boardBytes, laneBytes, ring []byte, slot int, generation uint32) {
		restore()
		plus := func(dst, by []byte) {
			for i := range min(len(dst), len(by)) {
				dst[i] += by[i]
			}
		}
		plus(mem[:boardSize], boardBytes)
		lane := mem[p.geo.laneOff+p.geo.laneSize:]
		plus(lane[4:laneHead], laneBytes) // not its state: closing, so that nothing waits
		plus(lane[laneHead:laneHead+p.ringCap], ring)
		h, err := join(seg, slot, generation)
		if err != nil {
			return
		}
		defer h.leave()
		if h.head.state.Load() != laneClosing {
			return // another lane
		}
		_ = h.initialize(func(error) {})
		for range 100 {
			rec, err := h.next()
			if err != nil || rec.Body == nil {
				return
			}
			if in, err := h.input(rec); err == nil {
				sum := 0
				for _, b := range in {
					sum += int(b)
				}
				if rec.Flags&flagBulk != 0 {
					h.large.Done(in)
				}
			}
			h.tasks.ReleaseTo(rec.End)
		}
	})
}

var initFuzz = RegisterInitializer("fuzz", func(arg []byte) error { return nil })
