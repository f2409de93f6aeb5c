// SPDX-License-Identifier: GPL-2.0-or-later
/* Search of memory for a string, and for pointers into a range. */
#include <string.h>

#include "bytes.h"
#include "vmfilter.h"

#define STRIDE 64	/* words compared before testing for a match, so that the compiler can vectorise the loop */

uint64_t vmf_find_text(const uint8_t *data, uint64_t size, uint64_t at, const uint8_t *text, uint64_t length)
{
	uint64_t end = size & ~3ull;
	uint32_t wanted;

	memcpy(&wanted, text, sizeof(wanted));
	for (; at + 4 * STRIDE <= end; at += 4 * STRIDE) {
		uint32_t words[STRIDE], found = 0;

		memcpy(words, data + at, sizeof(words));
		for (int i = 0; i < STRIDE; i++)
			found |= words[i] == wanted;
		if (found)
			break;
	}
	for (; at + 4 <= end; at += 4) {
		if (memcmp(data + at, text, size - at < length ? size - at : length) == 0)
			return at;
	}
	return size;
}

/* With constants for word and swap, the compiler makes one short loop of this. */
static inline __attribute__((always_inline)) void mark(const uint8_t *data, uint64_t size, uint32_t word, int swap,
						       uint64_t start, uint64_t count, uint32_t page_shift,
						       uint8_t *bits)
{
	uint64_t length = count > UINT64_MAX >> page_shift ? UINT64_MAX : count << page_shift;

#pragma GCC unroll 8
	for (uint64_t n = size / word; n; n--, data += word) {
		uint64_t at = (word == 8 ? vmf_load64(data, swap) : vmf_load32(data, swap)) - start;

		if (at < length)
			bits[at >> page_shift >> 3] |= (uint8_t)(1u << (at >> page_shift & 7));
	}
}

void vmf_mark_pointed(const uint8_t *data, uint64_t size, uint32_t word, int swap, uint64_t start, uint64_t count,
		      uint32_t page_shift, uint8_t *bits)
{
	if (word == 8 && !swap)
		mark(data, size, 8, 0, start, count, page_shift, bits);
	else
		mark(data, size, word, swap, start, count, page_shift, bits);
}
