// Bench-go is the Go side of make bench: what a task that does nothing costs.
//
//	bench-go polyproc|gob|go-plugin WORKERS TASKS
//
// prints the seconds that TASKS tasks took, workers started and warmed up:
//
//	polyproc   pool.Map
//	gob        processes by os/exec, encoding/gob over their standard input and output, one task in flight each
//	go-plugin  hashicorp/go-plugin with net/rpc, a plugin process per worker, one call in flight each
package main

import (
	"context"
	"encoding/gob"
	"fmt"
	"io"
	"log"
	"net/rpc"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"

	"github.com/polyproc/polyproc/core/pool"
)

func twice(x int) int { return 2 * x }

// A contender has workers, maps, and ends.
type contender interface {
	run(in []int) ([]int, error)
	close()
}

// ---- polyproc ----------------------------------------------------------------------------------------------------------

var twiceTask = pool.Register("twice", func(_ context.Context, x int) (int, error) { return twice(x), nil })

type polyproc struct{ pool *pool.Pool }

func openPolyproc(workers int) (contender, error) {
	p, err := pool.Open(pool.Options{Workers: workers})
	return polyproc{p}, err
}

func (p polyproc) run(in []int) ([]int, error) {
	return pool.Map(context.Background(), p.pool, twiceTask, in)
}

func (p polyproc) close() { _ = p.pool.Close() }

// ---- os/exec and gob ----------------------------------------------------------------------------------------------------

// share has each of n callers take the next task until none is left.
func share(n int, in []int, call func(worker, x int) (int, error)) ([]int, error) {
	out := make([]int, len(in))
	var next atomic.Int64
	var group sync.WaitGroup
	errs := make([]error, n)
	for worker := range n {
		group.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(in) {
					return
				}
				if out[i], errs[worker] = call(worker, in[i]); errs[worker] != nil {
					return
				}
			}
		})
	}
	group.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

type gobWorker struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	encoder *gob.Encoder
	decoder *gob.Decoder
}

type gobPool []gobWorker

func openGob(workers int) (contender, error) {
	var p gobPool
	for range workers {
		cmd := exec.Command(os.Args[0], "gob-worker")
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		p = append(p, gobWorker{cmd, stdin, gob.NewEncoder(stdin), gob.NewDecoder(stdout)})
	}
	return p, nil
}

func (p gobPool) run(in []int) ([]int, error) {
	return share(len(p), in, func(worker, x int) (y int, err error) {
		if err = p[worker].encoder.Encode(x); err == nil {
			err = p[worker].decoder.Decode(&y)
		}
		return y, err
	})
}

func (p gobPool) close() {
	for _, w := range p {
		_ = w.stdin.Close()
		_ = w.cmd.Wait()
	}
}

func serveGob() {
	decoder, encoder := gob.NewDecoder(os.Stdin), gob.NewEncoder(os.Stdout)
	for {
		var x int
		if decoder.Decode(&x) != nil || encoder.Encode(twice(x)) != nil {
			return
		}
	}
}

// ---- go-plugin ----------------------------------------------------------------------------------------------------------

var handshake = plugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: "BENCH_GO_PLUGIN", MagicCookieValue: "twice"}

type service struct{}

func (service) Twice(x int, y *int) error {
	*y = twice(x)
	return nil
}

type twicePlugin struct{}

func (twicePlugin) Server(*plugin.MuxBroker) (any, error)                  { return service{}, nil }
func (twicePlugin) Client(_ *plugin.MuxBroker, c *rpc.Client) (any, error) { return c, nil }

var plugins = map[string]plugin.Plugin{"twice": twicePlugin{}}

type pluginPool struct {
	clients []*plugin.Client
	calls   []*rpc.Client
}

func openPlugin(workers int) (contender, error) {
	var p pluginPool
	for range workers {
		client := plugin.NewClient(&plugin.ClientConfig{
			HandshakeConfig: handshake,
			Plugins:         plugins,
			Cmd:             exec.Command(os.Args[0], "go-plugin-worker"),
			Logger:          hclog.NewNullLogger(),
		})
		p.clients = append(p.clients, client)
		protocol, err := client.Client()
		if err != nil {
			return nil, err
		}
		raw, err := protocol.Dispense("twice")
		if err != nil {
			return nil, err
		}
		p.calls = append(p.calls, raw.(*rpc.Client))
	}
	return p, nil
}

func (p pluginPool) run(in []int) ([]int, error) {
	return share(len(p.calls), in, func(worker, x int) (y int, err error) {
		err = p.calls[worker].Call("Plugin.Twice", x, &y)
		return y, err
	})
}

func (p pluginPool) close() {
	for _, client := range p.clients {
		client.Kill()
	}
}

// --------------------------------------------------------------------------------------------------------------------------

func main() {
	pool.Init()
	log.SetFlags(0)
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case "gob-worker":
			serveGob()
			return
		case "go-plugin-worker":
			plugin.Serve(&plugin.ServeConfig{HandshakeConfig: handshake, Plugins: plugins, Logger: hclog.NewNullLogger()})
			return
		}
	}
	if len(os.Args) != 4 {
		log.Fatal("usage: bench-go polyproc|gob|go-plugin WORKERS TASKS")
	}
	seconds, err := measure(os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		log.Fatalf("bench-go: %s: %v", os.Args[1], err)
	}
	fmt.Printf("%.9f\n", seconds)
}

func measure(name, workersText, tasksText string) (float64, error) {
	workers, err := strconv.Atoi(workersText)
	if err != nil {
		return 0, err
	}
	tasks, err := strconv.Atoi(tasksText)
	if err != nil {
		return 0, err
	}
	open, known := map[string]func(int) (contender, error){"polyproc": openPolyproc, "gob": openGob, "go-plugin": openPlugin}[name]
	if !known {
		return 0, fmt.Errorf("no such contender")
	}
	c, err := open(workers)
	if err != nil {
		return 0, err
	}
	defer c.close()
	in := make([]int, tasks)
	for i := range in {
		in[i] = i + 1
	}
	if _, err := c.run(in[:len(in)/10+1]); err != nil {
		return 0, err
	}
	start := time.Now()
	out, err := c.run(in)
	seconds := time.Since(start).Seconds()
	if err != nil {
		return 0, err
	}
	for i, y := range out {
		if y != twice(i+1) {
			return 0, fmt.Errorf("result %d is %d", i, y)
		}
	}
	return seconds, nil
}
