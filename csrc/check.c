// SPDX-License-Identifier: GPL-2.0-or-later
/* What struct pages say besides their class: rules by which a layout that is wrong gives itself away. */
#include "page.h"

#define ZONE_BITS 1	/* at least these uppermost bits of flags name the section, node or zone of a page */

static void test(struct vmf_verdict *v, enum vmf_rule rule, int holds)
{
	v->tested[rule]++;
	v->broken[rule] += !holds;
}

/* Whether the struct page after a head is that of its first tail. */
static int has_tail(const struct vmf_page_layout *l, const uint8_t *page, const uint8_t *end)
{
	return page + 2ull * l->size <= end && is_tail(l, field(l, page + l->size, l->tail));
}

static void check_user(const struct vmf_page_layout *l, const struct vmf_areas *areas, const uint8_t *page,
		       uint64_t flags, const uint8_t *end, uint64_t order, struct vmf_verdict *v)
{
	uint64_t mapping = field(l, page, l->mapping);

	if (is_hugetlb(l, page, mapcount_of(l, page, 0), order)) {
		test(v, VMF_RULE_HUGETLB, (flags & l->head) && has_tail(l, page, end));
		return;
	}
	test(v, VMF_RULE_ANON, !areas->count || is_in(areas, mapping & ~(uint64_t)3));
	if (!(flags & l->head))	/* before 3.16, hugetlb looks like any anonymous memory */
		test(v, VMF_RULE_LRU, (flags & l->lru) != 0);
}

static void check_page(const struct vmf_page_layout *l, const struct vmf_areas *areas, const uint8_t *page,
		       const uint8_t *end, uint8_t class, struct vmf_verdict *v)
{
	uint64_t flags = field(l, page, l->flags), order;
	uint32_t mapcount = mapcount_of(l, page, 0);

	if (is_tail(l, field(l, page, l->tail)))
		return;
	/* Every multi-page head of known order has tails. The last struct page of a piece has none to look at. */
	order = compound_order(l, page, flags, 0, end);
	if (l->head && (flags & l->head) && page + 2ull * l->size <= end)
		test(v, VMF_RULE_COMPOUND, has_tail(l, page, end));
	if (flags & l->slab)
		test(v, VMF_RULE_SLAB, !(flags & l->lru));
	switch (class & 15) {
	case VMF_CACHE:
	case VMF_CACHE_PRIVATE:
		/* In the swap cache, pages of tmpfs and pages that nobody has mapped yet have no mapping. */
		if (!l->swapcache || (flags & l->swapcache) != l->swapcache)
			test(v, VMF_RULE_CACHE, !areas->count || is_in(areas, field(l, page, l->mapping)));
		break;
	case VMF_USER:
		check_user(l, areas, page, flags, end, order, v);
		break;
	case VMF_HWPOISON:
		test(v, VMF_RULE_POISON, !(flags & l->slab) && (int32_t)mapcount >= -1);
		break;
	default:
		break;
	}
}

int vmf_check(const struct vmf_page_layout *layout, const struct vmf_areas *areas, const uint8_t *structs,
	      uint64_t count, const uint8_t *classes, struct vmf_verdict *verdict)
{
	const struct vmf_page_layout *l = layout;
	const uint8_t *end = structs + count * l->size;
	struct vmf_verdict before = *verdict;
	uint32_t shift;
	uint64_t zone = 0;
	int known = 0;

	if (!is_valid(l) || !l->flags.width || areas->count > VMF_AREAS)
		return -1;
	shift = 8 * l->flags.width - ZONE_BITS;
	for (uint64_t i = 0; i < count; i++) {
		const uint8_t *page = structs + i * l->size;

		if (classes[i] == VMF_HOLE)
			continue;
		if (!known)
			zone = field(l, page, l->flags) >> shift;
		known = 1;
		test(verdict, VMF_RULE_ZONE, field(l, page, l->flags) >> shift == zone);
		check_page(l, areas, page, end, classes[i], verdict);
	}
	for (int rule = 0; rule < 8; rule++)
		verdict->calls[rule] += verdict->broken[rule] > before.broken[rule];
	return 0;
}
