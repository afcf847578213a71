/* engine.h - what the exporting Go files include: the public types, and a declaration of every Go export with the
 * type of the public function behind which it stands. cgo repeats each export's own type, so a signature that
 * differs from polyproc.h does not compile. */
#ifndef PP_ENGINE_H
#define PP_ENGINE_H

#include <stdbool.h>
#include <stdlib.h>

#include "table.h"

#define PP__X(name) extern __typeof__(pp_##name) pp__go_##name;
PP__TABLE_LIST(PP__X)
#undef PP__X
extern void pp__go_ready(void);

/* cgo knows const only by a type's name. */
typedef const void pp__in;
typedef const uint64_t pp__in_sizes;
typedef const pp_process_options pp__in_process_options;
typedef const pp_pool_options pp__in_pool_options;
typedef const pp_vacancy pp__in_vacancy;

/* Set once, by pp__engine. */
extern const pp__host *pp__library;

/* pp__first_thread starts the thread that the constructor of the engine has asked for: 0 or an errno. */
int pp__first_thread(void);

static inline void pp__set_error(const char *message) { pp__library->set_error(message); }
static inline int32_t pp__resolve(const void *fn, pp__fn_ref *ref) { return pp__library->resolve(fn, ref); }
static inline char **pp__environment(void) { return pp__library->environment(); }
static inline int32_t pp__fork_worker(const pp_vacancy *vacancy) { return pp__library->fork_worker(vacancy); }
static inline int32_t pp__cpu_count(void) { return pp__library->cpu_count(); }
static inline const char *pp__strerror(int32_t status) { return pp__library->strerror(status); }
static inline int32_t pp__family(int32_t fds[2], char *env, size_t size) { return pp__library->family(fds, env, size); }
static inline bool pp__interrupts(void) { return pp__library->interrupts(false); }
static inline int32_t pp__wait(const uint32_t *word, uint32_t v, uint64_t ns) { return pp__library->wait(word, v, ns); }
static inline int32_t pp__refs_forget(const void *data, size_t size) { return pp__library->refs_forget(data, size); }
static inline char *const *pp__argv(void) { return pp__library->initialized ? pp__library->argv : NULL; }

#endif
