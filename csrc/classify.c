// SPDX-License-Identifier: GPL-2.0-or-later
/* Classification of page frames by their struct pages. The rules are here; the layout tells where the members are. */
#include <string.h>

#include "page.h"

#define AT_ONCE 8	/* pages of a block that are handled together: their classes fill one 64-bit word */
#define WIDE 64		/* the same without struct pages */
#define HUGE_ORDER 8	/* of the smallest hugetlb page on most machines: 1 MiB on s390x */
#define EACH 0x0101010101010101u

/* Struct pages in a file: the first read after a block is small, since another block may follow. */
#define FEWEST_READ 8	/* page frames; a power of 2 */
#define GROWTH 8	/* from one read to the next */
#define FEWEST_SKIPPED 128	/* page frames; fewer struct pages are read faster than another read is made */

/* The byte of a kernel page of some kind. */
#define OF_KIND(kind) (VMF_KERNEL | (uint32_t)(kind) << 4)

/*
 * Whether a page that by its type is free or hugetlb is in a list, as all such pages are. In doubt, keep it: a block may
 * have been split or merged at the moment of the crash, or the layout is wrong and the page is something else.
 */
static int proves_itself(const struct vmf_page_layout *l, const uint8_t *page, struct vmf_lists *lists, int possible)
{
	int proven = possible && may_be_listed(l, page, &lists->areas);

	lists->refused += !proven;
	return proven;
}

static uint32_t free_class(const struct vmf_page_layout *l, const uint8_t *page, uint64_t pfn, struct vmf_lists *lists,
			   uint64_t *order)
{
	uint64_t free_order = field(l, page, l->private_);

	int is_block = free_order < VMF_ORDERS && is_aligned(pfn, free_order);

	if (!proves_itself(l, page, lists, is_block))
		return VMF_KERNEL;
	if (free_order >= l->free_orders) {
		lists->too_large++;
		return VMF_KERNEL;
	}
	lists->free_blocks[free_order]++;
	*order = free_order;
	return VMF_FREE;
}

