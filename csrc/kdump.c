// SPDX-License-Identifier: GPL-2.0-or-later
/* Page descriptors of the kdump-compressed format: struct page_desc of crash's diskdump.h. */
#include "vmfilter.h"

void vmf_descriptors(const uint32_t *sizes, const uint64_t *shared, uint64_t count, uint32_t page_size, uint64_t offset,
		     uint64_t zero_offset, uint32_t codec_flag, int swap, struct vmf_descriptor *descriptors)
{
	for (uint64_t i = 0; i < count; i++) {
		struct vmf_descriptor d = {offset, sizes[i], sizes[i] == page_size ? 0 : codec_flag, 0};

		if (sizes[i] == VMF_LOST) {
			descriptors[i] = (struct vmf_descriptor){0};
			continue;
		}
		if (sizes[i] == 0) {
			d.offset = zero_offset;
			d.size = page_size;
			d.flags = 0;
		}
		if (shared && shared[i])
			d.offset = shared[i];
		else
			offset += sizes[i];
		if (swap) {
			d.offset = __builtin_bswap64(d.offset);
			d.size = __builtin_bswap32(d.size);
			d.flags = __builtin_bswap32(d.flags);
		}
		descriptors[i] = d;
	}
}

void vmf_count_sizes(const uint32_t *sizes, uint64_t count, uint64_t *zero, uint64_t *lost)
{
	*zero = *lost = 0;
	for (uint64_t i = 0; i < count; i++) {
		*zero += sizes[i] == 0;
		*lost += sizes[i] == VMF_LOST;
	}
}

void vmf_swap_descriptors(struct vmf_descriptor *descriptors, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		struct vmf_descriptor *d = &descriptors[i];

		d->offset = __builtin_bswap64(d->offset);
		d->size = __builtin_bswap32(d->size);
		d->flags = __builtin_bswap32(d->flags);
		d->page_flags = __builtin_bswap64(d->page_flags);
	}
}

uint64_t vmf_drop_lost(const struct vmf_descriptor *descriptors, uint64_t descriptor_count, uint64_t file_size,
		       uint64_t count, uint8_t *bits)
{
	uint64_t seen = 0, left = 0;

	for (uint64_t i = 0; i < count; i++) {
		const struct vmf_descriptor *d = &descriptors[seen];

		if (!(bits[i / 8] >> (i % 8) & 1))
			continue;
		if (seen++ < descriptor_count && d->offset && d->offset <= file_size &&
		    d->size <= file_size - d->offset)
			left++;
		else
			bits[i / 8] &= (uint8_t)~(1u << (i % 8));
	}
	return left;
}

/*
 * Whether the extent contains the data of the descriptor. The last extent may be extended to contain it, if the extra
 * bytes to read are few.
 */
static int takes(const struct vmf_extent *e, const struct vmf_descriptor *d, int is_last, uint32_t page_size)
{
	uint64_t end = e->offset + e->size;

	if (d->offset < e->offset)
		return 0;
	return d->offset + d->size <= end || (is_last && d->offset <= end + page_size - d->size);
}

uint64_t vmf_extents(const struct vmf_descriptor *descriptors, uint64_t count, uint32_t page_size, uint64_t lowest,
		     struct vmf_extent *extents)
{
	uint64_t n = 0, at = 0;

	for (uint64_t i = 0; i < count; i++) {
		const struct vmf_descriptor *d = &descriptors[i];
		struct vmf_extent *e = NULL;

		if (d->size > page_size || d->offset < lowest || d->offset > (uint64_t)INT64_MAX - page_size)
			return UINT64_MAX - i;
		for (uint64_t j = n; j-- > 0 && !e;)
			if (takes(&extents[j], d, j == n - 1, page_size))
				e = &extents[j];
		if (!e) {
			e = &extents[n++];
			*e = (struct vmf_extent){d->offset, 0, at};
		}
		if (d->offset + d->size > e->offset + e->size) {
			e->size = d->offset + d->size - e->offset;
			at = e->at + e->size;
		}
	}
	return n;
}
