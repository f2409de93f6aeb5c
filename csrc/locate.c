// SPDX-License-Identifier: GPL-2.0-or-later
/* Where a file has page frames, and where the parts of a file are mapped. */
#include "vmfilter.h"

/* Index of the last segment that starts at or before an address; @count if there is none. */
static uint64_t segment_at(const uint64_t *starts, uint64_t count, uint64_t address)
{
	uint64_t low = 0, high = count;

	while (low < high) {
		uint64_t middle = low + (high - low) / 2;

		if (starts[middle] <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low ? low - 1 : count;
}

uint64_t vmf_locate(const uint64_t *starts, const uint64_t *ends, const uint64_t *offsets, uint64_t segments,
		    const struct vmf_stretch *stretches, uint64_t count, uint64_t page_size, struct vmf_extent *extents)
{
	uint64_t at = 0, located = 0;

	for (uint64_t i = 0; i < count; i++) {
		uint64_t start = stretches[i].pfn * page_size, size = stretches[i].count * page_size;
		uint64_t s = segment_at(starts, segments, start);

		if (s < segments && start < ends[s] && size <= ends[s] - start) {
			extents[i] = (struct vmf_extent){offsets[s] + start - starts[s], size, at};
			located++;
		} else {
			extents[i] = (struct vmf_extent){0, 0, at};
		}
		at += size;
	}
	return located;
}

static uint64_t find(const struct vmf_window *windows, uint64_t count, uint64_t number)
{
	uint64_t i = 0;

	while (i < count && windows[i].number != number)
		i++;
	return i;
}

int64_t vmf_map_extents(const struct vmf_extent *parts, uint64_t count, uint64_t window_size,
			const struct vmf_window *windows, uint64_t window_count, struct vmf_extent *extents,
			uint64_t room, uint64_t *used, uint64_t *missing)
{
	uint64_t n = 0;

	*used = 0;
	for (uint64_t i = 0; i < count; i++) {
		struct vmf_extent part = parts[i];

		while (part.size) {
			uint64_t number = part.offset / window_size, at = part.offset % window_size, size;
			uint64_t w = find(windows, window_count, number);

			if (w == window_count) {
				*missing = number;
				return -1;
			}
			if (at >= windows[w].size || n == room)
				return -2;
			size = windows[w].size - at < part.size ? windows[w].size - at : part.size;
			extents[n++] = (struct vmf_extent){windows[w].address + at, size, part.at};
			*used |= (uint64_t)1 << w;
			part = (struct vmf_extent){part.offset + size, part.size - size, part.at + size};
		}
	}
	return (int64_t)n;
}
