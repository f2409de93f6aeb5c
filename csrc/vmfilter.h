/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The C core: pure functions over the caller's buffers. They open no file, keep no global state and do not trust the
 * contents of a dump. A function accesses only the buffers that it is passed, within the lengths that it is passed.
 * One of them, vmf_classify_file(), reads a file that the caller has opened.
 *
 * The functions run without the GIL and are thread-safe. Only struct vmf_codec, struct vmf_decoder, struct vmf_block
 * and a table of struct vmf_stored carry state between calls; only one thread at a time may use any of these. Buffers
 * must not overlap.
 *
 * setup.py strips the preprocessor lines and passes the rest to cffi, so this file contains only plain declarations.
 * vmfilter/native.py is the only Python module that calls the functions.
 */
#ifndef VMFILTER_H
#define VMFILTER_H

#include <stddef.h>
#include <stdint.h>

/*
 * What a page frame was used for: the low 4 bits of its byte. vmfilter.frames.classes.PageClass uses the same values.
 */
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
	VMF_EXCLUDED = 10
};

/*
 * What the kernel used a page of VMF_KERNEL for: the high 4 bits of its byte, which are 0 for any other class.
 * vmfilter.frames.classes.PageKind uses the same values.
 */
enum vmf_page_kind {
	VMF_KIND_OTHER = 0,
	VMF_KIND_IMAGE = 1,
	VMF_KIND_TEXT = 2,
	VMF_KIND_TABLE = 3,
	VMF_KIND_LOG = 4,
	VMF_KIND_VMALLOC = 5,
	VMF_KIND_SLAB = 6,
	VMF_KIND_MEMMAP = 7,
	VMF_KIND_RESERVED = 8,
	VMF_KIND_CALLED_TEXT = 9,
	VMF_KIND_POINTED_SLAB = 10
};

/* Limits of struct vmf_lists and struct vmf_areas. */
enum vmf_limits {
	VMF_ORDERS = 64,
	VMF_AREAS = 8
};

/* Page frames are written in order of their rank, then of their number. */
enum vmf_ranks {
	VMF_RANKS = 16
};

/* A page has this type if (_mapcount & mask) == value. {1, 0} matches no page. */
struct vmf_page_type {
	uint32_t value, mask;
};

/* An unsigned member of struct page: offset and width in bytes. Width is 1, 2, 4 or 8; 0 if there is no such member. */
struct vmf_field {
	uint32_t offset, width;
};

/*
 * struct vmf_page_layout - layout of struct page in one kernel
 * @size: sizeof(struct page)
 * @swap: 1 if struct page is in the opposite byte order
 * @flags, @mapcount, @mapping, @private_: members
 * @tail: member that identifies a tail page: it has all bits of @tail_mask, if that is not 0
 * @lru, @private_data, @swapcache, @slab, @hwpoison, @head, @reserved: masks for flags; 0 if this kernel does not have
 *	the flag. A page is in the swap cache only if all bits of @swapcache are set.
 * @buddy, @hugetlb, @offline, @unaccepted, @slab_type, @table, @kmalloc: page types
 * @refcount: member _refcount, or _count before v4.7; width 0 if its offset is not known
 * @next, @prev: links of the list entry in lru; width 0 if its offset is not known
 * @order: order of a compound page, in its first tail page
 * @destructor: destructor of a compound page, in its first tail page; the page is hugetlb if
 *	(destructor & @destructor_mask) == @destructor_value
 * @free_orders: number of orders of the buddy allocator: LENGTH(zone.free_area)
 * @silent_tails: 1 if the tails of free blocks, and of compound pages of cache and processes, say nothing that their
 *	head does not: none is hwpoisoned, and heads can be believed. Tails of hugetlb pages never say anything.
 */
struct vmf_page_layout {
	uint32_t size;
	uint32_t swap;
	struct vmf_field flags, mapcount, mapping, private_, tail, refcount, next, prev;
	uint64_t lru, private_data, swapcache, slab, hwpoison, head, reserved;
	uint64_t tail_mask;
	struct vmf_page_type buddy, hugetlb, offline, unaccepted, slab_type, table, kmalloc;
	struct vmf_field order;
	struct vmf_field destructor;
	uint64_t destructor_value, destructor_mask;
	uint32_t free_orders;
	uint32_t silent_tails;
};

/*
 * struct vmf_block - a compound page or free block that continues past the struct pages of one call
 * @end_pfn: first page frame after the block
 * @byte: class and kind of its page frames
 * @ignore_tail_flags: 1 if the flags of the tail pages are meaningless (hugetlb)
 */
struct vmf_block {
	uint64_t end_pfn;
	uint32_t byte;
	uint32_t ignore_tail_flags;
};

