/* fn.c - functions across address spaces: a pointer becomes (module, build id, offset), and a pointer again in a process that runs
 * the same program. */
#include "front.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct module {
	bool found;
	bool code; /* the address, or the offset, is in an executable segment */
	uintptr_t base;
	uint32_t build_id_size;
	uint8_t build_id[32];
	char path[4096];
} module;

typedef struct search {
	/* what is looked for */
	uintptr_t address;    /* if by address */
	const char *path;     /* if by path; "" is the program */
	const struct stat *st; /* of path, if it exists */
	uint64_t offset;
	uintptr_t base;       /* if by load address */
	/* where it is */
	unsigned index;
	unsigned long long adds, subs;
	module *out;
} search;

/* read_build_id finds the note in memory; only what a loaded segment covers is read. */
static void read_build_id(const struct dl_phdr_info *info, module *m)
{
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *note = &info->dlpi_phdr[i];
		bool loaded = false;
		if (note->p_type != PT_NOTE)
			continue;
		for (int k = 0; k < info->dlpi_phnum; k++) {
			const ElfW(Phdr) *load = &info->dlpi_phdr[k];
			loaded |= load->p_type == PT_LOAD && (load->p_flags & PF_R) != 0 && note->p_vaddr >= load->p_vaddr &&
			          note->p_vaddr + note->p_filesz <= load->p_vaddr + load->p_filesz;
		}
		if (!loaded)
			continue;
		const size_t align = note->p_align == 8 ? 8 : 4;
		const uint8_t *at = (const uint8_t *)info->dlpi_addr + note->p_vaddr;
		size_t left = note->p_filesz;
		while (left >= sizeof(ElfW(Nhdr))) {
			ElfW(Nhdr) head;
			memcpy(&head, at, sizeof head);
			const size_t desc = (sizeof head + head.n_namesz + align - 1) / align * align;
			const size_t next = (desc + head.n_descsz + align - 1) / align * align;
			if (desc > left || head.n_descsz > left - desc)
				break;
			if (head.n_type == NT_GNU_BUILD_ID && head.n_namesz == 4 && memcmp(at + sizeof head, "GNU", 4) == 0) {
				m->build_id_size = head.n_descsz < sizeof m->build_id ? (uint32_t)head.n_descsz : (uint32_t)sizeof m->build_id;
				memcpy(m->build_id, at + desc, m->build_id_size);
				return;
			}
			if (next > left)
				break;
			at += next;
			left -= next;
		}
	}
}

static bool in_code(const struct dl_phdr_info *info, uint64_t offset)
{
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		if (p->p_type == PT_LOAD && (p->p_flags & PF_X) != 0 && offset >= p->p_vaddr && offset - p->p_vaddr < p->p_memsz)
			return true;
	}
	return false;
}

static void describe(const struct dl_phdr_info *info, search *s, uint64_t offset)
{
	module *m = s->out;

	m->found = true;
	m->base = info->dlpi_addr;
	m->code = in_code(info, offset);
	/* The program is always the first, whatever it is called. */
	m->path[0] = '\0';
	if (s->index > 0 && info->dlpi_name != NULL && strlen(info->dlpi_name) < sizeof m->path)
		strcpy(m->path, info->dlpi_name);
	read_build_id(info, m);
}

static int by_address(struct dl_phdr_info *info, size_t size, void *data)
{
	search *s = data;
	const uint64_t offset = s->address - info->dlpi_addr;

	(void)size;
	if (in_code(info, offset)) {
		describe(info, s, offset);
		return 1;
	}
	s->index++;
	return 0;
}

static int by_path(struct dl_phdr_info *info, size_t size, void *data)
{
	search *s = data;
	bool same;
	struct stat st;

	(void)size;
	if (*s->path == '\0')
		same = s->index == 0;
	else
		same = s->index > 0 && info->dlpi_name != NULL && *info->dlpi_name != '\0' &&
		       (strcmp(info->dlpi_name, s->path) == 0 ||
		        (s->st != NULL && stat(info->dlpi_name, &st) == 0 && st.st_dev == s->st->st_dev && st.st_ino == s->st->st_ino));
	if (same) {
		describe(info, s, s->offset);
		return 1;
	}
	s->index++;
	return 0;
}

static int count_changes(struct dl_phdr_info *info, size_t size, void *data)
{
	search *s = data;

	if (size >= offsetof(struct dl_phdr_info, dlpi_subs) + sizeof info->dlpi_subs) {
		s->adds = info->dlpi_adds;
		s->subs = info->dlpi_subs;
	}
	return 1;
}

