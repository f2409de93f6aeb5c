// SPDX-License-Identifier: GPL-2.0-or-later
/* Decoding of page table entries. The caller walks the tables. */
#include "bytes.h"
#include "vmfilter.h"

static int follows(const struct vmf_mapping *last, const struct vmf_mapping *next)
{
	return !last->is_table && !next->is_table && last->is_executable == next->is_executable &&
	       last->vaddr + last->length == next->vaddr && last->paddr + last->length == next->paddr;
}

static uint64_t address(const struct vmf_paging *p, uint64_t entry, uint64_t mask)
{
	return ((entry & mask) << p->address_shift) + ((entry & p->high_mask) << p->high_shift);
}

static struct vmf_mapping mapping(const struct vmf_paging *p, const struct vmf_table_level *l, uint64_t entry,
				  uint64_t vaddr)
{
	struct vmf_mapping m = {vaddr, 1ull << l->shift, 0, 0, 0};

	m.is_table = (entry & l->leaf_mask) != l->leaf_value;
	m.paddr = address(p, entry, m.is_table ? l->table_address : l->leaf_address);
	if (!m.is_table && (entry & p->block_mask))
		m.paddr = (m.paddr & -p->block_size) | (vaddr & (p->block_size - 1));
	m.is_executable = !m.is_table && (entry & p->executable_mask) == p->executable_value;
	return m;
}

int64_t vmf_decode_table(const struct vmf_paging *paging, uint32_t level, const uint8_t *table, uint64_t count,
			 uint64_t vaddr, struct vmf_mapping *mappings, uint64_t max)
{
	const struct vmf_table_level *l;
	int swap = (int)paging->swap, wide = paging->entry_size == 8;
	uint64_t used = 0;

	if (level >= sizeof(paging->levels) / sizeof(paging->levels[0]) || paging->levels[level].shift > 63 ||
	    paging->address_shift > 63 || paging->high_shift > 63 || (!wide && paging->entry_size != 4))
		return -1;
	l = &paging->levels[level];
	if (l->bits > 63 || count > 1ull << l->bits)
		return -1;
	for (uint64_t i = 0; i < count; i++) {
		uint64_t entry = wide ? vmf_load64(table + i * 8, swap) : vmf_load32(table + i * 4, swap);
		struct vmf_mapping m;

		if (!entry || (entry & l->present_mask) != l->present_value)
			continue;
		m = mapping(paging, l, entry, vaddr + (i << l->shift));
		if (used && follows(&mappings[used - 1], &m)) {
			mappings[used - 1].length += m.length;
			continue;
		}
		if (used == max)
			return -1;
		mappings[used++] = m;
	}
	return (int64_t)used;
}
