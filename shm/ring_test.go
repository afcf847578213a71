//go:build linux

package shm_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"

	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/shm"
)

// A ring in a segment of ringAt + capacity bytes.
const (
	tailAt  = 0
	headAt  = 128
	itemsAt = 256
	spaceAt = 384
	ringAt  = 4096
)

func sides(t testing.TB, b []byte) (*shm.Producer, *shm.Consumer) {
	t.Helper()
	p, err := shm.NewProducer(u64(b, tailAt), u64(b, headAt), b[ringAt:])
	require.NoError(t, err)
	c, err := shm.NewConsumer(u64(b, tailAt), u64(b, headAt), b[ringAt:])
	require.NoError(t, err)
	return p, c
}

func TestRing(t *testing.T) {
	p, c := sides(t, create(t, ringAt+256).Bytes())
	require.Equal(t, 120, p.Max())
	require.True(t, c.Empty())
	_, ok, err := c.Next()
	require.NoError(t, err)
	require.False(t, ok)

	// Staged is not published.
	b, end, ok := p.Stage(5, 6, 3)
	require.True(t, ok)
	require.Len(t, b, 3)
	require.Equal(t, 3, cap(b))
	require.EqualValues(t, 16, end)
	copy(b, "abc")
	_, end, ok = p.Stage(7, 0, 0)
	require.True(t, ok)
	require.EqualValues(t, 24, end)
	require.True(t, c.Empty())
	p.Publish()
	require.False(t, c.Empty())
	require.EqualValues(t, 24, p.Tail())

	r, ok, err := c.Next()
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, shm.Record{Kind: 5, Flags: 6, Body: []byte("abc"), Pos: 0, End: 16}, r)
	r, ok, _ = c.Next()
	require.True(t, ok)
	require.Equal(t, shm.Record{Kind: 7, Body: []byte{}, Pos: 16, End: 24}, r)
	require.True(t, c.Empty())

	// Space comes back when it is released, in order.
	require.Zero(t, p.Head())
	c.ReleaseTo(16)
	require.EqualValues(t, 16, p.Head())
	c.ReleaseTo(0)
	c.ReleaseTo(1000)
	require.EqualValues(t, 16, p.Head(), "what is given back, or was not read, changes nothing")
	c.Release()
	require.EqualValues(t, 24, p.Head())
	require.NoError(t, p.Err())

	// The largest record fits once the ring is empty, wherever that is.
	for at := range uint64(64) {
		require.True(t, p.Put(1, 0, make([]byte, p.Max())), "round %d", at)
		_, ok, err = c.Next()
		require.NoError(t, err)
		require.True(t, ok)
		c.Release()
		require.True(t, p.Put(1, 0))
		_, ok, _ = c.Next()
		require.True(t, ok)
		c.Release()
	}
	require.PanicsWithValue(t, "shm: record is larger than the ring's Max", func() { p.Put(1, 0, make([]byte, 121)) })
}

// Against a model: a queue of byte strings.
func TestRingModel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	p, c := sides(t, create(t, ringAt+1024).Bytes())
	type message struct {
		kind, flags uint16
		body        []byte
	}
	var staged, public []message
	var used, full, wraps int
	var last uint64
	for range 200_000 {
		switch random.IntN(4) {
		case 0, 1:
			m := message{uint16(random.IntN(0xffff)), uint16(random.Uint32()), make([]byte, random.IntN(p.Max()+1)>>random.IntN(7))}
			for i := range m.body {
				m.body[i] = byte(random.Uint32())
			}
			b, _, ok := p.Stage(m.kind, m.flags, len(m.body))
			if !ok {
				full++
				continue
			}
			copy(b, m.body)
			staged = append(staged, m)
		case 2:
			p.Publish()
			public = append(public, staged...)
			staged = staged[:0]
		case 3:
			for range random.IntN(8) {
				r, ok, err := c.Next()
				require.NoError(t, err)
				require.Equal(t, len(public) > 0, ok)
				if !ok {
					break
				}
				m := public[0]
				public = public[1:]
				require.Equal(t, m.kind, r.Kind)
				require.Equal(t, m.flags, r.Flags)
				require.True(t, bytes.Equal(m.body, r.Body))
				if r.Pos > last {
					wraps++
				}
				last = r.End
				used++
			}
			if random.IntN(2) == 0 {
				c.Release()
			}
		}
	}
	require.Greater(t, used, 1000)
	require.Greater(t, full, 1000)
	require.Greater(t, wraps, 100)
}

