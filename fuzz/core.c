// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Fuzz targets of the C core, for libFuzzer. FUZZ_TARGET in the environment names one of targets[], at the end.
 *
 * A target reads the arguments of one function, or of a few that belong together, from the input. It keeps what callers
 * promise, such as the sizes of buffers; everything that a dump contains is hostile. Each buffer has its exact size, so
 * that ASan notices every byte beyond it. If there is plainer code, it must give the same results.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmfilter.h"

#define EXPECT(condition)                                                                                              \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                      \
			abort();                                                                                       \
		}                                                                                                      \
	} while (0)

struct input {
	const uint8_t *data;
	size_t left;
};

/* Copies size bytes of the input; after its end, zeros. */
static void take_into(struct input *in, void *out, size_t size)
{
	size_t n = size < in->left ? size : in->left;

	memset(out, 0, size);
	if (n)
		memcpy(out, in->data, n);
	in->data += n;
	in->left -= n;
}

static uint64_t take(struct input *in, size_t size)
{
	uint64_t v = 0;

	take_into(in, &v, size);
	return v;
}

static uint64_t below(struct input *in, uint64_t limit)
{
	return take(in, limit > 256 ? 4 : 1) % limit;
}

/* Returns a number that is often near a power of two. */
static uint64_t number(struct input *in)
{
	uint64_t kind = take(in, 1);

	if (kind < 64)
		return 1ull << kind;
	if (kind < 128)
		return (1ull << (kind - 64)) - 1;
	return kind < 192 ? take(in, 2) : take(in, 8);
}

static void *allocate(size_t size)
{
	void *p = malloc(size ? size : 1);

	EXPECT(p);
	return p;
}

static void *bytes(struct input *in, size_t size)
{
	void *p = allocate(size);

	take_into(in, p, size);
	return p;
}

enum { GUARD = 64 };

/* Returns a buffer for a library, whose writes ASan does not see. */
static uint8_t *guarded(size_t size)
{
	uint8_t *p = allocate(size + GUARD);

	memset(p + size, 0x5a, GUARD);
	return p;
}

static void free_guarded(uint8_t *p, size_t size)
{
	for (int i = 0; i < GUARD; i++)
		EXPECT(p[size + i] == 0x5a);
	free(p);
}

/* classify.c */

static struct vmf_field any_field(struct input *in)
{
	static const uint32_t widths[] = {0, 1, 2, 4, 8, 8, 3, 16};
	struct vmf_field f = {(uint32_t)below(in, 80), widths[below(in, 8)]};

	if (below(in, 32) == 0)
		f.offset = (uint32_t)number(in);
	return f;
}

static void any_layout(struct input *in, struct vmf_page_layout *l)
{
	take_into(in, l, sizeof(*l));
	l->size = 1 + (uint32_t)below(in, 128);
	l->swap = (uint32_t)below(in, 2);
	l->flags = any_field(in);
	l->mapcount = any_field(in);
	l->mapping = any_field(in);
	l->private_ = any_field(in);
	l->tail = any_field(in);
	l->refcount = any_field(in);
	l->next = any_field(in);
	l->prev = any_field(in);
	l->order = any_field(in);
	l->destructor = any_field(in);
	l->free_orders = (uint32_t)below(in, 70);
}

static struct vmf_lists any_lists(struct input *in)
{
	struct vmf_lists lists = {0};

	take_into(in, &lists.areas, sizeof(lists.areas));
	lists.areas.count = (uint32_t)below(in, VMF_AREAS + 1);
	return lists;
}

static void check_zones(const struct vmf_page_layout *l, const uint8_t *structs, uint64_t count, const uint8_t *classes,
			uint32_t shift, uint64_t mask)
{
	uint64_t runs[2 * 7], next = 0, at = 0, n;

	while ((n = vmf_zone_runs(l, structs, count, classes, shift, mask, &next, runs, 7)))
		for (uint64_t i = 0; i < n; i++) {
			EXPECT(runs[2 * i] >= at && runs[2 * i] < count && classes[runs[2 * i]] != VMF_HOLE);
			EXPECT((runs[2 * i + 1] & ~mask) == 0);
			at = runs[2 * i] + 1;
		}
}

static void classify_any(struct input *in)
{
	struct vmf_page_layout l;
	struct vmf_lists lists = any_lists(in);
	struct vmf_verdict verdict = {0};
	struct vmf_block block = {number(in), (uint32_t)take(in, 1), (uint32_t)below(in, 2)};
	uint64_t pfn = number(in), count, flags = number(in);
	uint8_t *structs, *classes;

	any_layout(in, &l);
	count = in->left / (l.size + 1);
	classes = bytes(in, count);
	structs = bytes(in, count * l.size);
	vmf_classify(&l, structs, pfn, count, &block, &lists, classes);
	vmf_check(&l, &lists.areas, structs, count, classes, &verdict);
	vmf_all_have(&l, structs, count, flags);
	check_zones(&l, structs, count, classes, (uint32_t)(flags & 127), pfn);
	free(structs);
	free(classes);
}

