// SPDX-License-Identifier: GPL-2.0-or-later
/* Page descriptors on their way to a file: they come in the order of the page data, and belong in that of the frames. */
#include <stdlib.h>
#include <string.h>

#include "vmfilter.h"

static int by_offset(const void *a, const void *b)
{
	const struct vmf_extent *one = a, *other = b;

	return (one->offset > other->offset) - (one->offset < other->offset);
}

uint64_t vmf_place_descriptors(const struct vmf_stretch *stretches, uint64_t count, uint64_t origin,
			       const struct vmf_descriptor *descriptors, struct vmf_extent *extents, uint8_t *data)
{
	uint64_t at = 0, n = 0;

	for (uint64_t i = 0; i < count; i++) {
		uint64_t size = stretches[i].count * sizeof(*descriptors);

		extents[i] = (struct vmf_extent){origin + stretches[i].index * sizeof(*descriptors), size, at};
		at += size;
	}
	qsort(extents, count, sizeof(*extents), by_offset);
	at = 0;
	for (uint64_t i = 0; i < count; i++) {
		struct vmf_extent e = extents[i];

		memcpy(data + at, (const uint8_t *)descriptors + e.at, e.size);
		if (n && extents[n - 1].offset + extents[n - 1].size == e.offset)
			extents[n - 1].size += e.size;
		else
			extents[n++] = (struct vmf_extent){e.offset, e.size, at};
		at += e.size;
	}
	return n;
}

static void store_big_endian(uint64_t value, uint8_t *out)
{
	for (int i = 7; i >= 0; i--, value >>= 8)
		out[i] = (uint8_t)value;
}

void vmf_records(const struct vmf_extent *extents, uint64_t count, const uint8_t *data, uint8_t *out)
{
	for (uint64_t i = 0; i < count; i++) {
		const struct vmf_extent *e = &extents[i];

		store_big_endian(e->offset, out);
		store_big_endian(e->size, out + 8);
		memcpy(out + VMF_RECORD, data + e->at, e->size);
		out += VMF_RECORD + e->size;
	}
}

void vmf_gather(const struct vmf_piece *pieces, uint64_t count, uint8_t *out)
{
	for (uint64_t i = 0; i < count; i++) {
		memcpy(out, pieces[i].data, pieces[i].size);
		out += pieces[i].size;
	}
}
