// SPDX-License-Identifier: GPL-2.0-or-later
/* Struct pages to page classes. What a kernel's struct page looks like is in the layout; the rules are here. */
#include <string.h>

#include "bytes.h"
#include "vmfilter.h"

/* The largest compound page that any architecture has is 16 GiB (hugetlb, ppc64); in 4 KiB pages that is this order. */
#define MAX_COMPOUND_ORDER 22

#define ANON_BIT 1u	/* PAGE_MAPPING_ANON: lowest bit of mapping, on every kernel; KSM pages have it too */

#define AT_ONCE 8	/* pages of a block that are looked at together: their classes are one word */
#define EACH 0x0101010101010101u

/* What is inlined is compiled twice, see vmf_classify(). */
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

/* Whether all fields that every page has are 64 bits wide in this machine's byte order, as nearly all dumps have them. */
static int is_native64(const struct vmf_page_layout *l)
{
	return !l->swap && l->flags.width == 8 && l->mapping.width == 8 && l->private_.width == 8 &&
	       l->tail.width == 8 && l->mapcount.width == 4;
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
		/*
		 * Always blocks of the highest order, marked at their first page only.
		 * Since 310183de7bb2 ("mm: introduce PageUnaccepted() page type"), v6.12.
		 */
		uint64_t highest = l->free_orders ? l->free_orders - 1 : 0;

		*order = is_aligned(pfn, highest) ? highest : 0;
		return VMF_FREE;
	}
	return has_type(l->offline, mapcount) ? VMF_OFFLINE : VMF_KERNEL;
}

INLINE uint32_t untyped_class(const struct vmf_page_layout *l, const uint8_t *page, uint64_t flags, int native64)
{
	if (word(l, page, l->tail, native64) & l->tail_mask)
		return VMF_KERNEL;	/* a tail without its head: nothing here is its own */
	if (word(l, page, l->mapping, native64) & ANON_BIT)
		return VMF_USER;
	if (!(flags & l->lru) && (!l->swapcache || (flags & l->swapcache) != l->swapcache))
		return VMF_KERNEL;
	return flags & l->private_data ? VMF_CACHE_PRIVATE : VMF_CACHE;
}

/* The block that begins at page. */
INLINE struct vmf_block block_at(const struct vmf_page_layout *l, const uint8_t *page, uint64_t pfn, const uint8_t *end,
				 int native64)
{
	struct vmf_block b = {0, VMF_KERNEL, 0};
	uint64_t flags = word(l, page, l->flags, native64), order = compound_order(l, page, flags, pfn, end);
	uint32_t mapcount = mapcount_of(l, page, native64);

	if (flags & l->slab)
		b.page_class = VMF_KERNEL;	/* before types: until 4.17, a slab's counters overlay _mapcount */
	else if (is_hugetlb(l, page, mapcount, order)) {
		/*
		 * In hugetlb, only the head has the poison flag; a separate list names the bad pages. Since
		 * 161df60e9e89 ("mm, hwpoison, hugetlb: support saving mechanism of raw error pages"), v6.0.
		 *
		 * A tail may share its struct page with another tail since f41f2ed43ca5 ("mm: hugetlb: free the
		 * vmemmap pages associated with each HugeTLB page"), v5.14. Tails may also share the head's page of
		 * struct pages, and then look like heads: since e7d324850bfc ("mm: hugetlb: free the 2nd vmemmap page
		 * associated with each HugeTLB page"), v5.18, until 622026e87c40 ("mm/hugetlb: remove fake head
		 * pages"), v7.1.
		 */
		b.page_class = flags & l->hwpoison ? VMF_HWPOISON : VMF_USER;
		b.tails_alike = 1;
	} else if ((int32_t)mapcount < -1) {
		b.page_class = typed_class(l, page, mapcount, pfn, &order);
	} else {
		b.page_class = untyped_class(l, page, flags, native64);
		/* Only hugetlb's are larger than the page allocator's blocks. */
		if (order >= l->free_orders && (l->destructor.width || l->hugetlb.mask))
			order = 0;
	}
	b.end_pfn = pfn + (1ull << order);
	return b;
}

