from kmemd.core.tlb cimport Tlb


cdef class Faults(Tlb):
    cdef readonly object rss
    cdef readonly object rss_task
    cdef readonly object faults_of
    cdef readonly long long zero_pfn
    cdef readonly Py_ssize_t at
    cdef readonly Py_ssize_t row
    cdef public object supply
    cdef public object make_table
    cdef public object copied
    cdef public object swap
    cdef readonly object lru
    cdef long long[::1] _rss
    cdef long long[::1] _rss_task
    cdef int[::1] _rss_events
    cdef long long[::1] _faults_of
    cdef int _pgfault
    cdef int _pgreuse
    cdef int _nr_anon
    cdef long long _cost_fault
    cdef object _trace
    cdef long long[::1] _traced
    cdef long long _fault_slot
    cdef Py_ssize_t _swap_row
    cdef int _pend
    cdef Py_ssize_t _pend_row
    cdef long long[:, ::1] _vmas
    cdef long long[::1] _pend_slot
    cdef long long[::1] _pend_vpn
    cdef long long[::1] _pend_at
    cdef unsigned long long[::1] _pend_old
    cdef object _pend_vpns

    cdef void _uncount(self, int mm, int faults) noexcept
    cdef void _sync(self, int mm, int current) noexcept
    cdef void _tick(self, int mm) noexcept
    cdef Py_ssize_t _row_of(self, long long vpn) noexcept
    cdef int _fault(self, int mm, long long vpn, int op, Py_ssize_t at)
    cdef int _swap_fault(self, int mm, long long vpn, long long slot, int op, Py_ssize_t row)
    cdef int _wp_fault(
        self, int mm, long long vpn, long long slot, unsigned long long entry, Py_ssize_t row, Py_ssize_t at
    )
    cdef int _put_off(
        self, int mm, long long vpn, long long slot, unsigned long long old, Py_ssize_t row, Py_ssize_t at
    )
    cdef long long _mapped_page(self, unsigned long long entry) noexcept
    cdef long long _commit(self, int mm)
    cdef object _put_in(self, long long pfn, int j)
