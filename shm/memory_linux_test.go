package shm_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/shm"
)

// memoryGroup makes a control group with a limit on memory, of version 1 or 2.
func memoryGroup(t *testing.T, limit int64) (dir string) {
	t.Helper()
	for _, v := range []struct{ root, limit string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"},
	} {
		dir = filepath.Join(v.root, "polyproc-go-test-"+strconv.Itoa(os.Getpid()))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		if os.WriteFile(filepath.Join(dir, v.limit), []byte(strconv.FormatInt(limit, 10)), 0) == nil {
			_ = os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("0"), 0)
			t.Cleanup(func() {
				require.Eventually(t, func() bool { return os.Remove(dir) == nil }, 5*time.Second, 10*time.Millisecond)
			})
			return dir
		}
		_ = os.Remove(dir)
	}
	t.Skip("no control group for memory can be made")
	return ""
}

const groupVar = "POLYPROC_TEST_GROUP" // the child's control group

// The memory of a control group is used up by small and by large blocks: that is ErrNoMemory, and
// nobody is killed.
func TestFullGroup(t *testing.T) {
	if dir := os.Getenv(groupVar); dir != "" {
		fillHeap(t, dir)
		return
	}
	dir := memoryGroup(t, 100<<20)
	for _, size := range []string{"200", "30000", "1000000"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFullGroup$", "-test.count=1")
		cmd.Env = append(os.Environ(), groupVar+"="+dir, "POLYPROC_TEST_SIZE="+size)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s: %s", size, out)
		for _, name := range []string{"memory.oom_control", "memory.events"} {
			if text, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				require.Contains(t, string(text)+"\n", "oom_kill 0\n", name)
			}
		}
	}
}

func fillHeap(t *testing.T, dir string) {
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0))
	size, err := strconv.ParseUint(os.Getenv("POLYPROC_TEST_SIZE"), 10, 64)
	require.NoError(t, err)
	first := newHeap(t)
	var wait sync.WaitGroup
	errs := make([]error, 3)
	for i := range errs {
		h := first
		if i > 0 { // another member, with figures of this process
			h = another(t, first)
			defer func() { require.NoError(t, h.Close()) }()
		}
		wait.Go(func() {
			for {
				off, room, err := h.Alloc(size, 7)
				if errs[i] = err; err != nil {
					return
				}
				data, ok := h.At(off, room)
				if !ok {
					errs[i] = fmt.Errorf("no block at %d", off)
					return
				}
				clear(data)
			}
		})
	}
	wait.Wait()
	for _, err := range errs {
		require.ErrorIs(t, err, shm.ErrNoMemory)
	}
	// Segments too.
	s, err := shm.CreateSparse(1 << 30)
	require.NoError(t, err)
	err = nil
	for off := int64(0); err == nil; off += 4096 {
		err = s.Reserve(off, 4096)
	}
	require.True(t, errors.Is(err, shm.ErrNoMemory) && strings.Contains(err.Error(), shm.ReserveVar), "%v", err)
	require.NoError(t, s.Close())
}