/*
 * struct vmf_areas - virtual addresses of kernel memory that struct pages point to
 * @mask: address bits, without the bits that KASAN uses for tags
 * @count: number of areas; 0 if they are not known
 * @bounds: first address of each area, and the address after its last, both without the ignored bits
 */
struct vmf_areas {
	uint64_t mask;
	uint32_t count;
	uint64_t bounds[16];	/* two of each of VMF_AREAS */
};

/*
 * struct vmf_lists - pages that the kernel has in lists: free blocks and hugetlb pages
 * @areas: memory into which the links of such a page lead
 * @free_blocks: number of free blocks of each order
 * @hugetlb: number of hugetlb pages
 * @refused: number of pages that have the type of either, but an impossible order or link; they are kept
 * @too_large: number of free blocks of an order above all that the layout knows; they are kept
 * @unused: number of pages that nobody uses and that are in no free block
 * @unknown_huge: number of huge compound pages with a page type that the layout does not know; or, if no type marks
 *	hugetlb, that are in a list but not one of LRU
 * @contradicting: number of tails that contradict the head of their block; they are kept
 * @hugetlb_blocks, @user_blocks, @cache_blocks: number of compound pages of each order: of hugetlb, of processes
 *	(without hugetlb), and of the page cache (likewise)
 */
struct vmf_lists {
	struct vmf_areas areas;
	uint64_t free_blocks[64];	/* VMF_ORDERS */
	uint64_t hugetlb;
	uint64_t refused;
	uint64_t too_large;
	uint64_t unused;
	uint64_t unknown_huge;
	uint64_t contradicting;
	uint64_t hugetlb_blocks[64], user_blocks[64], cache_blocks[64];
};

/*
 * vmf_classify() - classify page frames by their struct pages: classes, and the kinds SLAB, TABLE and RESERVED
 * @layout: layout of struct page
 * @structs: in: struct pages, @count * layout->size bytes
 * @pfn: first page frame
 * @count: number of page frames
 * @block: in and out: state between calls; zero it before the first call. Calls must be in ascending order of @pfn.
 * @lists: in: areas; in and out: counters of the blocks that begin at these page frames
 * @classes: in and out: @count bytes. Replaces only VMF_KERNEL, and VMF_PMEM_USERDATA by VMF_HWPOISON.
 *
 * Return: 0, or -1 if @layout contains a member outside struct page; @classes is then unchanged.
 */
int vmf_classify(const struct vmf_page_layout *layout, const uint8_t *structs, uint64_t pfn, uint64_t count,
		 struct vmf_block *block, struct vmf_lists *lists, uint8_t *classes);

/* struct vmf_extent - @size bytes at @offset of a file, which are at byte @at of a buffer or array */
struct vmf_extent {
	uint64_t offset, size, at;
};

/*
 * vmf_classify_file() - classify page frames by struct pages that a file contains as they are
 * @layout, @pfn, @count, @block, @lists, @classes: as for vmf_classify()
 * @fd: the file, which supports pread(); -1 if it is mapped, and the offsets of @extents are addresses
 * @extents: in: where the file has the struct pages, in array order; together @count * layout->size bytes
 * @extent_count: number of extents
 * @ahead: 1 if @block is not known: what precedes @pfn has not been classified
 * @buffer: out: scratch
 * @buffer_size: bytes: at least 8 struct pages
 *
 * Long runs of tails that say nothing are not read: see silent_tails of struct vmf_page_layout.
 *
 * Return: number of page frames that are classified. If this is less than @count, the next struct page cannot be read.
 * -1 if @layout is invalid, -2 if @ahead and @pfn is in a block that begins before it; nothing has changed then.
 */
int64_t vmf_classify_file(const struct vmf_page_layout *layout, int fd, const struct vmf_extent *extents,
			  uint64_t extent_count, uint64_t pfn, uint64_t count, int ahead, struct vmf_block *block,
			  struct vmf_lists *lists, uint8_t *buffer, uint64_t buffer_size, uint8_t *classes);

/*
 * vmf_lists_add() - add counters, and set them to 0
 * @from: in and out: counters to add
 * @to: in and out: counters to which they are added
 */
void vmf_lists_add(struct vmf_lists *from, struct vmf_lists *to);

/*
 * vmf_zone_runs() - find the page frames whose node or zone differs from that of the frame before
 * @layout: layout of struct page
 * @structs: in: struct pages of consecutive page frames, @count * layout->size bytes
 * @count: number of struct pages
 * @classes: in: @count bytes; frames of VMF_HOLE are passed over
 * @shift, @mask: node and zone in flags, as (flags >> @shift) & @mask
 * @next: in and out: struct page at which to start; updated to the one at which to continue, or to @count at the end
 * @runs: out: pairs (first struct page, its node and zone)
 * @max_runs: capacity of @runs, in pairs
 *
 * Return: number of pairs; also 0 if flags are outside struct page by @layout.
 */
