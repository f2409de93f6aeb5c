// SPDX-License-Identifier: GPL-2.0-or-later
/* Struct pages to page classes. What a kernel's struct page looks like is in the layout; the rules are here. */
#include "bytes.h"
#include "vmfilter.h"

/* The largest compound page that any architecture has is 16 GiB (hugetlb, ppc64); in 4 KiB pages that is this order. */
#define MAX_COMPOUND_ORDER 22

#define ANON_BIT 1u	/* PAGE_MAPPING_ANON: lowest bit of mapping, on every kernel; KSM pages have it too */

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

static inline int has_type(struct vmf_page_type t, uint32_t mapcount)
{
	return (mapcount & t.mask) == t.value;
}

static int is_aligned(uint64_t pfn, uint64_t order)
{
	return (pfn & ((1ull << order) - 1)) == 0;
}

/* Order of the compound page whose head this is: 0 where there is none, or what memory says cannot be one. */
static uint64_t compound_order(const struct vmf_page_layout *l, const uint8_t *page, uint64_t flags, uint64_t pfn,
			       const uint8_t *end)
{
	uint64_t order;

	if (!(flags & l->head) || (field(l, page, l->tail) & l->tail_mask) || page + 2ull * l->size > end)
		return 0;
	order = field(l, page + l->size, l->order);
	return order <= MAX_COMPOUND_ORDER && is_aligned(pfn, order) ? order : 0;
}

static int is_hugetlb(const struct vmf_page_layout *l, const uint8_t *page, uint32_t mapcount, uint64_t order)
{
	if (has_type(l->hugetlb, mapcount))
		return 1;
	return order && l->destructor.width &&
	       (field(l, page + l->size, l->destructor) & l->destructor_mask) == l->destructor_value;
}

/* A page that has a type: the union with _mapcount says so, and mapping and lru are overlaid then. */
static uint32_t typed_class(const struct vmf_page_layout *l, const uint8_t *page, uint32_t mapcount, uint64_t pfn,
			    uint64_t *order)
{
	if (has_type(l->buddy, mapcount)) {
		uint64_t free_order = field(l, page, l->private_);

		if (free_order >= l->free_orders || !is_aligned(pfn, free_order))
			return VMF_KERNEL;	/* seen while a block is split or merged: keep what is in doubt */
		*order = free_order;
		return VMF_FREE;
	}
	if (has_type(l->unaccepted, mapcount)) {
		/* Always blocks of the highest order, marked at their first page only (310183de7bb2, v6.12). */
		uint64_t highest = l->free_orders ? l->free_orders - 1 : 0;

		*order = is_aligned(pfn, highest) ? highest : 0;
		return VMF_FREE;
	}
	return has_type(l->offline, mapcount) ? VMF_OFFLINE : VMF_KERNEL;
}

static uint32_t untyped_class(const struct vmf_page_layout *l, const uint8_t *page, uint64_t flags)
{
	if (field(l, page, l->tail) & l->tail_mask)
		return VMF_KERNEL;	/* a tail without its head: nothing here is its own */
	if (field(l, page, l->mapping) & ANON_BIT)
		return VMF_USER;
	if (!(flags & l->lru) && (!l->swapcache || (flags & l->swapcache) != l->swapcache))
		return VMF_KERNEL;
	return flags & l->private_data ? VMF_CACHE_PRIVATE : VMF_CACHE;
}

/* The block that begins at page. */
static struct vmf_block block_at(const struct vmf_page_layout *l, const uint8_t *page, uint64_t pfn, const uint8_t *end)
{
	struct vmf_block b = {0, VMF_KERNEL, 0};
	uint64_t flags = field(l, page, l->flags), order = compound_order(l, page, flags, pfn, end);
	uint32_t mapcount = (uint32_t)field(l, page, l->mapcount);

	if (flags & l->slab)
		b.page_class = VMF_KERNEL;	/* before types: until 4.17 a slab's counters overlay _mapcount */
	else if (is_hugetlb(l, page, mapcount, order)) {
		/*
		 * Hugetlb's poison is on the head alone, which of its pages are bad is in a list of its own
		 * (161df60e9e89, v6.0). Its tails may alias other pages of structs since v5.14 (f41f2ed43ca5),
		 * from v5.18 to v7.0 the head's (e7d324850bfc), and then look like heads.
		 */
		b.page_class = flags & l->hwpoison ? VMF_HWPOISON : VMF_USER;
		b.tails_alike = 1;
	} else if ((int32_t)mapcount < -1) {
		b.page_class = typed_class(l, page, mapcount, pfn, &order);
	} else {
		b.page_class = untyped_class(l, page, flags);
		/* Only hugetlb's are larger than the page allocator's blocks. */
		if (order >= l->free_orders && (l->destructor.width || l->hugetlb.mask))
			order = 0;
	}
	b.end_pfn = pfn + (1ull << order);
	return b;
}

/* count frames get the block's class; each one's own poison comes first. */
static void apply(const struct vmf_page_layout *l, const struct vmf_block *b, const uint8_t *structs, uint64_t count,
		  uint8_t *classes)
{
	for (uint64_t i = 0; i < count; i++) {
		uint8_t c = (uint8_t)b->page_class;

		if (!b->tails_alike && (field(l, structs + i * l->size, l->flags) & l->hwpoison))
			c = VMF_HWPOISON;
		if (classes[i] == VMF_KERNEL || (classes[i] == VMF_PMEM_USERDATA && c == VMF_HWPOISON))
			classes[i] = c;
	}
}

static int fits(const struct vmf_page_layout *l, struct vmf_field f)
{
	int width_known = f.width == 0 || f.width == 1 || f.width == 2 || f.width == 4 || f.width == 8;

	return width_known && f.offset <= l->size && f.width <= l->size - f.offset;
}

int vmf_classify(const struct vmf_page_layout *layout, const uint8_t *structs, uint64_t pfn, uint64_t count,
		 struct vmf_block *block, uint8_t *classes)
{
	const struct vmf_page_layout *l = layout;
	const uint8_t *end = structs + count * l->size;
	uint64_t i = 0;

	if (!fits(l, l->flags) || !fits(l, l->mapcount) || !fits(l, l->mapping) || !fits(l, l->private_) ||
	    !fits(l, l->tail) || !fits(l, l->order) || !fits(l, l->destructor) || l->free_orders > 64)
		return -1;
	while (i < count) {
		uint64_t n;

		if (block->end_pfn <= pfn + i)
			*block = block_at(l, structs + i * l->size, pfn + i, end);
		n = block->end_pfn - (pfn + i);
		if (n > count - i)
			n = count - i;
		apply(l, block, structs + i * l->size, n, classes + i);
		i += n;
	}
	return 0;
}

int vmf_all_have(const struct vmf_page_layout *layout, const uint8_t *structs, uint64_t count, uint64_t flags)
{
	if (!fits(layout, layout->flags))
		return 0;
	for (uint64_t i = 0; i < count; i++)
		if (!(field(layout, structs + i * layout->size, layout->flags) & flags))
			return 0;
	return 1;
}