func TestRingRefuses(t *testing.T) {
	b := create(t, ringAt+4096).Bytes()
	for _, n := range []int{0, 8, 32, 100, 4095} {
		_, err := shm.NewProducer(u64(b, 0), u64(b, 8), b[ringAt:ringAt+n])
		require.ErrorIs(t, err, shm.ErrInvalid, "%d bytes", n)
	}
	_, err := shm.NewConsumer(u64(b, 0), u64(b, 8), b[ringAt+4:ringAt+68])
	require.ErrorIs(t, err, shm.ErrInvalid)

	for _, w := range [][2]uint64{{8, 16}, {4104, 0}, {4, 0}, {12, 4}} {
		*u64(b, tailAt), *u64(b, headAt) = w[0], w[1]
		_, err := shm.NewProducer(u64(b, tailAt), u64(b, headAt), b[ringAt:])
		require.ErrorIs(t, err, shm.ErrCorrupt, "%v", w)
		_, err = shm.NewConsumer(u64(b, tailAt), u64(b, headAt), b[ringAt:])
		require.ErrorIs(t, err, shm.ErrCorrupt, "%v", w)
	}
	*u64(b, tailAt), *u64(b, headAt) = 0, 0

	// A consumer that lies about its position gets no more than the ring.
	p, c := sides(t, b)
	require.True(t, p.Put(1, 0, []byte("x")))
	for _, head := range []uint64{8, 24, 1 << 63, 3} {
		*u64(b, headAt) = head
		p.Head()
		if head == 8 {
			require.NoError(t, p.Err(), "inside of a record: not to be told")
			*u64(b, headAt) = 0
			p.Head()
		}
		require.ErrorIs(t, p.Err(), shm.ErrCorrupt, "head %d", head)
	}
	// And a producer.
	for _, tail := range []uint64{8, 24, 1 << 63, 3, 4104, 12} {
		*u64(b, tailAt) = tail
		_, _, err := c.Next()
		require.ErrorIs(t, err, shm.ErrCorrupt, "tail %d", tail)
	}
}

func init() {
	// Sends args[0] numbered messages of pseudo-random size and contents.
	roles["send"] = func(s *shm.Segment, args []string) {
		b := s.Bytes()
		n, err := strconv.Atoi(args[0])
		must(err)
		p, err := shm.NewProducer(u64(b, tailAt), u64(b, headAt), b[ringAt:])
		must(err)
		items, space := shm.NewBell(b[itemsAt:]), shm.NewBell(b[spaceAt:])
		random := rand.New(rand.NewPCG(3, 4))
		for i := range n {
			size := 12 + random.IntN(100)
			if i%64 == 0 {
				size = 12 + random.IntN(p.Max()-12)
			}
			var body []byte
			stage := func() (ok bool) { body, _, ok = p.Stage(1, 0, size); return ok }
			if !stage() {
				p.Publish()
				items.Ring(1)
				must(sleepUntil(space, stage))
			}
			binary.LittleEndian.PutUint64(body[4:], uint64(i))
			for j := 12; j < size; j++ {
				body[j] = byte(i + j)
			}
			binary.LittleEndian.PutUint32(body, crc32.ChecksumIEEE(body[4:]))
			if i%3 == 0 || i == n-1 {
				p.Publish()
				items.Ring(1)
			}
		}
		must(p.Err())
	}
}

// sleepUntil is how a bell is used: nothing but a wake-up ends the sleep, so that one that is lost fails the test.
func sleepUntil(bell shm.Bell, done func() bool) error {
	for !done() {
		seq := bell.Enter()
		if done() {
			bell.Leave()
			return nil
		}
		err := bell.Wait(seq, patience)
		bell.Leave()
		if err != nil && err != shm.ErrInterrupted {
			return fmt.Errorf("a wake-up is lost: %w", err)
		}
	}
	return nil
}

func TestRingProcesses(t *testing.T) {
	n := 400_000
	if raceEnabled || testing.Short() {
		n = 40_000
	}
	for _, size := range []int{256, 64 << 10} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			n := n
			if size < 1<<10 { // mostly full: sleeps and wake-ups
				n /= 8
			}
			s := create(t, int64(ringAt+size))
			b := s.Bytes()
			_, c := sides(t, b)
			items, space := shm.NewBell(b[itemsAt:]), shm.NewBell(b[spaceAt:])
			child := start(t, "send", s, strconv.Itoa(n))
			for i := range n {
				var r shm.Record
				var err error
				next := func() (ok bool) { r, ok, err = c.Next(); return ok || err != nil }
				if !next() {
					require.NoError(t, sleepUntil(items, next), "message %d", i)
				}
				require.NoError(t, err)
				if binary.LittleEndian.Uint64(r.Body[4:]) != uint64(i) ||
					binary.LittleEndian.Uint32(r.Body) != crc32.ChecksumIEEE(r.Body[4:]) {
					require.Fail(t, "message is not what was sent", "message %d", i)
				}
				c.Release()
				space.Ring(1)
			}
			require.True(t, c.Empty())
			child.finish()
		})
	}
}