uint64_t vmf_zone_runs(const struct vmf_page_layout *layout, const uint8_t *structs, uint64_t count,
		       const uint8_t *classes, uint32_t shift, uint64_t mask, uint64_t *next, uint64_t *runs,
		       uint64_t max_runs);

/* What vmf_check() tests, and of which pages; only their heads are tested. */
enum vmf_rule {
	VMF_RULE_ZONE = 0,	/* all: the same node and zone in the uppermost bits of flags as the first page */
	VMF_RULE_CACHE = 1,	/* cache: mapping points to an address space */
	VMF_RULE_ANON = 2,	/* anonymous memory: mapping points to an anon_vma */
	VMF_RULE_LRU = 3,	/* anonymous memory: it is on an LRU list */
	VMF_RULE_HUGETLB = 4,	/* hugetlb: the page is compound */
	VMF_RULE_POISON = 5,	/* hwpoisoned: neither slab nor of a page type */
	VMF_RULE_COMPOUND = 6,	/* compound pages: the first tail points to the head */
	VMF_RULE_SLAB = 7	/* pages with the flag of slab: they are on no LRU list */
};

/*
 * struct vmf_verdict - pages that were tested by each rule
 * @tested: number of pages
 * @broken: number of tested pages that break the rule
 * @calls: number of calls that found such pages
 */
struct vmf_verdict {
	uint64_t tested[8];
	uint64_t broken[8];
	uint64_t calls[8];
};

/*
 * vmf_check() - test struct pages against rules that do not depend on how they were classified
 * @layout: layout of struct page
 * @areas: memory that mapping points into
 * @structs: in: struct pages of consecutive page frames in one zone, @count * layout->size bytes
 * @count: number of struct pages
 * @classes: in: @count bytes: what vmf_classify() made of them
 * @verdict: in and out: incremented
 *
 * Return: 0, or -1 if @layout contains a member outside struct page.
 */
int vmf_check(const struct vmf_page_layout *layout, const struct vmf_areas *areas, const uint8_t *structs,
	      uint64_t count, const uint8_t *classes, struct vmf_verdict *verdict);

/*
 * vmf_all_have() - test whether every struct page has one of some flags
 * @layout: layout of struct page
 * @structs: in: struct pages, @count * layout->size bytes
 * @count: number of struct pages
 * @flags: mask of flags
 *
 * Return: 1 if at least one of @flags is set in each struct page, else 0.
 */
int vmf_all_have(const struct vmf_page_layout *layout, const uint8_t *structs, uint64_t count, uint64_t flags);

/*
 * vmf_count() - count the page frames of each class and kind
 * @classes: in: @count bytes
 * @count: number of page frames
 * @counts: in and out: indexed by a frame's byte; incremented by the number of frames that have it
 */
void vmf_count(const uint8_t *classes, uint64_t count, uint64_t counts[256]);

/* vmf_fill() - set each of @count @classes to @byte */
void vmf_fill(uint8_t *classes, uint64_t count, uint8_t byte);

/* vmf_add_counts() - add 256 counts, as vmf_count() makes them, to @counts */
void vmf_add_counts(const uint64_t from[256], uint64_t counts[256]);

/*
 * vmf_bitmap() - make a bitmap of the page frames whose class is kept; bit 0 of a byte is its first frame
 * @classes: in: @count bytes
 * @count: number of page frames
 * @kept: in: indexed by a frame's byte; nonzero if it is kept
 * @bits: out: (@count + 7) / 8 bytes; bits after the last frame are 0
 */
void vmf_bitmap(const uint8_t *classes, uint64_t count, const uint8_t kept[256], uint8_t *bits);

/*
 * vmf_rank() - count set bits
 * @bits: in: at least (@count + 7) / 8 bytes
 * @count: number of bits to examine
 *
 * Return: number of set bits among the first @count.
 */
uint64_t vmf_rank(const uint8_t *bits, uint64_t count);

/*
 * vmf_runs() - find runs of set bits
 * @bits: in: at least (@count + 7) / 8 bytes
 * @count: number of bits
 * @next: in and out: bit at which to start; updated to the bit at which to continue, or to @count at the end
 * @runs: out: pairs (first bit, number of bits)
 * @max_runs: capacity of @runs, in pairs
 *
 * Return: number of pairs.
 */
uint64_t vmf_runs(const uint8_t *bits, uint64_t count, uint64_t *next, uint64_t *runs, uint64_t max_runs);

/*
 * vmf_class_runs() - find runs of page frames that have the same class and kind
 * @classes: in: @count bytes
 * @count: number of page frames
 * @next: in and out: frame at which to start; updated to the one at which to continue, or to @count at the end
 * @runs: out: pairs (first frame, its byte)
 * @max_runs: capacity of @runs, in pairs
 *
 * Return: number of pairs.
 */
