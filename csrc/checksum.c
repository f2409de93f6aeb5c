// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Checksums of the blocks of a file, made as its bytes come, in any order. They are CRC-32 with zlib's polynomial and
 * bit order, but without its inversions. That makes them linear: a block's checksum is the XOR of its pieces' checksums,
 * each piece padded with zeros. Zeros before a piece do not count, and n zeros after it multiply by x^(8n). So where the
 * beginnings of data have known checksums, a piece is the end of one without the end of another.
 */
#include "libraries.h"
#include "vmfilter.h"

#define POLYNOMIAL 0xedb88320u	/* bit 31 is x^0 */
#define ONE 0x80000000u

/* x^(8 * 2^i) modulo the polynomial: the factor of a checksum with 2^i zero bytes after it. Its period is 32. */
static const uint32_t powers[32] = {
	0x00800000, 0x00008000, 0xedb88320, 0xb1e6b092, 0xa06a2517, 0xed627dae, 0x88d14467, 0xd7bbfe6a,
	0xec447f11, 0x8e7ea170, 0x6427800e, 0x4d47bae0, 0x09fe548f, 0x83852d0f, 0x30362f1a, 0x7b5a9cc3,
	0x31fec169, 0x9fec022a, 0x6c8dedc4, 0x15d6874d, 0x5fde7a4e, 0xbad90e37, 0x2e4e5eef, 0x4eaba214,
	0xa8a472c0, 0x429a969e, 0x148d302a, 0xc40ba6d0, 0xc4e22c3c, 0x40000000, 0x20000000, 0x08000000
};

#ifdef HAVE_LIBDEFLATE
/* Returns the checksum of data that follow what has the checksum crc. */
static uint32_t crc_after(uint32_t crc, const uint8_t *data, uint64_t size)
{
	return ~libdeflate_crc32(~crc, data, size);
}
#else
static uint32_t crc_after(uint32_t crc, const uint8_t *data, uint64_t size)
{
	uint32_t table[256];

	for (uint32_t i = 0; i < 256; i++) {
		table[i] = i;
		for (int bit = 0; bit < 8; bit++)
			table[i] = table[i] >> 1 ^ (table[i] & 1 ? POLYNOMIAL : 0);
	}
	for (uint64_t i = 0; i < size; i++)
		crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xff];
	return crc;
}
#endif

static uint32_t times(uint32_t a, uint32_t b)
{
	uint32_t product = 0;

	for (; a; a <<= 1) {
		product ^= b & -(a >> 31);	/* without branches: nobody can predict them */
		b = b >> 1 ^ (POLYNOMIAL & -(b & 1));
	}
	return product;
}

/* Returns x^(8 * zeros): the factor of a checksum with that many zero bytes after it. */
static uint32_t factor_of(uint64_t zeros)
{
	uint32_t factor = ONE;

	for (unsigned i = 0; zeros; i++, zeros >>= 1)
		if (zeros & 1)
			factor = times(powers[i % 32], factor);
	return factor;
}

static uint32_t padded(uint32_t sum, uint64_t zeros)
{
	return sum && zeros ? times(sum, factor_of(zeros)) : sum;
}

void vmf_sums_of(const uint8_t *data, uint64_t size, uint32_t *known)
{
	known[0] = 0;
	for (uint64_t i = 0; i < size / VMF_SUMMED; i++)
		known[i + 1] = crc_after(known[i], data + i * VMF_SUMMED, VMF_SUMMED);
}

/* Returns the checksum of the first n bytes of data, made from the last known one before. */
static uint32_t sum_of_first(uint64_t n, const uint8_t *data, const uint32_t *known)
{
	uint64_t rest = n % VMF_SUMMED;

	return crc_after(known[n / VMF_SUMMED], data + n - rest, rest);
}

void vmf_sums_add(uint32_t *sums, uint32_t shift, uint64_t offset, const uint8_t *data, uint64_t size,
		  const uint32_t *known)
{
	uint64_t block_size = (uint64_t)1 << shift;
	uint32_t before = known ? known[0] : 0;	/* of what is before the piece */

	for (uint64_t at = 0, n; at < size; at += n, offset += n) {
		uint64_t room = block_size - (offset & (block_size - 1));
		uint32_t sum;

		n = size - at < room ? size - at : room;
		sum = known ? sum_of_first(at + n, data, known) : crc_after(0, data + at, n);
		sums[offset >> shift] ^= padded(sum, room - n) ^ padded(before, room);
		before = known ? sum : 0;
	}
}

void vmf_sums_add_all(uint32_t *sums, uint32_t shift, const struct vmf_summed_piece *pieces, uint64_t count)
{
	for (const struct vmf_summed_piece *p = pieces; p < pieces + count; p++)
		vmf_sums_add(sums, shift, p->offset, p->data, p->size, p->known);
}

void vmf_sums_add_pieces(uint32_t *sums, uint32_t shift, const struct vmf_extent *extents, uint64_t count,
			 const uint8_t *data)
{
	for (uint64_t i = 0; i < count; i++)
		vmf_sums_add(sums, shift, extents[i].offset, data + extents[i].at, extents[i].size, NULL);
}

void vmf_sums_join(uint32_t *sums, uint64_t count, uint32_t shift)
{
	uint32_t factor = factor_of((uint64_t)1 << shift);

	for (uint64_t i = 0; i < count; i++) {
		uint32_t sum = sums[i];

		sums[i] = 0;
		sums[i / 2] ^= i % 2 ? sum : times(sum, factor);
	}
}
