/* family.h - which processes belong together, and how a child gets to know.
 *
 * A family has two descriptors: the heap (heap.h) and the depot, a datagram socket of the domain AF_UNIX that is connected to itself,
 * where descriptors rest that are on their way from one member to another: they outlive their sender there. The first process makes
 * both when it starts its first child or makes its first object. A forked child has them; one that executes a program is told by
 * POLYPROC_FAMILY="heap,depot,device:inode" (descriptor numbers, and which file the first is), which the library takes from the environment
 * when it is loaded; others say pp_family_join. */
#ifndef PP_FAMILY_H
#define PP_FAMILY_H

#include <stdint.h>

/* pp__family_fds returns the two descriptors, made if need be: PP_OK, or an error with a message (PP_ERR_NOMEM: RLIMIT_FSIZE, ...). The heap's file
 * has its size by then but may hold nothing yet: pp__family_heap sees to that. */
int32_t pp__family_fds(int *heap_out, int *depot_out);

#endif
