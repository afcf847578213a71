/* table.h - the seam between the C library (this directory, no Go) and the engine (capi/, Go, buildmode c-shared).
 *
 * The library loads the engine on first need and calls its one exported symbol, pp__engine(), which answers with the table of Go
 * exports. Every entry has the type of the public function that it stands behind (__typeof__), and capi/table.c declares each
 * Go export pp__go_x with that type as well, so that a signature that drifts from polyproc.h does not compile.
 * Handles that the engine issues are less than 1 << 48: the library tells by the bits above which process of a family issued one.
 * What pp_result.owned marks is allocated with malloc.
 * After a fork the child's library forgets the table and takes that of a fresh copy of the engine (see engine.c).
 */
#ifndef PP_TABLE_H
#define PP_TABLE_H

#include <polyproc.h>

/* The threads that the engine has at its load, those in reserve included. Each pool but the first one adds one. */
#define PP__THREADS_LOAD 8

#define PP__TABLE_LIST(X) \
	X(process_start)  \
	X(process_adopt)  \
	X(process_wait)   \
	X(process_info)   \
	X(process_signal) \
	X(process_free)   \
	X(pool_open)      \
	X(pool_map)       \
	X(pool_for)       \
	X(pool_alloc)     \
	X(pool_dealloc)   \
	X(pool_submit)    \
	X(pool_submit_many) \
	X(pool_wait)      \
	X(pool_collect)   \
	X(pool_wake)      \
	X(pool_cancel)    \
	X(pool_info)      \
	X(pool_vacancy)   \
	X(pool_fill)      \
	X(pool_close)     \
	X(pool_terminate) \
	X(pool_join)      \
	X(pool_free)

typedef struct pp__table {
	uint32_t size; /* sizeof(pp__table): a library and an engine of different builds do not match */
	uint32_t version; /* PP_VERSION_ as major << 16 | minor << 8 | patch */
	void (*ready)(void); /* returns when the Go runtime has started, with its threads in reserve */
#define PP__X(name) __typeof__(pp_##name) *name;
	PP__TABLE_LIST(PP__X)
#undef PP__X
} pp__table;

/* Where a function lies, in a form that another process running the same program can resolve. 512 bytes. */
typedef struct pp__fn_ref {
	uint8_t build_id[32];
	uint32_t build_id_size; /* 0: the module has none */
	uint32_t reserved;
	uint64_t offset; /* from the module's load address */
	char path[464];  /* "": the program itself */
} pp__fn_ref;

/* What the library offers to the engine. */
typedef struct pp__host {
	uint32_t size;
	uint32_t initialized;             /* pp_init was called: this program can be executed again as a worker */
	void (*set_error)(const char *);  /* stores the message for pp_last_error of the calling thread (copies it) */
	int32_t (*resolve)(const void *fn, pp__fn_ref *ref_out); /* PP_OK, or PP_ERR_NOT_FOUND: not part of a loaded module */
	char **(*environment)(void);      /* the C environment at this moment, ended by NULL */
	int32_t (*cpu_count)(void);               /* pp_cpu_count */
	const char *(*strerror)(int32_t status);  /* pp_strerror */
	int32_t (*fork_worker)(const pp_vacancy *); /* forks a C worker that serves the place: its pid, or -1 with errno */
	_Bool (*use_spare_thread)(void *(*start)(void *), void *arg); /* false: no thread is spare */
	_Bool (*interrupts)(_Bool restarted); /* after EINTR: whether the handler that ran is to end the wait */
	int32_t (*wait)(const uint32_t *word, uint32_t v, uint64_t ns); /* as pp__engine_wait */
	char *const *argv;                /* the program's arguments as pp_init saw them; NULL without pp_init */
	int32_t (*family)(int32_t fds_out[2], char *env_out, size_t env_size); /* pp_family */
	int32_t (*refs_forget)(const void *data, size_t size); /* pp_refs_forget */
} pp__host;

const pp__table *pp__engine(const pp__host *host);

#endif
