package abi

func init() {
	layouts["sync"] = layout{"sync.h", "core/ipcsync", syncStructs, syncConstants}
}

var syncStructs = map[string]string{
	"objectHead":    "pp__object",
	"lockHead":      "pp__lock",
	"semaphoreHead": "pp__semaphore",
	"conditionHead": "pp__condition",
	"moreCells":     "pp__condition_more",
	"eventHead":     "pp__event",
	"barrierHead":   "pp__barrier",
}

var syncConstants = map[string]string{
	"sliceMinNS":     "PP__SYNC_SLICE_MIN_NS",
	"sliceMaxNS":     "PP__SYNC_SLICE_MAX_NS",
	"patience":       "PP__SYNC_PATIENCE",
	"patientNS":      "PP__SYNC_PATIENT_NS",
	"sleepers":       "PP__SYNC_SLEEPERS",
	"valueMost":      "PP__SYNC_VALUE_MOST",
	"permitsMost":    "PP__SYNC_PERMITS_MOST",
	"barrierMost":    "PP__BARRIER_MOST",
	"conditionCells": "PP__CONDITION_CELLS",
	"conditionMore":  "PP__CONDITION_MORE",
	"poisoned":       "PP__LOCK_POISONED",
	"flagRecursive":  "PP__SYNC_RECURSIVE",
	"flagRecover":    "PP__SYNC_RECOVER",
	"flagAction":     "PP__SYNC_ACTION",
	"barrierFilling": "PP__BARRIER_FILLING",
	"barrierFull":    "PP__BARRIER_FULL",
	"barrierBroken":  "PP__BARRIER_BROKEN",
	"sizeLock":       "sizeof(pp__lock)",
	"sizeSemaphore":  "sizeof(pp__semaphore)",
	"sizeCondition":  "sizeof(pp__condition)",
	"sizeMore":       "sizeof(pp__condition_more)",
	"sizeEvent":      "sizeof(pp__event)",
	"sizeBarrier":    "sizeof(pp__barrier)",
}
