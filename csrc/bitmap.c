// SPDX-License-Identifier: GPL-2.0-or-later
/* Class bytes to counts and bitmaps, bitmaps to runs. */
#include "bytes.h"
#include "vmfilter.h"

/* 1 where the eight classes from here on are the same: most are, as what memory is used for comes in blocks. */
static inline int eight_alike(const uint8_t *classes)
{
	return vmf_load64(classes, 0) == classes[0] * 0x0101010101010101ull;
}

void vmf_count(const uint8_t *classes, uint64_t count, uint64_t counts[VMF_CLASSES])
{
	uint64_t found[256] = {0}, i = 0;

	for (; count - i >= 8; i += 8) {
		if (eight_alike(classes + i)) {
			found[classes[i]] += 8;
			continue;
		}
		for (uint64_t k = 0; k < 8; k++)
			found[classes[i + k]]++;
	}
	for (; i < count; i++)
		found[classes[i]]++;
	for (uint32_t c = 0; c < 256; c++)
		counts[c < VMF_CLASSES ? c : VMF_KERNEL] += found[c];
}

static inline uint8_t eight_bits(const uint8_t *classes, uint64_t count, const uint8_t chosen[256])
{
	uint8_t bits = 0;

	for (uint64_t i = 0; i < count; i++)
		bits |= (uint8_t)((chosen[classes[i]] != 0) << i);
	return bits;
}

void vmf_bitmap(const uint8_t *classes, uint64_t count, const uint8_t chosen[256], uint8_t *bits)
{
	uint64_t i = 0;

	for (; count - i >= 8; i += 8)
		bits[i / 8] = eight_alike(classes + i) ? (uint8_t)-(chosen[classes[i]] != 0)
						       : eight_bits(classes + i, 8, chosen);
	if (i < count)
		bits[i / 8] = eight_bits(classes + i, count - i, chosen);
}

void vmf_mark(const uint8_t *bits, uint64_t count, uint8_t value, uint8_t *classes)
{
	for (uint64_t i = 0; i < count; i++)
		if (bits[i / 8] >> (i % 8) & 1)
			classes[i] = value;
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

/* The first bit from i on that has the value wanted; count where there is none. */
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
