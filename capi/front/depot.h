/* depot.h - descriptors on their way from one process of the family to another: see pipe.h, DEPOT. */
#ifndef PP_DEPOT_H
#define PP_DEPOT_H

#include "heap.h"

/* pp__depot_put leaves a copy of the descriptor under a name that nothing in the depot has. PP_OK, PP_ERR_NOMEM (too many are on their way),
 * PP_ERR_INVALID (no descriptor), PP_ERR_SYSTEM, PP_ERR_INTERRUPTED. */
int32_t pp__depot_put(pp__heap *heap, const uint64_t name[4], int fd);

/* pp__depot_take takes out what has the name: PP_OK and a descriptor (close-on-exec), PP_ERR_NOT_FOUND, PP_ERR_NOMEM (no descriptor is free),
 * PP_ERR_SYSTEM, PP_ERR_INTERRUPTED. fd_out NULL: it is dropped. */
int32_t pp__depot_take(pp__heap *heap, const uint64_t name[4], int *fd_out);

#endif
