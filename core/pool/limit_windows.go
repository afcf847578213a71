package pool

import "math"

func fileSizeLimit() int64 { return math.MaxInt64 }
