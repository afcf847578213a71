package abi

import (
	"context"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/polyproc/polyproc/core/ipcsync"
	"github.com/polyproc/polyproc/core/start"
)

// C and Go meet in the same memory: testdata/mix.c is started in the family of this process, is given references, and works on the objects with
// libpolyproc, while Go does here.

var mixer = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "polyproc-mix")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "mix")
	out, err := exec.Command("gcc", "-std=c11", "-D_DEFAULT_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-I", "../../include", "-o", binary,
		"testdata/mix.c", "-L", "../../build", "-lpolyproc").CombinedOutput()
	if err != nil {
		return "", errors.Join(err, errors.New(string(out)))
	}
	return binary, nil
})

func TestMain(m *testing.M) {
	if os.Getenv(holderVar) != "" {
		fmt.Fprintln(os.Stderr, "holder:", hold(os.Args[1:]))
		os.Exit(3)
	}
	code := m.Run()
	if binary, err := mixer(); err == nil {
		_ = os.RemoveAll(filepath.Dir(binary))
	}
	os.Exit(code)
}

// mix starts the C program: a role, and references.
func mix(t *testing.T, role string, objects ...encoding.BinaryMarshaler) *start.Process {
	t.Helper()
	binary, err := mixer()
	if err != nil {
		t.Fatal(err)
	}
	libraries, err := filepath.Abs("../../build")
	if err != nil {
		t.Fatal(err)
	}
	s := start.Spec{Path: binary, Args: []string{"mix", role}, Env: append(os.Environ(), "LD_LIBRARY_PATH="+libraries)}
	for _, o := range objects {
		s.Args = append(s.Args, reference(t, o))
	}
	if err := s.InheritFamily(); err != nil {
		t.Fatal(err)
	}
	p, err := start.Spawn().Start(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Kill()
		<-p.Done()
	})
	return p
}

func reference(t *testing.T, o encoding.BinaryMarshaler) string {
	t.Helper()
	ref, err := o.MarshalBinary()
	check0(t, err)
	return hex.EncodeToString(ref)
}

