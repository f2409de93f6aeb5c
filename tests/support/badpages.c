// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A disk with bad sectors, for a program that this library is preloaded into: ranges of one file cannot be read.
 *
 * BAD_FILE is the file, BAD_ERRNO the error, BAD_RANGES the ranges: "first-end first-end ...", in ascending order. As in
 * the kernel, a read that reaches a range ends before it, and one that begins in it fails. A mapping can be made, and
 * its bad pages raise SIGBUS: they map an empty file.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST 4096

static struct { off_t first, end; } bad[MOST];
static int count, error;
static struct stat file;

__attribute__((constructor)) static void begin(void)
{
	char *at = getenv("BAD_RANGES");
	int n;

	if (!at || stat(getenv("BAD_FILE"), &file))
		return;
	error = atoi(getenv("BAD_ERRNO"));
	while (count < MOST && sscanf(at, "%ld-%ld%n", &bad[count].first, &bad[count].end, &n) == 2) {
		at += n;
		count++;
	}
}

static int is_bad_file(int fd)
{
	struct stat s;

	return count && !fstat(fd, &s) && s.st_dev == file.st_dev && s.st_ino == file.st_ino;
}

/* Returns the first bad byte of [at, end), or end. */
static off_t first_bad(off_t at, off_t end)
{
	for (int i = 0; i < count; i++)
		if (bad[i].end > at)
			return bad[i].first >= end ? end : bad[i].first > at ? bad[i].first : at;
	return end;
}

ssize_t preadv(int fd, const struct iovec *v, int n, off_t at)
{
	struct iovec part = v[0];

	if (!is_bad_file(fd))
		return syscall(SYS_preadv, fd, v, n, at, 0L);
	part.iov_len = (size_t)(first_bad(at, at + (off_t)part.iov_len) - at);
	if (part.iov_len || !v[0].iov_len)
		return syscall(SYS_preadv, fd, &part, 1, at, 0L);
	errno = error;
	return -1;
}

ssize_t preadv2(int fd, const struct iovec *v, int n, off_t at, int flags)
{
	(void)flags;
	return preadv(fd, v, n, at);
}

ssize_t pread(int fd, void *to, size_t size, off_t at)
{
	struct iovec part = {to, size};

	return preadv(fd, &part, 1, at);
}

void *mmap(void *address, size_t size, int prot, int flags, int fd, off_t at)
{
	char *map = (char *)syscall(SYS_mmap, address, size, prot, flags, fd, at);
	int empty;

	if (map == MAP_FAILED || !is_bad_file(fd))
		return map;
	empty = memfd_create("empty", 0);
	for (off_t o = 0; o < (off_t)size; o += sysconf(_SC_PAGESIZE))
		if (first_bad(at + o, at + o + sysconf(_SC_PAGESIZE)) < at + o + sysconf(_SC_PAGESIZE))
			syscall(SYS_mmap, map + o, sysconf(_SC_PAGESIZE), PROT_READ, MAP_SHARED | MAP_FIXED, empty, 0L);
	close(empty);
	return map;
}

ssize_t pread64(int fd, void *to, size_t size, off64_t at) __attribute__((alias("pread")));
ssize_t preadv64(int fd, const struct iovec *v, int n, off64_t at) __attribute__((alias("preadv")));
ssize_t preadv64v2(int fd, const struct iovec *v, int n, off64_t at, int flags) __attribute__((alias("preadv2")));
void *mmap64(void *address, size_t size, int prot, int flags, int fd, off64_t at) __attribute__((alias("mmap")));
