/* heap.h - the shared heap of a family of processes, as C (heap.c) and Go (shm/heap.go) both see it. The layout is written once,
 * in Go: heap_layout.gen.h is generated from shm/heap_layout.go (`make generate`).
 *
 * WHAT IT IS. One sparse memfd that every process of a family holds: the first process makes it, children inherit it (fork), or are given
 * it (spawn, fork server: see family.h). Queues, locks, pipes and their contents are blocks in it. So an object is its bytes: whoever has
 * the heap can use it; a reference is an offset; what a dead process has sent is still there; ten thousand locks cost one descriptor;
 * and when the last process of the family has ended, the kernel frees everything. A named queue is such a heap in a file of /dev/shm,
 * with one root object.
 *
 * The whole file is mapped once, as far as the address space allows, at a base that differs between processes: pp__at(heap, off). Storage is
 * reserved (fallocate) before anything is touched, so full memory is an error and never SIGBUS.
 *
 * Reading a hole of a memfd fills it, and there are programs that read, or lock, whatever is mapped
 * (valgrind's search for leaks; mlockall). So the mapping is closed at first (PROT_NONE), and each
 * process opens what is in use: the blocks and their entries in the table up to slab_top, cells up
 * to refs_top. Both only grow, and are raised before anything there can be referred to. A process
 * opens more when it meets an offset beyond what it has opened, and believes it only if that is in
 * use.
 *
 *   offset 0       head      4 KiB
 *   4096           members   pp__members_head, then one 64-bit word per process (shm/members.go has the bits)
 *   1 MiB          slabs     one pp__slab (128 bytes) per MiB of the file
 *   16 MiB         refs      cells of 8 bytes: who holds a reference to what
 *   32 MiB         blocks    slab i is the MiB at i << 20; the first that is used is PP__SLAB_FIRST
 *
 * MEMBERS. A process that takes locks or holds references joins the table and so gets an owner (32 bits: slot + 1, and a generation): see
 * shm/members.go. pp__gone(owner) is true on the kernel's proof of death only (no such process, a pidfd that is ready, another process with
 * the number, or it executes another program), never because time has passed or because /proc does not show the process. An owner whose slot has a later generation is gone.
 *
 * BLOCKS. A process claims slabs for itself, by one CAS that names it, and cuts blocks from them: nobody else allocates there, so
 * allocation takes no lock. Anybody frees: one CAS on the block's state, from the tag that it was allocated with to free. A tag says what a
 * block is for; freeing with another tag does nothing, so that whoever cleans up after the dead may free twice. The slabs of a dead process are
 * adopted by the next that needs one. What dies between an allocation and the store that links the block loses that block until the
 * family ends: this is the one leak that we accept.
 *
 *   state of a block: 0 free without storage; 1 free, with storage; 2 .. 2^31-1 in use, with this tag; 2^31 | owner: owner is giving its
 *   storage back.
 *
 *   PP__SLAB_SMALL  blocks of 128 << class bytes, class 0..8 (32 KiB). At the slab's start lies one u32 state per block; the first blocks, which
 *                   that array covers, are never handed out, and freeing them does nothing. The slab has storage up to pp__slab.reserved
 *                   (bytes / 4096), from its start; so 0 and 1 mean the same here. fresh is stored before the state.
 *   PP__SLAB_LARGE  blocks of 64 KiB << class, class 0..3 (512 KiB); states in pp__slab.state. Each block has its storage, or not.
 *   PP__SLAB_RUN    one block of count slabs, whose first this is; state[0]. The others are PP__SLAB_TAIL, count: how many slabs before them
 *                   the first is. reserved: bytes with storage / 4096.
 *
 * A slab that is FREE has no storage. Claiming is the CAS FREE -> CLAIMED | owner; then the fields are set to 0, and the states, and the word
 * says what it is (of a run: the tails first, state[0], and the word of the first slab last, which commits). Giving a run back: state[0] from the tag to
 * 2^31 | owner, which makes that owner the only one who may touch it; each tail, from the last on, is punched and becomes FREE; the first is
 * punched, becomes CLAIMED | owner, then FREE. So of a dead giver's run only those tails are left to give back whose distance says that they are this run's. A
 * tail whose owner is gone and whose first slab is no run that reaches it was left by a dead claimer. CLAIMED slabs of the dead are punched
 * and become FREE; SMALL and LARGE ones are taken over by a CAS that changes the owner in the word; so are free runs; runs in use stay as they are.
 *
 * Free blocks keep their storage until head.warm, the sum over all LARGE and RUN, passes PP__WARM_MOST: a first touch costs fifty times a
 * warm one. Who frees beyond that gives the storage back at once, or that of some block that others have left free: 1 -> 2^31 | owner, punch,
 * -> 0. So the owner of a slab takes a free block by CAS too, and looks for another if that fails. The sum is hardly ever exact, after deaths: who looks for slabs of the dead counts anew.
 *
 * The states 0 and 1 have no tag, so they prove nothing about the slab: between a look at its word
 * and the CAS on the state the slab may have changed hands, and even its kind. A process that takes
 * a free block of a slab which another process may give back reads the word again after the CAS,
 * and undoes the CAS if the word has changed. While a state is 2^31 | owner the slab stays what it
 * is: a slab is released only by its owner, and only when all its states are 0.
 *
 * REFERENCES. An object is a block that begins with pp__object. A process that has a handle of it holds one cell of the refs:
 * owner << 32 | off / 128; cell 0 is never used. Taking one: refs + 1, by a CAS of the 64-bit word of generation and refs (never from 0), then the cell;
 * dropping: the cell by CAS to 0, then refs - 1; who brings refs to 0 destroys the object. The last reference is dropped in another order: refs by CAS
 * from 1 to 0, destroy, the cell to 0, the block; so a cell of a dead owner whose object has 0 refs says that destroying is to be done (again). The cells
 * of the dead are first made one's own, by CAS: one at a time destroys. A new object: the cell first, while its block is still
 * free; then the block's state (a cell whose block is not in use means nothing). The cells of the dead are dropped by whoever sweeps (joining, or running short). Death between the two steps keeps the object
 * for the family's life: never too early. A reference on its way (pickled into a message) holds a cell
 * of an owner that no member has (pp__in_flight), another one for each export, so that a reference
 * which is out of date does not name the cell of a later export. The receiver takes the cell over by
 * CAS; if another receiver did before, it takes a reference of its own.
 */
