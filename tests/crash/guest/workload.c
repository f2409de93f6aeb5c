/*
 * workload DISK TMPFS: leaves pages of every kind behind, in files in two folders and in memory: page cache, shared,
 * anonymous, huge and freed pages, filled with noise, text and zeros. Then prints "ready" and sleeps.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MIB = 1 << 20 };

static void check(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

/* A quarter noise, a quarter zeros, the rest text. */
static void fill(char *at, size_t size)
{
	static const char text[] = "kernel page vmcore panic slab inode futex irq ";
	static char pattern[MIB];
	int noise = open("/dev/urandom", O_RDONLY);

	check(read(noise, pattern, MIB / 4) == MIB / 4, "/dev/urandom");
	close(noise);
	for (size_t i = MIB / 2; i < MIB; i++)
		pattern[i] = text[i % (sizeof text - 1)];
	for (size_t i = 0; i < size; i += MIB)
		memcpy(at + i, pattern, MIB);
}

static char *memory(size_t size, int flags)
{
	char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	check(area != MAP_FAILED, "mmap");
	fill(area, size);
	return area;
}

static void file(const char *folder, size_t size)
{
	char path[4096], *content = memory(size, 0);
	int fd;

	snprintf(path, sizeof path, "%s/workload", folder);
	fd = open(path, O_WRONLY | O_CREAT, 0600);
	check(write(fd, content, size) == (ssize_t)size && !fsync(fd) && !close(fd), path);
	munmap(content, size); /* free pages with content */
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	file(argv[1], 24 * MIB);
	file(argv[2], 8 * MIB);
	memory(24 * MIB, 0);
	memory(4 * MIB, MAP_HUGETLB);
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
