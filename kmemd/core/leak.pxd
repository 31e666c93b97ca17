from kmemd.core.leak_index cimport LeakIndex


cdef class LeakTable(LeakIndex):

    cdef long long _new_row(self)
    cdef void _drop_row(self, long long row) noexcept
    cdef object _remove(self, long long row)
    cdef void _drop_edges(self, long long row) noexcept
    cdef long long _new_edge(self)
    cpdef object store(self, long long row, long long offset, unsigned long long value)
    cdef object _push(self, long long row)
    cdef object _refer(self, long long row)
    cdef object _word(self, unsigned long long value, long long scanned)
    cdef object _mark_words(self)
    cdef object _scan_some(self)
    cdef object _scan(self, long long row)
    cdef bint _in_area(self, long long row, long long offset)