/* Struct pages in a file get the same classes, wherever it has them, if no tail is silent. */
static void classify_in_file(struct input *in)
{
	struct vmf_page_layout l;
	struct vmf_lists lists = any_lists(in), lists_in_file = lists;
	struct vmf_block block = {0}, block_in_file = {0};
	uint64_t pfn = below(in, 1 << 20), count, cut, size;
	struct vmf_extent extents[2];
	uint8_t *structs, *classes, *found, *buffer;
	int fd = memfd_create("structs", 0);

	any_layout(in, &l);
	l.hugetlb = (struct vmf_page_type){1, 0};	/* its tails are silent */
	l.destructor.width = 0;
	l.silent_tails = below(in, 4) == 0;
	count = in->left / l.size;
	size = count * l.size;
	cut = size ? below(in, size) : 0;
	structs = bytes(in, size);
	extents[0] = (struct vmf_extent){size - cut, cut, 0};
	extents[1] = (struct vmf_extent){0, size - cut, cut};
	EXPECT(fd >= 0 && pwrite(fd, structs, cut, (off_t)(size - cut)) == (ssize_t)cut);
	EXPECT(pwrite(fd, structs + cut, size - cut, 0) == (ssize_t)(size - cut));
	classes = allocate(count);
	found = allocate(count);
	buffer = allocate(16 * l.size);
	memset(classes, VMF_KERNEL, count);
	memset(found, VMF_KERNEL, count);
	if (!vmf_classify(&l, structs, pfn, count, &block, &lists, classes)) {
		EXPECT(vmf_classify_file(&l, fd, extents, 2, pfn, count, 0, &block_in_file, &lists_in_file, buffer,
					 16 * l.size, found) == (int64_t)count);
		EXPECT(l.silent_tails || !memcmp(classes, found, count));
		EXPECT(l.silent_tails || !memcmp(&lists, &lists_in_file, sizeof(lists)));
	}
	close(fd);
	free(structs);
	free(classes);
	free(found);
	free(buffer);
}

static void swap_words(uint8_t *structs, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++, structs += 64) {
		for (int at = 0; at < 64; at += 8) {
			uint64_t v;

			memcpy(&v, structs + at, 8);
			v = __builtin_bswap64(v);
			if (at == 48)	/* two members of 4 bytes */
				v = v << 32 | v >> 32;
			memcpy(structs + at, &v, 8);
		}
	}
}

/* Both byte orders of the same struct pages get the same classes: the rules are compiled twice. */
static void classify_swapped(struct input *in)
{
	struct vmf_page_layout l;
	struct vmf_block one = {0}, two = {0};
	struct vmf_lists free_one = any_lists(in), free_two = free_one;
	struct vmf_verdict said_one = {0}, said_two = {0};
	uint64_t pfn = below(in, 1 << 20), count;
	uint8_t *structs, *a, *b;

	take_into(in, &l, sizeof(l));
	l.size = 64;
	l.swap = 0;
	l.flags = (struct vmf_field){0, 8};
	l.tail = (struct vmf_field){8, 8};
	l.mapping = (struct vmf_field){24, 8};
	l.private_ = (struct vmf_field){40, 8};
	l.mapcount = (struct vmf_field){48, 4};
	l.refcount = (struct vmf_field){52, below(in, 2) ? 4 : 0};
	l.next = (struct vmf_field){8, 8};
	l.prev = (struct vmf_field){16, 8};
	l.order = (struct vmf_field){0, 1};
	l.destructor = (struct vmf_field){16, (uint32_t)below(in, 2)};
	l.free_orders = (uint32_t)below(in, 65);
	count = in->left / 64;
	structs = bytes(in, count * 64);
	a = allocate(count);
	b = allocate(count);
	memset(a, VMF_KERNEL, count);
	memset(b, VMF_KERNEL, count);
	EXPECT(vmf_classify(&l, structs, pfn, count, &one, &free_one, a) == 0);
	EXPECT(vmf_check(&l, &free_one.areas, structs, count, a, &said_one) == 0);
	swap_words(structs, count);
	l.swap = 1;
	l.order.offset = 7;
	l.destructor.offset = 23;
	EXPECT(vmf_classify(&l, structs, pfn, count, &two, &free_two, b) == 0);
	EXPECT(vmf_check(&l, &free_two.areas, structs, count, b, &said_two) == 0);
	EXPECT(!memcmp(a, b, count) && one.end_pfn == two.end_pfn && one.byte == two.byte);
	EXPECT(!memcmp(&free_one, &free_two, sizeof(free_one)) && !memcmp(&said_one, &said_two, sizeof(said_one)));
	free(structs);
	free(a);
	free(b);
}

