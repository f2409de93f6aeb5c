// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Deduplication: a page that is identical to an earlier page shares its data. Equal hashes only suggest a match; the
 * caller compares the pages between vmf_dedup_find() and vmf_dedup_place().
 */
#include <string.h>

#include "bytes.h"
#include "vmfilter.h"

#define WAYS 8	/* slots that can hold a given page; a new page replaces the least recently used */
#define LANES 4

static const uint64_t prime1 = 0x9e3779b185ebca87, prime2 = 0xc2b2ae3d27d4eb4f, prime3 = 0x165667b19e3779f9;

static uint64_t rotated(uint64_t v, int bits)
{
	return v << bits | v >> (64 - bits);
}

static void mix(uint64_t lanes[LANES], const uint8_t *p)
{
	for (int i = 0; i < LANES; i++)
		lanes[i] = rotated(lanes[i] + vmf_load64(p + 8 * i, 0) * prime2, 31) * prime1;
}

/* The rounds of XXH64, with a simpler finish: nothing outside this file depends on the values. */
static uint64_t hash_of(const uint8_t *data, uint32_t size)
{
	uint64_t lanes[LANES] = {prime1, prime2, prime3, size}, hash = size;
	uint8_t rest[8 * LANES] = {0};
	uint32_t i = 0;

	for (; size - i >= sizeof(rest); i += sizeof(rest))
		mix(lanes, data + i);
	memcpy(rest, data + i, size - i);
	mix(lanes, rest);
	for (int j = 0; j < LANES; j++)
		hash = (hash ^ rotated(lanes[j] * prime2, 31) * prime1) * prime1 + prime3;
	hash = (hash ^ hash >> 33) * prime2;
	hash = (hash ^ hash >> 29) * prime3;
	return hash ^ hash >> 32;
}

static uint32_t data_size(uint32_t size)
{
	return size == VMF_LOST ? 0 : size;
}

void vmf_hashes(const uint8_t *data, const uint32_t *sizes, uint64_t count, uint64_t *hashes)
{
	for (uint64_t i = 0; i < count; i++) {
		uint32_t size = data_size(sizes[i]);

		hashes[i] = size ? hash_of(data, size) : 0;
		data += size;
	}
}

static int in_use(const struct vmf_stored *s, uint64_t lowest_pfn)
{
	return s->size && s->pfn >= lowest_pfn;
}

/* Returns the slot of a page with this hash and size, or NULL. */
static struct vmf_stored *find(struct vmf_stored *bucket, uint64_t hash, uint32_t size, uint64_t lowest_pfn)
{
	for (int i = 0; i < WAYS; i++)
		if (in_use(&bucket[i], lowest_pfn) && bucket[i].hash == hash && bucket[i].size == size)
			return &bucket[i];
	return NULL;
}

/* Returns the slot for a new page. The clock wraps around, so compare ages, not times. */
static struct vmf_stored *place(struct vmf_stored *bucket, uint32_t now, uint64_t lowest_pfn)
{
	struct vmf_stored *oldest = bucket;

	for (int i = 0; i < WAYS; i++) {
		if (!in_use(&bucket[i], lowest_pfn))
			return &bucket[i];
		if (now - bucket[i].used > now - oldest->used)
			oldest = &bucket[i];
	}
	return oldest;
}

void vmf_dedup_find(struct vmf_stored *table, uint64_t slots, uint64_t lowest_pfn, uint32_t now,
		    const uint64_t *hashes, const uint32_t *sizes, const uint64_t *pfns, uint64_t count,
		    uint8_t *kinds, uint32_t *found, uint64_t *earlier)
{
	for (uint64_t i = 0; i < count; i++, now++) {
		struct vmf_stored *bucket = table + (hashes[i] & (slots - 1) & ~(uint64_t)(WAYS - 1)), *s;

		found[i] = 0;
		earlier[i] = pfns[i];
		kinds[i] = VMF_ALONE;
		if (!data_size(sizes[i]))
			continue;
		s = find(bucket, hashes[i], sizes[i], lowest_pfn);
		kinds[i] = s ? VMF_SHARES : VMF_STORES;
		if (!s) {	/* leave the offset alone: an earlier page of this call may share it */
			s = place(bucket, now, lowest_pfn);
			s->hash = hashes[i];
			s->pfn = pfns[i];
			s->size = sizes[i];
		}
		s->used = now;
		found[i] = (uint32_t)(s - table);
		earlier[i] = s->pfn;
	}
}

uint64_t vmf_dedup_place(struct vmf_stored *table, const uint8_t *kinds, const uint32_t *found, const uint32_t *sizes,
			 uint64_t count, uint64_t offset, uint8_t *data, uint64_t *shared)
{
	const uint8_t *from = data;
	uint64_t used = 0;

	for (uint64_t i = 0; i < count; from += data_size(sizes[i++])) {
		shared[i] = kinds[i] == VMF_SHARES ? table[found[i]].offset : 0;
		if (kinds[i] == VMF_SHARES)
			continue;
		if (kinds[i] == VMF_STORES)
			table[found[i]].offset = offset + used;
		memmove(data + used, from, data_size(sizes[i]));
		used += data_size(sizes[i]);
	}
	return used;
}
