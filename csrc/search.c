// SPDX-License-Identifier: GPL-2.0-or-later
/* Search of memory for a string. */
#include <string.h>

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