#ifndef PP_HEAP_H
#define PP_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap_layout.gen.h"

#define PP__ASSERT_HEAP(what) _Static_assert(what, #what)

/* ---- this process's side ------------------------------------------------------------------------------------------------ */

/* A heap as this process has it. */
typedef struct pp__heap {
	uint8_t *base;  /* NULL: not mapped */
	uint64_t mapped; /* bytes; offsets beyond cannot be used here (a limit on address space) */
	uint64_t opened; /* blocks before this offset may be touched; it only grows */
	uint64_t size;
	int fd;
	uint32_t me; /* our owner, 0: not joined yet */
	/* heap.c's own: */
	struct pp__heap_private *private;
} pp__heap;

/* pp__heap_create makes a heap: anonymous if name is NULL, else the file /dev/shm/name (0600). PP_OK, PP_ERR_EXISTS, PP_ERR_NOMEM, PP_ERR_SYSTEM. */
int32_t pp__heap_create(const char *name, pp__heap **heap_out);

/* pp__heap_attach maps the heap behind fd, which belongs to it from now on if that succeeds. PP_OK, PP_ERR_CORRUPT, PP_ERR_NOMEM. */
int32_t pp__heap_attach(int fd, pp__heap **heap_out);

/* pp__heap_open opens a named heap: PP_ERR_NOT_FOUND, PP_ERR_PERMISSION (not a file of this user alone), PP_ERR_UNSUPPORTED too. */
int32_t pp__heap_open(const char *name, pp__heap **heap_out);