static void classify(struct input *in)
{
	static void (*const parts[])(struct input *) = {classify_any, classify_swapped, classify_in_file};

	parts[below(in, 3)](in);
}

/* tables.c */

static void tables(struct input *in)
{
	struct vmf_paging p;
	uint64_t count, max = below(in, 600), vaddr = number(in);
	uint32_t level = (uint32_t)below(in, 8);
	struct vmf_mapping *out = allocate(max * sizeof(*out));
	uint8_t *table;

	take_into(in, &p, sizeof(p));
	p.entry_size = below(in, 8) ? 4 << below(in, 2) : (uint32_t)number(in);
	p.address_shift = (uint32_t)below(in, 66);
	p.high_shift = (uint32_t)below(in, 66);
	for (int i = 0; i < 6; i++) {
		p.levels[i].shift = (uint32_t)below(in, 66);
		p.levels[i].bits = (uint32_t)below(in, 66);
	}
	count = in->left / (p.entry_size == 4 ? 4 : 8);
	table = bytes(in, count * (p.entry_size == 4 ? 4 : 8));
	EXPECT(vmf_decode_table(&p, level, table, count, vaddr, out, max) <= (int64_t)max);
	free(table);
	free(out);
}

/* bitmap.c */

static int bit(const uint8_t *bits, uint64_t i)
{
	return bits[i / 8] >> (i % 8) & 1;
}

static void check_runs(const uint8_t *bits, uint64_t count, uint64_t max)
{
	uint64_t *runs = allocate(16 * max), next = 0, at = 0, n;

	while ((n = vmf_runs(bits, count, &next, runs, max))) {
		for (uint64_t i = 0; i < n; i++) {
			for (; at < runs[2 * i]; at++)
				EXPECT(!bit(bits, at));
			for (; at < runs[2 * i] + runs[2 * i + 1]; at++)
				EXPECT(bit(bits, at));
		}
	}
	EXPECT(next == count);
	for (; at < count; at++)
		EXPECT(!bit(bits, at));
	free(runs);
}

static void check_ranked(const uint8_t *classes, uint64_t count, const uint8_t *rank_of, uint32_t limit, uint64_t max)
{
	struct vmf_ranked_run *runs = allocate(max * sizeof(*runs)), *scratch = allocate(max * sizeof(*runs));
	uint64_t counts[VMF_RANKS], n, total = 0;

	n = vmf_ranked_runs(classes, count, rank_of, limit, runs, scratch, max, counts);
	for (uint32_t r = 0; r < VMF_RANKS && r < limit; r++)
		total += counts[r];
	EXPECT(n == (total < max ? total : max));
	for (uint64_t i = 0; i < n; i++) {
		EXPECT(!i || runs[i - 1].rank <= runs[i].rank);
		for (uint64_t k = 0; k < runs[i].count; k++)
			EXPECT(rank_of[classes[runs[i].first + k]] == runs[i].rank);
	}
	free(runs);
	free(scratch);
}

static void check_class_runs(const uint8_t *classes, uint64_t count, uint64_t max)
{
	uint64_t *runs = allocate(16 * max), next = 0, at = 0, n, byte = 256;

	while ((n = vmf_class_runs(classes, count, &next, runs, max)))
		for (uint64_t i = 0; i < n; i++) {
			for (; at < runs[2 * i]; at++)
				EXPECT(classes[at] == byte);
			EXPECT(runs[2 * i + 1] != byte);
			byte = runs[2 * i + 1];
			EXPECT(classes[at] == byte);
		}
	EXPECT(next == count);
	for (; at < count; at++)
		EXPECT(classes[at] == byte);
	free(runs);
}

static void bitmap(struct input *in)
{
	uint8_t kept[256], ranks[256], *classes, *bits;
	uint64_t counts[256] = {0}, plain[256] = {0}, set = 0, count, max = 1 + below(in, 40), limit = below(in, 20);

	for (int i = 0; i < 256; i += 16) {
		memset(kept + i, (int)below(in, 2), 16);
		memset(ranks + i, (int)below(in, 18), 16);
	}
	take_into(in, kept, below(in, 256));
	count = in->left;
	classes = bytes(in, count);
	bits = allocate((count + 7) / 8);
	vmf_count(classes, count, counts);
	vmf_bitmap(classes, count, kept, bits);
	for (uint64_t i = 0; i < count; i++) {
		plain[classes[i]]++;
		set += bit(bits, i);
		EXPECT(bit(bits, i) == (kept[classes[i]] != 0));
	}
	EXPECT(!memcmp(counts, plain, sizeof(plain)));
	EXPECT(vmf_rank(bits, count) == set);
	check_runs(bits, count, max);
	check_class_runs(classes, count, max);
	check_ranked(classes, count, ranks, (uint32_t)limit, max);
	free(bits);
	free(classes);
}

