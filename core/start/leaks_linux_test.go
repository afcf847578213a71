package start_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/polyproc/polyproc/core/start"
)

// openFiles returns what each descriptor of this process (or another) is: "7 -> pipe:[123]".
func openFiles(pid string) (files []string) {
	entries, _ := filepath.Glob("/proc/" + pid + "/fd/*")
	for _, entry := range entries {
		if target, err := os.Readlink(entry); err == nil { // the one that listed them is gone
			files = append(files, filepath.Base(entry)+" -> "+target)
		}
	}
	return files
}

// childPIDs returns the children of this process, zombies included.
func childPIDs() (pids []string) {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		pids = append(pids, strings.Fields(string(text))...)
	}
	return pids
}

// resources returns what is open before the tests, after Go's own poller has come into being.
func resources() []string {
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	_, _ = r.Close(), w.Close()
	return openFiles("self")
}

// leaked says what is there now and was not before: descriptors, children, goroutines, the supervisor.
func leaked(before []string) (leak string) {
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(time.Millisecond) { // goroutines on their way out
		leak = ""
		for _, file := range openFiles("self") {
			if !slices.Contains(before, file) {
				leak += "\ndescriptor " + file
			}
		}
		if pids := childPIDs(); len(pids) > 0 {
			leak += fmt.Sprint("\nchildren ", pids)
		}
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for stack := range strings.SplitSeq(string(stacks), "\n\n") {
			if strings.Contains(stack, "core/start.") && !strings.Contains(stack, "TestMain") {
				leak += "\n" + stack
			}
		}
		if !start.Idle() {
			leak += "\nthe supervisor"
		}
		if leak == "" {
			break
		}
	}
	return leak
}