func init() {
	// Takes tokens until there are no more to come, with as many threads as args[0] says.
	roles["take"] = func(s *shm.Segment, args []string) {
		n, err := strconv.Atoi(args[0])
		must(err)
		failed := make(chan error)
		for range n {
			go func() { failed <- takeTokens(s.Bytes()) }()
		}
		for range n {
			must(<-failed)
		}
	}
}

const (
	tokensAt = 0  // to be taken
	takenAt  = 64 // by anybody
	overAt   = 128
	backAt   = 512 // bell of whoever hands out
)

func takeTokens(b []byte) error {
	bell, back := shm.NewBell(b[itemsAt:]), shm.NewBell(b[backAt:])
	tokens, taken, over := u32(b, tokensAt), u32(b, takenAt), u32(b, overAt)
	take := func() bool {
		for {
			n := atomic.LoadUint32(tokens)
			if n == 0 {
				return false
			}
			if atomic.CompareAndSwapUint32(tokens, n, n-1) {
				return true
			}
		}
	}
	for {
		mine := false
		err := sleepUntil(bell, func() bool {
			mine = take()
			return mine || atomic.LoadUint32(over) != 0
		})
		if err != nil || !mine {
			return err
		}
		atomic.AddUint32(taken, 1)
		back.Ring(1)
	}
}

// Many sleepers in several processes; each token rings once, and all must be taken before the next are handed out.
func TestBellHammer(t *testing.T) {
	rounds := 20_000
	if raceEnabled || testing.Short() {
		rounds = 3_000
	}
	s := create(t, 4096)
	b := s.Bytes()
	bell, back := shm.NewBell(b[itemsAt:]), shm.NewBell(b[backAt:])
	tokens, taken, over := u32(b, tokensAt), u32(b, takenAt), u32(b, overAt)
	children := []*process{start(t, "take", s, "3"), start(t, "take", s, "2")}
	sum := uint32(0)
	for i := range rounds {
		n := uint32(1 + i%3)
		sum += n
		for range n {
			atomic.AddUint32(tokens, 1)
			bell.Ring(1)
		}
		require.NoError(t, sleepUntil(back, func() bool { return atomic.LoadUint32(taken) == sum }), "round %d", i)
	}
	atomic.StoreUint32(over, 1)
	bell.RingAll()
	for _, c := range children {
		c.finish()
	}
	require.False(t, bell.Waiting())
}

func TestBell(t *testing.T) {
	b := create(t, 4096).Bytes()
	bell := shm.NewBell(b)
	seq, waiters := u32(b, 0), u32(b, 4)
	bell.Ring(1)
	require.Zero(t, *seq, "nobody waits")
	at := bell.Enter()
	require.True(t, bell.Waiting())
	bell.Ring(1)
	require.NoError(t, bell.Wait(at, patience), "rung since")
	bell.Leave()
	bell.Leave()
	require.Zero(t, *waiters, "never below 0")

	// Two that died asleep, and one that lives.
	bell.Enter()
	bell.Enter()
	done := make(chan error)
	go func() {
		at := bell.Enter()
		err := wait(seq, at, patience)
		bell.Leave()
		done <- err
	}()
	eventually(t, func() bool { return atomic.LoadUint32(waiters) == 3 }, "nobody came")
	bell.Reset()
	require.NoError(t, <-done)
	require.False(t, bell.Waiting())
	require.Panics(t, func() { shm.NewBell(b[:7]) })
	require.Panics(t, func() { shm.NewBell(b[1:]) })
}