uint64_t vmf_class_runs(const uint8_t *classes, uint64_t count, uint64_t *next, uint64_t *runs, uint64_t max_runs);

/*
 * struct vmf_ranked_run - consecutive page frames of the same rank
 * @first: first frame, relative to the window
 * @count: number of frames
 * @index: number of frames of any rank in the window before @first
 * @rank: their rank
 */
struct vmf_ranked_run {
	uint32_t first;
	uint32_t count;
	uint32_t index;
	uint32_t rank;
};

/*
 * vmf_ranked_runs() - find runs of page frames by rank: the order in which a dump is written
 * @classes: in: @count bytes
 * @count: number of page frames, less than 2^32
 * @rank_of: in: indexed by class; a rank less than 16, or 255 if the class is not kept
 * @below: return only runs of a lower rank
 * @runs: out: ordered by rank, then by frame
 * @scratch: as large as @runs
 * @max_runs: capacity of @runs and of @scratch. Further runs are only counted.
 * @counts: out: number of runs of each rank, including those not returned
 *
 * Return: number of runs returned.
 */
uint64_t vmf_ranked_runs(const uint8_t *classes, uint64_t count, const uint8_t rank_of[256], uint32_t below,
			 struct vmf_ranked_run *runs, struct vmf_ranked_run *scratch, uint64_t max_runs,
			 uint64_t counts[16]);

/*
 * struct vmf_table_level - one level of page tables
 * @shift: log2 of the number of bytes that one entry maps
 * @bits: log2 of the number of entries in a table
 * @present_mask, @present_value: entry e is present if e != 0 and (e & @present_mask) == @present_value
 * @leaf_mask, @leaf_value: entry e maps memory, rather than pointing to a table, if (e & @leaf_mask) == @leaf_value
 * @leaf_address, @table_address: masks for the physical address in either kind of entry
 */
struct vmf_table_level {
	uint32_t shift, bits;
	uint64_t present_mask, present_value;
	uint64_t leaf_mask, leaf_value;
	uint64_t leaf_address, table_address;
};

/*
 * struct vmf_paging - a page table format
 * @swap: 1 if entries are in the opposite byte order
 * @entry_size: 4 or 8 bytes
 * @address_shift: left shift of the address bits of an entry
 * @high_shift, @high_mask: mask for the high address bits of an entry, and their left shift
 * @block_mask, @block_size: leaf entries with this bit set map one aligned block of @block_size bytes together; each
 *	contains the address of the block
 * @executable_mask, @executable_value: leaf entry e maps executable memory if (e & @executable_mask) == @executable_value;
 *	{0, 1} if that is not asked
 * @levels: levels of tables, the last one first
 */
struct vmf_paging {
	uint32_t swap;
	uint32_t entry_size;
	uint32_t address_shift;
	uint32_t high_shift;
	uint64_t high_mask;
	uint64_t block_mask;
	uint64_t block_size;
	uint64_t executable_mask, executable_value;
	struct vmf_table_level levels[6];
};

/*
 * struct vmf_mapping - a range of virtual memory that page table entries map
 * @vaddr: virtual address
 * @length: bytes
 * @paddr: physical address of the memory, or of the next table if @is_table
 * @is_table: 1 if the entry points to a table
 * @is_executable: 1 if the memory is executable
 */
struct vmf_mapping {
	uint64_t vaddr, length, paddr;
	uint32_t is_table, is_executable;
};

/*
 * vmf_decode_table() - decode entries of a page table
 * @paging: page table format
 * @level: level of the table; 0 is the last
 * @table: in: @count entries
 * @count: number of entries
 * @vaddr: virtual address that the first entry maps
 * @mappings: out: contiguous memory is merged into one mapping, unless only a part of it is executable
 * @max: capacity of @mappings
 *
 * Return: number of mappings, or -1 if @max is too small, @paging is invalid, or no table of @level has @count entries.
 */
int64_t vmf_decode_table(const struct vmf_paging *paging, uint32_t level, const uint8_t *table, uint64_t count,
			 uint64_t vaddr, struct vmf_mapping *mappings, uint64_t max);

/*
 * vmf_find_text() - find a string that is aligned to 4 bytes
 * @data: in: @size bytes
 * @size: bytes
 * @at: offset at which to start, a multiple of 4
 * @text: in: @length bytes
 * @length: bytes, at least 4
 *
 * A string that the end of @data truncates is found too, if at least its first 4 bytes are there.
 *
 * Return: offset of the first match, or @size if there is none.
 */
