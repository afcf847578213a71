package abi

func init() {
	layouts["pipe"] = layout{"pipe.h", "core/pipe", pipeStructs, pipeConstants}
}

var pipeStructs = map[string]string{
	"bell":  "pp__bell",
	"lease": "pp__pipe_lease",
	"way":   "pp__pipe_way",
	"head":  "pp__pipe",
	"bulk":  "pp__pipe_bulk",
	"name":  "pp__pipe_fd",
}

var pipeConstants = map[string]string{
	"ringCap":     "PP__PIPE_CAP",
	"recordHead":  "PP__PIPE_RECORD_HEAD",
	"inlineMost":  "PP__PIPE_INLINE_MOST",
	"leases":      "PP__PIPE_LEASES",
	"flagDuplex":  "PP__PIPE_DUPLEX",
	"lookMillis":  "PP__PIPE_LOOK_MS",
	"closeMillis": "PP__PIPE_CLOSE_MS",
	"sliceMillis": "PP__SLICE_MS",
	"depotOff":    "PP__DEPOT_OFF",
	"wakeByte":    "PP__PIPE_BYTE",
	"kindInline":  "PP__PIPE_INLINE",
	"kindBulk":    "PP__PIPE_BULK",
	"kindFD":      "PP__PIPE_FD",
	"kindPad":     "PP__PIPE_PAD",
	"sizePipe":    "sizeof(pp__pipe)",
	"sizeBulk":    "sizeof(pp__pipe_bulk)",
	"sizeName":    "sizeof(pp__pipe_fd)",
}
