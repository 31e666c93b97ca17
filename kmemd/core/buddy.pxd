from kmemd.core.migratetypes cimport Migratetypes


cdef class Buddy(Migratetypes):
    cdef readonly long long bad_pfn
    cdef int _preferred

    cdef bint _free_pages(self, long long pfn, int order) noexcept
    cdef Py_ssize_t _free_run(self, long long[::1] pfns, Py_ssize_t start, int order) noexcept
    cdef long long _from_zone(self, int preferred, int zi, int order, int mt, int flags) noexcept
    cdef void _count_numa(self, int preferred, int zi, long long n) noexcept
    cdef long long _unusable(self, int zi, int order, int flags) noexcept
    cdef bint _watermark_ok(self, int zi, int order, long long mark, int highest, int flags, long long free) noexcept
    cdef bint _watermark_fast(self, int zi, int order, int highest, int flags, long long gfp) noexcept
    cdef long long _from_freelists(
        self, int row, int highest, unsigned long long nodemask, int order, int mt, int flags, long long gfp
    ) noexcept
    cdef Py_ssize_t _take_rest(self, long long[::1] out, Py_ssize_t start, int order, long long gfp, int mt) noexcept
