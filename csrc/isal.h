/* SPDX-License-Identifier: GPL-2.0-or-later */
/* zlib's format by ISA-L at level 1, the same bytes for the same page always. Only where HAVE_ISAL is defined. */
#ifndef VMFILTER_ISAL_H
#define VMFILTER_ISAL_H

#include <stdint.h>

struct vmf_isal;

/* NULL where there is no memory, or none of the addresses that will do is free. */
struct vmf_isal *vmf_isal_new(void);
void vmf_isal_free(struct vmf_isal *s);

/* Bytes written to out, 0 where they would not be fewer than size, -1 where the library failed. */
int64_t vmf_isal_compress(struct vmf_isal *s, const uint8_t *page, uint32_t size, uint8_t *out);

#endif