/* Class and kind of a page with a page type, which overlays _mapcount. Its mapping is meaningless. */
static uint32_t typed_class(const struct vmf_page_layout *l, const uint8_t *page, uint64_t flags, uint32_t mapcount,
			    uint64_t pfn, struct vmf_lists *lists, uint64_t *order)
{
	if (has_type(l->buddy, mapcount))
		return free_class(l, page, pfn, lists, order);
	if (has_type(l->unaccepted, mapcount)) {
		/*
		 * Since 310183de7bb2 ("mm: introduce PageUnaccepted() page type"), v6.12. An unaccepted block always
		 * has the highest order, and only its first page has the type.
		 */
		uint64_t highest = l->free_orders ? l->free_orders - 1 : 0;

		if (!proves_itself(l, page, lists, 1))
			return VMF_KERNEL;
		*order = is_aligned(pfn, highest) ? highest : 0;
		return VMF_FREE;
	}
	if (has_type(l->offline, mapcount) && !(flags & l->head))	/* no balloon's pages are compound */
		return VMF_OFFLINE;
	if (has_type(l->slab_type, mapcount))
		return OF_KIND(VMF_KIND_SLAB);
	if (has_type(l->table, mapcount))
		return OF_KIND(VMF_KIND_TABLE);
	lists->unknown_huge += *order >= HUGE_ORDER && !has_type(l->kmalloc, mapcount);
	return VMF_KERNEL;
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

static inline void count_compound(struct vmf_lists *lists, const struct vmf_block *b, uint64_t order)
{
	if (!order)
		return;
	if (b->ignore_tail_flags)
		lists->hugetlb_blocks[order]++;
	else if (b->byte == VMF_USER)
		lists->user_blocks[order]++;
	else if (b->byte == VMF_CACHE || b->byte == VMF_CACHE_PRIVATE)
		lists->cache_blocks[order]++;
}

/* Returns the block that begins at page: a compound page, a free block, or a single page. */
INLINE struct vmf_block block_at(const struct vmf_page_layout *l, const uint8_t *page, uint64_t pfn, const uint8_t *end,
				 struct vmf_lists *lists, int native64)
{
	struct vmf_block b = {0, VMF_KERNEL, 0};
	uint64_t flags = word(l, page, l->flags, native64), order = compound_order(l, page, flags, pfn, end);
	uint32_t mapcount = mapcount_of(l, page, native64);

	/* Test for slab before page types: up to v4.17, the counters of SLUB overlay _mapcount. */
	if (flags & l->slab)
		b.byte = OF_KIND(VMF_KIND_SLAB);
	else if (is_hugetlb(l, page, mapcount, order) && (by_function(l) || proves_itself(l, page, lists, 1))) {
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
		lists->hugetlb++;
	} else if ((int32_t)mapcount < -1) {
		b.byte = typed_class(l, page, flags, mapcount, pfn, lists, &order);
	} else {
		b.byte = untyped_class(l, page, flags, native64);
		lists->unknown_huge += order >= HUGE_ORDER && b.byte == VMF_KERNEL && l->destructor.width &&
				       is_in_list(l, page, &lists->areas);
		/* Only hugetlb pages can be larger than the largest block of the buddy allocator. */
		if (order >= l->free_orders && (l->destructor.width || l->hugetlb.mask))
			order = 0;
	}
	count_compound(lists, &b, order);
	b.end_pfn = pfn + (1ull << order);
	return b;
}

static inline void give(uint8_t *class, uint8_t c)
{
	if (*class == VMF_KERNEL || (*class == VMF_PMEM_USERDATA && c == VMF_HWPOISON))
		*class = c;
}

/* Number of users of a page. In a free block, no page has any. */
INLINE uint32_t users_of(const struct vmf_page_layout *l, const uint8_t *page, int native64)
{
	return native64 ? vmf_load32(page + l->refcount.offset, 0) : (uint32_t)field(l, page, l->refcount);
}

/* Whether a page is no tail, and nobody uses it. */
INLINE int is_unused(const struct vmf_page_layout *l, const uint8_t *page, int native64)
{
	return l->refcount.width && !users_of(l, page, native64) && !is_tail(l, word(l, page, l->tail, native64)) &&
	       mapcount_of(l, page, native64) == UINT32_MAX;
}

/* Gives each page frame class c, unless its own struct page contradicts that. */
INLINE void give_each(const struct vmf_page_layout *l, uint64_t special, int unused, uint8_t c, const uint8_t *structs,
		      uint64_t count, struct vmf_lists *lists, uint8_t *classes, int native64)
{
	for (uint64_t i = 0; i < count; i++, structs += l->size) {
		uint64_t flags = word(l, structs, l->flags, native64) & special;

		if (flags & l->hwpoison)
			give(classes + i, VMF_HWPOISON);
		else if (!flags && !(unused && users_of(l, structs, native64)))
			give(classes + i, c);
		else
			lists->contradicting++;
	}
}

/* Gives class c to AT_ONCE page frames, none of them special. */
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

/*
 * Gives count page frames the class of the block. Hwpoisoned ones become VMF_HWPOISON. Reserved ones, and in a free block
 * those in use, stay the kernel's: no page in a block is either, so the block is not what its head says.
 */
INLINE void apply(const struct vmf_page_layout *l, const struct vmf_block *b, const uint8_t *structs, uint64_t count,
		  struct vmf_lists *lists, uint8_t *classes, int native64)
{
	const uint64_t special = b->ignore_tail_flags ? 0 : l->hwpoison | l->reserved, size = l->size;
	const int unused = b->byte == VMF_FREE && l->refcount.width;
	const uint8_t c = (uint8_t)b->byte;

	for (; count >= AT_ONCE; count -= AT_ONCE) {
		uint64_t flags = 0;
		uint32_t users = 0;

		for (uint64_t i = 0; special && i < AT_ONCE; i++)
			flags |= word(l, structs + i * size, l->flags, native64);
		for (uint64_t i = 0; unused && i < AT_ONCE; i++)
			users |= users_of(l, structs + i * size, native64);
		if ((flags & special) || users)
			give_each(l, special, unused, c, structs, AT_ONCE, lists, classes, native64);
		else
			give_all(c, classes);
		structs += AT_ONCE * size;
		classes += AT_ONCE;
	}
	give_each(l, special, unused, c, structs, count, lists, classes, native64);
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

INLINE void classify(const struct vmf_page_layout *l, const uint8_t *structs, uint64_t pfn, uint64_t count,
		     struct vmf_block *block, struct vmf_lists *lists, uint8_t *restrict classes, int native64)
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
				uint8_t c = (uint8_t)untyped_class(l, page, flags, native64);

				lists->unused += c == VMF_KERNEL && is_unused(l, page, native64);
				give(classes + i++, c);
				continue;
			}
			if (is_plain(l, flags & ~l->reserved, mapcount)) {	/* never cache or anonymous */
				give(classes + i++, OF_KIND(VMF_KIND_RESERVED));
				continue;
			}
			b = block_at(l, page, pfn + i, end, lists, native64);
		}
		n = b.end_pfn - (pfn + i);
		if (n > count - i)
			n = count - i;
		apply(l, &b, page, n, lists, classes + i, native64);
		i += n;
	}
	*block = b;
}

