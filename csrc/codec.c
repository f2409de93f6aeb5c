// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Compression of pages. The table contains each codec whose library was found at build time. The state of a library
 * lives as long as its vmf_codec, and one thread at a time uses it.
 */
#include <stdlib.h>
#include <string.h>

#include "isal.h"
#include "libraries.h"
#include "vmfilter.h"

#define FAILED (-1)

struct codec_kind {
	const char *name;
	const char *library;
	int min_level, max_level;
	size_t state_size;	/* zeroed memory for start() and compress() */
	int (*start)(void *state, int level);
	void (*stop)(void *state);
	/* Returns the bytes written to out, 0 if the page does not shrink, or FAILED. */
	int64_t (*compress)(struct vmf_codec *codec, const uint8_t *page, uint32_t size, uint8_t *out);
	size_t (*bound)(size_t size);	/* size of out if the library cannot limit its output; NULL: size - 1 */
	int detect_noise;		/* the library is slow to give up on noise */
};

struct vmf_codec {
	const struct codec_kind *kind;
	void *state;
	size_t bound;
	uint8_t *scratch;	/* bound bytes: used if the output buffer has less room than that */
	uint32_t page_size;
};

static int64_t if_smaller(size_t written, uint32_t size)
{
	return written && written < size ? (int64_t)written : 0;
}

static int64_t no_compress(struct vmf_codec *codec, const uint8_t *page, uint32_t size, uint8_t *out)
{
	(void)codec, (void)page, (void)size, (void)out;
	return 0;
}

#ifdef HAVE_ISAL
static int isal_start(void *state, int level)
{
	struct vmf_isal **s = state;

	(void)level;
	*s = vmf_isal_new();
	return *s ? 0 : FAILED;
}

static void isal_stop(void *state)
{
	struct vmf_isal **s = state;

	vmf_isal_free(*s);
}

static int64_t isal(struct vmf_codec *codec, const uint8_t *page, uint32_t size, uint8_t *out)
{
	struct vmf_isal **s = codec->state;

	return vmf_isal_compress(*s, page, size, out);
}
#endif

#ifdef HAVE_LIBDEFLATE
static int deflate_start(void *state, int level)
{
	struct libdeflate_compressor **c = state;

	*c = libdeflate_alloc_compressor(level);
	return *c ? 0 : FAILED;
}

static void deflate_stop(void *state)
{
	struct libdeflate_compressor **c = state;

	libdeflate_free_compressor(*c);
}

static int64_t deflate(struct vmf_codec *codec, const uint8_t *page, uint32_t size, uint8_t *out)
{
	struct libdeflate_compressor **c = codec->state;

	return if_smaller(libdeflate_zlib_compress(*c, page, size, out, size - 1), size);
}
#endif

#ifdef HAVE_LZO
static int lzo_start(void *state, int level)
{
	(void)state, (void)level;
	return lzo_init() == LZO_E_OK ? 0 : FAILED;
}

static size_t lzo_bound(size_t size)
{
	return size + size / 16 + 64 + 3;	/* LZO.FAQ: how much can my data expand */
}

static int64_t lzo(struct vmf_codec *codec, const uint8_t *page, uint32_t size, uint8_t *out)
{
	/* LZO clears its table for every page. For a small page, 8 KiB finds nearly as much as 32 KiB, in less time. */
	int small = size <= 4096;
	lzo_uint written = 0;

	if ((small ? lzo1x_1_12_compress : lzo1x_1_compress)(page, size, out, &written, codec->state) != LZO_E_OK)
		return FAILED;
	return if_smaller(written, size);
}
#endif

#ifdef HAVE_SNAPPY
static int64_t snappy(struct vmf_codec *codec, const uint8_t *page, uint32_t size, uint8_t *out)
{
	size_t written = snappy_max_compressed_length(size);

	(void)codec;
	if (snappy_compress((const char *)page, size, (char *)out, &written) != SNAPPY_OK)
		return FAILED;
	return if_smaller(written, size);
}
#endif

#ifdef HAVE_ZSTD
static int zstd_start(void *state, int level)
{
	ZSTD_CCtx **c = state;

	*c = ZSTD_createCCtx();
	return *c && !ZSTD_isError(ZSTD_CCtx_setParameter(*c, ZSTD_c_compressionLevel, level)) ? 0 : FAILED;
}

static void zstd_stop(void *state)
{
	ZSTD_CCtx **c = state;

	ZSTD_freeCCtx(*c);
}

