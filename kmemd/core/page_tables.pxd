from kmemd.core.page_arrays cimport PageArrays


cdef class PageTables(PageArrays):
    cdef readonly object words
    cdef readonly object tables
    cdef readonly object stats
    cdef readonly int bits
    cdef readonly int levels
    cdef unsigned long long[::1] _words
    cdef long long[::1] _pgd
    cdef long long[::1] _tables
    cdef long long[::1] _stats
    cdef long long[::1] _ctx
    cdef long long _mask
    cdef int _level
    cdef int _near_mm
    cdef long long _near_block
    cdef long long _near_base

    cdef long long _find(self, int mm, long long vpn, int stop) noexcept
    cdef long long _leaf(self, int mm, long long vpn) noexcept
    cdef void _wipe(self, long long pfn) noexcept
    cdef object _extents(self, long long pfn, int level, long long base, long long start, long long end, list found)
    cdef object _table_pfns(self, long long pfn, int level, list found)
    cdef object _free_tables(
        self, int mm, long long pfn, int level, long long base, long long start, long long end, list freed
    )
