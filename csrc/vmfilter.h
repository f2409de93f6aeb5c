/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The C core: pure functions over the caller's buffers. Nothing here opens a file, keeps a global, or trusts what a
 * dump says: what a function may touch is what its caller handed over, by the lengths that it gives. setup.py gives
 * this file, without its preprocessor lines, to cffi; so it holds plain declarations only.
 */
#ifndef VMFILTER_H
#define VMFILTER_H

#include <stddef.h>
#include <stdint.h>

/* What a page frame was used for: one byte a frame. The numbers are those of vmfilter.levels.PageClass. */
enum vmf_class {
	VMF_HOLE = 0,
	VMF_KERNEL = 1,
	VMF_CACHE = 2,
	VMF_CACHE_PRIVATE = 3,
	VMF_USER = 4,
	VMF_FREE = 5,
	VMF_HWPOISON = 6,
	VMF_OFFLINE = 7,
	VMF_PMEM_METADATA = 8,
	VMF_PMEM_USERDATA = 9,
	VMF_EXCLUDED = 10,
	VMF_CLASSES = 11
};

/* A page type is there where (_mapcount & mask) == value; {1, 0} matches nothing. */
struct vmf_page_type {
	uint32_t value, mask;
};

/* An unsigned field of a struct page: width is 0 (there is none), 1, 2, 4 or 8 bytes. */
struct vmf_field {
	uint32_t offset, width;
};

/* How one kernel keeps its struct pages. Masks of 0 are flags that this kernel does not have. */
struct vmf_page_layout {
	uint32_t size;			/* of a struct page, bytes */
	uint32_t swap;			/* not in this machine's byte order */
	struct vmf_field flags, mapcount, mapping, private_, tail;
	uint64_t lru, private_data, swapcache, slab, hwpoison, head;	/* in flags; swapcache needs all its bits */
	uint64_t tail_mask;		/* in the field tail: this is a tail page */
	struct vmf_page_type buddy, hugetlb, offline, unaccepted;
	struct vmf_field order;		/* of a compound page, in its first tail page */
	struct vmf_field destructor;	/* likewise: hugetlb where (field & mask) == value */
	uint64_t destructor_value, destructor_mask;
	uint32_t free_orders;		/* orders that a free block can have: LENGTH(zone.free_area) */
};

/* The block of pages (compound or free) that goes on past the structs of one call into the next. */
struct vmf_block {
	uint64_t end_pfn;		/* first frame after it */
	uint32_t page_class;
	uint32_t tails_alike;		/* its tails' own flags say nothing (hugetlb) */
};

/*
 * Gives each of count frames from pfn its class. structs: their struct pages, count * layout->size bytes.
 * classes: one byte a frame, in and out; only those that are VMF_KERNEL are changed, and VMF_PMEM_USERDATA to
 * VMF_HWPOISON. Returns 0, or -1 where the layout points outside the struct page.
 */
int vmf_classify(const struct vmf_page_layout *layout, const uint8_t *structs, uint64_t pfn, uint64_t count,
		 struct vmf_block *block, uint8_t *classes);

/* 1 where each of count struct pages has one of these flags. The layout is one that vmf_classify() takes. */
int vmf_all_have(const struct vmf_page_layout *layout, const uint8_t *structs, uint64_t count, uint64_t flags);

/* counts[classes[i]] += 1 for each i; classes out of range count as VMF_KERNEL. */
void vmf_count(const uint8_t *classes, uint64_t count, uint64_t counts[11]);

/* Bit i of bits (least significant first) = chosen[classes[i]] != 0. bits: (count + 7) / 8 bytes. */
void vmf_bitmap(const uint8_t *classes, uint64_t count, const uint8_t chosen[256], uint8_t *bits);

/* Number of set bits among the first count. */
uint64_t vmf_rank(const uint8_t *bits, uint64_t count);

/*
 * Runs of set bits from bit *next on: pairs (first bit, length) to runs, at most max_runs pairs. *next becomes where
 * to go on, count at the end. Returns the number of pairs.
 */
uint64_t vmf_runs(const uint8_t *bits, uint64_t count, uint64_t *next, uint64_t *runs, uint64_t max_runs);

