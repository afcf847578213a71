//go:build linux

// Package mixed has processes in C, in Go and in Python work on the same queues: C and Go each have their own code for the one layout, Python has that of C.
package mixed

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/polyproc/polyproc/core/queue"
	"github.com/polyproc/polyproc/core/start"
	"github.com/polyproc/polyproc/shm"
)

const roleVar = "MIXED_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVar) != "" {
		_ = os.Unsetenv(roleVar)
		if err := peer(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "peer:", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// peer is what testdata/peer.c is, in Go.
func peer(args []string) error {
	ctx := context.Background()
	queues := map[int]*queue.Queue[[]byte]{}
	for i, arg := range args[1:3] {
		if name, ok := strings.CutPrefix(arg, "="); ok {
			var err error
			if queues[i], err = queue.Open[[]byte](name); err != nil {
				return err
			}
			continue
		}
		ref, err := hex.DecodeString(arg)
		if err == nil && len(ref) == shm.RefSize {
			queues[i] = new(queue.Queue[[]byte])
			err = queues[i].UnmarshalBinary(ref)
		}
		if err != nil && i == 0 {
			return err
		}
	}
	switch args[0] {
	case "produce":
		who, _ := strconv.Atoi(args[2])
		n, _ := strconv.Atoi(args[3])
		for i := range n {
			data := make([]byte, lengthOf(i))
			binary.LittleEndian.PutUint32(data, uint32(who))
			binary.LittleEndian.PutUint32(data[4:], uint32(i))
			if err := queues[0].Put(ctx, data); err != nil {
				return err
			}
		}
		return nil
	case "move":
		for data, err := range queues[0].All(ctx) {
			if err == nil {
				err = queues[1].Put(ctx, data)
			}
			if err != nil {
				return err
			}
		}
		return nil
	case "lease":
		for {
			l, err := queues[0].Lease(ctx)
			if err == queue.ErrShutdown {
				return nil
			}
			if err == nil {
				err = queues[1].Put(ctx, l.Value)
			}
			if err == nil {
				err = l.Ack()
			}
			if err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("no such role: %v", args)
}

func lengthOf(i int) int {
	if i%97 == 0 {
		return 40000
	}
	return 8 + i*37%900
}

// compile builds testdata/peer.c against the library in build.
func compile(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	program := filepath.Join(t.TempDir(), "peer")
	lib := filepath.Join(root, "build")
	out, err := exec.Command("gcc", "-std=c11", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", filepath.Join(root, "include"),
		"-o", program, "testdata/peer.c", "-L", lib, "-lpolyproc", "-Wl,-rpath,"+lib).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return program
}

// crew starts processes of both languages in this family.
type crew struct {
	t       *testing.T
	program string // of C
	next    int
	sent    map[*start.Process][]string // references, which it may not live to receive
}

// start starts the next process: one in C, one in Go, and so on.
func (c *crew) start(args ...string) *start.Process {
	c.t.Helper()
	s := start.Spec{Path: c.program, Args: append([]string{"peer"}, args...)}
	if c.next++; c.next%2 == 0 {
		s.Path, s.Env = "/proc/self/exe", append(os.Environ(), roleVar+"=1")
	}
	require.NoError(c.t, s.InheritFamily())
	p, err := start.Spawn().Start(s)
	require.NoError(c.t, err)
	c.sent[p] = args
	c.t.Cleanup(func() {
		_ = p.Kill()
		<-p.Done()
	})
	return p
}

func (c *crew) kill(p *start.Process) {
	c.t.Helper()
	require.NoError(c.t, p.Kill())
	<-p.Done()
	for _, arg := range c.sent[p] {
		if ref, err := hex.DecodeString(arg); err == nil {
			shm.Forget(ref)
		}
	}
}

func newQueue(t *testing.T, maxSize int) (*queue.Queue[[]byte], func() string) {
	t.Helper()
	q, err := queue.New[[]byte](nil, queue.Options{MaxSize: maxSize})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, q.Close()) })
	return q, func() string {
		ref, err := q.MarshalBinary()
		require.NoError(t, err)
		return hex.EncodeToString(ref)
	}
}

