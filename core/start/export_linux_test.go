package start

// ListFiles and ScanFiles are the two ways to list open descriptors.
var (
	ListFiles = openFiles
	ScanFiles = scanFiles
)

// Idle reports whether the supervisor has given everything back.
func Idle() bool {
	children.mu.Lock()
	defer children.mu.Unlock()
	return children.poll == nil && !children.running
}
