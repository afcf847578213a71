//go:build !linux

package shm

// Members of a heap must be able to prove that another is dead, which only Linux offers here.

func createHeapFile() (int, error)              { return -1, ErrUnsupported }
func createNamedHeap(string) (*Heap, error)     { return nil, ErrUnsupported }
func openHeapFile(string) (int, error)          { return -1, ErrUnsupported }
func stored(int) int64                          { return 0 }
func mapHeap(int, uint64) ([]byte, error)       { return nil, ErrUnsupported }
func openRange([]byte) error                    { return ErrUnsupported }
func createDepot() (int, error)                 { return -1, ErrUnsupported }
func describeFamily([2]int) (string, error)     { return "", ErrUnsupported }
func takeFamily(string) (fds [2]int, err error) { return fds, ErrUnsupported }

func (h *Heap) openNamed() error { return ErrUnsupported }
