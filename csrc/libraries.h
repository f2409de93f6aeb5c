/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The codec libraries that setup.py found. */
#ifndef VMFILTER_LIBRARIES_H
#define VMFILTER_LIBRARIES_H

#ifdef HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif
#ifdef HAVE_LZO
#include <lzo/lzo1x.h>
#endif
#ifdef HAVE_SNAPPY
#include <snappy-c.h>
#endif
#ifdef HAVE_ZSTD
#include <zstd.h>
#include <zstd_errors.h>
#endif
#ifdef HAVE_LZ4
#include <lz4.h>
#endif

#endif
