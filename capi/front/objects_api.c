/* objects_api.c - references to objects of every kind, as polyproc.h publishes them. */
#include "front.h"

#include "heap_private.h"

#include <string.h>

_Static_assert(sizeof(pp__ref) == PP_REF_SIZE, "PP_REF_SIZE");
#define SAME(name) _Static_assert((int)PP_KIND_##name == (int)PP__KIND_##name, "PP_KIND_" #name)
SAME(LOCK);
SAME(SEMAPHORE);
SAME(CONDITION);
SAME(EVENT);
SAME(BARRIER);
SAME(QUEUE);
SAME(PIPE);

int32_t pp_ref_export(uint64_t handle, void *ref_out)
{
	pp__handle *pinned = NULL;
	pp__ref ref;

	if (ref_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_ref_export: NULL");
	for (uint32_t kind = 1; kind < PP__KINDS && pinned == NULL; kind++)
		if (pp__kinds[kind] != NULL)
			pinned = pp__pin(handle, kind);
	if (pinned == NULL)
		return pp__fail(PP_ERR_HANDLE, "no object has the handle %#llx, or it was freed", (unsigned long long)handle);
	const bool pipe = pinned->kind == PP__KIND_PIPE;
	const int32_t status = pipe ? PP_OK : pp__ref_send(pinned, &ref);
	pp__unpin(pinned);
	if (pipe) /* which end, and its descriptor */
		return pp_pipe_export(handle, 1, ref_out);
	if (status == PP_OK)
		memcpy(ref_out, &ref, sizeof ref);
	return status;
}

int32_t pp_ref_import(const void *ref, uint32_t kind, uint64_t *handle_out, uint32_t *kind_out)
{
	pp__handle *handle;
	pp__ref copy;

	if (ref == NULL || handle_out == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_ref_import: NULL");
	memcpy(&copy, ref, sizeof copy);
	if (copy.kind >= PP__KINDS || pp__kinds[copy.kind] == NULL)
		return pp__fail(PP_ERR_INVALID, "not a reference: kind %u", copy.kind);
	if (kind != PP_KIND_ANY && kind != copy.kind)
		return pp__fail(PP_ERR_INVALID, "the reference is to a %s", pp__kinds[copy.kind]->name);
	if (copy.kind == PP__KIND_PIPE) {
		const int32_t status = pp_pipe_import(ref, -1, handle_out);
		if (status == PP_OK && kind_out != NULL)
			*kind_out = PP_KIND_PIPE;
		return status;
	}
	const int32_t status = pp__ref_receive(&copy, &handle);
	if (status != PP_OK)
		return status;
	if (kind_out != NULL)
		*kind_out = handle->kind;
	*handle_out = handle->number;
	return PP_OK;
}

int32_t pp_ref_forget(const void *ref)
{
	pp__ref copy;

	if (ref == NULL)
		return pp__fail(PP_ERR_INVALID, "pp_ref_forget: NULL");
	memcpy(&copy, ref, sizeof copy);
	if (pp__ref_has_descriptor(&copy))
		pp_pipe_forget(ref);
	else
		pp__ref_forget(&copy);
	return PP_OK;
}

int32_t pp_refs_forget(const void *data, size_t size)
{
	if (data == NULL && size != 0)
		return pp__fail(PP_ERR_INVALID, "pp_refs_forget: NULL");
	pp__heap *const heap = pp__heap_family();
	if (heap != NULL && size != 0) /* else this process has no object of the family */
		pp__refs_forget(heap, data, size);
	return PP_OK;
}