/* kdump.c */

static struct vmf_descriptor *any_descriptors(struct input *in, uint64_t count, uint64_t file_size, uint32_t page_size)
{
	static const uint32_t flags[] = {0, 0, 1, 2, 4, 32, 64, 8};
	struct vmf_descriptor *d = allocate(count * sizeof(*d));

	for (uint64_t i = 0; i < count; i++) {
		d[i] = (struct vmf_descriptor){below(in, file_size + 1), page_size, flags[below(in, 8)], 0};
		if (d[i].flags)
			d[i].size = (uint32_t)below(in, page_size + 1);
		if (below(in, 64) == 0)
			d[i].offset = number(in);
		if (below(in, 64) == 0)
			d[i].size = (uint32_t)number(in);
	}
	return d;
}

/* Returns the number of extents, and checks what vmf_extents() promises; 0 if a descriptor is invalid. */
static uint64_t checked_extents(const struct vmf_descriptor *d, uint64_t count, uint32_t page_size, uint64_t lowest,
				struct vmf_extent *extents)
{
	uint64_t n = vmf_extents(d, count, page_size, lowest, extents), at = 0;

	if (n > count) {
		EXPECT(UINT64_MAX - n < count);
		return 0;
	}
	for (uint64_t i = 0; i < n; i++) {
		EXPECT(extents[i].at == at && extents[i].offset >= lowest);
		at += extents[i].size;
	}
	EXPECT(at <= count * page_size);
	return n;
}

static void check_drop_lost(const struct vmf_descriptor *d, uint64_t known, uint64_t file_size, const uint8_t *bits,
			    uint64_t count)
{
	uint8_t *left = allocate((count + 7) / 8);
	uint64_t seen = 0;

	memcpy(left, bits, (count + 7) / 8);
	EXPECT(vmf_drop_lost(d, known, file_size, count, left) == vmf_rank(left, count));
	for (uint64_t i = 0; i < count; i++) {
		int there = 0;

		if (bit(bits, i)) {
			there = seen < known && d[seen].offset && d[seen].offset <= file_size &&
				d[seen].size <= file_size - d[seen].offset;
			seen++;
		}
		EXPECT(bit(left, i) == there);
	}
	free(left);
}

static void descriptors(struct input *in)
{
	uint32_t page_size = 1u << (8 + below(in, 9));
	uint64_t count = below(in, 64), file_size = below(in, 1 << 16), frames = below(in, 300), lowest = below(in, 512);
	struct vmf_descriptor *d = any_descriptors(in, count, file_size, page_size), *twice;
	struct vmf_extent *extents = allocate(count * sizeof(*extents));
	uint8_t *bits = bytes(in, (frames + 7) / 8);

	checked_extents(d, count, page_size, lowest, extents);
	check_drop_lost(d, count, file_size, bits, frames);
	twice = allocate(count * sizeof(*twice));
	memcpy(twice, d, count * sizeof(*d));
	vmf_swap_descriptors(twice, count);
	vmf_swap_descriptors(twice, count);
	EXPECT(!memcmp(twice, d, count * sizeof(*d)));
	free(twice);
	free(bits);
	free(extents);
	free(d);
}

/* decode.c, codec.c */

/* Returns the contents of extents of a file whose bytes after its end are zeros. */
static uint8_t *contents_of(const struct vmf_extent *extents, uint64_t n, const uint8_t *file, uint64_t file_size)
{
	uint64_t size = n ? extents[n - 1].at + extents[n - 1].size : 0;
	uint8_t *data = allocate(size);

	memset(data, 0, size);
	for (uint64_t i = 0; i < n; i++) {
		const struct vmf_extent *e = &extents[i];

		if (e->offset < file_size)
			memcpy(data + e->at, file + e->offset,
			       e->size < file_size - e->offset ? e->size : file_size - e->offset);
	}
	return data;
}

static void decode_all(const struct vmf_descriptor *d, uint64_t count, const struct vmf_extent *extents, uint64_t n,
		       const uint8_t *data, uint32_t page_size, uint8_t *pages)
{
	struct vmf_decoder *decoder = vmf_decoder_new(page_size);
	uint64_t done = 0;

	EXPECT(decoder);
	while (done < count) {	/* each page that cannot be decompressed is passed over */
		done += vmf_unpack(decoder, d + done, count - done, extents, n, data, pages + done * page_size);
		done += done < count;
	}
	vmf_decoder_free(decoder);
}

