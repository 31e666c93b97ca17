cdef class SlabTable:
    cdef readonly int ncpus
    cdef readonly int nnodes
    cdef readonly int ncaches
    cdef readonly int nslabs
    cdef readonly list discarded
    cdef readonly dict arrays
    cdef public object shuffle
    cdef unsigned long long _page_offset
    cdef long long _max_pfn
    cdef int[::1] _mapping
    cdef unsigned int[::1] _flags
    cdef long long[:, ::1] _node_stat
    cdef long long[::1] _words
    cdef int[::1] _cpu_node
    cdef unsigned char[::1] _slab_node
    cdef int[::1] _order
    cdef int _zones
    cdef int _nspans
    cdef long long[::1] _spans
    cdef int[::1] _spare
    cdef long long[::1] _cache
    cdef int[::1] _cpu
    cdef unsigned int[::1] _stats
    cdef long long[::1] _node
    cdef int[::1] _slab
    cdef unsigned short[::1] _link
    cdef unsigned char[::1] _used
    cdef int _cache_room
    cdef int _slab_room
    cdef long long _arena_room
    cdef long long _arena_used

    cdef void _stat(self, Py_ssize_t cache, Py_ssize_t cpu, Py_ssize_t item) noexcept
    cdef Py_ssize_t _node_row(self, Py_ssize_t slab)
    cdef void _link_slab(self, Py_ssize_t head, Py_ssize_t slab, bint tail) noexcept
    cdef void _unlink_slab(self, Py_ssize_t head, Py_ssize_t slab) noexcept
    cdef void _add_partial(self, Py_ssize_t slab, bint tail) noexcept
    cdef void _remove_partial(self, Py_ssize_t slab) noexcept
    cdef void _add_full(self, Py_ssize_t slab) noexcept
    cdef void _remove_full(self, Py_ssize_t slab) noexcept
    cdef bint _too_many(self, Py_ssize_t slab) noexcept
    cdef Py_ssize_t _nid_of(self, Py_ssize_t pfn)
