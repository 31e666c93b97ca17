from kmemd.core.mmzone cimport Zones


cdef class FreeLists(Zones):
    cdef readonly long long captured
    cdef readonly long long taken
    cdef int _pcp_used
    cdef int _capture_zone
    cdef int _capture_order
    cdef long long _capture_gfp

    cdef void _add(self, int li, long long pfn) noexcept
    cdef void _add_tail(self, int li, long long pfn) noexcept
    cdef void _del(self, long long pfn) noexcept
    cdef int _list(self, int zi, int order, int mt) noexcept
    cdef void _free_list_add(self, int zi, int order, int mt, long long pfn) noexcept
    cdef void _free_list_add_tail(self, int zi, int order, int mt, long long pfn) noexcept
    cdef void _on_free_list(self, int zi, int order, int mt, int li, long long pfn) noexcept
    cdef void _free_list_del(self, int zi, int order, long long pfn) noexcept
    cdef long long _first(self, int zi, int order, int mt) noexcept
    cdef long long _first_beyond(self, int zi, int li) noexcept
    cdef void _take_frontier(self, int zi, int extent, long long pfn) noexcept
    cdef void _count_free(self, int zi, int mt, long long pages) noexcept
    cdef bint _is_buddy(self, int zi, long long buddy, int order) noexcept
    cdef void _free_one(self, int zi, long long pfn, int order, int mt, bint tail) noexcept
    cdef void _merge(self, int zi, long long pfn, int order, int mt, bint tail) noexcept
    cdef bint _capture(self, int zi, long long pfn, int mt) noexcept
    cdef void _free_pcp_bulk(self, int zi, int pi, int count, int pindex) noexcept
    cdef int _free_from_tail(self, int zi, int li, int count, int order) noexcept
    cdef long long _smallest(self, int zi, int order, int mt) noexcept
    cdef long long _rmqueue(self, int zi, int order, int mt, int flags) noexcept
    cdef bint _fallback(self, int zi, int order, int start, int flags) noexcept
    cdef void _refill(self, int zi, int pi, int order, int mt, int flags, int li) noexcept
    cdef int _pindex(self, int mt, int order) noexcept
    cdef void _pcp_commit(self, int zi, long long pfn, int mt, int order) noexcept
    cdef long long _from_pcp(self, int zi, int order, int mt, int flags) noexcept
    cdef void _trace_list(self, int event, int zi, int li, int order, long long n) noexcept