static void copy_all(const struct vmf_descriptor *d, uint64_t count, const struct vmf_extent *extents, uint64_t n,
		     const uint8_t *data, uint32_t page_size, uint32_t flag, int skip_zero)
{
	uint8_t *out = allocate(count * page_size);
	uint32_t *sizes = allocate(count * sizeof(*sizes));
	uint64_t done = 0, copied, used, others;

	while (done < count) {
		copied = vmf_copy(d + done, count - done, extents, n, data, page_size, flag, skip_zero, out, sizes,
				  &used, &others);
		EXPECT(copied + others <= count - done && copied + others > 0);
		EXPECT(used <= copied * page_size);
		done += copied + others;
	}
	free(sizes);
	free(out);
}

static void decode(struct input *in)
{
	uint32_t page_size = 1u << (8 + below(in, 9)), flag = 1u << below(in, 8);
	uint64_t count = below(in, 16), damaged = below(in, 8), n, size = in->left;
	struct vmf_descriptor *d = any_descriptors(in, count, size, page_size);
	struct vmf_extent *extents = allocate(count * sizeof(*extents));
	uint8_t *file, *data, *pages = guarded(count * page_size);

	size = in->left;
	file = bytes(in, size);
	n = checked_extents(d, count, page_size, 0, extents);
	if (n && damaged)	/* as if a descriptor had changed since */
		extents[n - 1].size -= damaged % (extents[n - 1].size + 1);
	data = contents_of(extents, n, file, size);
	decode_all(d, count, extents, n, data, page_size, pages);
	copy_all(d, count, extents, n, data, page_size, flag, (int)(flag & 1));
	free_guarded(pages, count * page_size);
	free(data);
	free(file);
	free(extents);
	free(d);
}

static uint32_t flag_of(const char *codec)
{
	static const struct {
		const char *name;
		uint32_t flag;
	} known[] = {{"none", 0}, {"zlib", 1}, {"lzo", 2}, {"snappy", 4}, {"zstd", 32}, {"lz4", 64}};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (!strcmp(known[i].name, codec))
			return known[i].flag;
	abort();
}

/* Pages come back as they were; after damage to the compressed data, nothing breaks. */
static void codec(struct input *in)
{
	uint32_t page_size = 1u << (8 + below(in, 9)), which = (uint32_t)below(in, 7), index = 0;
	int level = below(in, 2) ? (int)below(in, 20) : 0, skip_zero = (int)below(in, 2);
	uint64_t count, damaged = below(in, 8);
	struct vmf_codec *c;

	while (which && vmf_codec_name(index + 1))
		which--, index++;
	c = vmf_codec_new(vmf_codec_name(index), level, page_size);
	if (!c)
		return;
	count = in->left < page_size ? 1 : in->left / page_size;
	count = count < 16 ? count : 16;
	uint64_t room = count * page_size + below(in, 3) * page_size;
	uint8_t *pages = bytes(in, count * page_size), *out = guarded(room), *back = guarded(count * page_size);
	uint32_t *sizes = allocate(count * sizeof(*sizes));
	struct vmf_descriptor *d = allocate(count * sizeof(*d));
	struct vmf_extent *extents = allocate(count * sizeof(*extents));
	int64_t used = vmf_pack(c, pages, count, page_size, skip_zero, out, room, sizes);
	uint64_t zero[256] = {0}, skipped = 0;

	vmf_count_zero(pages, count, page_size, pages, zero);
	for (uint64_t i = 0; i < count; i++)
		skipped += !sizes[i];
	for (int i = 0; i < 256; i++)
		skipped -= skip_zero ? zero[i] : 0;
	EXPECT(!skip_zero || !skipped);
	EXPECT(used >= 0 && (uint64_t)used <= count * page_size);
	/* All zero pages share a page of zeros, after the data here. */
	vmf_descriptors(sizes, NULL, count, page_size, 0, (uint64_t)used, flag_of(vmf_codec_name(index)), 0, d);
	uint64_t n = checked_extents(d, count, page_size, 0, extents);
	uint8_t *data = contents_of(extents, n, out, (uint64_t)used);

	decode_all(d, count, extents, n, data, page_size, back);
	EXPECT(!memcmp(back, pages, count * page_size));
	for (; damaged && used; damaged--)
		data[below(in, (uint64_t)used)] ^= (uint8_t)(1 + below(in, 255));
	decode_all(d, count, extents, n, data, page_size, back);
	free(data);
	free(extents);
	free(d);
	free(sizes);
	free_guarded(back, count * page_size);
	free_guarded(out, room);
	free(pages);
	vmf_codec_free(c);
}

/* dedup.c */

enum { PAGES = 64, SMALL = 40 };

struct stored_file {
	uint8_t data[PAGES * SMALL];
	uint64_t end;
	uint8_t contents[PAGES][SMALL];	/* by page frame */
	uint32_t sizes[PAGES];
};

