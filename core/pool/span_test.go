//go:build linux

package pool

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/start"
)

// spanned is a pool without processes whose lane 0 runs a span of n elements of 8 bytes.
func spanned(t *testing.T, n uint64) (*Pool, *lane, *Array, []Outcome) {
	t.Helper()
	p := bare(t, 1)
	ln, err := p.laneAt(0)
	require.NoError(t, err)
	ln.state, ln.ready, ln.proc = laneStateReady, true, &start.Process{}
	ended := make([]Outcome, n)
	for i := range ended {
		ended[i] = resultOpen
	}
	a := &Array{In: make([]byte, 8*n), InSize: 8, Out: make([]byte, 8*n), OutSize: 8, N: n, Spans: true, Finish: func(i uint64, r *Result) {
		require.Equal(t, resultOpen, ended[i], "element %d has two outcomes", i)
		ended[i] = r.Outcome
	}}
	j := &job{work: a, n: n, next: n, open: n, spanMax: a.spanMax()}
	p.open += n
	ok, err := ln.stage(j, 0, uint32(n), nil)
	require.NoError(t, err)
	require.True(t, ok)
	p.feed()
	require.True(t, ln.pending.at(0).head.state.CompareAndSwap(taskReady, taskTaken))
	return p, ln, a, ended
}

// What has not begun of a span is taken back, and only that.
func TestCutSpan(t *testing.T) {
	p, ln, _, ended := spanned(t, 10)
	e := ln.pending.at(0)
	e.span().claim.Add(3)
	i, n := ln.cut(e)
	require.EqualValues(t, 3, i)
	require.EqualValues(t, 7, n)
	require.Equal(t, uint64(3)<<32|3, e.span().claim.Load())
	_, n = ln.cut(e)
	require.Zero(t, n)
	body := make([]byte, 10*(sizeSpanOut+8))
	at[spanOut](body).size = 8
	*at[spanOut](body[sizeSpanOut:]) = spanOut{status: -12, code: 5}
	at[spanOut](body[2*sizeSpanOut:]).size = 1 << 31 // more than there is room for
	forge(ln, kindResult, 0, &resultHead{number: 1}, body...)
	require.NoError(t, ln.drain())
	require.Equal(t, []Outcome{OK, Failed, OK}, ended[:3])
	for _, o := range ended[3:] {
		require.Equal(t, resultOpen, o)
	}
	require.EqualValues(t, 7, p.open)
	require.Zero(t, ln.waiting)
}

// A worker that spoils the words of a span gets no element an outcome twice, and this process reads nothing outside the lane.
func TestHostileSpan(t *testing.T) {
	t.Run("length", func(t *testing.T) {
		_, ln, _, _ := spanned(t, 10)
		forge(ln, kindResult, 0, &resultHead{number: 1}, make([]byte, 9*(sizeSpanOut+8))...)
		require.Error(t, ln.drain())
	})
	for name, test := range map[string]struct {
		claim, resultAt uint64
		ok, lost, rest  int
	}{
		"nothing":          {10 << 32, 0, 0, 0, 10},
		"first":            {10<<32 | 1, 0, 0, 1, 9},
		"some":             {10<<32 | 4, 8, 3, 1, 6},
		"all":              {10<<32 | 10, 8, 9, 1, 0},
		"more than all":    {99<<32 | 77, 8, 9, 1, 0},
		"end of the ring":  {10<<32 | 4, 64<<10 - 10*24, 3, 1, 6},
		"beyond the ring":  {10<<32 | 4, 64<<10 - 10*24 + 8, 0, 4, 6},
		"far beyond":       {10<<32 | 4, 1<<64 - 8, 0, 4, 6},
		"between elements": {10<<32 | 4, 9, 0, 4, 6},
	} {
		t.Run(name, func(t *testing.T) {
			p, ln, _, ended := spanned(t, 10)
			e := *ln.pending.at(0)
			e.span().claim.Store(test.claim)
			e.span().resultAt = test.resultAt
			p.mu.Lock()
			defer p.mu.Unlock()
			which, rest := ln.rescueSpan(&e)
			if which >= 0 {
				p.complete(e.job, uint64(which), &Result{Outcome: Lost})
			}
			count := map[Outcome]int{}
			for _, o := range ended {
				count[o]++
			}
			require.Equal(t, test.ok, count[OK])
			require.Equal(t, test.lost, count[Lost])
			require.Equal(t, test.rest, count[resultOpen])
			require.EqualValues(t, test.rest, rest.n)
		})
	}
}

// A task that the worker has done, and whose record another task overwrote before its result was read, cannot be taken back: the other
// would be lost, and the task would run again.
func TestRevokeOverwritten(t *testing.T) {
	for _, spans := range []bool{false, true} {
		p := bare(t, 1)
		ln, err := p.laneAt(0)
		require.NoError(t, err)
		ln.state, ln.ready, ln.proc = laneStateReady, true, &start.Process{}
		a := &Array{In: make([]byte, 4*8000), InSize: 8000, N: 4, Spans: spans}
		j := &job{work: a, n: 4, next: 4, open: 4}
		p.open += 4
		many := uint32(1)
		if spans {
			a.In, a.InSize, a.N, many = make([]byte, 4*1000*16), 16, 4000, 1000
			j.n, j.next, j.open = 4000, 4000, 4000
			p.open += 3996
		}
		for i := uint64(0); ; i += uint64(many) {
			ok, err := ln.stage(j, i%(4*uint64(many)), many, nil)
			require.NoError(t, err)
			if !ok {
				break
			}
		}
		p.feed()
		first := *ln.pending.at(0)
		require.True(t, first.head.state.CompareAndSwap(taskReady, taskTaken))
		if spans {
			first.span().claim.Add(1000)
		}
		atomic.StoreUint64(&ln.head.taskHead, first.end)
		for ok := true; ok; { // into the room that the worker gave back
			ok, err = ln.stage(j, 0, many, nil)
			require.NoError(t, err)
		}
		p.feed()
		last := ln.pending.at(ln.pending.len() - 1)
		_, ok := ln.revoke(ln.pending.at(0))
		require.False(t, ok)
		_, n := ln.cut(ln.pending.at(0))
		require.Zero(t, n)
		require.EqualValues(t, taskReady, last.head.state.Load())
		if spans {
			require.Equal(t, uint64(1000)<<32, last.span().claim.Load())
		}
	}
}
