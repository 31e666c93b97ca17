from kmemd.core.page_arrays cimport PageArrays


cdef class LruLists(PageArrays):
    cdef readonly object words
    cdef readonly object first
    cdef readonly object last
    cdef readonly object gen_pages
    cdef readonly object sizes
    cdef readonly object seqs
    cdef readonly long long gen_base
    cdef long long[::1] _words
    cdef long long[::1] _gen_pages
    cdef long long[::1] _seqs
    cdef int[::1] _next
    cdef int[::1] _prev
    cdef int[::1] _first
    cdef int[::1] _last
    cdef long long[::1] _size
    cdef long long[:, ::1] _zone_stat
    cdef int _kinds
    cdef int _nodes
    cdef long long _most_memcg
    cdef int _zone_item
    cdef int _node_item

    cdef int _which(self, long long pfn) noexcept
    cdef void _put(self, long long pfn, bint last) noexcept
    cdef void _take(self, long long pfn) noexcept
    cdef void _link_alike(self, long long[::1] pfns, Py_ssize_t start, Py_ssize_t stop) noexcept
    cdef void _gen_put(self, long long pfn, int zi, bint last) noexcept
    cdef void _gen_take(self, long long pfn, int zi) noexcept
    cdef long long _in_gens(self, long long lruvec, int which) noexcept

    # This has its twin in the .py: here the module that derives from the class gets it inline.
    cdef inline long long _pages(self, long long pfn) noexcept:
        return <long long>1 << ((self._meta[pfn] >> 8) & 0xFF)