static int64_t zstd(struct vmf_codec *codec, const uint8_t *page, uint32_t size, uint8_t *out)
{
	ZSTD_CCtx **c = codec->state;
	size_t written = ZSTD_compress2(*c, out, size - 1, page, size);

	if (ZSTD_isError(written))	/* a full output buffer means that the page did not shrink */
		return ZSTD_getErrorCode(written) == ZSTD_error_dstSize_tooSmall ? 0 : FAILED;
	return if_smaller(written, size);
}
#endif

#ifdef HAVE_LZ4
static int64_t lz4(struct vmf_codec *codec, const uint8_t *page, uint32_t size, uint8_t *out)
{
	int written = LZ4_compress_fast_extState(codec->state, (const char *)page, (char *)out, (int)size,
						 (int)size - 1, 1);

	return if_smaller(written > 0 ? (size_t)written : 0, size);
}
#endif

/* The first entry that provides a codec at a level is used. */
static const struct codec_kind kinds[] = {
	{.name = "none", .library = "vmfilter", .compress = no_compress},
#ifdef HAVE_ISAL
	{.name = "zlib", .library = "ISA-L", .min_level = 1, .max_level = 1, .state_size = sizeof(struct vmf_isal *),
	 .start = isal_start, .stop = isal_stop, .compress = isal, .detect_noise = 1},
#endif
#ifdef HAVE_LIBDEFLATE
	{.name = "zlib", .library = "libdeflate", .min_level = 1, .max_level = 12,
	 .state_size = sizeof(struct libdeflate_compressor *), .start = deflate_start, .stop = deflate_stop,
	 .compress = deflate, .detect_noise = 1},
#endif
#ifdef HAVE_LZO
	{.name = "lzo", .library = "lzo2", .state_size = LZO1X_1_MEM_COMPRESS, .start = lzo_start, .compress = lzo,
	 .bound = lzo_bound},
#endif
#ifdef HAVE_SNAPPY
	{.name = "snappy", .library = "snappy", .compress = snappy, .bound = snappy_max_compressed_length},
#endif
#ifdef HAVE_ZSTD
	{.name = "zstd", .library = "zstd", .min_level = 1, .max_level = 19, .state_size = sizeof(ZSTD_CCtx *),
	 .start = zstd_start, .stop = zstd_stop, .compress = zstd},
#endif
#ifdef HAVE_LZ4
	{.name = "lz4", .library = "lz4", .state_size = sizeof(LZ4_stream_t), .compress = lz4},
#endif
};

#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

const char *vmf_codec_name(uint32_t i)
{
	return i < KINDS ? kinds[i].name : NULL;
}

const char *vmf_codec_library(uint32_t i)
{
	return i < KINDS ? kinds[i].library : NULL;
}

static const struct codec_kind *find_kind(const char *name, int level)
{
	for (size_t i = 0; i < KINDS; i++)
		if (!strcmp(kinds[i].name, name) && level >= kinds[i].min_level && level <= kinds[i].max_level)
			return &kinds[i];
	return NULL;
}

int vmf_codec_supports(const char *name, int level)
{
	return find_kind(name, level) != NULL;
}

/* Whether a first page can be compressed. After that, the library has allocated all the memory that it needs. */
static int compresses(struct vmf_codec *codec)
{
	uint8_t *page = calloc(1, codec->page_size);
	int64_t n = page ? codec->kind->compress(codec, page, codec->page_size, codec->scratch) : FAILED;

	free(page);
	return n >= 0;
}

struct vmf_codec *vmf_codec_new(const char *name, int level, uint32_t page_size)
{
	const struct codec_kind *kind = find_kind(name, level);
	struct vmf_codec *codec = kind && page_size ? calloc(1, sizeof(*codec)) : NULL;

	if (!codec)
		return NULL;
	codec->page_size = page_size;
	codec->state = kind->state_size ? calloc(1, kind->state_size) : NULL;
	codec->bound = kind->bound ? kind->bound(page_size) : page_size;
	codec->scratch = malloc(codec->bound);
	if ((kind->state_size && !codec->state) || !codec->scratch) {
		vmf_codec_free(codec);
		return NULL;
	}
	codec->kind = kind;
	if ((kind->start && kind->start(codec->state, level)) || !compresses(codec)) {
		vmf_codec_free(codec);
		return NULL;
	}
	return codec;
}

