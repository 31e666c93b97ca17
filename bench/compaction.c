/* What compaction costs elsewhere: copying 4 KiB pages, and the real kernel's compaction of punched memory.
 *
 * compaction BYTES: prints ns a page for a copy between two scattered sets of pages, and, when the kernel lets us, the
 * pages that it moved for one write to /proc/sys/vm/compact_memory and the ns a page that it took (0 0 otherwise).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define RUN 8UL

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static char *mapped(size_t bytes)
{
    char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        exit(1);
    madvise(p, bytes, MADV_NOHUGEPAGE);
    for (size_t at = 0; at < bytes; at += PAGE)
        p[at] = (char)(at >> 12);
    return p;
}

static long moved(void)
{
    char line[256];
    long found = 0;
    FILE *f = fopen("/proc/vmstat", "r");
    while (f && fgets(line, sizeof line, f))
        sscanf(line, "pgmigrate_success %ld", &found);
    if (f)
        fclose(f);
    return found;
}

int main(int argc, char **argv)
{
    size_t bytes = argc > 1 ? strtoull(argv[1], NULL, 0) : 1UL << 28;
    size_t pages = bytes / PAGE;
    char *p = mapped(bytes), *q = mapped(bytes);
    double start = now();
    for (size_t i = 0; i < pages; i++)
        memcpy(q + (i * 40503 % pages) * PAGE, p + (i * 20011 % pages) * PAGE, PAGE);
    double copy = (now() - start) / pages;
    for (size_t i = 0; i < pages; i += 2 * RUN)
        madvise(p + i * PAGE, RUN * PAGE, MADV_DONTNEED);
    munmap(q, bytes);
    int fd = open("/proc/sys/vm/compact_memory", O_WRONLY);
    long before = moved();
    start = now();
    int done = fd >= 0 && write(fd, "1", 1) == 1;
    double took = now() - start;
    long n = done ? moved() - before : 0;
    printf("%.2f %ld %.2f\n", copy, n, n > 0 ? took / n : 0.0);
    return 0;
}
