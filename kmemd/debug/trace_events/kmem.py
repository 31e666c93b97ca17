"""Allocators, LRU lists and page faults (include/trace/events/kmem.h, pagemap.h, arch/x86 exceptions.h)."""

from kmemd.debug.trace_format import Event

EVENTS = (
    Event(
        "kmem",
        "rss_stat",
        234,
        "unsigned int mm_id; unsigned int curr; int member; long size",
        '"mm_id=%u curr=%d type=%s size=%ldB", REC->mm_id, REC->curr, __print_symbolic(REC->member, { 0, '
        '"MM_FILEPAGES" }, { 1, "MM_ANONPAGES" }, { 2, "MM_SWAPENTS" }, { 3, "MM_SHMEMPAGES" }), REC->size',
    ),
    Event(
        "kmem",
        "mm_page_alloc_extfrag",
        235,
        "unsigned long pfn; int alloc_order; int fallback_order; int alloc_migratetype; int fallback_migratetype; "
        "int change_ownership",
        '"page=%p pfn=0x%lx alloc_order=%d fallback_order=%d pageblock_order=%d alloc_migratetype=%d '
        'fallback_migratetype=%d fragmenting=%d change_ownership=%d", (((struct page *)vmemmap_base) + '
        "(REC->pfn)), REC->pfn, REC->alloc_order, REC->fallback_order, (((unsigned int)((21 - 12))) < ((unsigned "
        "int)(11 - 1)) ? ((unsigned int)((21 - 12))) : ((unsigned int)(11 - 1))), REC->alloc_migratetype, "
        "REC->fallback_migratetype, REC->fallback_order < (((unsigned int)((21 - 12))) < ((unsigned int)(11 - 1)) "
        "? ((unsigned int)((21 - 12))) : ((unsigned int)(11 - 1))), REC->change_ownership",
    ),
    Event(
        "kmem",
        "mm_page_pcpu_drain",
        236,
        "unsigned long pfn; unsigned int order; int migratetype",
        '"page=%p pfn=0x%lx order=%d migratetype=%d", (((struct page *)vmemmap_base) + (REC->pfn)), REC->pfn, '
        "REC->order, REC->migratetype",
    ),
    Event(
        "kmem",
        "mm_page_alloc_zone_locked",
        237,
        "unsigned long pfn; unsigned int order; int migratetype; int percpu_refill",
        '"page=%p pfn=0x%lx order=%u migratetype=%d percpu_refill=%d", REC->pfn != -1UL ? (((struct page '
        "*)vmemmap_base) + (REC->pfn)) : ((void *)0), REC->pfn != -1UL ? REC->pfn : 0, REC->order, "
        "REC->migratetype, REC->percpu_refill",
    ),
    Event(
        "kmem",
        "mm_page_alloc",
        238,
        "unsigned long pfn; unsigned int order; unsigned long gfp_flags; int migratetype",
        '"page=%p pfn=0x%lx order=%d migratetype=%d gfp_flags=%s", REC->pfn != -1UL ? (((struct page '
        "*)vmemmap_base) + (REC->pfn)) : ((void *)0), REC->pfn != -1UL ? REC->pfn : 0, REC->order, "
        'REC->migratetype, (REC->gfp_flags) ? __print_flags(REC->gfp_flags, "|", $GFP_FLAGS ) : "none"',
    ),
    Event(
        "kmem",
        "mm_page_free_batched",
        239,
        "unsigned long pfn",
        '"page=%p pfn=0x%lx order=0", (((struct page *)vmemmap_base) + (REC->pfn)), REC->pfn',
    ),
    Event(
        "kmem",
        "mm_page_free",
        240,
        "unsigned long pfn; unsigned int order",
        '"page=%p pfn=0x%lx order=%d", (((struct page *)vmemmap_base) + (REC->pfn)), REC->pfn, REC->order',
    ),
    Event(
        "kmem",
        "kmem_cache_free",
        241,
        "unsigned long call_site; const void * ptr; __data_loc char[] name",
        '"call_site=%pS ptr=%p name=%s", (void *)REC->call_site, REC->ptr, __get_str(name)',
    ),
    Event(
        "kmem",
        "kfree",
        242,
        "unsigned long call_site; const void * ptr",
        '"call_site=%pS ptr=%p", (void *)REC->call_site, REC->ptr',
    ),
    Event(
        "kmem",
        "kmalloc",
        243,
        "unsigned long call_site; const void * ptr; size_t bytes_req; size_t bytes_alloc; unsigned long "
        "gfp_flags; int node",
        '"call_site=%pS ptr=%p bytes_req=%zu bytes_alloc=%zu gfp_flags=%s node=%d accounted=%s", (void '
        "*)REC->call_site, REC->ptr, REC->bytes_req, REC->bytes_alloc, (REC->gfp_flags) ? "
        '__print_flags(REC->gfp_flags, "|", $GFP_FLAGS ) : "none", REC->node, (1 && (REC->gfp_flags & ( unsigned '
        'long)(( gfp_t)0x400000u))) ? "true" : "false"',
    ),
    Event(
        "kmem",
        "kmem_cache_alloc",
        244,
        "unsigned long call_site; const void * ptr; size_t bytes_req; size_t bytes_alloc; unsigned long "
        "gfp_flags; int node; bool accounted",
        '"call_site=%pS ptr=%p bytes_req=%zu bytes_alloc=%zu gfp_flags=%s node=%d accounted=%s", (void '
        "*)REC->call_site, REC->ptr, REC->bytes_req, REC->bytes_alloc, (REC->gfp_flags) ? "
        '__print_flags(REC->gfp_flags, "|", $GFP_FLAGS ) : "none", REC->node, REC->accounted ? "true" : "false"',
    ),
    Event(
        "pagemap",
        "mm_lru_activate",
        209,
        "struct folio * folio; unsigned long pfn",
        '"folio=%p pfn=0x%lx", REC->folio, REC->pfn',
    ),
    Event(
        "pagemap",
        "mm_lru_insertion",
        210,
        "struct folio * folio; unsigned long pfn; enum lru_list lru; unsigned long flags",
        '"folio=%p pfn=0x%lx lru=%d flags=%s%s%s%s%s%s", REC->folio, REC->pfn, REC->lru, REC->flags & 0x0001u ? '
        '"M" : " ", REC->flags & 0x0002u ? "a" : "f", REC->flags & 0x0008u ? "s" : " ", REC->flags & 0x0010u ? '
        '"b" : " ", REC->flags & 0x0020u ? "d" : " ", REC->flags & 0x0040u ? "B" : " "',
    ),
    Event(
        "exceptions",
        "page_fault_kernel",
        63,
        "unsigned long address; unsigned long ip; unsigned long error_code",
        '"address=%ps ip=%ps error_code=0x%lx", (void *)REC->address, (void *)REC->ip, REC->error_code',
    ),
    Event(
        "exceptions",
        "page_fault_user",
        64,
        "unsigned long address; unsigned long ip; unsigned long error_code",
        '"address=%ps ip=%ps error_code=0x%lx", (void *)REC->address, (void *)REC->ip, REC->error_code',
    ),
)
