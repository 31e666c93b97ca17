from kmemd.core.buddy cimport Buddy


cdef class PageRanges:
    cdef Buddy _buddy

    cdef bint _mt_is_movable(self, long long pfn) noexcept
    cdef void _extend_frontier(self, int zi, long long low, long long high) noexcept
    cdef long long _free_until(self, int zi, long long pfn, long long high) noexcept
    cdef void _take_untouched(self, int zi, long long low, long long high) noexcept
    cdef bint _list_frontier(self, int zi, long long pfn) noexcept
    cdef void _cut(self, int zi, long long boundary) noexcept