/* pp__heap_close unmaps a heap (named ones; the family's stays). Nobody may use it any more; references held by this process are dropped. */
void pp__heap_close(pp__heap *heap);

/* The family's heap, created and joined at the first call. NULL with a message for pp_last_error. */
pp__heap *pp__family_heap(void);

/* pp__heap_id returns the heap's id, which is random and not 0. */
uint64_t pp__heap_id(const pp__heap *heap);

/* pp__at is the address of off. Not checked: for offsets that this process has from a handle. */
static inline void *pp__at(const pp__heap *heap, uint64_t off)
{
	return heap->base + off;
}

/* pp__within is the address of size bytes at off, an offset that was read from shared memory; NULL if they do not lie in the blocks. */
void *pp__within_slow(const pp__heap *heap, uint64_t off, uint64_t size);
static inline void *pp__within(const pp__heap *heap, uint64_t off, uint64_t size)
{
	const uint64_t opened = __atomic_load_n(&heap->opened, __ATOMIC_ACQUIRE);

	if (off < PP__SLAB_FIRST * PP__SLAB_SIZE || off > opened || size > opened - off)
		return pp__within_slow(heap, off, size);
	return heap->base + off;
}

/* pp__join makes this process a member, unless it is one, and returns its owner; 0 with a message if it cannot be. After a fork
 * the child is nobody until it joins. Cheap when joined: call it wherever an owner is needed. */
uint32_t pp__join_slow(pp__heap *heap);
static inline uint32_t pp__join(pp__heap *heap)
{
	const uint32_t me = __atomic_load_n(&heap->me, __ATOMIC_ACQUIRE);
	return me != 0 ? me : pp__join_slow(heap);
}

/* pp__gone reports whether the member is proven dead. Costs system calls (up to 150 us): only after a wait of some ms. */
bool pp__gone(pp__heap *heap, uint32_t owner);

/* pp__owner_pid is the process id of a member, 0 if it is not in the table any more. */
int32_t pp__owner_pid(const pp__heap *heap, uint32_t owner);

/* pp__tag returns a number from 2 to 2^31-1 that was not given for a long time: for pp__alloc, generations. */
uint32_t pp__tag(pp__heap *heap);

/* pp__alloc returns a block of at least size bytes (1 .. 16 GiB), aligned to 128, its storage reserved, not zeroed, and how large it is in
 * *room_out (may be NULL). PP_OK, PP_ERR_NOMEM (memory, a limit, the heap, the address space; never a signal), PP_ERR_SYSTEM. Thread-safe. */
int32_t pp__alloc(pp__heap *heap, uint64_t size, uint32_t tag, uint64_t *off_out, uint64_t *room_out);

/* pp__free frees the block at off if it is in use with this tag, and reports whether it was. Any process, any thread. off may be
 * garbage: then false. */
bool pp__free(pp__heap *heap, uint64_t off, uint32_t tag);

/* pp__retag changes the tag of a block in use; false if it was not in use with from. */
bool pp__retag(pp__heap *heap, uint64_t off, uint32_t from, uint32_t to);

/* ---- objects, references, handles -------------------------------------------------------------------------------------- */

/* What a kind of object brings: how large its local half is, and what to do at its ends. */
typedef struct pp__handle pp__handle;
typedef struct pp__kind {
	const char *name; /* for messages: "lock" */
	/* the last reference of all processes was dropped: free what the object has (its own block is freed by the caller). If a process dies
	 * in the middle of it, the next does it again. May be NULL. */
	void (*destroy)(pp__heap *heap, uint64_t off);
	/* this process's last use is over, its reference is dropped already (and the object perhaps gone): free local memory. A
	 * named heap may be closed here. May be NULL. In a forked child it runs for handles that the parent had freed during the fork. */
	void (*closed)(pp__handle *handle);
	/* in a forked child, for a handle that the child has too: local state that does not survive a fork. May be NULL. */
	void (*forked)(pp__handle *handle);
	uint64_t size; /* the least room that an object of this kind has: pp__object_at checks it; 0: does not */
} pp__kind;

