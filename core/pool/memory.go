package pool

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"github.com/polyproc/polyproc/shm"
)

// largePayload is from where on a payload's size in bytes is held against the memory that there is: the Go heap has no error for
// too much, it ends the process.
const largePayload = 256 << 20

// affordable refuses a copy of n bytes that is more than the system can give (MemAvailable, see proc_meminfo(5)).
func affordable(n uint64) error {
	if n < largePayload {
		return nil
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil // not this system
	}
	_, rest, found := bytes.Cut(text, []byte("MemAvailable:"))
	fields := bytes.Fields(rest)
	if !found || len(fields) == 0 {
		return nil
	}
	if kib, err := strconv.ParseUint(string(fields[0]), 10, 64); err == nil && n/1024 >= kib {
		return fmt.Errorf("pool: %w: tasks of %d bytes, %d KiB are available", shm.ErrNoMemory, n, kib)
	}
	return nil
}
