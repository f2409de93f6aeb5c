/*
 * measure REPORT COMMAND [ARGUMENT ...]
 *
 * Runs COMMAND, copies its standard output, and writes into REPORT, as JSON: its exit status (128 + N if signal N
 * killed it), the seconds until it ended and until its first byte (-1: there was none), and the peak memory in KiB of
 * any process of its tree: sampled RssAnon, and VmHWM as recorded by the kernel.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SAMPLE_MS = 5 };

struct peak {
	long rss_anon, vm_hwm;
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void raise_to(long *most, const char *line, const char *name)
{
	size_t n = strlen(name);
	long value = strncmp(line, name, n) ? 0 : atol(line + n);

	if (value > *most)
		*most = value;
}

/* Samples a process and its descendants: /proc/PID/status, /proc/PID/task/PID/children. */
static void sample(long pid, struct peak *peak)
{
	char path[64], line[256];
	long child;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%ld/status", pid);
	f = fopen(path, "r");
	if (!f)
		return;
	while (fgets(line, sizeof line, f)) {
		raise_to(&peak->rss_anon, line, "RssAnon:");
		raise_to(&peak->vm_hwm, line, "VmHWM:");
	}
	fclose(f);
	snprintf(path, sizeof path, "/proc/%ld/task/%ld/children", pid, pid);
	f = fopen(path, "r");
	if (!f)
		return;
	while (fscanf(f, "%ld", &child) == 1)
		sample(child, peak);
	fclose(f);
}

static void pass_on(const char *data, ssize_t size)
{
	while (size > 0) {
		ssize_t n = write(STDOUT_FILENO, data, (size_t)size);

		if (n <= 0) {
			perror("measure: standard output");
			exit(1);
		}
		data += n;
		size -= n;
	}
}

static pid_t start(char **command, int *output)
{
	int ends[2];
	pid_t pid;

	if (pipe(ends) || (pid = fork()) < 0) {
		perror("measure");
		exit(1);
	}
	if (!pid) {
		dup2(ends[1], STDOUT_FILENO);
		close(ends[0]);
		close(ends[1]);
		execvp(command[0], command);
		perror(command[0]);
		_exit(127);
	}
	close(ends[1]);
	*output = ends[0];
	return pid;
}

int main(int argc, char **argv)
{
	static char buffer[1 << 16];
	struct peak peak = {0, 0};
	double began = now(), first = -1;
	ssize_t n = 1;
	int status;
	pid_t pid;
	struct pollfd output = {.events = POLLIN};
	FILE *report;

	if (argc < 3)
		return 2;
	pid = start(argv + 2, &output.fd);
	while (n > 0) {
		sample(pid, &peak);
		if (!poll(&output, 1, SAMPLE_MS))
			continue;
		n = read(output.fd, buffer, sizeof buffer);
		if (n > 0 && first < 0)
			first = now() - began;
		pass_on(buffer, n);
	}
	waitpid(pid, &status, 0);
	status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	report = fopen(argv[1], "w");
	if (!report || fprintf(report,
			       "{\"status\": %d, \"seconds\": %.3f, \"first_byte\": %.3f, \"rss_anon\": %ld, \"vm_hwm\": %ld}\n",
			       status, now() - began, first, peak.rss_anon, peak.vm_hwm) < 0 || fclose(report)) {
		perror(argv[1]);
		return 1;
	}
	return status;
}
