/* Page faults of the real kernel: ns a page for a mapping that is touched in order, at random, and populated at once.
 *
 * faults BYTES ROUNDS prints "sequential random populate", each the best of the rounds. Small pages only.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static char *map(size_t bytes, int flags)
{
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	if (p == MAP_FAILED)
		exit(1);
	return p;
}

static double touch(size_t bytes, const uint32_t *order)
{
	size_t pages = bytes >> 12;
	char *p = map(bytes, 0);
	double start;

	madvise(p, bytes, MADV_NOHUGEPAGE);
	start = now();
	for (size_t i = 0; i < pages; i++)
		p[(size_t)order[i] << 12] = 1;
	start = now() - start;
	munmap(p, bytes);
	return start / pages;
}

static double populate(size_t bytes)
{
	double start;
	char *p;

	p = map(bytes, MAP_NORESERVE);
	madvise(p, bytes, MADV_NOHUGEPAGE);
	start = now();
	if (madvise(p, bytes, 23 /* MADV_POPULATE_WRITE: what MAP_POPULATE does, for a range without huge pages */)) {
		munmap(p, bytes);
		start = now();
		p = map(bytes, MAP_POPULATE);
	}
	start = now() - start;
	munmap(p, bytes);
	return start / (bytes >> 12);
}

static double least(double a, double b)
{
	return a < b ? a : b;
}

int main(int argc, char **argv)
{
	size_t bytes = strtoull(argv[1], NULL, 0), pages = bytes >> 12;
	int rounds = atoi(argv[2]);
	uint32_t *order = malloc(pages * sizeof(*order)), *shuffled = malloc(pages * sizeof(*order));
	double best[3] = { 1e18, 1e18, 1e18 };

	if (argc != 3 || !order || !shuffled)
		return 1;
	for (size_t i = 0; i < pages; i++)
		order[i] = shuffled[i] = i;
	for (size_t i = pages - 1; i > 0; i--) {
		size_t j = random() % (i + 1);
		uint32_t t = shuffled[i];

		shuffled[i] = shuffled[j];
		shuffled[j] = t;
	}
	for (int i = 0; i < rounds; i++) {
		best[0] = least(best[0], touch(bytes, order));
		best[1] = least(best[1], touch(bytes, shuffled));
		best[2] = least(best[2], populate(bytes));
	}
	printf("%.1f %.1f %.1f\n", best[0], best[1], best[2]);
	return 0;
}