/* One level of a page table: an entry e is there where it is not 0 and (e & present_mask) == present_value, and so on. */
struct vmf_table_level {
	uint32_t shift;			/* log2 of what one entry maps */
	uint64_t present_mask, present_value;
	uint64_t leaf_mask, leaf_value;	/* an entry that maps memory itself */
	uint64_t leaf_address, table_address;	/* the address bits of either kind */
};

struct vmf_paging {
	uint32_t swap;			/* entries are not in this machine's byte order */
	uint32_t entry_size;		/* 4 or 8 bytes */
	uint32_t address_shift;		/* an entry's address bits are to be shifted left by this */
	uint32_t high_shift;		/* and these more by that */
	uint64_t high_mask;
	uint64_t block_mask;		/* a leaf with this bit is one of those that map an aligned block of */
	uint64_t block_size;		/* so many bytes together, all with the block's address */
	struct vmf_table_level levels[6];	/* the last table first */
};

struct vmf_mapping {
	uint64_t vaddr, length, paddr;	/* of memory; for a table: paddr is the table's address */
	uint32_t is_table, reserved;
};

/*
 * Count entries of one table, from table on, to mappings; those of memory that follow each other are one. vaddr: what
 * the first of them maps. Returns how many, -1 where max is too few or the paging form cannot be.
 */
int64_t vmf_decode_table(const struct vmf_paging *paging, uint32_t level, const uint8_t *table, uint64_t count,
			 uint64_t vaddr, struct vmf_mapping *mappings, uint64_t max);

/*
 * Offset of the first text, of 4 bytes or more, looked for at multiples of 4 from at (one, too) on; size where there is
 * none. At the end of data as much of it as there is will do, 4 bytes at least.
 */
uint64_t vmf_find_text(const uint8_t *data, uint64_t size, uint64_t at, const uint8_t *text, uint64_t length);

/* A page codec, with what it keeps between pages. One thread at a time. */
struct vmf_codec;

/* The codecs built in and their libraries, one after the other, the best library of a codec first; NULL at the end. */
const char *vmf_codec_name(uint32_t i);
const char *vmf_codec_library(uint32_t i);

/* 1 where the codec is built in, with this level. */
int vmf_codec_supports(const char *name, int level);

/* NULL where the codec is not built in, not with this level, or there is no memory. */
struct vmf_codec *vmf_codec_new(const char *name, int level, uint32_t page_size);
void vmf_codec_free(struct vmf_codec *codec);

/*
 * Compresses count pages, one after the other, to out. sizes[i]: page i's bytes in out; page_size where it
 * is stored raw (it did not get smaller), 0 for a zero page that is left out (only with skip_zero). Returns the bytes
 * written, -1 where out (out_size bytes) is less than count * page_size, -2 where the library failed.
 */
int64_t vmf_pack(struct vmf_codec *codec, const uint8_t *pages, uint64_t count, uint32_t page_size, int skip_zero,
		 uint8_t *out, uint64_t out_size, uint32_t *sizes);

/* 1 where all size bytes are zero. */
int vmf_is_zero(const uint8_t *page, uint64_t size);

/* A page descriptor of the kdump-compressed format, as this machine keeps it. */
struct vmf_descriptor {
	uint64_t offset;
	uint32_t size, flags;
	uint64_t page_flags;
};

/*
 * Descriptors of count pages whose data (sizes as vmf_pack gives them) begins at offset: raw pages have flags 0,
 * others codec_flag; zero pages share zero_offset, and page i has its data at shared[i] where that is not 0 (shared
 * may be NULL). Returns the offset after the data.
 */
uint64_t vmf_descriptors(const uint32_t *sizes, const uint64_t *shared, uint64_t count, uint32_t page_size,
			 uint64_t offset, uint64_t zero_offset, uint32_t codec_flag, int swap,
			 struct vmf_descriptor *descriptors);

/* Descriptors of a file in the other byte order become this machine's, in place. */
void vmf_swap_descriptors(struct vmf_descriptor *descriptors, uint64_t count);

/*
 * An incomplete file: clears those of the first count bits whose page is lost. The set bits have a descriptor each, in
 * order, of which there are so many; a page is lost where it has none, its offset is 0, or its data would end after
 * file_size. Returns how many are left.
 */