func finish(t *testing.T, processes []*start.Process) {
	t.Helper()
	for _, p := range processes {
		select {
		case <-p.Done():
			status, _ := p.Status()
			require.Equal(t, 0, status.ExitCode())
		case <-time.After(time.Minute):
			require.Fail(t, "a process does not end")
		}
	}
}

// message takes the next message, checks its length, and says whose it is and which.
func message(t *testing.T, q *queue.Queue[[]byte]) (who, i int, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	data, err := q.Get(ctx)
	if err != nil {
		return 0, 0, err
	}
	who, i = int(binary.LittleEndian.Uint32(data)), int(binary.LittleEndian.Uint32(data[4:]))
	require.Len(t, data, lengthOf(i))
	return who, i, nil
}

func TestBothLanguages(t *testing.T) {
	c := &crew{t: t, program: compile(t), sent: map[*start.Process][]string{}}
	for _, how := range []string{"move", "lease"} {
		for _, maxSize := range []int{0, 5} {
			t.Run(fmt.Sprintf("%s-%d", how, maxSize), func(t *testing.T) {
				const producers, movers, each = 4, 4, 1500
				from, fromRef := newQueue(t, maxSize)
				to, toRef := newQueue(t, maxSize)
				var producing, moving []*start.Process
				for range movers {
					moving = append(moving, c.start(how, fromRef(), toRef()))
				}
				for who := range producers {
					producing = append(producing, c.start("produce", fromRef(), strconv.Itoa(who), strconv.Itoa(each)))
				}
				seen := map[[2]int]int{}
				for range producers * each {
					who, i, err := message(t, to)
					require.NoError(t, err)
					seen[[2]int{who, i}]++
				}
				require.Len(t, seen, producers*each, "each message once")
				finish(t, producing)
				require.NoError(t, from.Shutdown())
				finish(t, moving)
				require.Zero(t, length(t, from)+length(t, to))
			})
		}
	}
}

// Unrelated processes in three languages, two of each, move the messages of three others from one named queue to another.
func TestThreeLanguages(t *testing.T) {
	program := compile(t)
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	python := os.Getenv("PYTHON")
	if python == "" {
		python = "python3"
	}
	languages := []func(args ...string) *exec.Cmd{
		func(args ...string) *exec.Cmd { return exec.Command(program, args...) },
		func(args ...string) *exec.Cmd {
			cmd := exec.Command("/proc/self/exe", args...)
			cmd.Env = append(os.Environ(), roleVar+"=1")
			return cmd
		},
		func(args ...string) *exec.Cmd {
			cmd := exec.Command(python, append([]string{"testdata/peer.py"}, args...)...)
			cmd.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(root, "bindings/python/src"), "PYTHONDONTWRITEBYTECODE=1")
			return cmd
		},
	}
	for _, maxSize := range []int{0, 5} {
		t.Run(strconv.Itoa(maxSize), func(t *testing.T) {
			const each = 1500
			named := func(what string, maxSize int) (*queue.Queue[[]byte], string) {
				name := fmt.Sprintf("polyproc-mixed-%s-%d", what, os.Getpid())
				q, err := queue.OpenOrCreate[[]byte](name, queue.Options{MaxSize: maxSize})
				require.NoError(t, err)
				t.Cleanup(func() {
					require.NoError(t, q.Close())
					require.NoError(t, queue.Unlink(name))
				})
				return q, "=" + name
			}
			from, fromName := named("from", maxSize)
			to, toName := named("to", 0)
			run := func(language int, args ...string) chan error {
				cmd := languages[language](args...)
				cmd.Stderr = os.Stderr
				require.NoError(t, cmd.Start())
				ended := make(chan error, 1)
				go func() { ended <- cmd.Wait(); close(ended) }()
				t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
				return ended
			}
			var movers, producers []chan error
			for language := range languages {
				movers = append(movers, run(language, "move", fromName, toName), run(language, "move", fromName, toName))
				producers = append(producers, run(language, "produce", fromName, strconv.Itoa(language), strconv.Itoa(each)))
			}
			seen := map[[2]int]int{}
			for range len(languages) * each {
				who, i, err := message(t, to)
				require.NoError(t, err)
				seen[[2]int{who, i}]++
			}
			require.Len(t, seen, len(languages)*each, "each message once")
			ended := func(all []chan error) {
				for _, c := range all {
					select {
					case err := <-c:
						require.NoError(t, err)
					case <-time.After(time.Minute):
						require.Fail(t, "a process does not end")
					}
				}
			}
			ended(producers)
			require.NoError(t, from.Shutdown())
			ended(movers)
			require.Zero(t, length(t, from)+length(t, to))
		})
	}
}

