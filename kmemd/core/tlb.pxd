from kmemd.core.page_tables cimport PageTables


cdef class Tlb(PageTables):
    cdef long long[::1] _cpu_node
    cdef int _ncpus
    cdef long long[::1] _context_of
    cdef int[::1] _pcid_mm
    cdef int[::1] _pcid_next
    cdef int[::1] _loaded
    cdef long long _next_context
    cdef int _mm_end
    cdef long long[::1] _l1
    cdef long long[::1] _l1_data
    cdef unsigned char[::1] _l1_next
    cdef long long[::1] _h1
    cdef long long[::1] _h1_data
    cdef unsigned char[::1] _h1_next
    cdef long long[::1] _l2
    cdef long long[::1] _l2_data
    cdef unsigned char[::1] _l2_next
    cdef unsigned char[::1] _has_huge

    cdef long long _context(self, int mm, int cpu) noexcept
    cdef long long _fresh_context(self) noexcept
    cdef void _drop(self, int cpu, long long tag) noexcept
    cdef void _drop_all(self, int cpu, long long tags, long long vpn) noexcept
    cdef void _flush_pages(self, int mm, long long start, long long end) noexcept
    cdef void _flush_page(self, int cpu, long long context, long long vpn) noexcept
    cdef object _stale_in(self, int cpu, long long context, long long[::1] tags, long long[::1] data, list wrong)
    cdef bint _is_stale(self, long long data) noexcept