static void dedup_batch(struct input *in, struct vmf_stored *table, uint64_t slots, struct stored_file *file,
			uint64_t first, uint64_t count, uint64_t lowest)
{
	uint8_t *data = allocate(count * SMALL), *kinds = allocate(count);
	uint64_t *hashes = allocate(8 * count), *pfns = allocate(8 * count), *earlier = allocate(8 * count);
	uint64_t *shared = allocate(8 * count), used = 0, left;
	uint32_t *sizes = allocate(4 * count), *found = allocate(4 * count);

	for (uint64_t i = 0; i < count; i++) {
		pfns[i] = first + i;
		sizes[i] = (uint32_t)below(in, SMALL);
		memset(data + used, (int)below(in, 3), sizes[i]);
		memcpy(file->contents[pfns[i]], data + used, sizes[i]);
		file->sizes[pfns[i]] = sizes[i];
		used += sizes[i];
	}
	vmf_hashes(data, sizes, count, hashes);
	vmf_dedup_find(table, slots, lowest, (uint32_t)first, hashes, sizes, pfns, count, kinds, found, earlier);
	for (uint64_t i = 0; i < count; i++) {
		if (kinds[i] != VMF_SHARES)
			continue;
		EXPECT(earlier[i] >= lowest && file->sizes[earlier[i]] == sizes[i]);
		if (memcmp(file->contents[earlier[i]], file->contents[pfns[i]], sizes[i]))
			kinds[i] = VMF_ALONE;
	}
	left = vmf_dedup_place(table, kinds, found, sizes, count, file->end, data, shared);
	EXPECT(left <= used);
	memcpy(file->data + file->end, data, left);
	file->end += left;
	for (uint64_t i = 0; i < count; i++)
		if (kinds[i] == VMF_SHARES)
			EXPECT(!memcmp(file->data + shared[i], file->contents[pfns[i]], sizes[i]));
	free(data);
	free(kinds);
	free(hashes);
	free(pfns);
	free(earlier);
	free(shared);
	free(sizes);
	free(found);
}

static void dedup(struct input *in)
{
	uint64_t slots = 8u << below(in, 4), lowest = 0;
	struct vmf_stored *table = calloc(slots, sizeof(*table));
	struct stored_file file = {.end = 0};

	EXPECT(table);
	for (uint64_t first = 0, count; first < PAGES; first += count) {
		count = 1 + below(in, PAGES - first);
		if (below(in, 4) == 0)
			lowest = first;
		dedup_batch(in, table, slots, &file, first, count, lowest);
	}
	free(table);
}

/* checksum.c */

static void checksum(struct input *in)
{
	uint32_t shift = 4 + (uint32_t)below(in, 8);
	uint64_t at = below(in, 200), size, cut, blocks;
	uint32_t *whole, *pieces, *known;
	uint8_t *data;

	cut = below(in, 1 << 14);
	size = in->left;
	cut = cut < size ? cut : size;
	blocks = ((at + size) >> shift) + 2 & ~1ull;
	data = bytes(in, size);
	whole = calloc(blocks, 4);
	pieces = calloc(blocks, 4);
	EXPECT(whole && pieces);
	vmf_sums_add(whole, shift, at, data, size, NULL);
	vmf_sums_add(pieces, shift, at + cut, data + cut, size - cut, NULL);
	vmf_sums_add(pieces, shift, at, data, cut, NULL);
	EXPECT(!memcmp(whole, pieces, 4 * blocks));
	memset(pieces, 0, 4 * blocks);
	known = malloc(4 * (size / VMF_SUMMED + 1));
	EXPECT(known);
	vmf_sums_of(data, size, known);
	cut -= cut % VMF_SUMMED;
	vmf_sums_add(pieces, shift, at + cut, data + cut, size - cut, known + cut / VMF_SUMMED);
	vmf_sums_add(pieces, shift, at, data, cut, known);
	EXPECT(!memcmp(whole, pieces, 4 * blocks));
	memset(pieces, 0, 4 * blocks);
	vmf_sums_add(pieces, shift + 1, at, data, size, NULL);
	vmf_sums_join(whole, blocks, shift);
	EXPECT(!memcmp(whole, pieces, 4 * blocks));
	free(whole);
	free(pieces);
	free(known);
	free(data);
}

/* pieces.c */

/*
 * Places descriptors of stretches that come in any order, and gives records and checksums of them. Plainer code writes
 * each stretch to its place in a file.
 */
