/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Unaligned loads from a dump, which may be in the opposite byte order. */
#ifndef VMFILTER_BYTES_H
#define VMFILTER_BYTES_H

#include <stdint.h>
#include <string.h>

static inline uint16_t vmf_load16(const uint8_t *p, int swap)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return swap ? __builtin_bswap16(v) : v;
}

static inline uint32_t vmf_load32(const uint8_t *p, int swap)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return swap ? __builtin_bswap32(v) : v;
}

static inline uint64_t vmf_load64(const uint8_t *p, int swap)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return swap ? __builtin_bswap64(v) : v;
}

#endif