uint64_t vmf_drop_lost(const struct vmf_descriptor *descriptors, uint64_t descriptor_count, uint64_t file_size,
		       uint64_t count, uint8_t *bits);

/* Of each of count pages a hash of its data (sizes as vmf_pack gives them); 0 for those without. */
void vmf_hashes(const uint8_t *data, const uint32_t *sizes, uint64_t count, uint64_t *hashes);

/* A page whose data are in the file; size 0: no page. */
struct vmf_stored {
	uint64_t hash, pfn, offset;
	uint32_t size, used;	/* used: the clock when it was of use last */
};

enum vmf_kind {
	VMF_ALONE = 0,		/* its data are its own, and nobody else's */
	VMF_STORES = 1,		/* its data are its own, and in the table for those that come */
	VMF_SHARES = 2		/* its data are those of an earlier page */
};

/*
 * Looks count pages up, in order, and puts into the table those that are not there. The table has slots, a power of
 * two from 8 on, all zeros at first; where there is no room, the page goes that was of use longest ago. lowest_pfn:
 * pages before that are in another file. now: a clock that goes on by count from call to call. kinds[i]: of page i;
 * SHARES only says that hash and size are those of the page earlier[i]: the caller compares both, and makes it ALONE
 * where they differ.
 * found[i]: its slot, for vmf_dedup_place(), which is to be called before this is again.
 */
void vmf_dedup_find(struct vmf_stored *table, uint64_t slots, uint64_t lowest_pfn, uint32_t now,
		    const uint64_t *hashes, const uint32_t *sizes, const uint64_t *pfns, uint64_t count,
		    uint8_t *kinds, uint32_t *found, uint64_t *earlier);

/*
 * Takes the data of pages that share out of data, and learns where the others will be, the first at offset. shared:
 * as vmf_descriptors() wants it. Returns the bytes left.
 */
uint64_t vmf_dedup_place(struct vmf_stored *table, const uint8_t *kinds, const uint32_t *found, const uint32_t *sizes,
			 uint64_t count, uint64_t offset, uint8_t *data, uint64_t *shared);

/* Bytes of a file, and where in a buffer they are to lie. */
struct vmf_extent {
	uint64_t offset, size, at;
};

/*
 * What must be read of a file to have the data of count descriptors: extents (room for count), that lie one after the
 * other in a buffer of at most count * page_size bytes; what is shared, or near to what came before, is in one. Returns how
 * many, or UINT64_MAX - i where descriptor i is larger than a page, before the lowest offset where data can be, or
 * beyond the longest file.
 */
uint64_t vmf_extents(const struct vmf_descriptor *descriptors, uint64_t count, uint32_t page_size, uint64_t lowest,
		     struct vmf_extent *extents);

/* Decompresses pages. One thread at a time. */
struct vmf_decoder;

/* 1 where pages with this flag in their descriptor can be decompressed here. */
int vmf_decodes(uint32_t flag);

/* NULL where there is no memory. */
struct vmf_decoder *vmf_decoder_new(uint32_t page_size);
void vmf_decoder_free(struct vmf_decoder *decoder);

/*
 * Pages of count descriptors, one after the other, from data that has their extents. Returns how many are done: fewer
 * than count where the next one's data is damaged, or of a codec that is not decoded here.
 */
uint64_t vmf_unpack(struct vmf_decoder *decoder, const struct vmf_descriptor *descriptors, uint64_t count,
		    const struct vmf_extent *extents, uint64_t extent_count, const uint8_t *data, uint8_t *pages);

/*
 * Copies the data of count descriptors as they are to out (room for count pages), as vmf_pack would give them: those
 * that are compressed with the codec of codec_flag (0: none), and raw ones. Ends where one is neither, or not right.
 * *used: bytes written. *others: how many in a row are not copied after those that are, 0 at the end only. Returns how
 * many are copied.
 */
uint64_t vmf_copy(const struct vmf_descriptor *descriptors, uint64_t count, const struct vmf_extent *extents,
		  uint64_t extent_count, const uint8_t *data, uint32_t page_size, uint32_t codec_flag, int skip_zero,
		  uint8_t *out, uint32_t *sizes, uint64_t *used, uint64_t *others);

#endif