static void pieces(struct input *in)
{
	enum { MOST = 40, SLOTS = 8 * MOST };
	uint64_t count = below(in, MOST), origin = below(in, 100), index = 0, pages = 0, blocks, n;
	uint32_t shift = 5 + (uint32_t)below(in, 8);
	uint64_t size;
	struct vmf_stretch stretches[MOST], spare;
	struct vmf_extent *extents = allocate(count * sizeof(*extents));
	uint8_t *file, *data, *records, *r;
	struct vmf_descriptor *descriptors;
	uint32_t *whole, *parts;

	size = origin + SLOTS * sizeof(*descriptors);
	file = calloc(1, size);
	for (uint64_t i = 0; i < count; i++) {
		index += below(in, 3);
		stretches[i] = (struct vmf_stretch){index, 1 + below(in, 6), index};
		index += stretches[i].count;
		pages += stretches[i].count;
	}
	for (uint64_t i = count; i-- > 1;) {
		uint64_t j = below(in, i + 1);

		spare = stretches[i];
		stretches[i] = stretches[j];
		stretches[j] = spare;
	}
	descriptors = bytes(in, pages * sizeof(*descriptors));
	data = allocate(pages * sizeof(*descriptors));
	n = vmf_place_descriptors(stretches, count, origin, descriptors, extents, data);
	EXPECT(file && n <= count);
	pages = 0;
	for (uint64_t i = 0; i < count; i++) {
		memcpy(file + origin + stretches[i].index * sizeof(*descriptors), descriptors + pages,
		       stretches[i].count * sizeof(*descriptors));
		pages += stretches[i].count;
	}
	for (uint64_t i = 0; i < n; i++) {
		EXPECT(!memcmp(file + extents[i].offset, data + extents[i].at, extents[i].size));
		EXPECT(!i || extents[i].offset > extents[i - 1].offset + extents[i - 1].size);
	}
	records = allocate(pages * sizeof(*descriptors) + n * VMF_RECORD);
	vmf_records(extents, n, data, records);
	r = records;
	for (uint64_t i = 0; i < n; i++, r += VMF_RECORD + extents[i - 1].size) {
		uint64_t offset = 0, length = 0;

		for (int b = 0; b < 8; b++) {
			offset = offset << 8 | r[b];
			length = length << 8 | r[8 + b];
		}
		EXPECT(offset == extents[i].offset && length == extents[i].size);
		EXPECT(!memcmp(r + VMF_RECORD, file + offset, length));
	}
	blocks = (size >> shift) + 1;
	whole = calloc(blocks, 4);
	parts = calloc(blocks, 4);
	EXPECT(whole && parts);
	vmf_sums_add_pieces(parts, shift, extents, n, data);
	vmf_sums_add(whole, shift, 0, file, size, NULL);
	EXPECT(!memcmp(whole, parts, 4 * blocks));
	free(extents);
	free(file);
	free(descriptors);
	free(data);
	free(records);
	free(whole);
	free(parts);
}

/* search.c */

static uint64_t found_plainly(const uint8_t *data, uint64_t size, uint64_t at, const uint8_t *text, uint64_t length)
{
	for (; at + 4 <= size; at += 4)
		if (!memcmp(data + at, text, size - at < length ? size - at : length))
			return at;
	return size;
}

static void search(struct input *in)
{
	uint64_t length = 4 + below(in, 12), at = 4 * below(in, 64), start = number(in), count = below(in, 500), size;
	uint32_t word = below(in, 2) ? 8 : 4, shift = (uint32_t)below(in, 20);
	int swap = (int)below(in, 2);
	uint8_t *text = bytes(in, length), *bits = calloc(count / 8 + 1, 1), *data;

	size = in->left;
	data = bytes(in, size);
	EXPECT(bits);
	EXPECT(vmf_find_text(data, size, at, text, length) == found_plainly(data, size, at, text, length));
	vmf_mark_pointed(data, size, word, swap, start, count, shift, bits);
	free(data);
	free(bits);
	free(text);
}

/* mapped.c */

