// SPDX-License-Identifier: GPL-2.0-or-later
/* Decompression of pages, with a table entry for each codec flag of a page descriptor. Copying of compressed pages. */
#include <stdlib.h>
#include <string.h>

#include "libraries.h"
#include "vmfilter.h"

struct vmf_decoder {
	uint32_t page_size;
#ifdef HAVE_LIBDEFLATE
	struct libdeflate_decompressor *deflate;
#endif
#ifdef HAVE_ZSTD
	ZSTD_DCtx *zstd;
#endif
};

struct decoder_kind {
	uint32_t flag;
	/* Returns 1 if data decompresses to exactly size bytes. */
	int (*expand)(struct vmf_decoder *d, const uint8_t *data, size_t length, uint8_t *page, size_t size);
};

static int expand_none(struct vmf_decoder *d, const uint8_t *data, size_t length, uint8_t *page, size_t size)
{
	(void)d;
	if (length != size)
		return 0;
	memcpy(page, data, size);
	return 1;
}

#ifdef HAVE_LIBDEFLATE
static int expand_zlib(struct vmf_decoder *d, const uint8_t *data, size_t length, uint8_t *page, size_t size)
{
	return libdeflate_zlib_decompress(d->deflate, data, length, page, size, NULL) == LIBDEFLATE_SUCCESS;
}
#endif

#ifdef HAVE_LZO
static int expand_lzo(struct vmf_decoder *d, const uint8_t *data, size_t length, uint8_t *page, size_t size)
{
	lzo_uint written = size;

	(void)d;
	return lzo1x_decompress_safe(data, length, page, &written, NULL) == LZO_E_OK && written == size;
}
#endif

#ifdef HAVE_SNAPPY
static int expand_snappy(struct vmf_decoder *d, const uint8_t *data, size_t length, uint8_t *page, size_t size)
{
	size_t written = 0;

	(void)d;
	return snappy_uncompressed_length((const char *)data, length, &written) == SNAPPY_OK && written == size &&
	       snappy_uncompress((const char *)data, length, (char *)page, &written) == SNAPPY_OK && written == size;
}
#endif

#ifdef HAVE_ZSTD
static int expand_zstd(struct vmf_decoder *d, const uint8_t *data, size_t length, uint8_t *page, size_t size)
{
	return ZSTD_decompressDCtx(d->zstd, page, size, data, length) == size;
}
#endif

#ifdef HAVE_LZ4
static int expand_lz4(struct vmf_decoder *d, const uint8_t *data, size_t length, uint8_t *page, size_t size)
{
	(void)d;
	return LZ4_decompress_safe((const char *)data, (char *)page, (int)length, (int)size) == (int)size;
}
#endif

static const struct decoder_kind kinds[] = {
	{0, expand_none},
#ifdef HAVE_LIBDEFLATE
	{1, expand_zlib},
#endif
#ifdef HAVE_LZO
	{2, expand_lzo},
#endif
#ifdef HAVE_SNAPPY
	{4, expand_snappy},
#endif
#ifdef HAVE_ZSTD
	{32, expand_zstd},
#endif
#ifdef HAVE_LZ4
	{64, expand_lz4},
#endif
};

static const struct decoder_kind *find_kind(uint32_t flag)
{
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (kinds[i].flag == flag)
			return &kinds[i];
	return NULL;
}

int vmf_decodes(uint32_t flag)
{
	return find_kind(flag) != NULL;
}

struct vmf_decoder *vmf_decoder_new(uint32_t page_size)
{
	struct vmf_decoder *d = calloc(1, sizeof(*d));
	int ready = d != NULL;

	if (!ready)
		return NULL;
	d->page_size = page_size;
#ifdef HAVE_LIBDEFLATE
	d->deflate = libdeflate_alloc_decompressor();
	ready = ready && d->deflate;
#endif
#ifdef HAVE_ZSTD
	d->zstd = ZSTD_createDCtx();
	ready = ready && d->zstd;
#endif
#ifdef HAVE_LZO
	ready = ready && lzo_init() == LZO_E_OK;
#endif
	if (ready)
		return d;
	vmf_decoder_free(d);
	return NULL;
}

void vmf_decoder_free(struct vmf_decoder *d)
{
	if (!d)
		return;
#ifdef HAVE_LIBDEFLATE
	libdeflate_free_decompressor(d->deflate);
#endif
#ifdef HAVE_ZSTD
	ZSTD_freeDCtx(d->zstd);
#endif
	free(d);
}

/* Returns the data that a descriptor refers to, or NULL if no extent contains all of it. */
static const uint8_t *data_of(const struct vmf_descriptor *d, const struct vmf_extent *extents, uint64_t count,
			      const uint8_t *data)
{
	for (uint64_t i = 0; i < count; i++) {
		const struct vmf_extent *e = &extents[i];

		if (d->offset >= e->offset && d->offset - e->offset <= e->size &&
		    d->size <= e->size - (d->offset - e->offset))
			return data + e->at + (d->offset - e->offset);
	}
	return NULL;
}

uint64_t vmf_unpack(struct vmf_decoder *decoder, const struct vmf_descriptor *descriptors, uint64_t count,
		    const struct vmf_extent *extents, uint64_t extent_count, const uint8_t *data, uint8_t *pages)
{
	uint64_t i;

	for (i = 0; i < count; i++) {
		const struct vmf_descriptor *d = &descriptors[i];
		const struct decoder_kind *kind = find_kind(d->flags);
		const uint8_t *piece = data_of(d, extents, extent_count, data);

		if (!kind || !piece || d->size > decoder->page_size ||
		    !kind->expand(decoder, piece, d->size, pages + i * decoder->page_size, decoder->page_size))
			break;
	}
	return i;
}

static int is_raw(const struct vmf_descriptor *d, uint32_t page_size)
{
	return d->flags == 0 && d->size == page_size;
}

/* Whether the data is what vmf_pack() could write with the codec of codec_flag. */
static int fits(const struct vmf_descriptor *d, uint32_t page_size, uint32_t codec_flag)
{
	return is_raw(d, page_size) || (codec_flag && d->flags == codec_flag && d->size && d->size < page_size);
}

uint64_t vmf_copy(const struct vmf_descriptor *descriptors, uint64_t count, const struct vmf_extent *extents,
		  uint64_t extent_count, const uint8_t *data, uint32_t page_size, uint32_t codec_flag, int skip_zero,
		  uint8_t *out, uint32_t *sizes, uint64_t *used, uint64_t *others)
{
	uint64_t i, end;

	*used = 0;
	for (i = 0; i < count; i++) {
		const struct vmf_descriptor *d = &descriptors[i];
		const uint8_t *piece = data_of(d, extents, extent_count, data);

		if (!piece || !fits(d, page_size, codec_flag))
			break;
		sizes[i] = skip_zero && is_raw(d, page_size) && vmf_is_zero(piece, page_size) ? 0 : d->size;
		memcpy(out + *used, piece, sizes[i]);
		*used += sizes[i];
	}
	for (end = i; end < count && (end == i || !fits(&descriptors[end], page_size, codec_flag)); end++)
		;
	*others = end - i;
	return i;
}
