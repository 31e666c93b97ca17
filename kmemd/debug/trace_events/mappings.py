"""Mappings, huge pages and the page cache (include/trace/events/mmap.h, thp.h, huge_memory.h, filemap.h)."""

from kmemd.debug.trace_format import Event

EVENTS = (
    Event(
        "mmap",
        "exit_mmap",
        262,
        "struct mm_struct * mm; struct maple_tree * mt",
        '"mt_mod %p, DESTROY\n", REC->mt',
    ),
    Event(
        "mmap",
        "vma_store",
        263,
        "struct maple_tree * mt; struct vm_area_struct * vma; unsigned long vm_start; unsigned long vm_end",
        '"mt_mod %p, (%p), STORE, %lu, %lu,", REC->mt, REC->vma, (unsigned long) REC->vm_start, (unsigned long) '
        "REC->vm_end",
    ),
    Event(
        "mmap",
        "vma_mas_szero",
        264,
        "struct maple_tree * mt; unsigned long start; unsigned long end",
        '"mt_mod %p, (NULL), SNULL, %lu, %lu,", REC->mt, (unsigned long) REC->start, (unsigned long) REC->end',
    ),
    Event(
        "mmap",
        "vm_unmapped_area",
        265,
        "unsigned long addr; unsigned long total_vm; unsigned long flags; unsigned long length; unsigned long "
        "low_limit; unsigned long high_limit; unsigned long align_mask; unsigned long align_offset",
        '"addr=0x%lx err=%ld total_vm=0x%lx flags=0x%lx len=0x%lx lo=0x%lx hi=0x%lx mask=0x%lx ofs=0x%lx\n", '
        "__builtin_expect(!!((unsigned long)(void *)(REC->addr) >= (unsigned long)-4095), 0) ? 0 : REC->addr, "
        "__builtin_expect(!!((unsigned long)(void *)(REC->addr) >= (unsigned long)-4095), 0) ? REC->addr : 0, "
        "REC->total_vm, REC->flags, REC->length, REC->low_limit, REC->high_limit, REC->align_mask, "
        "REC->align_offset",
    ),
    Event(
        "thp",
        "remove_migration_pmd",
        271,
        "unsigned long addr; unsigned long pmd",
        '"addr=%lx, pmd=%lx", REC->addr, REC->pmd',
    ),
    Event(
        "thp",
        "set_migration_pmd",
        272,
        "unsigned long addr; unsigned long pmd",
        '"addr=%lx, pmd=%lx", REC->addr, REC->pmd',
    ),
    Event(
        "thp",
        "hugepage_update",
        273,
        "unsigned long addr; unsigned long pte; unsigned long clr; unsigned long set",
        '"hugepage update at addr 0x%lx and pte = 0x%lx clr = 0x%lx, set = 0x%lx", REC->addr, REC->pte, REC->clr, '
        "REC->set",
    ),
    Event(
        "thp",
        "hugepage_set_pmd",
        274,
        "unsigned long addr; unsigned long pmd",
        '"Set pmd with 0x%lx with 0x%lx", REC->addr, REC->pmd',
    ),
    Event(
        "huge_memory",
        "mm_khugepaged_scan_file",
        275,
        "struct mm_struct * mm; unsigned long pfn; __data_loc char[] filename; int present; int swap; int result",
        '"mm=%p, scan_pfn=0x%lx, filename=%s, present=%d, swap=%d, result=%s", REC->mm, REC->pfn, '
        "__get_str(filename), REC->present, REC->swap, __print_symbolic(REC->result, $SCAN_STATUS)",
    ),
    Event(
        "huge_memory",
        "mm_collapse_huge_page_swapin",
        276,
        "struct mm_struct * mm; int swapped_in; int referenced; int ret",
        '"mm=%p, swapped_in=%d, referenced=%d, ret=%d", REC->mm, REC->swapped_in, REC->referenced, REC->ret',
    ),
    Event(
        "huge_memory",
        "mm_collapse_huge_page_isolate",
        277,
        "unsigned long pfn; int none_or_zero; int referenced; bool writable; int status",
        '"scan_pfn=0x%lx, none_or_zero=%d, referenced=%d, writable=%d, status=%s", REC->pfn, REC->none_or_zero, '
        "REC->referenced, REC->writable, __print_symbolic(REC->status, $SCAN_STATUS)",
    ),
    Event(
        "huge_memory",
        "mm_collapse_huge_page",
        278,
        "struct mm_struct * mm; int isolated; int status",
        '"mm=%p, isolated=%d, status=%s", REC->mm, REC->isolated, __print_symbolic(REC->status, $SCAN_STATUS)',
    ),
    Event(
        "huge_memory",
        "mm_khugepaged_scan_pmd",
        279,
        "struct mm_struct * mm; unsigned long pfn; bool writable; int referenced; int none_or_zero; int status; "
        "int unmapped",
        '"mm=%p, scan_pfn=0x%lx, writable=%d, referenced=%d, none_or_zero=%d, status=%s, unmapped=%d", REC->mm, '
        "REC->pfn, REC->writable, REC->referenced, REC->none_or_zero, __print_symbolic(REC->status, "
        "$SCAN_STATUS), REC->unmapped",
    ),
    Event(
        "filemap",
        "file_check_and_advance_wb_err",
        197,
        "struct file * file; unsigned long i_ino; dev_t s_dev; errseq_t old; errseq_t new",
        '"file=%p dev=%d:%d ino=0x%lx old=0x%x new=0x%x", REC->file, ((unsigned int) ((REC->s_dev) >> 20)), '
        "((unsigned int) ((REC->s_dev) & ((1U << 20) - 1))), REC->i_ino, REC->old, REC->new",
    ),
    Event(
        "filemap",
        "filemap_set_wb_err",
        198,
        "unsigned long i_ino; dev_t s_dev; errseq_t errseq",
        '"dev=%d:%d ino=0x%lx errseq=0x%x", ((unsigned int) ((REC->s_dev) >> 20)), ((unsigned int) ((REC->s_dev) '
        "& ((1U << 20) - 1))), REC->i_ino, REC->errseq",
    ),
    Event(
        "filemap",
        "mm_filemap_add_to_page_cache",
        199,
        "unsigned long pfn; unsigned long i_ino; unsigned long index; dev_t s_dev; unsigned char order",
        '"dev %d:%d ino %lx pfn=0x%lx ofs=%lu order=%u", ((unsigned int) ((REC->s_dev) >> 20)), ((unsigned int) '
        "((REC->s_dev) & ((1U << 20) - 1))), REC->i_ino, REC->pfn, REC->index << 12, REC->order",
    ),
    Event(
        "filemap",
        "mm_filemap_delete_from_page_cache",
        200,
        "unsigned long pfn; unsigned long i_ino; unsigned long index; dev_t s_dev; unsigned char order",
        '"dev %d:%d ino %lx pfn=0x%lx ofs=%lu order=%u", ((unsigned int) ((REC->s_dev) >> 20)), ((unsigned int) '
        "((REC->s_dev) & ((1U << 20) - 1))), REC->i_ino, REC->pfn, REC->index << 12, REC->order",
    ),
)
