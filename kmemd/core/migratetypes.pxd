from kmemd.core.free_lists cimport FreeLists


cdef class Migratetypes(FreeLists):

    cdef int _fallback_type(self, int zi, int order, int start) noexcept
    cdef bint _can_steal(self, int order, int start) noexcept
    cdef void _move_to_list(self, int zi, long long pfn, int mt) noexcept
    cdef void _steal(self, int zi, long long pfn, int flags, int start, bint whole) noexcept
    cdef bint _boost_watermark(self, int zi) noexcept
    cdef long long _movable_in_block(self, int zi, long long pfn) noexcept
    cdef long long _move_block(self, int zi, long long pfn, int mt) noexcept
    cdef void _reserve_highatomic(self, int zi, long long pfn) noexcept
