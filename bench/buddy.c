/*
 * The yardstick for `make bench`: a buddy allocator in plain C that does what any order-0 allocation must do.
 *
 * One zone, eleven orders, three migratetypes, doubly linked free lists threaded through the page array,
 * per-cpu lists with refill and bulk free in batches, a watermark test and event counters for each page.
 * It keeps nothing that only a model of Linux needs (owners, free list positions, stealing, highatomic).
 *
 * usage: buddy PAGES COUNT ROUNDS; prints nanoseconds for one allocation and its free.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MAX_ORDER = 11, TYPES = 3, MOVABLE = 1, BATCH = 63, HIGH = 378, NIL = -1 };

struct page {
    int32_t next, prev;
    uint32_t flags;
    uint8_t order, type, buddy;
};

struct list {
    int32_t head, tail;
};

struct zone {
    struct page *pages;
    int32_t nr_pages;
    struct list free_list[MAX_ORDER][TYPES];
    int64_t nr_free[MAX_ORDER];
    int64_t free_pages, watermark, pgalloc, pgfree;
    struct list pcp[TYPES];
    int pcp_count;
};

static void list_add(struct zone *z, struct list *l, int32_t pfn)
{
    struct page *p = &z->pages[pfn];

    p->prev = NIL;
    p->next = l->head;
    if (l->head != NIL)
        z->pages[l->head].prev = pfn;
    else
        l->tail = pfn;
    l->head = pfn;
}

static void list_del(struct zone *z, struct list *l, int32_t pfn)
{
    struct page *p = &z->pages[pfn];

    if (p->prev != NIL)
        z->pages[p->prev].next = p->next;
    else
        l->head = p->next;
    if (p->next != NIL)
        z->pages[p->next].prev = p->prev;
    else
        l->tail = p->prev;
}

static void add_free(struct zone *z, int32_t pfn, int order, int type)
{
    struct page *p = &z->pages[pfn];

    p->buddy = 1;
    p->order = (uint8_t)order;
    p->type = (uint8_t)type;
    list_add(z, &z->free_list[order][type], pfn);
    z->nr_free[order]++;
}

static void del_free(struct zone *z, int32_t pfn)
{
    struct page *p = &z->pages[pfn];

    list_del(z, &z->free_list[p->order][p->type], pfn);
    z->nr_free[p->order]--;
    p->buddy = 0;
}

static int32_t rmqueue(struct zone *z, int order, int type)
{
    for (int current = order; current < MAX_ORDER; current++) {
        int32_t pfn = z->free_list[current][type].head;

        if (pfn == NIL)
            continue;
        del_free(z, pfn);
        while (current > order) {
            current--;
            add_free(z, pfn + (1 << current), current, type);
        }
        z->free_pages -= 1 << order;
        return pfn;
    }
    return NIL;
}

static void free_one(struct zone *z, int32_t pfn, int order, int type)
{
    z->free_pages += 1 << order;
    while (order < MAX_ORDER - 1) {
        int32_t buddy = pfn ^ (1 << order);

        if (buddy >= z->nr_pages || !z->pages[buddy].buddy || z->pages[buddy].order != order)
            break;
        del_free(z, buddy);
        pfn &= buddy;
        order++;
    }
    add_free(z, pfn, order, type);
}

static int32_t alloc_page(struct zone *z, int type)
{
    struct list *pcp = &z->pcp[type];
    int32_t pfn;

    if (z->free_pages + z->pcp_count <= z->watermark)
        return NIL;
    if (pcp->head == NIL) {
        for (int i = 0; i < BATCH; i++) {
            pfn = rmqueue(z, 0, type);
            if (pfn == NIL)
                break;
            list_add(z, pcp, pfn);
            z->pcp_count++;
        }
        if (pcp->head == NIL)
            return NIL;
    }
    pfn = pcp->head;
    list_del(z, pcp, pfn);
    z->pcp_count--;
    z->pages[pfn].flags = 1;
    z->pgalloc++;
    return pfn;
}

static void free_page(struct zone *z, int32_t pfn, int type)
{
    struct list *pcp = &z->pcp[type];

    z->pages[pfn].flags = 0;
    z->pgfree++;
    list_add(z, pcp, pfn);
    if (++z->pcp_count < HIGH)
        return;
    for (int i = 0; i < BATCH; i++) {
        int32_t last = pcp->tail;

        list_del(z, pcp, last);
        z->pcp_count--;
        free_one(z, last, 0, type);
    }
}

static void init(struct zone *z, int32_t nr_pages)
{
    z->pages = calloc((size_t)nr_pages, sizeof(struct page));
    if (!z->pages)
        exit(1);
    z->nr_pages = nr_pages;
    z->watermark = nr_pages / 64;
    for (int type = 0; type < TYPES; type++) {
        z->pcp[type] = (struct list){NIL, NIL};
        for (int order = 0; order < MAX_ORDER; order++)
            z->free_list[order][type] = (struct list){NIL, NIL};
    }
    for (int32_t pfn = 0; pfn + (1 << 10) <= nr_pages; pfn += 1 << 10)
        free_one(z, pfn, 10, MOVABLE);
}

int main(int argc, char **argv)
{
    static struct zone zone;
    struct timespec start, end;

    if (argc != 4)
        return 2;
    int count = atoi(argv[2]), rounds = atoi(argv[3]);
    int32_t *held = malloc(sizeof(int32_t) * (size_t)count);

    init(&zone, atoi(argv[1]));
    if (!held)
        return 1;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < count; i++) {
            held[i] = alloc_page(&zone, MOVABLE);
            if (held[i] == NIL)
                return 1;
        }
        for (int i = 0; i < count; i++)
            free_page(&zone, held[i], MOVABLE);
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    double ns = (double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec);
    printf("%.3f\n", ns / ((double)count * rounds));
    free(held);
    free(zone.pages);
    return 0;
}
