/* SPDX-License-Identifier: GPL-2.0-or-later */
/* ISA-L at level 1, in zlib format. Output depends on nothing but the page. Available only if HAVE_ISAL is defined. */
#ifndef VMFILTER_ISAL_H
#define VMFILTER_ISAL_H

#include <stdint.h>

struct vmf_isal;

/* Returns NULL if memory is short, or if no suitable address is free. */
struct vmf_isal *vmf_isal_new(void);
void vmf_isal_free(struct vmf_isal *s);

/* Returns the bytes written to out, 0 if the page does not shrink, or -1 if the library failed. */
int64_t vmf_isal_compress(struct vmf_isal *s, const uint8_t *page, uint32_t size, uint8_t *out);

#endif