uint64_t vmf_find_text(const uint8_t *data, uint64_t size, uint64_t at, const uint8_t *text, uint64_t length);

/*
 * vmf_mark_pointed() - mark the pages that words in memory point into
 * @data: in: @size bytes
 * @size: bytes; an incomplete last word is ignored
 * @word: bytes of a pointer, 4 or 8
 * @swap: 1 if @data is in the opposite byte order
 * @start: virtual address of the first page
 * @count: number of pages
 * @page_shift: log2 of their size
 * @bits: in and out: (@count + 7) / 8 bytes; a bit is set for each page that a word points into
 */
void vmf_mark_pointed(const uint8_t *data, uint64_t size, uint32_t word, int swap, uint64_t start, uint64_t count,
		      uint32_t page_shift, uint8_t *bits);

/*
 * vmf_copy_mapped() - copy bytes of a mapping, some of whose pages may be unreadable
 * @mapped: in: @size bytes; none of them has to be readable
 * @out: out: @size bytes
 * @size: bytes
 *
 * Return: number of bytes copied. If this is less than @size, the next page cannot be read. -errno if this kernel does
 * not support such copies.
 */
int64_t vmf_copy_mapped(const uint8_t *mapped, uint8_t *out, uint64_t size);

/*
 * vmf_read() - read bytes of a file or of a mapping
 * @fd: the file, which supports pread(); -1 if it is mapped, and @offset is an address
 * @offset: of the first byte
 * @out: out: @size bytes
 * @size: bytes
 *
 * Return: number of bytes read, at most @size. Not positive if the first cannot be read.
 */
int64_t vmf_read(int fd, uint64_t offset, uint8_t *out, uint64_t size);

/*
 * vmf_read_extents() - read parts of a file or of a mapping
 * @fd: as for vmf_read()
 * @extents: in: @count extents, each with its place in @out
 * @count: number of extents
 * @out: out: buffer
 * @size: bytes of @out
 *
 * Return: number of extents that are read. If this is less than @count, the next cannot be read, or has no room.
 */
uint64_t vmf_read_extents(int fd, const struct vmf_extent *extents, uint64_t count, uint8_t *out, uint64_t size);

/* struct vmf_stretch - @count page frames from @pfn on, before which the new dump has @index pages */
struct vmf_stretch {
	uint64_t pfn, count, index;
};

/*
 * vmf_locate() - find where a file has stretches of page frames
 * @starts, @ends, @offsets: in: addresses and file offsets of @segments segments of memory, ascending, without overlaps
 * @segments: number of segments
 * @stretches: in: @count stretches
 * @count: number of stretches
 * @page_size: bytes
 * @extents: out: @count extents; @at is the position of the pages in a buffer that holds all stretches back to back. A
 *	stretch that is not within one segment has the size 0.
 *
 * Return: number of stretches that are within one segment.
 */
uint64_t vmf_locate(const uint64_t *starts, const uint64_t *ends, const uint64_t *offsets, uint64_t segments,
		    const struct vmf_stretch *stretches, uint64_t count, uint64_t page_size,
		    struct vmf_extent *extents);

/* struct vmf_window - @size bytes of a file from @number times the size of a window on, which are mapped at @address */
struct vmf_window {
	uint64_t number, address, size;
};

/*
 * vmf_map_extents() - find where parts of a file are mapped
 * @parts: in: @count extents of the file
 * @count: number of parts
 * @window_size: bytes of a window of the file
 * @windows: in: windows that are mapped
 * @window_count: number of windows, at most 64
 * @extents: out: room for @room. The parts, with addresses instead of offsets; a part in two windows is two extents.
 * @room: number of extents
 * @used: out: bit i: a part is in windows[i]
 * @missing: out: number of a window that has to be mapped
 *
 * Return: number of extents; -1 if @missing is needed, -2 if a part is beyond the end of its window, or there is no room.
 */
int64_t vmf_map_extents(const struct vmf_extent *parts, uint64_t count, uint64_t window_size,
			const struct vmf_window *windows, uint64_t window_count, struct vmf_extent *extents,
			uint64_t room, uint64_t *used, uint64_t *missing);

/* Instead of the bytes of a page's data: the page is lost. It has no data, and its descriptor is all zeros. */
enum vmf_size {
	VMF_LOST = 0x7fffffff
};

/* A compressor: a page codec and the state of its library. One thread at a time. */
struct vmf_codec;

/*
 * vmf_codec_name(), vmf_codec_library() - list the codecs of this build
 * @i: index, from 0
 *
 * Return: name of the codec or of the library that provides it; NULL after the last. If several libraries provide a
 * codec, the preferred one comes first.
 */
const char *vmf_codec_name(uint32_t i);
const char *vmf_codec_library(uint32_t i);

