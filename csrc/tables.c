// SPDX-License-Identifier: GPL-2.0-or-later
/* Entries of page tables to mappings. Which table is read next is the caller's business. */
#include "bytes.h"
#include "vmfilter.h"

static int follows(const struct vmf_mapping *last, const struct vmf_mapping *next)
{
	return !last->is_table && !next->is_table && last->vaddr + last->length == next->vaddr &&
	       last->paddr + last->length == next->paddr;
}

int64_t vmf_decode_table(const struct vmf_paging *paging, uint32_t level, const uint8_t *table, uint64_t count,
			 uint64_t vaddr, struct vmf_mapping *mappings, uint64_t max)
{
	const struct vmf_table_level *l;
	uint64_t size, used = 0;

	if (level >= sizeof(paging->levels) / sizeof(paging->levels[0]) || paging->levels[level].shift > 63)
		return -1;
	l = &paging->levels[level];
	size = 1ull << l->shift;
	for (uint64_t i = 0; i < count; i++) {
		uint64_t entry = vmf_load64(table + i * 8, (int)paging->swap);
		struct vmf_mapping m = {vaddr + i * size, size, 0, 0, 0};

		if (!(entry & paging->present_mask))
			continue;
		m.is_table = (entry & l->leaf_mask) != l->leaf_value;
		m.paddr = entry & (m.is_table ? l->table_address : l->leaf_address);
		if (used && follows(&mappings[used - 1], &m)) {
			mappings[used - 1].length += size;
			continue;
		}
		if (used == max)
			return -1;
		mappings[used++] = m;
	}
	return (int64_t)used;
}
