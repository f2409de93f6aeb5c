// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A wrapper that makes ISA-L's igzip deterministic.
 *
 * The x86_64 match finder has a bug (igzip_icf_body_h1_gr_bt.asm, .write_first_byte, in 2.30 and still in 2.32). For
 * the third input position, it hashes the address of the stream instead of the input, so the position is entered in
 * slot crc32c(address >> 16) of the hash table. If one of the first bytes hashes to the same slot, a match is found or
 * missed. The output is valid but depends on the address. So allocate the stream where this slot is always the same.
 */
#define _DEFAULT_SOURCE	/* MAP_ANONYMOUS */
#include "isal.h"

#ifdef HAVE_ISAL
#include <isa-l/igzip_lib.h>
#include <stdlib.h>
#include <sys/mman.h>

#define SLOT 0x1555u		/* arbitrary, one of 8192; changing it changes the output */
#define BLOCK ((uintptr_t)1 << 16)
#define TRIES 256		/* a slot repeats about every 8192 blocks, so this covers 128 GiB of addresses */

struct vmf_isal {
	struct isal_zstream *stream;
	size_t stream_size;		/* mapped, a multiple of BLOCK */
	uint8_t level_buffer[ISAL_DEF_LVL1_SMALL];
};

static uint32_t slot_of(uintptr_t address)
{
	uint32_t crc = (uint32_t)(address >> 16);

	for (int i = 0; i < 32; i++)
		crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
	return crc & 0x1fff;
}

/*
 * Maps size zeroed bytes at an address that hashes to SLOT; NULL on failure. Tries one such address after the other,
 * below what the kernel picks by itself. Unlike a large reservation, this works under RLIMIT_AS.
 */
static void *map_in_slot(size_t size)
{
	char *anywhere = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uintptr_t at = (uintptr_t)anywhere & -BLOCK;

	if (anywhere == MAP_FAILED)
		return NULL;
	munmap(anywhere, size);
	for (int tries = 0; tries < TRIES && at > BLOCK; at -= BLOCK) {
		void *wanted = (void *)at, *found;

		if (slot_of(at) != SLOT)
			continue;
		tries++;
		found = mmap(wanted, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (found == wanted)
			return found;
		if (found == MAP_FAILED)
			return NULL;
		munmap(found, size);
	}
	return NULL;
}

struct vmf_isal *vmf_isal_new(void)
{
	struct vmf_isal *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->stream_size = (sizeof(*s->stream) + BLOCK - 1) & -BLOCK;
	s->stream = map_in_slot(s->stream_size);
	if (!s->stream) {
		free(s);
		return NULL;
	}
	return s;
}

void vmf_isal_free(struct vmf_isal *s)
{
	if (!s)
		return;
	munmap(s->stream, s->stream_size);
	free(s);
}

int64_t vmf_isal_compress(struct vmf_isal *s, const uint8_t *page, uint32_t size, uint8_t *out)
{
	struct isal_zstream *z = s->stream;
	int status;

	isal_deflate_stateless_init(z);
	z->level = 1;
	z->level_buf = s->level_buffer;
	z->level_buf_size = sizeof(s->level_buffer);
	z->gzip_flag = IGZIP_ZLIB;
	z->end_of_stream = 1;
	z->next_in = (uint8_t *)(uintptr_t)page;	/* the library only reads it, but takes no const */
	z->avail_in = size;
	z->next_out = out;
	z->avail_out = size - 1;
	status = isal_deflate_stateless(z);
	if (status == STATELESS_OVERFLOW)
		return 0;
	if (status != COMP_OK)
		return -1;
	return z->total_out < size ? (int64_t)z->total_out : 0;
}
#endif