/* vmf_codec_supports() - Return: 1 if this build provides codec @name at @level, else 0. */
int vmf_codec_supports(const char *name, int level);

/*
 * vmf_codec_new() - allocate a compressor
 * @name: name of the codec
 * @level: compression level
 * @page_size: bytes
 *
 * Return: the compressor, to be freed by vmf_codec_free(); NULL if this build does not provide the codec at @level, or
 * if memory is short.
 */
struct vmf_codec *vmf_codec_new(const char *name, int level, uint32_t page_size);
void vmf_codec_free(struct vmf_codec *codec);

/*
 * vmf_pack() - compress pages
 * @codec: the compressor
 * @pages: in: @count * @page_size bytes
 * @count: number of pages
 * @page_size: bytes, as passed to vmf_codec_new()
 * @skip_zero: 1 to skip zero pages
 * @out: out: compressed pages, back to back; anything after the returned length is undefined
 * @out_size: bytes, at least @count * @page_size
 * @sizes: out: bytes of each page in @out: @page_size if the page is stored raw because it did not shrink, 0 if it is
 *	skipped
 *
 * Return: bytes written to @out; -1 if @page_size or @out_size is wrong, -2 if the library failed.
 */
int64_t vmf_pack(struct vmf_codec *codec, const uint8_t *pages, uint64_t count, uint32_t page_size, int skip_zero,
		 uint8_t *out, uint64_t out_size, uint32_t *sizes);

/* vmf_is_zero() - Return: 1 if all @size bytes are zero, else 0. */
int vmf_is_zero(const uint8_t *page, uint64_t size);

/*
 * vmf_count_sizes() - count the pages without data
 * @sizes: in: bytes of each page, from vmf_pack(), or VMF_LOST
 * @count: number of pages
 * @zero: out: number of 0 among them
 * @lost: out: number of VMF_LOST among them
 */
void vmf_count_sizes(const uint32_t *sizes, uint64_t count, uint64_t *zero, uint64_t *lost);

/*
 * vmf_count_zero() - count the zero pages of each class and kind
 * @pages: in: @count * @page_size bytes
 * @count: number of pages
 * @page_size: bytes
 * @classes: in: @count bytes
 * @counts: in and out: indexed by a frame's byte; incremented by the number of zero pages that have it
 */
void vmf_count_zero(const uint8_t *pages, uint64_t count, uint64_t page_size, const uint8_t *classes,
		    uint64_t counts[256]);

/*
 * struct vmf_descriptor - a page descriptor of the kdump-compressed format: struct page_desc of crash's diskdump.h
 *
 * In this machine's byte order, except in the output of vmf_descriptors() and the input of vmf_swap_descriptors().
 */
struct vmf_descriptor {
	uint64_t offset;
	uint32_t size, flags;
	uint64_t page_flags;
};

/*
 * vmf_descriptors() - make page descriptors
 * @sizes: in: bytes of each page's data, as returned by vmf_pack(), or VMF_LOST
 * @shared: in: for each page, file offset of the earlier data that it shares, or 0 if its data is its own; may be NULL
 * @count: number of pages
 * @page_size: bytes
 * @offset: file offset of the first page's data
 * @zero_offset: file offset of the data that all zero pages share
 * @codec_flag: flag of compressed pages
 * @swap: 1 if the file is in the opposite byte order
 * @descriptors: out: @count descriptors, in the byte order of the file
 */
void vmf_descriptors(const uint32_t *sizes, const uint64_t *shared, uint64_t count, uint32_t page_size, uint64_t offset,
		     uint64_t zero_offset, uint32_t codec_flag, int swap, struct vmf_descriptor *descriptors);

/*
 * vmf_place_descriptors() - put page descriptors in the order in which a file has them
 * @stretches: in: @count stretches of frames, in any order; none is empty, and none overlap
 * @count: number of stretches
 * @origin: file offset of the descriptor of the page with index 0; may have wrapped around
 * @descriptors: in: of the pages of all stretches, back to back
 * @extents: out: room for @count. Where the file has the descriptors, and where @data has them, in ascending order;
 *	adjacent ones are one extent
 * @data: out: as large as @descriptors
 *
 * Return: number of extents.
 */
uint64_t vmf_place_descriptors(const struct vmf_stretch *stretches, uint64_t count, uint64_t origin,
			       const struct vmf_descriptor *descriptors, struct vmf_extent *extents, uint8_t *data);

enum vmf_record {
	VMF_RECORD = 16		/* bytes before the data of a record */
};

/*
 * vmf_records() - make records of a flattened file: offset and size, both big-endian, and data
 * @extents: in: for each record, its place in the dump and its data's place in @data
 * @count: number of records
 * @data: in: of all records
 * @out: out: room for @count * VMF_RECORD bytes more than all data
 */
