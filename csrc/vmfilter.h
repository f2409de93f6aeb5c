/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The C core: pure functions over the caller's buffers. Nothing here opens a file, keeps a global, or trusts what a
 * dump contains: a function touches only the buffers that it is given, within the lengths that it is given.
 *
 * All functions run without Python's global lock, and any number of threads may call them at once. Only struct
 * vmf_codec, struct vmf_decoder, struct vmf_block and the table of struct vmf_stored carry state between calls: each
 * belongs to one thread at a time. No buffer may overlap another.
 *
 * setup.py gives this file, without its preprocessor lines, to cffi; so it contains plain declarations only.
 * vmfilter/native.py is the only Python module that calls them.
 */
#ifndef VMFILTER_H
#define VMFILTER_H

#include <stddef.h>
#include <stdint.h>

/* What a page frame was used for: one byte a frame. vmfilter.frames.classes.PageClass has the same numbers. */
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

/* A page type is set if (_mapcount & mask) == value; {1, 0} matches nothing. */
struct vmf_page_type {
	uint32_t value, mask;
};

/* An unsigned member of a struct page: offset and width in bytes; width is 1, 2, 4, 8, or 0 for no such member. */
struct vmf_field {
	uint32_t offset, width;
};

/*
 * struct vmf_page_layout - how one kernel lays out its struct pages
 * @size: bytes of a struct page
 * @swap: 1 if its words are in the other byte order
 * @flags, @mapcount, @mapping, @private_: members
 * @tail: member that tells a tail page: (tail & @tail_mask) != 0
 * @lru, @private_data, @swapcache, @slab, @hwpoison, @head: bits of flags; 0 if this kernel has no such flag.
 *	@swapcache needs all its bits.
 * @buddy, @hugetlb, @offline, @unaccepted: page types
 * @order: member of a compound page's first tail page: its order
 * @destructor: member of the first tail page: hugetlb if (destructor & @destructor_mask) == @destructor_value
 * @free_orders: number of orders that a free block can have: LENGTH(zone.free_area)
 */
struct vmf_page_layout {
	uint32_t size;
	uint32_t swap;
	struct vmf_field flags, mapcount, mapping, private_, tail;
	uint64_t lru, private_data, swapcache, slab, hwpoison, head;
	uint64_t tail_mask;
	struct vmf_page_type buddy, hugetlb, offline, unaccepted;
	struct vmf_field order;
	struct vmf_field destructor;
	uint64_t destructor_value, destructor_mask;
	uint32_t free_orders;
};

/*
 * struct vmf_block - the block of pages (compound or free) that reaches beyond the struct pages of one call
 * @end_pfn: first frame after it
 * @page_class: its class
 * @tails_alike: 1 if the flags of its tails mean nothing (hugetlb)
 */
struct vmf_block {
	uint64_t end_pfn;
	uint32_t page_class;
	uint32_t tails_alike;
};

/*
 * vmf_classify() - give page frames their class
 * @layout: of the struct pages
 * @structs: in: struct pages, @count * layout->size bytes
 * @pfn: the first frame
 * @count: number of frames
 * @block: in and out: zeros before the first call; calls come in ascending order of frames
 * @classes: in and out: @count bytes. Only VMF_KERNEL is replaced, and VMF_PMEM_USERDATA by VMF_HWPOISON.
 *
 * Return: 0, or -1 if the layout places a member outside of the struct page; @classes is unchanged then.
 */
int vmf_classify(const struct vmf_page_layout *layout, const uint8_t *structs, uint64_t pfn, uint64_t count,
		 struct vmf_block *block, uint8_t *classes);

/*
 * vmf_all_have() - test flags of struct pages
 * @layout: of the struct pages
 * @structs: in: struct pages, @count * layout->size bytes
 * @count: number of struct pages
 * @flags: bits of flags
 *
 * Return: 1 if each struct page has at least one of the flags, else 0.
 */
int vmf_all_have(const struct vmf_page_layout *layout, const uint8_t *structs, uint64_t count, uint64_t flags);

/*
 * vmf_count() - count classes
 * @classes: in: @count bytes; a class out of range counts as VMF_KERNEL
 * @count: number of frames
 * @counts: in and out: the frames of each class are added
 */
void vmf_count(const uint8_t *classes, uint64_t count, uint64_t counts[11]);

/*
 * vmf_bitmap() - make a bitmap of classes; bit 0 of a byte is its first frame
 * @classes: in: @count bytes
 * @count: number of frames
 * @kept: in: for each class, whether its bit is set
 * @bits: out: (@count + 7) / 8 bytes; bits after the last frame are 0
 */
