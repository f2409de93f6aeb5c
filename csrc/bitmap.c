// SPDX-License-Identifier: GPL-2.0-or-later
/* Counts and bitmaps of page classes; runs of set bits in bitmaps, and of page frames by class and by rank. */
#include <string.h>

#include "bytes.h"
#include "vmfilter.h"

#define EACH 0x0101010101010101u

#define WIDE 64	/* page frames that are looked at together, since runs of a class are as long as blocks */

/* Whether WIDE classes are equal. */
static inline int is_wide_run(const uint8_t *classes)
{
	uint64_t all = EACH * classes[0], differ = 0;

	for (int i = 0; i < WIDE; i += 8)
		differ |= vmf_load64(classes + i, 0) ^ all;
	return !differ;
}

/* Whether all 8 classes are equal. They often are: neighbouring page frames tend to have the same class. */
static inline int is_run(const uint8_t *classes)
{
	uint64_t all = vmf_load64(classes, 0);

	return all == EACH * classes[0];
}

void vmf_count(const uint8_t *classes, uint64_t count, uint64_t counts[256])
{
	for (uint64_t i = 0; i < count; i += 8) {
		uint64_t end;

		for (; count - i >= WIDE && is_wide_run(classes + i); i += WIDE)
			counts[classes[i]] += WIDE;
		if (i == count)
			break;
		end = count - i < 8 ? count : i + 8;
		if (end - i == 8 && is_run(classes + i))
			counts[classes[i]] += 8;
		else
			for (uint64_t k = i; k < end; k++)
				counts[classes[k]]++;
	}
}

void vmf_fill(uint8_t *classes, uint64_t count, uint8_t byte)
{
	memset(classes, byte, count);
}

void vmf_add_counts(const uint64_t from[256], uint64_t counts[256])
{
	for (int byte = 0; byte < 256; byte++)
		counts[byte] += from[byte];
}

void vmf_bitmap(const uint8_t *classes, uint64_t count, const uint8_t kept[256], uint8_t *bits)
{
	for (uint64_t i = 0; i < count; i += 8) {
		uint64_t n;
		uint8_t byte = 0;

		for (; count - i >= WIDE && is_wide_run(classes + i); i += WIDE)
			memset(bits + i / 8, kept[classes[i]] ? 0xff : 0, WIDE / 8);
		if (i == count)
			break;
		n = count - i < 8 ? count - i : 8;
		if (n == 8 && is_run(classes + i))
			byte = kept[classes[i]] ? 0xff : 0;
		else
			for (uint64_t k = 0; k < n; k++)
				byte |= (uint8_t)((kept[classes[i + k]] != 0) << k);
		bits[i / 8] = byte;
	}
}

uint64_t vmf_rank(const uint8_t *bits, uint64_t count)
{
	uint64_t i = 0, rank = 0;

	for (; count - i >= 64; i += 64)
		rank += (uint64_t)__builtin_popcountll(vmf_load64(bits + i / 8, 0));
	for (; i < count; i++)
		rank += bits[i / 8] >> (i % 8) & 1;
	return rank;
}

/* Returns the first bit at or after i whose value is wanted, or count if there is none. */
static uint64_t find(const uint8_t *bits, uint64_t i, uint64_t count, int wanted)
{
	const uint8_t none = wanted ? 0x00 : 0xff;
	const uint64_t none64 = wanted ? 0 : UINT64_MAX;

	while (i < count) {
		if (i % 8 == 0 && count - i >= 64 && vmf_load64(bits + i / 8, 0) == none64)
			i += 64;
		else if (i % 8 == 0 && count - i >= 8 && bits[i / 8] == none)
			i += 8;
		else if ((bits[i / 8] >> (i % 8) & 1) == wanted)
			return i;
		else
			i++;
	}
	return count;
}

uint64_t vmf_runs(const uint8_t *bits, uint64_t count, uint64_t *next, uint64_t *runs, uint64_t max_runs)
{
	uint64_t n = 0, i = *next;

	while (n < max_runs && (i = find(bits, i, count, 1)) < count) {
		uint64_t end = find(bits, i, count, 0);

		runs[2 * n] = i;
		runs[2 * n + 1] = end - i;
		n++;
		i = end;
	}
	*next = i;
	return n;
}

/* Returns the first frame at or after i whose class differs from that of frame i, or count if there is none. */
static uint64_t class_end(const uint8_t *classes, uint64_t i, uint64_t count)
{
	const uint8_t class = classes[i];

	while (count - i >= 8 && vmf_load64(classes + i, 0) == EACH * class)
		i += 8;
	while (i < count && classes[i] == class)
		i++;
	return i;
}

uint64_t vmf_class_runs(const uint8_t *classes, uint64_t count, uint64_t *next, uint64_t *runs, uint64_t max_runs)
{
	uint64_t n = 0, i = *next;

	for (; n < max_runs && i < count; n++) {
		runs[2 * n] = i;
		runs[2 * n + 1] = classes[i];
		i = class_end(classes, i, count);
	}
	*next = i;
	return n;
}

/* Sorts runs by rank; runs of one rank keep their order. */
static void sort_by_rank(const struct vmf_ranked_run *from, uint64_t n, struct vmf_ranked_run *to)
{
	uint64_t next[VMF_RANKS + 1] = {0};

	for (uint64_t i = 0; i < n; i++)
		next[from[i].rank + 1]++;
	for (unsigned r = 1; r < VMF_RANKS; r++)
		next[r] += next[r - 1];
	for (uint64_t i = 0; i < n; i++)
		to[next[from[i].rank]++] = from[i];
}

uint64_t vmf_ranked_runs(const uint8_t *classes, uint64_t count, const uint8_t rank_of[256], uint32_t below,
			 struct vmf_ranked_run *runs, struct vmf_ranked_run *scratch, uint64_t max_runs,
			 uint64_t counts[VMF_RANKS])
{
	uint64_t n = 0, index = 0, end;

	memset(counts, 0, VMF_RANKS * sizeof(*counts));
	for (uint64_t i = 0; i < count; i = end) {
		const uint8_t rank = rank_of[classes[i]];

		end = class_end(classes, i, count);
		while (end < count && rank_of[classes[end]] == rank)
			end = class_end(classes, end, count);
		if (rank >= VMF_RANKS)
			continue;
		counts[rank]++;
		if (rank < below && n < max_runs)
			scratch[n++] = (struct vmf_ranked_run){(uint32_t)i, (uint32_t)(end - i), (uint32_t)index, rank};
		index += end - i;
	}
	sort_by_rank(scratch, n, runs);
	return n;
}
