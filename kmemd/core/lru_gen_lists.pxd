from kmemd.core.page_arrays cimport PageArrays


cdef class GenLists(PageArrays):
    cdef readonly object ctrl
    cdef readonly object results
    cdef int[::1] _next
    cdef int[::1] _prev
    cdef int[::1] _first
    cdef int[::1] _last
    cdef long long[::1] _gen_pages
    cdef long long[::1] _seqs
    cdef long long[::1] _ctrl
    cdef long long[::1] _results
    cdef long long[:, ::1] _zone_stat
    cdef long long[::1] _size
    cdef long long _base
    cdef int _kinds
    cdef int _nodes
    cdef int _zone_item
    cdef int _node_item

    cdef void _size_add(self, long long lruvec, int which, int zi, long long pages) noexcept
    cdef int _inc_gen(self, long long lruvec, long long pfn, int zi, bint reclaiming) noexcept
    cdef bint _update_gen(self, long long lruvec, long long pfn, int new) noexcept
    cdef bint _sort(self, long long lruvec, long long pfn, int zi, int file, int tier_idx, int highest) noexcept
    cdef void _to_last(self, long long lruvec, long long pfn, int file, int kind) noexcept
    cdef bint _lazy_written(self, long long lruvec, long long pfn, int zi, int gen) noexcept
    cdef bint _may_isolate(self, long long pfn, bint may_unmap, bint may_write) noexcept
    cdef void _isolate(self, long long lruvec, long long pfn, int zi, int file) noexcept
    cdef void _carry_over(self, long long lruvec, int file) noexcept

    # These have their twins in the .py: here the module that derives from the class gets them inline.
    cdef inline long long _pages(self, long long pfn) noexcept:
        return <long long>1 << ((self._meta[pfn] >> 8) & 0xFF)

    cdef inline long long _row(self, long long lruvec, int gen, int file, int kind) noexcept:
        return ((lruvec * 4 + gen) * 2 + file) * self._kinds + kind