_Static_assert(sizeof(((struct vmf_lists *)0)->free_blocks) == 8 * VMF_ORDERS, "one number per order");
_Static_assert(sizeof(((struct vmf_lists *)0)->cache_blocks) > 8 * MAX_COMPOUND_ORDER, "and of all compound pages");
_Static_assert(sizeof(((struct vmf_areas *)0)->bounds) == 16 * VMF_AREAS, "two addresses per area");

int vmf_classify(const struct vmf_page_layout *layout, const uint8_t *structs, uint64_t pfn, uint64_t count,
		 struct vmf_block *block, struct vmf_lists *lists, uint8_t *classes)
{
	const struct vmf_page_layout *l = layout;

	if (!is_valid(l) || lists->areas.count > VMF_AREAS)
		return -1;
	if (is_native64(l))
		classify(l, structs, pfn, count, block, lists, classes, 1);
	else
		classify(l, structs, pfn, count, block, lists, classes, 0);
	return 0;
}

/* Gives count page frames the class of the block that they are in, without their struct pages. */
static void give_run(const struct vmf_block *b, uint64_t count, uint8_t *classes)
{
	for (; count >= WIDE; count -= WIDE, classes += WIDE) {
		uint64_t differ = 0;

		for (int i = 0; i < WIDE; i += AT_ONCE)
			differ |= vmf_load64(classes + i, 0) ^ EACH * VMF_KERNEL;
		if (!differ)
			memset(classes, (int)b->byte, WIDE);
		else
			for (int i = 0; i < WIDE; i += AT_ONCE)
				give_all((uint8_t)b->byte, classes + i);
	}
	for (; count; count--, classes++)
		give(classes, (uint8_t)b->byte);
}

/*
 * Returns how many of count page frames from pfn on need no struct page: the remaining tails of a block, if there are
 * so many that skipping them is worth another read.
 */
static uint64_t silent(const struct vmf_page_layout *l, const struct vmf_block *b, uint64_t pfn, uint64_t count,
		       const uint8_t *classes)
{
	uint64_t n = b->end_pfn > pfn ? b->end_pfn - pfn : 0;
	int by_head = b->byte == VMF_FREE || b->byte == VMF_USER || b->byte == VMF_CACHE || b->byte == VMF_CACHE_PRIVATE;

	if (n > count)
		n = count;
	if (n < FEWEST_SKIPPED || !(b->ignore_tail_flags || (l->silent_tails && by_head)))
		return 0;
	/* The counter of hwpoisoned pages counts no device memory (memory_failure_dev_pagemap()). */
	return b->ignore_tail_flags || !memchr(classes, VMF_PMEM_USERDATA, n) ? n : 0;
}

/* A place in an array that a file contains in extents. */
struct place {
	const struct vmf_extent *extent, *end;
};

