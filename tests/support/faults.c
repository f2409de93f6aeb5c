// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * One fault in a program that this library is preloaded into.
 *
 * FAULT_CALL is a call, FAULT_AT the number of it that fails, from 1, FAULT_KIND what happens: "short" (half of the
 * bytes), "kill" or "term" (a signal before the call), or an errno. With FAULT_STAYS=1, all later calls fail too. Calls
 * count if they are about files of FAULT_FOLDER or a pipe; mmap() counts, whatever it maps, after the first of those.
 * FAULT_MARK is a file that is made if the fault happened. With FAULT_CALL "none" it gets the number of each call.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SHORT (-1)
#define KILL (-2)
#define TERM (-3)

static const char *call, *folder, *mark;
static int kind, at, stays;
static atomic_int count, begun;
static struct { const char *name; int n; } calls[32];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Also called by a process that gets its faults after a fork(). */
__attribute__((constructor)) void fault_begin(void)
{
	const char *text = getenv("FAULT_KIND"), *forever = getenv("FAULT_STAYS");

	call = getenv("FAULT_CALL");
	folder = getenv("FAULT_FOLDER");
	mark = getenv("FAULT_MARK");
	if (!call || !folder || !mark || !text)
		return;
	at = atoi(getenv("FAULT_AT"));
	stays = forever && atoi(forever);
	kind = !strcmp(text, "short") ? SHORT : !strcmp(text, "kill") ? KILL : !strcmp(text, "term") ? TERM : atoi(text);
}

static void note(const char *name)
{
	int i = 0;

	pthread_mutex_lock(&lock);
	while (calls[i].name && strcmp(calls[i].name, name))
		i++;
	calls[i].name = name;
	calls[i].n++;
	pthread_mutex_unlock(&lock);
}

__attribute__((destructor)) static void end(void)
{
	FILE *file;

	if (!at || strcmp(call, "none"))
		return;
	at = 0;
	file = fopen(mark, "w");
	for (int i = 0; calls[i].name; i++)
		fprintf(file, "%s %d\n", calls[i].name, calls[i].n);
	fclose(file);
}

static int is_ours(int fd)
{
	char link[64], path[4096];
	ssize_t n;

	if (!at)
		return 0;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof(path) - 1);
	if (n < 0)
		return 0;
	path[n] = '\0';
	return !strncmp(path, folder, strlen(folder)) || (fd < 2 && !strncmp(path, "pipe:", 5));
}

static int is_ours_at(int fd, const char *path)
{
	return at && (path[0] == '/' ? !strncmp(path, folder, strlen(folder)) : is_ours(fd));
}

