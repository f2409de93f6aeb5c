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

void vmf_mark_pointed(const uint8_t *data, uint64_t size, uint32_t word, int swap, uint64_t start, uint64_t count,
		      uint32_t page_shift, uint8_t *bits)
{
	for (uint64_t at = 0; size - at >= word; at += word) {
		uint64_t value = word == 8 ? vmf_load64(data + at, swap) : vmf_load32(data + at, swap);
		uint64_t page = (value - start) >> page_shift;

		if (page < count)
			bits[page / 8] |= (uint8_t)(1u << (page % 8));
	}
}
