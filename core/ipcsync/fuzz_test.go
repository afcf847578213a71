//go:build linux

package ipcsync_test

import (
	"context"
	"encoding"
	"encoding/binary"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/ipcsync"
	"github.com/polyproc/polyproc/shm"
)

// FuzzDamage writes anything into an object, behind what every object begins with, and uses it: errors are welcome, crashes and waits without end are not.
func FuzzDamage(f *testing.F) {
	for kind := range byte(6) {
		f.Add(kind, []byte{})
		f.Add(kind, []byte{1, 0, 0, 0})
		f.Add(kind, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
		f.Add(kind, []byte{0, 0, 0, 0x80, 0, 0, 0, 0, 1, 2, 3, 4})
		f.Add(kind, []byte{0x80, 0, 0, 2, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 7})
	}
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		h := newHeap(t)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		var use []func()
		var object encoding.BinaryMarshaler
		switch kind % 6 {
		case 0:
			l := must[*ipcsync.Lock](t)(ipcsync.NewLock(h))
			object, use = l, []func(){func() { _ = l.Acquire(ctx) }, func() { _, _ = l.TryAcquire() }, func() { l.State() }, func() { _ = l.Release() }}
		case 1:
			l := must[*ipcsync.RLock](t)(ipcsync.NewRLock(h))
			a := l.Holder()
			object, use = l, []func(){func() { _ = a.Acquire(ctx) }, func() { a.Levels() }, func() { _ = a.Release() }}
		case 2:
			m := must[*ipcsync.Semaphore](t)(ipcsync.NewRecoverableSemaphore(h, 3))
			object, use = m, []func(){func() { _ = m.Acquire(ctx) }, func() { _, _ = m.Value() }, func() { _ = m.Release() }}
		case 3:
			c := must[*ipcsync.Condition](t)(ipcsync.NewCondition(h))
			l := must[*ipcsync.Lock](t)(ipcsync.NewLock(h))
			require.NoError(t, l.Acquire(ctx))
			object, use = c, []func(){func() { _ = c.Notify(2) }, func() { c.Waiting() }, func() { _ = c.Wait(ctx, l) }, func() { _ = c.NotifyAll() }}
		case 4:
			e := must[*ipcsync.Event](t)(ipcsync.NewEvent(h))
			object, use = e, []func(){func() { _ = e.Wait(ctx) }, func() { _ = e.Clear() }, func() { _ = e.Set() }}
		case 5:
			b := must[*ipcsync.Barrier](t)(ipcsync.NewBarrier(h, 2, nil))
			object, use = b, []func(){func() { _, _ = b.Wait(ctx) }, func() { _, _ = b.State() }, func() { _ = b.Reset() }, func() { _ = b.Abort() }}
		}
		ref, err := object.MarshalBinary()
		require.NoError(t, err)
		defer shm.Forget(ref)
		off := binary.LittleEndian.Uint64(ref[8:])
		copy(unsafe.Slice((*byte)(h.Within(off, 128)), 128)[16:], data)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, f := range use {
				f()
			}
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("it hangs")
		}
	})
}