/* mapped_path is the path of the file that is mapped at an address, as the kernel knows it: to be freed; NULL if it does not. */
static char *mapped_path(uintptr_t address)
{
	PP__NO_CANCEL();
	FILE *const f = fopen("/proc/self/maps", "re");
	char *line = NULL, *path = NULL;
	size_t room = 0;

	if (f == NULL)
		return NULL;
	while (path == NULL && getline(&line, &room, f) > 0) {
		unsigned long long from, to;
		int at = 0;
		if (sscanf(line, "%llx-%llx %*s %*s %*s %*s %n", &from, &to, &at) < 2 || address < from || address >= to)
			continue;
		line[strcspn(line, "\n")] = '\0';
		/* A file that was replaced: what is at its place now will be found to be another. */
		char *const deleted = strstr(line, " (deleted)");
		if (deleted != NULL && deleted[10] == '\0')
			*deleted = '\0';
		if (at > 0 && line[at] == '/')
			path = strdup(line + at);
	}
	free(line);
	fclose(f);
	return path;
}

int32_t pp__resolve(const void *fn, pp__fn_ref *ref_out)
{
	/* A loop that submits tasks asks for the same function again and again. */
	static __thread struct {
		const void *fn;
		unsigned long long adds, subs;
		pp__fn_ref ref;
	} last;
	search s = {.address = (uintptr_t)fn};

	if (fn == NULL)
		return pp__fail(PP_ERR_NOT_FOUND, "the function is NULL");
	pp__modules(count_changes, &s);
	if (last.fn != fn || last.adds != s.adds || last.subs != s.subs) {
		module m = {.found = false};
		s.out = &m;
		last.fn = NULL;
		pp__modules(by_address, &s);
		if (!m.found)
			return pp__fail(PP_ERR_NOT_FOUND, "%p is not a function of the program or of a library that it has loaded", fn);
		/* The other process may have another working directory, and so may this one by now. */
		char *const absolute = m.path[0] != '\0' && m.path[0] != '/' ? mapped_path((uintptr_t)fn) : NULL;
		const char *const path = absolute != NULL ? absolute : m.path;
		const size_t length = strlen(path);
		if (length < sizeof last.ref.path) {
			last.ref = (pp__fn_ref){.build_id_size = m.build_id_size, .offset = (uintptr_t)fn - m.base};
			memcpy(last.ref.path, path, length + 1);
			memcpy(last.ref.build_id, m.build_id, m.build_id_size);
		}
		free(absolute);
		if (length >= sizeof last.ref.path)
			return pp__fail(PP_ERR_TOO_BIG, "the path of a library has %zu characters, at most %zu are possible", length,
			                sizeof last.ref.path - 1);
		last.fn = fn;
		last.adds = s.adds;
		last.subs = s.subs;
	}
	*ref_out = last.ref;
	return PP_OK;
}

int32_t pp__locate(const pp__fn_ref *ref, const void **fn_out)
{
	module m = {.found = false};
	struct stat st;
	search s = {.path = ref->path, .offset = ref->offset, .out = &m};

	if (memchr(ref->path, '\0', sizeof ref->path) == NULL || ref->build_id_size > sizeof ref->build_id)
		return pp__fail(PP_ERR_NOT_FOUND, "a function's module has no proper name");
	const char *const name = ref->path[0] != '\0' ? ref->path : "the program";
	if (ref->path[0] != '\0' && stat(ref->path, &st) == 0)
		s.st = &st;
	pp__modules(by_path, &s);
	if (!m.found) {
		/* The parent has loaded it while it ran. */
		if (dlopen(ref->path, RTLD_NOW | RTLD_LOCAL) == NULL)
			return pp__fail(PP_ERR_NOT_FOUND, "a function's library: %s", dlerror());
		s.index = 0;
		pp__modules(by_path, &s);
		if (!m.found)
			return pp__fail(PP_ERR_NOT_FOUND, "a function's library %s was loaded and is not there", name);
	}
	if (m.build_id_size != ref->build_id_size || memcmp(m.build_id, ref->build_id, m.build_id_size) != 0)
		return pp__fail(PP_ERR_NOT_FOUND, "%s is not the file that the parent process runs: was it built again meanwhile?", name);
	if (!m.code)
		return pp__fail(PP_ERR_NOT_FOUND, "%s has no code at %#llx", name, (unsigned long long)ref->offset);
	*fn_out = (const void *)(m.base + ref->offset); /* NOLINT(performance-no-int-to-ptr): that is what this file is for */
	return PP_OK;
}