func endsWell(t *testing.T, p *start.Process) {
	t.Helper()
	select {
	case <-p.Done():
		if status, _ := p.Status(); status.ExitCode() != 0 {
			t.Fatalf("the C program: line %d", status.ExitCode())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the C program does not end")
	}
}

func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func check0(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func made[T interface{ Close() error }](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		check0(t, err)
		t.Cleanup(func() { check0(t, v.Close()) })
		return v
	}
}

func TestLocksExcludeCAndGo(t *testing.T) {
	ctx := patient(t)
	l := made[*ipcsync.Lock](t)(ipcsync.NewLock(nil))
	r := made[*ipcsync.RLock](t)(ipcsync.NewRLock(nil))
	m := made[*ipcsync.Semaphore](t)(ipcsync.NewBoundedSemaphore(nil, 1))
	named := made[*ipcsync.Semaphore](t)(ipcsync.NewRecoverableSemaphore(nil, 1))
	e := made[*ipcsync.Event](t)(ipcsync.NewEvent(nil))
	// All of them guard what the C program looks at: whether it is alone. It holds the four, one after the other, 2000 times each.
	p := mix(t, "contend", l, r, m, named, e)
	check0(t, e.Wait(ctx))
	holder := r.Holder()
	for range 2000 {
		check0(t, l.Acquire(ctx), l.Release(), holder.Acquire(ctx), holder.Acquire(ctx), holder.Release(), holder.Release())
		check0(t, m.Acquire(ctx), m.Release(), named.Acquire(ctx), named.Release())
	}
	endsWell(t, p)
	for _, l := range []interface {
		State() (ipcsync.LockState, error)
	}{l, r} {
		if s, err := l.State(); s.Held || err != nil {
			t.Errorf("%+v, %v", s, err)
		}
	}
	for _, s := range []*ipcsync.Semaphore{m, named} {
		if n, err := s.Value(); n != 1 || err != nil {
			t.Errorf("%d permits, %v", n, err)
		}
	}
}

func TestHandoverBetweenCAndGo(t *testing.T) {
	ctx := patient(t)
	l := made[*ipcsync.RLock](t)(ipcsync.NewRLock(nil))
	c := made[*ipcsync.Condition](t)(ipcsync.NewCondition(nil))
	b := made[*ipcsync.Barrier](t)(ipcsync.NewBarrier(nil, 2, nil))
	p := mix(t, "handover", l, c, b)
	h := l.Holder()
	check0(t, h.Acquire(ctx))
	_, err := b.Wait(ctx) // both begin
	check0(t, err)
	for range 200 { // each notifies the other, then waits
		check0(t, c.Wait(ctx, h), c.Notify(1))
	}
	check0(t, h.Release())
	for range 500 {
		_, err := b.Wait(ctx)
		check0(t, err)
	}
	endsWell(t, p)
}

func TestGoIsToldOfTheDeathOfC(t *testing.T) {
	ctx := patient(t)
	l := made[*ipcsync.Lock](t)(ipcsync.NewLock(nil))
	r := made[*ipcsync.RLock](t)(ipcsync.NewRLock(nil))
	named := made[*ipcsync.Semaphore](t)(ipcsync.NewRecoverableSemaphore(nil, 1))
	e := made[*ipcsync.Event](t)(ipcsync.NewEvent(nil))
	p := mix(t, "hold", l, r, named, e)
	check0(t, e.Wait(ctx))
	if s, err := r.State(); err != nil || s.PID != p.PID() || s.Levels != 2 || s.Mine {
		t.Errorf("%+v, %v", s, err)
	}
	check0(t, p.Kill())
	<-p.Done()
	if err := l.Acquire(ctx); err != ipcsync.ErrOwnerDied {
		t.Error(err)
	}
	h := r.Holder()
	if err := h.Acquire(ctx); err != ipcsync.ErrOwnerDied {
		t.Error(err)
	}
	// Poisoned by Go, for C too, until Go recovers them.
	endsWell(t, mix(t, "told", l))
	endsWell(t, mix(t, "told", r))
	check0(t, l.Recover(ctx), l.Release(), h.Recover(ctx), h.Release())
	check0(t, l.Acquire(ctx), l.Release(), h.Acquire(ctx), h.Release(), named.Acquire(ctx))
}

func TestCIsToldOfTheDeathOfGo(t *testing.T) {
	ctx := patient(t)
	l := made[*ipcsync.Lock](t)(ipcsync.NewLock(nil))
	e := made[*ipcsync.Event](t)(ipcsync.NewEvent(nil))
	s := start.Spec{Path: "/proc/self/exe", Args: []string{"holder", reference(t, l), reference(t, e)}, Env: append(os.Environ(), holderVar+"=1")}
	check0(t, s.InheritFamily())
	holder, err := start.Spawn().Start(s)
	check0(t, err)
	defer func() { _ = holder.Kill() }()
	check0(t, e.Wait(ctx))
	p := mix(t, "told", l)
	check0(t, holder.Kill())
	endsWell(t, p)
	// Poisoned by C.
	if err := l.Acquire(ctx); err != ipcsync.ErrOwnerDied {
		t.Error(err)
	}
	check0(t, l.Recover(ctx), l.Release(), l.Acquire(ctx), l.Release())
}

const holderVar = "ABI_TEST_HOLDER"

// hold is what this program does with holderVar: it takes a lock, says so by an event, and waits for its end.
func hold(args []string) error {
	var l ipcsync.Lock
	var e ipcsync.Event
	for i, o := range []encoding.BinaryUnmarshaler{&l, &e} {
		ref, err := hex.DecodeString(args[i])
		if err != nil {
			return err
		}
		if err = o.UnmarshalBinary(ref); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := errors.Join(l.Acquire(ctx), e.Set()); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}