extern const pp__kind *pp__kinds[PP__KINDS]; /* each kind's file defines its pp__kind; heap.c has the table */

/* A handle: local memory of this process, never moved and never unmapped, so that a racing free is harmless. A forked child inherits
 * it as it is, and its reference is taken for the child at the fork. */
struct pp__handle {
	uint64_t number; /* what the user has; 0: free */
	uint64_t pins;   /* objects.c: what keeps it, and whether it was freed */
	uint32_t kind;
	uint32_t generation;
	pp__heap *heap;
	uint64_t off;    /* the object */
	uint32_t cell;   /* its reference */
	int32_t fd;      /* of an end of a pipe, or the descriptor of a queue; -1: none */
	uint64_t inode;  /* of the file behind fd; 0: not known */
	void *extra;     /* of the kind */
	uint64_t words[6]; /* of the kind */
	uint64_t room;     /* of the object's block, bytes */
	uint32_t fork_cell; /* objects.c: the reference that the child of a fork under way is to have */
	uint32_t forking;
	uint32_t watch;   /* queue.c: of the descriptor of a queue */
	uint32_t watcher; /* queue.c: 1: a thread watches the queue */
};

/* pp__object_new makes an object: size bytes, zeroed behind pp__object, with one reference, and the handle. The object is complete before
 * anybody else can know its offset. */
int32_t pp__object_new(pp__heap *heap, uint32_t kind, uint64_t size, pp__handle **handle_out);

/* pp__object_at returns a new handle, with a reference, of an object that another process has made; off comes from outside and is
 * checked: PP_ERR_CORRUPT, PP_ERR_CLOSED (generation is of an object that is no more), PP_ERR_NOMEM. generation 0: any. */
int32_t pp__object_at(pp__heap *heap, uint64_t off, uint32_t kind, uint32_t generation, pp__handle **handle_out);

/* pp__pin returns the handle for the duration of a call: NULL (with a message for PP_ERR_HANDLE) if it was freed or is of another
 * kind. Each pin is followed by pp__unpin. */
pp__handle *pp__pin(uint64_t number, uint32_t kind);
/* pp__pin_quietly is pp__pin for a signal handler that may be its thread's first call (pp__pins_known): the use is counted in the handle, pp__drop ends it; no
 * thread-local memory, no message. */
pp__handle *pp__pin_quietly(uint64_t number, uint32_t kind);
void pp__unpin(pp__handle *handle);

/* pp__handle_fd reports whether the descriptor of a handle is that of its file still: a program that becomes a daemon closes all there are, and what it opens then
 * may have the same number. */
bool pp__handle_fd(const pp__handle *handle);

/* pp__keep keeps a handle that is pinned beyond the call, until pp__drop, which any thread may call. */
void pp__keep(pp__handle *handle);
void pp__drop(pp__handle *handle);

/* pp__handle_free is what pp_x_free does: PP_OK, PP_ERR_HANDLE; 0 is no handle and PP_OK. Calls that are under way go on;
 * with `interrupt` of the kind's making they should end with PP_ERR_CLOSED. */
int32_t pp__handle_free(uint64_t number, uint32_t kind);

/* References on their way: 32 bytes without any address, that mean the same in every process of the family. */

/* pp__ref_has_descriptor: a descriptor rests in the depot under this name: a reference to an end of a
 * pipe, or a name of pp_fd_export, which begins as a reference does but has no object's offset. */
static inline bool pp__ref_has_descriptor(const pp__ref *ref)
{
	return ref->kind == PP__KIND_PIPE || ref->off >> 32 == UINT32_MAX;
}

/* pp__in_flight reports whether a cell with this owner belongs to a reference on its way. */
static inline bool pp__in_flight(uint32_t owner)
{
	return (owner & 0x80000fffu) == 0xfffu;
}