void vmf_bitmap(const uint8_t *classes, uint64_t count, const uint8_t kept[256], uint8_t *bits);

/*
 * vmf_rank() - count bits
 * @bits: in: at least (@count + 7) / 8 bytes
 * @count: number of bits
 *
 * Return: how many of the first @count bits are set.
 */
uint64_t vmf_rank(const uint8_t *bits, uint64_t count);

/*
 * vmf_runs() - find runs of set bits
 * @bits: in: at least (@count + 7) / 8 bytes
 * @count: number of bits
 * @next: in and out: the first bit to look at; becomes where to go on, @count at the end
 * @runs: out: pairs (first bit, number of bits), room for @max_runs pairs
 * @max_runs: in pairs
 *
 * Return: number of pairs.
 */
uint64_t vmf_runs(const uint8_t *bits, uint64_t count, uint64_t *next, uint64_t *runs, uint64_t max_runs);

/*
 * struct vmf_table_level - one level of page tables
 * @shift: log2 of the bytes that one entry maps
 * @present_mask, @present_value: an entry e is present if e != 0 and (e & @present_mask) == @present_value
 * @leaf_mask, @leaf_value: an entry maps memory, not a table, if (e & @leaf_mask) == @leaf_value
 * @leaf_address, @table_address: the bits of either kind of entry that are a physical address
 */
struct vmf_table_level {
	uint32_t shift;
	uint64_t present_mask, present_value;
	uint64_t leaf_mask, leaf_value;
	uint64_t leaf_address, table_address;
};

/*
 * struct vmf_paging - a paging form
 * @swap: 1 if entries are in the other byte order
 * @entry_size: 4 or 8 bytes
 * @address_shift: the address bits of an entry are shifted left by this
 * @high_shift, @high_mask: further address bits of an entry, and how far they are shifted left
 * @block_mask, @block_size: leaves with this bit map an aligned block of that many bytes together, and all contain the
 *	block's address
 * @levels: the last table first
 */
struct vmf_paging {
	uint32_t swap;
	uint32_t entry_size;
	uint32_t address_shift;
	uint32_t high_shift;
	uint64_t high_mask;
	uint64_t block_mask;
	uint64_t block_size;
	struct vmf_table_level levels[6];
};

/*
 * struct vmf_mapping - what page tables map
 * @vaddr: virtual address
 * @length: bytes
 * @paddr: physical address; of the table if @is_table
 * @is_table: 1 if an entry is of a table
 */
struct vmf_mapping {
	uint64_t vaddr, length, paddr;
	uint32_t is_table, reserved;
};

/*
 * vmf_decode_table() - turn entries of a page table into mappings
 * @paging: the paging form
 * @level: of the table; 0 is the last
 * @table: in: @count entries
 * @count: number of entries
 * @vaddr: virtual address that the first of them maps
 * @mappings: out: room for @max; memory that continues is one mapping
 * @max: number of mappings
 *
 * Return: number of mappings, or -1 if @max is too small or the paging form is not possible.
 */
int64_t vmf_decode_table(const struct vmf_paging *paging, uint32_t level, const uint8_t *table, uint64_t count,
			 uint64_t vaddr, struct vmf_mapping *mappings, uint64_t max);

/*
 * vmf_find_text() - find a text at a multiple of 4 bytes
 * @data: in: @size bytes
 * @size: bytes
 * @at: offset from which to search, a multiple of 4
 * @text: in: @length bytes
 * @length: bytes, 4 or more
 *
 * A text that the end of the data cuts off is found by as much of it as is there, 4 bytes or more.
 *
 * Return: offset of the first such text, or @size if there is none.
 */
uint64_t vmf_find_text(const uint8_t *data, uint64_t size, uint64_t at, const uint8_t *text, uint64_t length);

/* A page codec with the state of its library: one thread at a time. */
struct vmf_codec;

/*
 * vmf_codec_name(), vmf_codec_library() - the codecs of this build
 * @i: from 0 on
 *
 * Return: name of a codec, and of the library that serves it; NULL after the last. The best library of a codec comes
 * first.
 */
const char *vmf_codec_name(uint32_t i);
const char *vmf_codec_library(uint32_t i);

/* vmf_codec_supports() - Return: 1 if this build has the codec at that level, else 0. */
int vmf_codec_supports(const char *name, int level);