static void mapped(struct input *in)
{
	enum { PAGE = 4096, COUNT = 4 };
	uint64_t at = below(in, COUNT * PAGE), size = below(in, COUNT * PAGE - at + 1), readable = size;
	uint8_t *pages = mmap(NULL, COUNT * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *out = allocate(size);
	struct vmf_extent extent;

	EXPECT(pages != MAP_FAILED);
	take_into(in, pages, 64);
	for (uint64_t i = COUNT; i-- > 0;) {
		if (below(in, 3))
			continue;
		EXPECT(!mprotect(pages + i * PAGE, PAGE, PROT_NONE));
		if (at < (i + 1) * PAGE && at + size > i * PAGE)
			readable = i * PAGE > at ? i * PAGE - at : 0;
	}
	EXPECT(vmf_copy_mapped(pages + at, out, size) == (int64_t)readable);
	EXPECT(!memcmp(out, pages + at, readable));
	extent = (struct vmf_extent){(uintptr_t)(pages + at), size, 0};
	EXPECT(vmf_read_extents(-1, &extent, 1, out, size) == (readable == size));
	munmap(pages, COUNT * PAGE);
	free(out);
}

/* locate.c */

static void check_located(const uint64_t *starts, const uint64_t *ends, const uint64_t *offsets, uint64_t segments,
			  const struct vmf_stretch *s, const struct vmf_extent *found, uint64_t page, uint64_t *at)
{
	uint64_t start = s->pfn * page, size = s->count * page, inside = segments;

	for (uint64_t i = 0; i < segments; i++)
		if (starts[i] <= start && start < ends[i] && start + size <= ends[i])
			inside = i;
	EXPECT(found->at == *at);
	EXPECT(found->size == (inside < segments ? size : 0));
	EXPECT(inside == segments || found->offset == offsets[inside] + start - starts[inside]);
	*at += size;
}

static void located(struct input *in)
{
	enum { PAGE = 64 };
	uint64_t segments = below(in, 5), count = below(in, 6), address = 0, at = 0, n = 0, found;
	uint64_t *starts = allocate(8 * segments), *ends = allocate(8 * segments), *offsets = allocate(8 * segments);
	struct vmf_stretch *stretches = allocate(count * sizeof(*stretches));
	struct vmf_extent *extents = allocate(count * sizeof(*extents));

	for (uint64_t i = 0; i < segments; i++) {
		starts[i] = address += below(in, 2 * PAGE);
		ends[i] = address += 1 + below(in, 4 * PAGE);
		offsets[i] = number(in);
	}
	for (uint64_t i = 0; i < count; i++)
		stretches[i] = (struct vmf_stretch){below(in, 16), below(in, 4), number(in)};
	found = vmf_locate(starts, ends, offsets, segments, stretches, count, PAGE, extents);
	for (uint64_t i = 0; i < count; i++) {
		check_located(starts, ends, offsets, segments, &stretches[i], &extents[i], PAGE, &at);
		n += extents[i].size || (!stretches[i].count && vmf_locate(starts, ends, offsets, segments,
									   &stretches[i], 1, PAGE, &extents[i]));
	}
	EXPECT(n == found);
	free(starts);
	free(ends);
	free(offsets);
	free(stretches);
	free(extents);
}

/* Each window of a file is mapped where its offsets plus its number times APART lead. */
static void windows(struct input *in)
{
	enum { WINDOW = 64, WINDOWS = 6, APART = 1 << 20 };
	uint64_t count = below(in, 5), room = below(in, 12), used, missing = 0, at = 0, mapped = 0;
	struct vmf_window *known = allocate(WINDOWS * sizeof(*known));
	struct vmf_extent *parts = allocate(count * sizeof(*parts)), *out = allocate(room * sizeof(*out));
	int64_t n;

	for (uint64_t i = 0; i < WINDOWS; i++) {
		uint64_t size = below(in, 8) ? WINDOW : below(in, WINDOW);

		if (below(in, 4))
			known[mapped++] = (struct vmf_window){i, i * (APART + WINDOW), size};
	}
	for (uint64_t i = 0; i < count; i++) {
		parts[i] = (struct vmf_extent){below(in, WINDOWS * WINDOW), below(in, 2 * WINDOW), at};
		at += parts[i].size;
	}
	n = vmf_map_extents(parts, count, WINDOW, known, mapped, out, room, &used, &missing);
	EXPECT(n >= -2 && n <= (int64_t)room);
	for (uint64_t i = 0; n == -1 && i < mapped; i++)
		EXPECT(known[i].number != missing);
	for (uint64_t i = 0, done = 0; n >= 0 && i < count; i++)
		for (uint64_t left = parts[i].size; left; done++) {
			const struct vmf_extent *e = &out[done];
			uint64_t offset = parts[i].offset + parts[i].size - left;

			EXPECT(done < (uint64_t)n && e->size && e->size <= left);
			EXPECT(e->offset == offset + offset / WINDOW * APART);
			EXPECT(e->at == parts[i].at + parts[i].size - left);
			left -= e->size;
		}
	free(known);
	free(parts);
	free(out);
}

static const struct {
	const char *name;
	void (*run)(struct input *in);
} targets[] = {
	{"classify", classify}, {"tables", tables}, {"bitmap", bitmap},	    {"descriptors", descriptors},
	{"decode", decode},	{"codec", codec},   {"dedup", dedup},	    {"checksum", checksum},
	{"search", search},	{"mapped", mapped}, {"pieces", pieces},	    {"located", located},
	{"windows", windows},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *name = getenv("FUZZ_TARGET");
	struct input in = {data, size};

	for (size_t i = 0; i < sizeof(targets) / sizeof(targets[0]); i++)
		if (name && !strcmp(targets[i].name, name)) {
			targets[i].run(&in);
			return 0;
		}
	fprintf(stderr, "FUZZ_TARGET is not the name of a target\n");
	exit(2);
}