int32_t pp__ref_send(const pp__handle *handle, pp__ref *ref_out);
int32_t pp__ref_receive(const pp__ref *ref, pp__handle **handle_out);
void pp__ref_forget(const pp__ref *ref); /* it was not sent after all */

/* pp__refs_forget takes back the references, and the names of descriptors (pp_fd_export), in the bytes
 * of a message that nobody will read. To do so again has no effect. pp__refs_forget_block does it for
 * a message in a block, unless the block is smaller than size or has another tag. */
void pp__refs_forget(const pp__heap *heap, const void *data, uint64_t size);
void pp__refs_forget_block(const pp__heap *heap, uint64_t off, uint32_t tag, uint64_t size);

/* ---- the lock inside objects ------------------------------------------------------------------------------------------------ */

/* A mutex is a word: 0, or the owner, and bit 31 if somebody sleeps (shm/lock.go is the same in Go). It is taken from the dead silently: *recovered (may
 * be NULL) tells. resolve, if not NULL, is called with the dead owner while the word still names it, and must be idempotent: see shm.NewLock.
 * deadline: CLOCK_MONOTONIC ns, 0: only tries, UINT64_MAX: for ever. PP_OK, PP_ERR_TIMEOUT, PP_ERR_INTERRUPTED, PP_ERR_NOMEM (cannot join). */
typedef void pp__resolve_fn(pp__heap *heap, void *object, uint32_t dead);
int32_t pp__mutex_slow(pp__heap *heap, uint32_t *word, uint64_t deadline, pp__resolve_fn *resolve, void *object, bool *recovered);
void pp__mutex_wake(uint32_t *word);

static inline int32_t pp__mutex_lock(pp__heap *heap, uint32_t *word, uint64_t deadline, pp__resolve_fn *resolve, void *object, bool *recovered)
{
	uint32_t free = 0;
	const uint32_t me = pp__join(heap);
	if (recovered != NULL)
		*recovered = false;
	if (me != 0 && __atomic_compare_exchange_n(word, &free, me, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return 0;
	return pp__mutex_slow(heap, word, deadline, resolve, object, recovered);
}

static inline void pp__mutex_unlock(uint32_t *word)
{
	if ((__atomic_exchange_n(word, 0, __ATOMIC_SEQ_CST) & 0x80000000u) != 0)
		pp__mutex_wake(word);
}

/* ---- the bell of objects with many sleepers ------------------------------------------------------------------------------------- */

/* An eventcount {seq, waiters}, waiters a flag (pp__bell of lane.h). Unlike the bell of a lane it may have many sleepers and wakes n:
 *
 *   sleeper:  do { waiters = 1; s = seq; } while (waiters != 1);  look;  futex_wait(seq, s, at most PP__SLICE_MS);  again
 *   ringer:   publish;  if (waiters != 0 && exchange(waiters, 0) != 0) { seq += 1; if (futex_wake(seq, n) >= n) waiters = 1; }
 *
 * So a sleeper that dies costs one useless system call; if as many were woken as asked for there may be more, and the flag goes up again. A wake-up that
 * dies with its receiver is made up for by bounded sleeps, and by receivers that ring on if they leave something. */

/* ---- fork (engine.c calls these, in this order) -------------------------------------------------------------------------------- */

/* Before a fork, if there are handles, the parent takes a second place in the table of members, in its own name, and with that owner a reference per
 * handle; the child puts its own name there by one CAS, and so has them. If the fork failed, or the child died before, the parent takes the place
 * back, references and all, sooner or later; if it does so too early, the child's CAS fails and it takes references the usual way. */
void pp__heap_before_fork(void);
void pp__heap_in_parent(void);
void pp__heap_in_child(void);

/* pp__forks counts the forks behind this process: what is noted with another count is an ancestor's. */
extern uint32_t pp__forks;

/* Deadlines: now + timeout_ms, without overflow; 0 and PP_TRY: 0; -1: UINT64_MAX. Public functions look at pp__timeout_valid first. */
uint64_t pp__deadline(int64_t timeout_ms);

#endif
