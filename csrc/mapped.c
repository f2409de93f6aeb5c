// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reads of a mapping that may fail. A load from a page that cannot be read raises SIGBUS, which ends the process; a
 * system call that copies from it fails with EFAULT. A handler of SIGBUS would be shared by all threads, and by the
 * program that uses this library.
 *
 * process_vm_writev() copies from the caller's memory as write() does, straight into that of a process, which may be
 * the caller. process_vm_readv() cannot: it refuses a mapping of /proc/vmcore, whose pages have no struct page.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vmfilter.h"

_Static_assert(sizeof(off_t) == 8, "a vmcore can be larger than 2 GiB on a 32-bit machine too");

int64_t vmf_copy_mapped(const uint8_t *mapped, uint8_t *out, uint64_t size)
{
	uint64_t done = 0;

	while (done < size) {
		struct iovec from = {(void *)(uintptr_t)(mapped + done), size - done}, to = {out + done, size - done};
		ssize_t n = process_vm_writev(getpid(), &from, 1, &to, 1, 0);

		if (n > 0)
			done += (uint64_t)n;
		else if (n < 0 && errno != EFAULT)
			return -errno;
		else
			break;
	}
	return (int64_t)done;
}

int64_t vmf_read(int fd, uint64_t offset, uint8_t *out, uint64_t size)
{
	if (fd < 0)
		return vmf_copy_mapped((const uint8_t *)(uintptr_t)offset, out, size);
	return pread(fd, out, size, (off_t)offset);
}

/* Reads an extent to its place. Returns whether all of it could be read. */
static int read_extent(int fd, const struct vmf_extent *e, uint8_t *out)
{
	uint64_t done = 0;

	while (done < e->size) {
		int64_t n = vmf_read(fd, e->offset + done, out + e->at + done, e->size - done);

		if (n <= 0)
			return 0;
		done += (uint64_t)n;
	}
	return 1;
}

uint64_t vmf_read_extents(int fd, const struct vmf_extent *extents, uint64_t count, uint8_t *out, uint64_t size)
{
	uint64_t i = 0;

	while (i < count && extents[i].at <= size && extents[i].size <= size - extents[i].at &&
	       read_extent(fd, &extents[i], out))
		i++;
	return i;
}
