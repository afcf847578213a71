/* table.c - the engine's one exported symbol: the table of Go exports, as table.h describes it. */
#include "engine.h"

#include <string.h>

const pp__host *pp__library;

static const pp__table table = {
	sizeof(pp__table),
	PP_VERSION_MAJOR << 16 | PP_VERSION_MINOR << 8 | PP_VERSION_PATCH,
	pp__go_ready,
#define PP__X(name) pp__go_##name,
	PP__TABLE_LIST(PP__X)
#undef PP__X
};

__attribute__((visibility("default"))) const pp__table *pp__engine(const pp__host *host)
{
	if (host == NULL || host->size != sizeof(pp__host))
		return NULL;
	pp__library = host;
	const int error = pp__first_thread();
	if (error != 0) {
		host->set_error(strerror(error));
		return NULL;
	}
	return &table;
}
