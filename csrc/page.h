/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Members of a struct page, for classify.c and check.c. */
#ifndef PAGE_H
#define PAGE_H

#include "bytes.h"
#include "vmfilter.h"

/* The largest compound page on any architecture is 16 GiB (hugetlb on ppc64), which is this order with 4 KiB pages. */
#define MAX_COMPOUND_ORDER 22

#define ANON_BIT 1u	/* PAGE_MAPPING_ANON: bit 0 of mapping in every kernel, set for KSM pages too */

/* Inlined twice by vmf_classify(): for native 64-bit dumps, and for all others. */
#define INLINE static inline __attribute__((always_inline))

static inline uint64_t field(const struct vmf_page_layout *l, const uint8_t *page, struct vmf_field f)
{
	int swap = (int)l->swap;

	switch (f.width) {
	case 8:
		return vmf_load64(page + f.offset, swap);
	case 4:
		return vmf_load32(page + f.offset, swap);
	case 2:
		return vmf_load16(page + f.offset, swap);
	case 1:
		return page[f.offset];
	default:
		return 0;
	}
}

/* Whether struct page is that of a 64-bit machine in this machine's byte order, as in nearly all dumps. */
static inline int is_native64(const struct vmf_page_layout *l)
{
	return !l->swap && l->flags.width == 8 && l->mapping.width == 8 && l->private_.width == 8 &&
	       l->tail.width == 8 && l->mapcount.width == 4 && (l->refcount.width == 4 || !l->refcount.width);
}

INLINE uint64_t word(const struct vmf_page_layout *l, const uint8_t *page, struct vmf_field f, int native64)
{
	return native64 ? vmf_load64(page + f.offset, 0) : field(l, page, f);
}

INLINE uint32_t mapcount_of(const struct vmf_page_layout *l, const uint8_t *page, int native64)
{
	return native64 ? vmf_load32(page + l->mapcount.offset, 0) : (uint32_t)field(l, page, l->mapcount);
}

static inline int has_type(struct vmf_page_type t, uint32_t mapcount)
{
	return (mapcount & t.mask) == t.value;
}

/* Whether a page is a tail, given its member that says so: it has all bits of the mask. */
static inline int is_tail(const struct vmf_page_layout *l, uint64_t member)
{
	return l->tail_mask && (member & l->tail_mask) == l->tail_mask;
}

static inline int is_aligned(uint64_t pfn, uint64_t order)
{
	return (pfn & ((1ull << order) - 1)) == 0;
}

/* Returns the order of the compound page that begins at page; 0 if there is none or its order is invalid. */
static inline uint64_t compound_order(const struct vmf_page_layout *l, const uint8_t *page, uint64_t flags, uint64_t pfn,
			       const uint8_t *end)
{
	uint64_t order;

	if (!(flags & l->head) || is_tail(l, field(l, page, l->tail)) || page + 2ull * l->size > end)
		return 0;
	order = field(l, page + l->size, l->order);
	return order <= MAX_COMPOUND_ORDER && is_aligned(pfn, order) ? order : 0;
}

/*
 * Whether the destructor of hugetlb is the address of a function, until 1d798ca3f164 ("mm: make compound_head() robust"),
 * v4.4. It proves a page: until v3.5, hugetlb pages in use were in no list.
 */
static inline int by_function(const struct vmf_page_layout *l)
{
	return l->destructor_value > UINT16_MAX;
}

static inline int is_hugetlb(const struct vmf_page_layout *l, const uint8_t *page, uint32_t mapcount, uint64_t order)
{
	if (has_type(l->hugetlb, mapcount))
		return 1;
	/* Without hugetlb in the kernel, huge pages on LRU lists can have this destructor. */
	return order && l->destructor.width && !(field(l, page, l->flags) & l->lru) &&
	       (field(l, page + l->size, l->destructor) & l->destructor_mask) == l->destructor_value;
}

/* Whether an address is aligned and in one of the areas. */
static inline int is_in(const struct vmf_areas *areas, uint64_t address)
{
	const uint64_t *at = areas->bounds;

	address &= areas->mask;
	for (uint32_t i = 0; i < areas->count; i++, at += 2)
		if (address >= at[0] && address < at[1])
			return (address & 3) == 0;
	return 0;
}

/* Whether both links of the list entry that overlays lru lead into the areas. */
static inline int is_in_list(const struct vmf_page_layout *l, const uint8_t *page, const struct vmf_areas *areas)
{
	return l->next.width && is_in(areas, field(l, page, l->next)) && is_in(areas, field(l, page, l->prev));
}

/* The same, but 1 if the areas or lru are not known. */
static inline int may_be_listed(const struct vmf_page_layout *l, const uint8_t *page, const struct vmf_areas *areas)
{
	return !areas->count || !l->next.width || is_in_list(l, page, areas);
}

static inline int fits(const struct vmf_page_layout *l, struct vmf_field f)
{
	int width_known = f.width == 0 || f.width == 1 || f.width == 2 || f.width == 4 || f.width == 8;

	return width_known && f.offset <= l->size && f.width <= l->size - f.offset;
}

/* Whether all members are inside struct page. */
static inline int is_valid(const struct vmf_page_layout *l)
{
	return fits(l, l->flags) && fits(l, l->mapcount) && fits(l, l->mapping) && fits(l, l->private_) &&
	       fits(l, l->tail) && fits(l, l->refcount) && fits(l, l->next) && fits(l, l->prev) && fits(l, l->order) &&
	       fits(l, l->destructor) && l->free_orders <= VMF_ORDERS;
}

#endif