/*
 * vmf_codec_new() - make a codec
 * @name: of the codec
 * @level: of effort
 * @page_size: bytes
 *
 * Return: the codec, for vmf_codec_free(); NULL if this build does not have it at that level, or without memory.
 */
struct vmf_codec *vmf_codec_new(const char *name, int level, uint32_t page_size);
void vmf_codec_free(struct vmf_codec *codec);

/*
 * vmf_pack() - compress pages, one after the other
 * @codec: one thread at a time
 * @pages: in: @count * @page_size bytes
 * @count: number of pages
 * @page_size: bytes, that of the codec
 * @skip_zero: 1 to leave zero pages out
 * @out: out: @out_size bytes, of which those after the result are undefined
 * @out_size: bytes, at least @count * @page_size
 * @sizes: out: for each page its bytes in @out; @page_size if it is stored raw, as it did not become smaller; 0 if it
 *	is left out
 *
 * Return: bytes written to @out; -1 if @out_size is too small, -2 if the library failed.
 */
int64_t vmf_pack(struct vmf_codec *codec, const uint8_t *pages, uint64_t count, uint32_t page_size, int skip_zero,
		 uint8_t *out, uint64_t out_size, uint32_t *sizes);

/* vmf_is_zero() - Return: 1 if all @size bytes are zero, else 0. */
int vmf_is_zero(const uint8_t *page, uint64_t size);

/* struct vmf_descriptor - a page descriptor of the kdump-compressed format, in this machine's byte order */
struct vmf_descriptor {
	uint64_t offset;
	uint32_t size, flags;
	uint64_t page_flags;
};

/*
 * vmf_descriptors() - make page descriptors
 * @sizes: in: of each page's data, as vmf_pack() gives them
 * @shared: in: for each page the offset of the data that it shares, 0 if it has its own; may be NULL
 * @count: number of pages
 * @page_size: bytes
 * @offset: of the first page's data in the file
 * @zero_offset: of the data that all zero pages share
 * @codec_flag: flag of pages that are not raw
 * @swap: 1 if the file is in the other byte order
 * @descriptors: out: @count descriptors, in the byte order of the file
 *
 * Return: the offset after the data.
 */
uint64_t vmf_descriptors(const uint32_t *sizes, const uint64_t *shared, uint64_t count, uint32_t page_size,
			 uint64_t offset, uint64_t zero_offset, uint32_t codec_flag, int swap,
			 struct vmf_descriptor *descriptors);

/*
 * vmf_swap_descriptors() - change the byte order of descriptors
 * @descriptors: in and out: @count descriptors
 * @count: number of descriptors
 */
void vmf_swap_descriptors(struct vmf_descriptor *descriptors, uint64_t count);

/*
 * vmf_drop_lost() - clear the bits of pages that an incomplete file has lost
 * @descriptors: in: one for each set bit, in order; if there are fewer, the pages of the rest are lost
 * @descriptor_count: number of descriptors
 * @file_size: bytes; a page is lost if its data would end after that, or its offset is 0
 * @count: number of bits
 * @bits: in and out: (@count + 7) / 8 bytes
 *
 * Return: how many bits remain set.
 */
uint64_t vmf_drop_lost(const struct vmf_descriptor *descriptors, uint64_t descriptor_count, uint64_t file_size,
		       uint64_t count, uint8_t *bits);

/*
 * vmf_hashes() - hash the data of each page
 * @data: in: of all pages, one after the other
 * @sizes: in: of each page's data, as vmf_pack() gives them
 * @count: number of pages
 * @hashes: out: one for each page, 0 for a page without data
 */
void vmf_hashes(const uint8_t *data, const uint32_t *sizes, uint64_t count, uint64_t *hashes);

/*
 * struct vmf_stored - a page whose data are in the file
 * @hash: of its data
 * @pfn: its frame
 * @offset: of its data
 * @size: of its data; 0: this slot is empty
 * @used: the clock when it was last of use
 */
struct vmf_stored {
	uint64_t hash, pfn, offset;
	uint32_t size, used;
};

enum vmf_kind {
	VMF_ALONE = 0,		/* its data are its own, and no later page may share them */
	VMF_STORES = 1,		/* its data are its own, and later pages may share them */
	VMF_SHARES = 2		/* its data are those of an earlier page */
};