void vmf_codec_free(struct vmf_codec *codec)
{
	if (!codec)
		return;
	if (codec->kind && codec->kind->stop)
		codec->kind->stop(codec->state);
	free(codec->scratch);
	free(codec->state);
	free(codec);
}

/* glibc's memcmp() is vectorised for each CPU. A page of zeros equals itself, moved. */
int vmf_is_zero(const uint8_t *page, uint64_t size)
{
	static const uint8_t zeros[64];
	uint64_t first = size < sizeof(zeros) ? size : sizeof(zeros);

	return !memcmp(page, zeros, first) && !memcmp(page, page + first, size - first);
}

void vmf_count_zero(const uint8_t *pages, uint64_t count, uint64_t page_size, const uint8_t *classes,
		    uint64_t counts[256])
{
	for (uint64_t i = 0; i < count; i++)
		counts[classes[i]] += (uint64_t)vmf_is_zero(pages + i * page_size, page_size);
}

#define SAMPLES 256		/* bytes of a page to sample */
#define SAMPLE_RUN 32		/* consecutive bytes per sample */

/* Whether a sample of the page looks like noise: it contains less than twice as many pairs of equal bytes. */
static int seems_noise(const uint8_t *page, uint32_t size)
{
	uint8_t counts[256] = {0};	/* small, and the loop ends early: few pages are noise */
	uint32_t step = size / (SAMPLES / SAMPLE_RUN), pairs = 0;

	for (uint32_t at = 0; at < SAMPLES / SAMPLE_RUN && pairs < SAMPLES * SAMPLES / 256; at++)
		for (uint32_t i = 0; i < SAMPLE_RUN; i++)
			pairs += counts[page[at * step + i]]++;
	return pairs < SAMPLES * SAMPLES / 256;
}

/* Whether the byte values of the page are so evenly distributed that Huffman coding could save at most 0.5 %. */
static int is_even(const uint8_t *page, uint32_t size)
{
	uint32_t counts[4][256] = {{0}};	/* four, so that equal neighbours increment different counters */
	uint64_t square = (uint64_t)size * size, sum = 0;

	for (uint32_t i = 0; i < size; i += 4)
		for (int j = 0; j < 4; j++)
			counts[j][page[i + j]]++;
	for (int i = 0; i < 256; i++) {
		uint64_t n = (uint64_t)counts[0][i] + counts[1][i] + counts[2][i] + counts[3][i];

		sum += n * n;
	}
	return sum < square / 256 + size + square / 4096;	/* even distribution, chance, and a margin of 1/16 */
}

/*
 * Whether the page is noise and compression can be skipped. An evenly distributed page could still contain repeated
 * strings, but in real vmcores such pages are encrypted or already compressed, and contain none.
 */
static int is_noise(const uint8_t *page, uint32_t size)
{
	return size >= SAMPLES && size % 4 == 0 && seems_noise(page, size) && is_even(page, size);
}

/* Compresses a page to at, or copies it if it does not shrink. room is at least one page. Returns the bytes written. */
static int64_t pack_page(struct vmf_codec *codec, const uint8_t *page, uint8_t *at, uint64_t room)
{
	const struct codec_kind *kind = codec->kind;
	uint32_t size = codec->page_size;
	uint8_t *out = room < codec->bound ? codec->scratch : at;
	int64_t n = kind->detect_noise && is_noise(page, size) ? 0 : kind->compress(codec, page, size, out);

	if (n == 0) {
		memcpy(at, page, size);
		return size;
	}
	if (n > 0 && out != at)
		memcpy(at, out, (size_t)n);
	return n;
}

int64_t vmf_pack(struct vmf_codec *codec, const uint8_t *pages, uint64_t count, uint32_t page_size, int skip_zero,
		 uint8_t *out, uint64_t out_size, uint32_t *sizes)
{
	uint64_t used = 0;

	if (codec->page_size != page_size || out_size / page_size < count)
		return -1;
	for (uint64_t i = 0; i < count; i++) {
		const uint8_t *page = pages + i * page_size;
		int64_t n;

		if (skip_zero && vmf_is_zero(page, page_size)) {
			sizes[i] = 0;
			continue;
		}
		n = pack_page(codec, page, out + used, out_size - used);
		if (n < 0)
			return -2;
		sizes[i] = (uint32_t)n;
		used += (uint64_t)n;
	}
	return (int64_t)used;
}
