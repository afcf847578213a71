//go:build linux

package ipcsync_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/polyproc/polyproc/core/ipcsync"
)

func ExampleLock() {
	l, err := ipcsync.NewLock(nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err = l.Acquire(ctx)
	if errors.Is(err, ipcsync.ErrOwnerDied) {
		// Some process was killed while it held the lock. Nobody acquires it until one recovers it, and puts in order what is half done.
		err = l.Recover(ctx)
	}
	state, _ := l.State()
	fmt.Println(err, state.Held)
	fmt.Println(l.Release())
	// Output:
	// <nil> true
	// <nil>
}

func ExampleRLock() {
	l, _ := ipcsync.NewRLock(nil)
	defer l.Close()
	request := l.Holder() // who passes it along is one and the same to the lock
	ctx := context.Background()
	_ = request.Acquire(ctx)
	_ = request.Acquire(ctx)
	levels, _ := request.Levels()
	got, _ := l.Holder().TryAcquire()
	fmt.Println(levels, got)
	fmt.Println(request.Release(), request.Release(), request.Release())
	// Output:
	// 2 false
	// <nil> <nil> ipcsync: the lock is not held
}

func ExampleCondition() {
	l, _ := ipcsync.NewLock(nil)
	c, _ := ipcsync.NewCondition(nil)
	defer l.Close()
	defer c.Close()
	ctx := context.Background()
	stock := 0
	go func() { // or another process, with stock in shared memory
		_ = l.Acquire(ctx)
		stock = 3
		_ = c.NotifyAll()
		_ = l.Release()
	}()
	_ = l.Acquire(ctx)
	err := c.WaitFor(ctx, l, func() bool { return stock > 0 })
	fmt.Println(err, stock)
	_ = l.Release()
	// Output: <nil> 3
}

func ExampleBarrier() {
	b, _ := ipcsync.NewBarrier(nil, 2, func() error { fmt.Println("all are here"); return nil })
	defer b.Close()
	done := make(chan error)
	go func() {
		_, err := b.Wait(context.Background())
		done <- err
	}()
	_, err := b.Wait(context.Background())
	fmt.Println(err, <-done)
	// Output:
	// all are here
	// <nil> <nil>
}
