// SPDX-License-Identifier: GPL-2.0-or-later
/* Classification of page frames by their struct pages. The rules are here; the layout tells where the members are. */
#include <string.h>

#include "bytes.h"
#include "vmfilter.h"

/* The largest compound page on any architecture is 16 GiB (hugetlb on ppc64), which is this order with 4 KiB pages. */
#define MAX_COMPOUND_ORDER 22

#define ANON_BIT 1u	/* PAGE_MAPPING_ANON: bit 0 of mapping in every kernel, set for KSM pages too */

#define AT_ONCE 8	/* pages of a block that are handled together: their classes fill one 64-bit word */
#define EACH 0x0101010101010101u

/* The byte of a kernel page of some kind. */
#define OF_KIND(kind) (VMF_KERNEL | (uint32_t)(kind) << 4)

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

/* Whether a page is a tail, given its member that says so: it has all bits of the mask. */
static int is_tail(const struct vmf_page_layout *l, uint64_t member)
{
	return l->tail_mask && (member & l->tail_mask) == l->tail_mask;
}

static int is_aligned(uint64_t pfn, uint64_t order)
{
	return (pfn & ((1ull << order) - 1)) == 0;
}

/* Returns the order of the compound page that begins at page; 0 if there is none or its order is invalid. */
static uint64_t compound_order(const struct vmf_page_layout *l, const uint8_t *page, uint64_t flags, uint64_t pfn,
			       const uint8_t *end)
{
	uint64_t order;

	if (!(flags & l->head) || is_tail(l, field(l, page, l->tail)) || page + 2ull * l->size > end)
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

/* Class and kind of a page with a page type, which overlays _mapcount. Its mapping and lru are meaningless. */
static uint32_t typed_class(const struct vmf_page_layout *l, const uint8_t *page, uint32_t mapcount, uint64_t pfn,
			    uint64_t *order)
{
	if (has_type(l->buddy, mapcount)) {
		uint64_t free_order = field(l, page, l->private_);

		if (free_order >= l->free_orders || !is_aligned(pfn, free_order))
			return VMF_KERNEL;	/* caught while a block is split or merged: in doubt, keep it */
		*order = free_order;
		return VMF_FREE;
	}
	if (has_type(l->unaccepted, mapcount)) {
		/*
		 * Since 310183de7bb2 ("mm: introduce PageUnaccepted() page type"), v6.12. An unaccepted block always
		 * has the highest order, and only its first page has the type.
		 */
		uint64_t highest = l->free_orders ? l->free_orders - 1 : 0;

		*order = is_aligned(pfn, highest) ? highest : 0;
		return VMF_FREE;
	}
	if (has_type(l->offline, mapcount))
		return VMF_OFFLINE;
	if (has_type(l->slab_type, mapcount))
		return OF_KIND(VMF_KIND_SLAB);
	return has_type(l->table, mapcount) ? OF_KIND(VMF_KIND_TABLE) : VMF_KERNEL;
}

INLINE uint32_t untyped_class(const struct vmf_page_layout *l, const uint8_t *page, uint64_t flags, int native64)
{
	if (is_tail(l, word(l, page, l->tail, native64)))
		return VMF_KERNEL;	/* a tail without its head: its members belong to the compound page */
	if (word(l, page, l->mapping, native64) & ANON_BIT)
		return VMF_USER;
	if (!(flags & l->lru) && (!l->swapcache || (flags & l->swapcache) != l->swapcache))
		return VMF_KERNEL;
	return flags & l->private_data ? VMF_CACHE_PRIVATE : VMF_CACHE;
}

/* Returns the block that begins at page: a compound page, a free block, or a single page. */
INLINE struct vmf_block block_at(const struct vmf_page_layout *l, const uint8_t *page, uint64_t pfn, const uint8_t *end,
				 int native64)
{
	struct vmf_block b = {0, VMF_KERNEL, 0};
	uint64_t flags = word(l, page, l->flags, native64), order = compound_order(l, page, flags, pfn, end);
	uint32_t mapcount = mapcount_of(l, page, native64);

	/* Test for slab before page types: up to v4.17, the counters of SLUB overlay _mapcount. */
	if (flags & l->slab)
		b.byte = OF_KIND(VMF_KIND_SLAB);
	else if (is_hugetlb(l, page, mapcount, order)) {
		/*
		 * Of a hugetlb page, only the head has PG_hwpoison. A separate list records the bad pages since
		 * 161df60e9e89 ("mm, hwpoison, hugetlb: support saving mechanism of raw error pages"), v6.0.
		 *
		 * Ignore the flags of the tails: their struct pages can alias others since f41f2ed43ca5 ("mm: hugetlb:
		 * free the vmemmap pages associated with each HugeTLB page"), v5.14. From e7d324850bfc ("mm: hugetlb:
		 * free the 2nd vmemmap page associated with each HugeTLB page"), v5.18, until 622026e87c40
		 * ("mm/hugetlb: remove fake head pages"), v7.1, they can alias the head and so look like heads.
		 */
		b.byte = flags & l->hwpoison ? VMF_HWPOISON : VMF_USER;
		b.ignore_tail_flags = 1;
	} else if ((int32_t)mapcount < -1) {
		b.byte = typed_class(l, page, mapcount, pfn, &order);
	} else {
		b.byte = untyped_class(l, page, flags, native64);
		/* Only hugetlb pages can be larger than the largest block of the buddy allocator. */
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

/* Gives class c to AT_ONCE page frames, none of them hwpoisoned. */
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

/* Gives count page frames the class of the block; hwpoisoned ones become VMF_HWPOISON. */
INLINE void apply(const struct vmf_page_layout *l, const struct vmf_block *b, const uint8_t *structs, uint64_t count,
		  uint8_t *classes, int native64)
{
	const uint64_t poison = b->ignore_tail_flags ? 0 : l->hwpoison, size = l->size;
	const uint8_t c = (uint8_t)b->byte;

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
 * Whether the page is a single page of no special kind: not a head, slab, hwpoisoned or reserved, and without a page
 * type. Most pages of a busy machine are. The caller then skips block_at(), which would return order 0 and untyped_class().
 */
INLINE int is_plain(const struct vmf_page_layout *l, uint64_t flags, uint32_t mapcount)
{
	return !(flags & (l->head | l->slab | l->hwpoison | l->reserved)) && (int32_t)mapcount >= -1 &&
	       !has_type(l->hugetlb, mapcount);
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
			if (is_plain(l, flags & ~l->reserved, mapcount)) {	/* never cache or anonymous */
				give(classes + i++, OF_KIND(VMF_KIND_RESERVED));
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
