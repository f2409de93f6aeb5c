/*
 * die DISK: copies /proc/kpageflags to the beginning of DISK, then makes the kernel panic.
 *
 * One process does both, bypassing the page cache, to change as few pages as possible after the copy.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { BLOCK = 1 << 20 };

int main(int argc, char **argv)
{
	char *block = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	int flags = open("/proc/kpageflags", O_RDONLY), trigger = open("/proc/sysrq-trigger", O_WRONLY), disk;
	ssize_t n;

	if (argc != 2)
		return 2;
	disk = open(argv[1], O_WRONLY | O_DIRECT);
	while ((n = read(flags, block, BLOCK)) > 0 && write(disk, block, (size_t)n) == n)
		;
	if (!n)
		n = write(trigger, "c", 1);
	perror("die");
	return 1;
}