static inline void give(uint8_t *class, uint8_t c)
{
	if (*class == VMF_KERNEL || (*class == VMF_PMEM_USERDATA && c == VMF_HWPOISON))
		*class = c;
}

INLINE void give_each(const struct vmf_page_layout *l, uint64_t poison, uint8_t c, const uint8_t *structs,
		      uint64_t count, uint8_t *classes, int native64)
{
	for (uint64_t i = 0; i < count; i++, structs += l->size)
		give(classes + i, word(l, structs, l->flags, native64) & poison ? VMF_HWPOISON : c);
}

/* Pages AT_ONCE, of which none is poisoned. */
static inline void give_all(uint8_t c, uint8_t *classes)
{
	uint64_t before, after = EACH * c;

	memcpy(&before, classes, sizeof(before));
	if (before == EACH * VMF_KERNEL)
		memcpy(classes, &after, sizeof(after));
	else
		for (int i = 0; i < AT_ONCE; i++)
			give(classes + i, c);
}

/* count frames get the block's class; each one's own poison comes first. */
INLINE void apply(const struct vmf_page_layout *l, const struct vmf_block *b, const uint8_t *structs, uint64_t count,
		  uint8_t *classes, int native64)
{
	const uint64_t poison = b->tails_alike ? 0 : l->hwpoison, size = l->size;
	const uint8_t c = (uint8_t)b->page_class;

	for (; count >= AT_ONCE; count -= AT_ONCE) {
		uint64_t flags = 0;

		for (uint64_t i = 0; poison && i < AT_ONCE; i++)
			flags |= word(l, structs + i * size, l->flags, native64);
		if (flags & poison)
			give_each(l, poison, c, structs, AT_ONCE, classes, native64);
		else
			give_all(c, classes);
		structs += AT_ONCE * size;
		classes += AT_ONCE;
	}
	give_each(l, poison, c, structs, count, classes, native64);
}

/*
 * A page that is in no block, as most are that a machine in use has: neither head nor slab, without a type, not
 * poisoned. What block_at() finds for all of them is untyped_class() and order 0.
 */
INLINE int is_plain(const struct vmf_page_layout *l, uint64_t flags, uint32_t mapcount)
{
	return !(flags & (l->head | l->slab | l->hwpoison)) && (int32_t)mapcount >= -1 && !has_type(l->hugetlb, mapcount);
}

static int fits(const struct vmf_page_layout *l, struct vmf_field f)
{
	int width_known = f.width == 0 || f.width == 1 || f.width == 2 || f.width == 4 || f.width == 8;

	return width_known && f.offset <= l->size && f.width <= l->size - f.offset;
}

INLINE void classify(const struct vmf_page_layout *l, const uint8_t *structs, uint64_t pfn, uint64_t count,
		     struct vmf_block *block, uint8_t *restrict classes, int native64)
{
	const uint8_t *end = structs + count * l->size;
	struct vmf_block b = *block;
	uint64_t i = 0;

	while (i < count) {
		const uint8_t *page = structs + i * l->size;
		uint64_t n;

		if (b.end_pfn <= pfn + i) {
			uint64_t flags = word(l, page, l->flags, native64);
			uint32_t mapcount = mapcount_of(l, page, native64);

			if (is_plain(l, flags, mapcount)) {
				give(classes + i++, untyped_class(l, page, flags, native64));
				continue;
			}
			b = block_at(l, page, pfn + i, end, native64);
		}
		n = b.end_pfn - (pfn + i);
		if (n > count - i)
			n = count - i;
		apply(l, &b, page, n, classes + i, native64);
		i += n;
	}
	*block = b;
}

int vmf_classify(const struct vmf_page_layout *layout, const uint8_t *structs, uint64_t pfn, uint64_t count,
		 struct vmf_block *block, uint8_t *classes)
{
	const struct vmf_page_layout *l = layout;

	if (!fits(l, l->flags) || !fits(l, l->mapcount) || !fits(l, l->mapping) || !fits(l, l->private_) ||
	    !fits(l, l->tail) || !fits(l, l->order) || !fits(l, l->destructor) || l->free_orders > 64)
		return -1;
	if (is_native64(l))
		classify(l, structs, pfn, count, block, classes, 1);
	else
		classify(l, structs, pfn, count, block, classes, 0);
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