void vmf_records(const struct vmf_extent *extents, uint64_t count, const uint8_t *data, uint8_t *out);

/*
 * vmf_swap_descriptors() - reverse the byte order of descriptors
 * @descriptors: in and out: @count descriptors
 * @count: number of descriptors
 */
void vmf_swap_descriptors(struct vmf_descriptor *descriptors, uint64_t count);

/*
 * vmf_drop_lost() - clear the bits of pages that are missing from a truncated or incomplete file
 * @descriptors: in: one for each set bit, in order. A page without a descriptor is missing, and so is one whose
 *	offset is 0 or whose data ends after @file_size.
 * @descriptor_count: number of descriptors; fewer than set bits if the file ends within the descriptors
 * @file_size: bytes
 * @count: number of bits
 * @bits: in and out: (@count + 7) / 8 bytes
 *
 * Return: number of bits that remain set.
 */
uint64_t vmf_drop_lost(const struct vmf_descriptor *descriptors, uint64_t descriptor_count, uint64_t file_size,
		       uint64_t count, uint8_t *bits);

/*
 * vmf_hashes() - hash the data of each page
 * @data: in: data of all pages, back to back
 * @sizes: in: bytes of each page's data, as returned by vmf_pack(), or VMF_LOST
 * @count: number of pages
 * @hashes: out: one per page, 0 for a page without data
 */
void vmf_hashes(const uint8_t *data, const uint32_t *sizes, uint64_t count, uint64_t *hashes);

/*
 * struct vmf_stored - slot of the deduplication table: a page whose data is in the file
 * @hash: hash of the data
 * @pfn: page frame number
 * @offset: file offset of the data
 * @size: bytes of the data; 0 if this slot is empty
 * @used: time of the last use, on the clock of vmf_dedup_find()
 */
struct vmf_stored {
	uint64_t hash, pfn, offset;
	uint32_t size, used;
};

enum vmf_kind {
	VMF_ALONE = 0,		/* stored, but not in the table: no later page shares its data */
	VMF_STORES = 1,		/* stored, and later pages may share its data */
	VMF_SHARES = 2		/* shares the data of an earlier page */
};

/*
 * vmf_dedup_find() - look up pages in the table, in order, and add new ones
 * @table: in and out: zero it before the first call. A new page replaces the least recently used one.
 * @slots: size of @table, a power of two and at least 8
 * @lowest_pfn: first page frame of the current file; pages below it are in another file
 * @now: clock: the number of pages looked up in earlier calls, modulo 2^32
 * @hashes, @sizes, @pfns: in: one per page
 * @count: number of pages
 * @kinds: out: enum vmf_kind of each page. VMF_SHARES means only that hash and size match page frame @earlier. The
 *	caller must compare the two pages and change this to VMF_ALONE if they differ.
 * @found: out: slot of each page. Pass it to vmf_dedup_place(), which must be the next call on @table.
 * @earlier: out: for each page, the page frame whose data it may share
 */
void vmf_dedup_find(struct vmf_stored *table, uint64_t slots, uint64_t lowest_pfn, uint32_t now,
		    const uint64_t *hashes, const uint32_t *sizes, const uint64_t *pfns, uint64_t count,
		    uint8_t *kinds, uint32_t *found, uint64_t *earlier);

/*
 * vmf_dedup_place() - remove the data of pages that share, and record the file offsets of the others
 * @table, @kinds, @found, @sizes, @count: as passed to and set by vmf_dedup_find()
 * @offset: file offset at which the remaining data will be written
 * @data: in and out: data of all pages, back to back
 * @shared: out: for each page, file offset of the data that it shares, or 0; for vmf_descriptors()
 *
 * Return: bytes that remain in @data.
 */
uint64_t vmf_dedup_place(struct vmf_stored *table, const uint8_t *kinds, const uint32_t *found, const uint32_t *sizes,
			 uint64_t count, uint64_t offset, uint8_t *data, uint64_t *shared);

struct vmf_piece {
	const uint8_t *data;
	uint64_t size;
};

/* vmf_gather() - copy @count @pieces to @out, back to back */
void vmf_gather(const struct vmf_piece *pieces, uint64_t count, uint8_t *out);

enum vmf_summed {
	VMF_SUMMED = 1024	/* bytes after which vmf_sums_of() makes the next checksum */
};

/*
 * vmf_sums_of() - make checksums of the beginnings of data, so that vmf_sums_add() need not read all of them again
 * @data: in: @size bytes
 * @size: bytes
 * @known: out: checksum of the first 0, VMF_SUMMED, 2 * VMF_SUMMED, ... bytes: @size / VMF_SUMMED + 1 of them
 */
void vmf_sums_of(const uint8_t *data, uint64_t size, uint32_t *known);