/* Returns whether this call must fail, with errno set; halves size for a short one. Does not return if it kills. */
static int fails(const char *name, int ours, size_t *size)
{
	int n, fd;

	if (!ours)
		return 0;
	begun = 1;
	note(name);
	if (strcmp(name, call))
		return 0;
	n = ++count;
	if (n < at || (n > at && !stays))
		return 0;
	fd = syscall(SYS_openat, AT_FDCWD, mark, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	syscall(SYS_close, fd);
	if (kind == KILL || kind == TERM)
		raise(kind == KILL ? SIGKILL : SIGTERM);
	if (kind == SHORT && size && *size > 1)
		*size /= 2;
	if (kind <= 0)
		return 0;
	errno = kind;
	return 1;
}

#define BOTH(type, name, parameters, arguments) \
	type name##64 parameters { return name arguments; }

/* The optional last argument of open(). */
#define GET_MODE(mode, flags) \
	do { \
		va_list list; \
		va_start(list, flags); \
		(mode) = (flags) & (O_CREAT | O_TMPFILE) ? va_arg(list, int) : 0; \
		va_end(list); \
	} while (0)

int openat(int dir, const char *path, int flags, ...)
{
	int mode;

	GET_MODE(mode, flags);
	if (fails("open", is_ours_at(dir, path) || !strncmp(path, "/proc/self/fd/", 14), NULL))
		return -1;
	return syscall(SYS_openat, dir, path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...)
{
	int mode;

	GET_MODE(mode, flags);
	return openat(dir, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	int mode;

	GET_MODE(mode, flags);
	return openat(AT_FDCWD, path, flags, mode);
}

ssize_t read(int fd, void *to, size_t size)
{
	return fails("read", is_ours(fd), &size) ? -1 : syscall(SYS_read, fd, to, size);
}

ssize_t pread(int fd, void *to, size_t size, off_t offset)
{
	return fails("pread", is_ours(fd), &size) ? -1 : syscall(SYS_pread64, fd, to, size, offset);
}
BOTH(ssize_t, pread, (int fd, void *to, size_t size, off_t offset), (fd, to, size, offset))

ssize_t preadv(int fd, const struct iovec *v, int n, off_t offset)
{
	struct iovec first = v[0];

	if (n != 1)
		abort();
	return fails("preadv", is_ours(fd), &first.iov_len) ? -1 : syscall(SYS_preadv, fd, &first, 1, offset, 0L);
}
BOTH(ssize_t, preadv, (int fd, const struct iovec *v, int n, off_t offset), (fd, v, n, offset))

ssize_t preadv64v2(int fd, const struct iovec *v, int n, off_t offset, int flags)
{
	return flags ? -1 : preadv(fd, v, n, offset);
}

ssize_t write(int fd, const void *from, size_t size)
{
	return fails("write", is_ours(fd), &size) ? -1 : syscall(SYS_write, fd, from, size);
}

ssize_t pwrite(int fd, const void *from, size_t size, off_t offset)
{
	return fails("pwrite", is_ours(fd), &size) ? -1 : syscall(SYS_pwrite64, fd, from, size, offset);
}
BOTH(ssize_t, pwrite, (int fd, const void *from, size_t size, off_t offset), (fd, from, size, offset))

int fsync(int fd)
{
	return fails("fsync", is_ours(fd), NULL) ? -1 : syscall(SYS_fsync, fd);
}

int ftruncate(int fd, off_t size)
{
	return fails("ftruncate", is_ours(fd), NULL) ? -1 : syscall(SYS_ftruncate, fd, size);
}
BOTH(int, ftruncate, (int fd, off_t size), (fd, size))

off_t lseek(int fd, off_t offset, int whence)
{
	return fails("lseek", is_ours(fd), NULL) ? -1 : syscall(SYS_lseek, fd, offset, whence);
}
BOTH(off_t, lseek, (int fd, off_t offset, int whence), (fd, offset, whence))

int posix_fallocate(int fd, off_t start, off_t size)
{
	if (fails("posix_fallocate", is_ours(fd), NULL))
		return errno;
	return syscall(SYS_fallocate, fd, 0, start, size) ? errno : 0;
}
BOTH(int, posix_fallocate, (int fd, off_t start, off_t size), (fd, start, size))

int linkat(int from_dir, const char *from, int dir, const char *path, int flags)
{
	return fails("link", is_ours_at(dir, path), NULL) ? -1 : syscall(SYS_linkat, from_dir, from, dir, path, flags);
}

int renameat(int from_dir, const char *from, int dir, const char *path)
{
	return fails("rename", is_ours_at(dir, path), NULL) ? -1 : syscall(SYS_renameat2, from_dir, from, dir, path, 0);
}

int unlinkat(int dir, const char *path, int flags)
{
	return fails("unlink", is_ours_at(dir, path), NULL) ? -1 : syscall(SYS_unlinkat, dir, path, flags);
}

void *mmap(void *to, size_t size, int access, int flags, int fd, off_t offset)
{
	if (fails("mmap", begun, NULL))
		return MAP_FAILED;
	return (void *)syscall(SYS_mmap, to, size, access, flags, fd, offset);
}
BOTH(void *, mmap, (void *to, size_t size, int access, int flags, int fd, off_t offset),
     (to, size, access, flags, fd, offset))