// Whatever another process writes, a consumer answers with records inside of the ring or with ErrCorrupt, and comes to an end.
func FuzzConsumer(f *testing.F) {
	record := func(kind uint16, n uint32, more ...byte) []byte {
		b := binary.LittleEndian.AppendUint32(nil, n)
		b = binary.LittleEndian.AppendUint16(b, kind)
		return append(append(b, 0, 0), more...)
	}
	f.Add(uint64(24), uint64(0), uint64(24), record(1, 12, 1, 2, 3))
	f.Add(uint64(64), uint64(0), uint64(128), append(record(0xffff, 56), record(1, 8)...))
	f.Add(uint64(256), uint64(248), uint64(256+248), record(1, 0))
	f.Add(uint64(8), uint64(0), uint64(1<<63), record(1, 0xffffffff))
	f.Add(^uint64(0)-7, ^uint64(0)-15, uint64(16), record(0xffff, 0))
	f.Fuzz(func(t *testing.T, tail, head, then uint64, data []byte) {
		const size = 256
		words := make([]uint64, 2+size/8)
		words[0], words[1] = tail, head
		ring := bytesOf(words[2:])
		copy(ring, data)
		c, err := shm.NewConsumer(&words[0], &words[1], ring)
		if err != nil {
			require.True(t, tail-head > size || tail%8 != 0 || head%8 != 0)
			return
		}
		for round := range 2 {
			read := 0
			for {
				r, ok, err := c.Next()
				if err != nil {
					require.ErrorIs(t, err, shm.ErrCorrupt)
					return
				}
				if !ok {
					break
				}
				if read++; read > size/8 {
					require.Fail(t, "more records than fit")
				}
				require.LessOrEqual(t, len(r.Body), size/2-8)
				require.Equal(t, len(r.Body), cap(r.Body))
				require.LessOrEqual(t, r.End-r.Pos, uint64(size/2))
				if len(r.Body) > 0 {
					at := &r.Body[0]
					require.True(t, at == &ring[r.Pos%size+8])
					require.LessOrEqual(t, r.Pos%size+8+uint64(len(r.Body)), uint64(size))
				}
			}
			if round == 0 {
				c.Release()
				atomic.StoreUint64(&words[0], then)
			}
		}
	})
}

// The producer's view of a consumer that writes anything: it never writes outside of the ring, nor over what is not given back.
func FuzzProducer(f *testing.F) {
	f.Add(uint64(0), []byte{1, 2, 3})
	f.Add(uint64(64), []byte{200, 200, 200})
	f.Add(^uint64(0), []byte{0, 50, 100, 120, 8})
	f.Fuzz(func(t *testing.T, head uint64, sizes []byte) {
		const size = 256
		words := make([]uint64, 2+size/8+1)
		words[len(words)-1] = 0x1122334455667788
		ring := bytesOf(words[2 : len(words)-1])
		p, err := shm.NewProducer(&words[0], &words[1], ring)
		require.NoError(t, err)
		for i, n := range sizes {
			if i == len(sizes)/2 {
				atomic.StoreUint64(&words[1], head)
			}
			b, end, ok := p.Stage(1, 0, int(n)%(p.Max()+1))
			if !ok {
				continue
			}
			for i := range b {
				b[i] = 0xaa
			}
			require.LessOrEqual(t, end-p.Head(), uint64(size))
			p.Publish()
			require.Equal(t, end, p.Tail())
		}
		require.EqualValues(t, 0x1122334455667788, words[len(words)-1])
	})
}

func BenchmarkRingPutGet(b *testing.B) {
	for _, size := range []int{16, 64, 1024} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			s := create(b, ringAt+64<<10)
			p, c := sides(b, s.Bytes())
			body := make([]byte, size)
			b.ReportAllocs()
			for b.Loop() {
				if !p.Put(1, 0, body) {
					b.Fatal("full")
				}
				if _, ok, err := c.Next(); !ok || err != nil {
					b.Fatal("empty", err)
				}
				c.Release()
			}
		})
	}
}

func BenchmarkBellRingNoWaiter(b *testing.B) {
	bell := shm.NewBell(create(b, 4096).Bytes())
	for b.Loop() {
		bell.Ring(1)
	}
}

// Round trip between two processes, both asleep in between.
func BenchmarkBellRoundTrip(b *testing.B) {
	s := create(b, 4096)
	mem := s.Bytes()
	child := start(b, "take", s, "1")
	bell, back := shm.NewBell(mem[itemsAt:]), shm.NewBell(mem[backAt:])
	tokens, taken := u32(mem, tokensAt), u32(mem, takenAt)
	sum := uint32(0)
	for b.Loop() {
		sum++
		atomic.AddUint32(tokens, 1)
		bell.Ring(1)
		if err := sleepUntil(back, func() bool { return atomic.LoadUint32(taken) == sum }); err != nil {
			b.Fatal(err)
		}
	}
	atomic.StoreUint32(u32(mem, overAt), 1)
	bell.RingAll()
	child.finish()
}
