from kmemd.core.slab_table cimport SlabTable


cdef class SlabCore(SlabTable):

    cdef Py_ssize_t _make_slab(self, Py_ssize_t cache, Py_ssize_t pfn, Py_ssize_t order)
    cdef void _push(self, Py_ssize_t slab, Py_ssize_t index, Py_ssize_t after) noexcept
    cdef void _discard(self, Py_ssize_t slab) except *
    cdef void _put_cpu_partial(self, Py_ssize_t slab, Py_ssize_t cpu, bint drain) except *
    cdef void _unfreeze_partials(self, Py_ssize_t slab, Py_ssize_t cpu) except *
    cdef void _deactivate(self, Py_ssize_t slab, Py_ssize_t head, Py_ssize_t cpu) except *
    cdef Py_ssize_t _load(self, Py_ssize_t slab, Py_ssize_t at)
    cdef Py_ssize_t _get_partial_node(self, Py_ssize_t cache, Py_ssize_t nid, Py_ssize_t cpu)
    cdef Py_ssize_t _search(self, Py_ssize_t cache, Py_ssize_t cpu, Py_ssize_t node, Py_ssize_t zone)
    cdef Py_ssize_t _slow(self, Py_ssize_t cache, Py_ssize_t cpu, Py_ssize_t node, Py_ssize_t zone)
    cdef Py_ssize_t _take(self, Py_ssize_t at, unsigned long long[::1] out, Py_ssize_t done, Py_ssize_t want)
    cdef Py_ssize_t _take_debug(self, Py_ssize_t slab, unsigned long long[::1] out, Py_ssize_t done)
    cdef Py_ssize_t _alloc_debug(
        self, Py_ssize_t cache, Py_ssize_t cpu, Py_ssize_t node, Py_ssize_t zone, unsigned long long[::1] out, Py_ssize_t done, Py_ssize_t want
    )
    cdef Py_ssize_t _free_slow(self, Py_ssize_t slab, Py_ssize_t index, Py_ssize_t cpu)