/*
 * vmf_sums_add() - add bytes of a file to the checksums of its blocks
 * @sums: in and out: checksum of each block; 0 for a block of zeros. Bytes that are added a second time are taken back.
 * @shift: log2 of the bytes of a block
 * @offset: offset of the bytes in the file
 * @data: in: @size bytes; they end before the last block of @sums does
 * @size: bytes
 * @known: in: from vmf_sums_of(); if @data follow n * VMF_SUMMED other bytes there, without its first n; or NULL
 */
void vmf_sums_add(uint32_t *sums, uint32_t shift, uint64_t offset, const uint8_t *data, uint64_t size,
		  const uint32_t *known);

/* struct vmf_summed_piece - arguments of vmf_sums_add() */
struct vmf_summed_piece {
	uint64_t offset, size;
	const uint8_t *data;
	const uint32_t *known;
};

/* vmf_sums_add_all() - call vmf_sums_add() for each of @count @pieces */
void vmf_sums_add_all(uint32_t *sums, uint32_t shift, const struct vmf_summed_piece *pieces, uint64_t count);

/*
 * vmf_sums_add_pieces() - add pieces of a file to the checksums of its blocks
 * @sums, @shift: as for vmf_sums_add()
 * @extents: in: for each piece, its place in the file and in @data
 * @count: number of pieces
 * @data: in: of all pieces
 */
void vmf_sums_add_pieces(uint32_t *sums, uint32_t shift, const struct vmf_extent *extents, uint64_t count,
			 const uint8_t *data);

/*
 * vmf_sums_join() - join the checksums of each two blocks
 * @sums: in and out: @count checksums; the second half is zero then
 * @count: number of blocks
 * @shift: log2 of the bytes of a block on entry
 */
void vmf_sums_join(uint32_t *sums, uint64_t count, uint32_t shift);

/*
 * vmf_extents() - compute which parts of a file contain the data of some pages
 * @descriptors: in: @count descriptors
 * @count: number of descriptors
 * @page_size: bytes
 * @lowest: lowest valid file offset of page data
 * @extents: out: at most @count extents, back to back in a buffer of at most @count * @page_size bytes. Data that is
 *	shared, or close to the data of the previous page, is in one extent.
 *
 * Return: number of extents, or UINT64_MAX - i if descriptor i is invalid: its data is larger than a page, or begins
 * before @lowest or beyond the maximum file size.
 */
uint64_t vmf_extents(const struct vmf_descriptor *descriptors, uint64_t count, uint32_t page_size, uint64_t lowest,
		     struct vmf_extent *extents);

/* A decompressor for every codec of this build. One thread at a time. */
struct vmf_decoder;

/* vmf_decodes() - Return: 1 if this build can decompress pages whose descriptor has flags == @flag, else 0. */
int vmf_decodes(uint32_t flag);

/* vmf_decoder_new() - Return: a decompressor, to be freed by vmf_decoder_free(); NULL if memory is short. */
struct vmf_decoder *vmf_decoder_new(uint32_t page_size);
void vmf_decoder_free(struct vmf_decoder *decoder);

/*
 * vmf_unpack() - decompress pages
 * @decoder: the decompressor
 * @descriptors: in: @count descriptors
 * @count: number of descriptors
 * @extents: in: extents of these descriptors, from vmf_extents()
 * @extent_count: number of extents
 * @data: in: contents of the extents
 * @pages: out: @count pages, back to back
 *
 * Return: number of pages decompressed. If this is less than @count, the next page is damaged or this build lacks its
 * codec.
 */
uint64_t vmf_unpack(struct vmf_decoder *decoder, const struct vmf_descriptor *descriptors, uint64_t count,
		    const struct vmf_extent *extents, uint64_t extent_count, const uint8_t *data, uint8_t *pages);

/*
 * vmf_copy() - copy the data of pages unchanged, up to the first page that is neither raw nor of the given codec
 * @descriptors, @count, @extents, @extent_count, @data: as for vmf_unpack()
 * @page_size: bytes
 * @codec_flag: flag of the codec; 0 to copy only raw pages
 * @skip_zero: 1 to skip raw zero pages
 * @out: out: @count * @page_size bytes
 * @sizes: out: bytes of each page in @out, as for vmf_pack()
 * @used: out: bytes written to @out
 * @others: out: number of consecutive pages that follow and cannot be copied; 0 only if all pages were copied
 *
 * Return: number of pages copied.
 */
uint64_t vmf_copy(const struct vmf_descriptor *descriptors, uint64_t count, const struct vmf_extent *extents,
		  uint64_t extent_count, const uint8_t *data, uint32_t page_size, uint32_t codec_flag, int skip_zero,
		  uint8_t *out, uint32_t *sizes, uint64_t *used, uint64_t *others);

#endif