// Processes of both languages are killed at random moments; every message is accounted for.
func TestTorture(t *testing.T) {
	c := &crew{t: t, program: compile(t), sent: map[*start.Process][]string{}}
	for _, how := range []string{"move", "lease"} {
		t.Run(how, func(t *testing.T) {
			const producers, movers, each, kills = 4, 4, 15000, 40
			h, err := shm.Family()
			require.NoError(t, err)
			before, _ := h.InUse()
			from, fromRef := newQueue(t, 20)
			to, toRef := newQueue(t, 0)
			var producing, moving []*start.Process
			for range movers {
				moving = append(moving, c.start(how, fromRef(), toRef()))
			}
			for who := range producers {
				producing = append(producing, c.start("produce", fromRef(), strconv.Itoa(who), strconv.Itoa(each)))
			}
			// Two producers die on the way; movers die all the time, and others take their places.
			killed := 0
			for n := range kills {
				time.Sleep(time.Duration(rand.IntN(20000)) * time.Microsecond) // not to wait for something: when is what is tried
				if n == kills/3 || n == kills/2 {
					require.NoError(t, producing[0].Kill())
					<-producing[0].Done()
					producing = producing[1:]
					continue
				}
				i := rand.IntN(movers)
				c.kill(moving[i])
				moving[i] = c.start(how, fromRef(), toRef())
				killed++
			}
			finish(t, producing)
			// What is left is moved, what the dead had leased too; then the movers end.
			require.Eventually(t, func() bool {
				s, err := from.Stats()
				return err == nil && s.Len == 0 && s.Leased == 0
			}, time.Minute, 5*time.Millisecond)
			require.NoError(t, from.Shutdown())
			finish(t, moving)
			require.NoError(t, to.Shutdown())

			seen := make([]map[int]int, producers)
			total, twice := 0, 0
			for {
				who, i, err := message(t, to)
				if err == queue.ErrShutdown {
					break
				}
				require.NoError(t, err)
				if seen[who] == nil {
					seen[who] = map[int]int{}
				}
				if seen[who][i]++; seen[who][i] > 1 {
					twice++
				}
				total++
			}
			lost := 0
			for who := range producers {
				last := -1
				for i := range seen[who] {
					last = max(last, i)
				}
				if who >= 2 { // it has ended well
					last = each - 1
				}
				lost += last + 1 - len(seen[who])
			}
			t.Logf("%d messages, %d movers and 2 producers killed: %d twice, %d lost", total, killed, twice, lost)
			if how == "move" {
				require.Zero(t, twice)
				require.LessOrEqual(t, lost, killed)
			} else {
				require.Zero(t, lost)
				require.LessOrEqual(t, twice, killed)
			}
			// All of it is given back, but for what somebody had allocated and not yet linked when he died.
			require.NoError(t, from.Close())
			require.NoError(t, to.Close())
			h.Reap()
			after, bytes := h.InUse()
			t.Logf("%d blocks were lost", after-before)
			require.LessOrEqual(t, after-before, kills, "%d bytes in use", bytes)
		})
	}
}

func length[T any](t testing.TB, q *queue.Queue[T]) int {
	n, err := q.Len()
	require.NoError(t, err)
	return n
}