/*
 * vmf_dedup_find() - look pages up, in order, and enter those that are not found
 * @table: in and out: zeros at first; without room, the page that was of no use for the longest time goes
 * @slots: of the table: a power of two, 8 or more
 * @lowest_pfn: pages before that are in another file
 * @now: a clock that advances by @count from call to call
 * @hashes, @sizes, @pfns: in: of each page
 * @count: number of pages
 * @kinds: out: enum vmf_kind of each page. VMF_SHARES only says that hash and size are those of the page @earlier: the
 *	caller compares both pages, and writes VMF_ALONE if they differ.
 * @found: out: the slot of each page, for vmf_dedup_place(), which must be called next
 * @earlier: out: the frame whose data each page may share
 */
void vmf_dedup_find(struct vmf_stored *table, uint64_t slots, uint64_t lowest_pfn, uint32_t now,
		    const uint64_t *hashes, const uint32_t *sizes, const uint64_t *pfns, uint64_t count,
		    uint8_t *kinds, uint32_t *found, uint64_t *earlier);

/*
 * vmf_dedup_place() - remove the data of pages that share, and learn where the others will be
 * @table, @kinds, @found, @sizes, @count: as vmf_dedup_find() had and left them
 * @offset: of the first remaining data in the file
 * @data: in and out: of all pages, one after the other
 * @shared: out: of each page, as vmf_descriptors() takes it
 *
 * Return: bytes that remain in @data.
 */
uint64_t vmf_dedup_place(struct vmf_stored *table, const uint8_t *kinds, const uint32_t *found, const uint32_t *sizes,
			 uint64_t count, uint64_t offset, uint8_t *data, uint64_t *shared);

/* struct vmf_extent - bytes of a file, and their position in a buffer */
struct vmf_extent {
	uint64_t offset, size, at;
};

/*
 * vmf_extents() - find what must be read of a file to have the data of pages
 * @descriptors: in: @count descriptors
 * @count: number of descriptors
 * @page_size: bytes
 * @lowest: offset before which no data lie
 * @extents: out: room for @count. Their positions follow each other in a buffer of @count * @page_size bytes at most;
 *	data that are shared, or near those of the page before, are in one extent.
 *
 * Return: number of extents, or UINT64_MAX - i if descriptor i is of more than a page, lies before @lowest, or beyond
 * the longest file.
 */
uint64_t vmf_extents(const struct vmf_descriptor *descriptors, uint64_t count, uint32_t page_size, uint64_t lowest,
		     struct vmf_extent *extents);

/* Decompresses pages of every codec: one thread at a time. */
struct vmf_decoder;

/* vmf_decodes() - Return: 1 if this build decompresses pages whose descriptor has that flag, else 0. */
int vmf_decodes(uint32_t flag);

/* vmf_decoder_new() - Return: a decoder, for vmf_decoder_free(); NULL without memory. */
struct vmf_decoder *vmf_decoder_new(uint32_t page_size);
void vmf_decoder_free(struct vmf_decoder *decoder);

/*
 * vmf_unpack() - decompress pages
 * @decoder: one thread at a time
 * @descriptors: in: @count descriptors
 * @count: number of descriptors
 * @extents: in: of these descriptors, by vmf_extents()
 * @extent_count: number of extents
 * @data: in: that of the extents
 * @pages: out: @count pages, one after the other
 *
 * Return: number of pages done; fewer than @count if the data of the next are damaged, or of a codec that this build
 * does not decompress.
 */
uint64_t vmf_unpack(struct vmf_decoder *decoder, const struct vmf_descriptor *descriptors, uint64_t count,
		    const struct vmf_extent *extents, uint64_t extent_count, const uint8_t *data, uint8_t *pages);

/*
 * vmf_copy() - copy the data of pages as they are, raw or compressed with one codec
 * @descriptors, @count, @extents, @extent_count, @data: as for vmf_unpack()
 * @page_size: bytes
 * @codec_flag: flag of the codec; 0: raw pages only
 * @skip_zero: 1 to leave out zero pages that are raw
 * @out: out: room for @count pages
 * @sizes: out: as vmf_pack() gives them
 * @used: out: bytes written to @out
 * @others: out: how many pages in a row are of another codec, after those that are copied; 0 only at the end
 *
 * Return: number of pages copied.
 */
uint64_t vmf_copy(const struct vmf_descriptor *descriptors, uint64_t count, const struct vmf_extent *extents,
		  uint64_t extent_count, const uint8_t *data, uint32_t page_size, uint32_t codec_flag, int skip_zero,
		  uint8_t *out, uint32_t *sizes, uint64_t *used, uint64_t *others);

#endif