/* Reads size bytes at byte `at` of the array, which is not before the place. Returns 0, or -1 if it cannot be read. */
static int read_array(int fd, struct place *place, uint64_t at, uint64_t size, uint8_t *out)
{
	while (size) {
		const struct vmf_extent *e = place->extent;
		uint64_t part = size;
		int64_t n;

		if (e == place->end || e->at > at)
			return -1;
		if (at - e->at >= e->size) {
			place->extent++;
			continue;
		}
		if (part > e->size - (at - e->at))
			part = e->size - (at - e->at);
		n = vmf_read(fd, e->offset + (at - e->at), out, part);
		if (n <= 0)
			return -1;
		at += (uint64_t)n;
		out += n;
		size -= (uint64_t)n;
	}
	return 0;
}

int64_t vmf_classify_file(const struct vmf_page_layout *layout, int fd, const struct vmf_extent *extents,
			  uint64_t extent_count, uint64_t pfn, uint64_t count, int ahead, struct vmf_block *block,
			  struct vmf_lists *lists, uint8_t *buffer, uint64_t buffer_size, uint8_t *classes)
{
	const struct vmf_page_layout *l = layout;
	struct place place = {extents, extents + extent_count};
	uint64_t done = 0, ask = FEWEST_READ, most;

	if (!is_valid(l) || lists->areas.count > VMF_AREAS || !l->size || buffer_size / l->size < FEWEST_READ)
		return -1;
	most = buffer_size / l->size & -(uint64_t)FEWEST_READ;
	while (done < count) {
		uint64_t n = silent(l, block, pfn + done, count - done, classes + done);

		if (n) {
			give_run(block, n, classes + done);
			done += n;
			ask = FEWEST_READ;
			continue;
		}
		/* A read ends at an even page frame, so that the order of each compound page is read with its head. */
		n = ask - (pfn + done) % FEWEST_READ;
		if (n > count - done)
			n = count - done;
		if (read_array(fd, &place, done * l->size, n * l->size, buffer))
			break;
		if (ahead && !done && is_tail(l, field(l, buffer, l->tail)))
			return -2;
		vmf_classify(l, buffer, pfn + done, n, block, lists, classes + done);
		done += n;
		ask = ask * GROWTH < most ? ask * GROWTH : most;
	}
	return (int64_t)done;
}

static void move(uint64_t *from, uint64_t *to)
{
	*to += *from;
	*from = 0;
}

void vmf_lists_add(struct vmf_lists *from, struct vmf_lists *to)
{
	for (unsigned order = 0; order < VMF_ORDERS; order++) {
		move(from->free_blocks + order, to->free_blocks + order);
		move(from->hugetlb_blocks + order, to->hugetlb_blocks + order);
		move(from->user_blocks + order, to->user_blocks + order);
		move(from->cache_blocks + order, to->cache_blocks + order);
	}
	move(&from->hugetlb, &to->hugetlb);
	move(&from->refused, &to->refused);
	move(&from->too_large, &to->too_large);
	move(&from->unused, &to->unused);
	move(&from->unknown_huge, &to->unknown_huge);
	move(&from->contradicting, &to->contradicting);
}

uint64_t vmf_zone_runs(const struct vmf_page_layout *layout, const uint8_t *structs, uint64_t count,
		       const uint8_t *classes, uint32_t shift, uint64_t mask, uint64_t *next, uint64_t *runs,
		       uint64_t max_runs)
{
	uint64_t n = 0, last = UINT64_MAX, i = *next;

	if (!fits(layout, layout->flags) || shift > 63)
		return 0;
	for (; i < count; i++) {
		uint64_t zone;

		if (classes[i] == VMF_HOLE)
			continue;
		zone = field(layout, structs + i * layout->size, layout->flags) >> shift & mask;
		if (zone == last)
			continue;
		if (n == max_runs)
			break;
		runs[2 * n] = i;
		runs[2 * n + 1] = last = zone;
		n++;
	}
	*next = i;
	return n;
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
