// SPDX-License-Identifier: GPL-2.0-or-later
/* Page descriptors of the kdump-compressed format: struct page_desc of crash's diskdump.h. */
#include "vmfilter.h"

uint64_t vmf_descriptors(const uint32_t *sizes, uint64_t count, uint32_t page_size, uint64_t offset,
			 uint64_t zero_offset, uint32_t codec_flag, int swap, struct vmf_descriptor *descriptors)
{
	for (uint64_t i = 0; i < count; i++) {
		struct vmf_descriptor d = {offset, sizes[i], sizes[i] == page_size ? 0 : codec_flag, 0};

		if (sizes[i] == 0) {
			d.offset = zero_offset;
			d.size = page_size;
			d.flags = 0;
		}
		offset += sizes[i];
		if (swap) {
			d.offset = __builtin_bswap64(d.offset);
			d.size = __builtin_bswap32(d.size);
			d.flags = __builtin_bswap32(d.flags);
		}
		descriptors[i] = d;
	}
	return offset;
}
