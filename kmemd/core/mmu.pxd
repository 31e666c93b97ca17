from kmemd.core.faults cimport Faults


cdef class Mmu(Faults):
    cdef readonly int why
    cdef public object fault_ip
    cdef long long _cost_hit
    cdef long long _cost_walk
    cdef long long _cost_local
    cdef long long _cost_remote
    cdef unsigned long long _seen

    cdef void _look_ahead(self, int mm, long long[::1] vpns, Py_ssize_t start, Py_ssize_t stop) noexcept
    cdef unsigned long long _peek(self, int mm, long long vpn) noexcept
    cdef int _miss(
        self, int mm, int cpu, long long tags, long long vpn, int op, Py_ssize_t at
    )
    cdef void _trace_fault(self, int mm, long long vpn, int op) noexcept
    cdef Py_ssize_t _run(
        self, int mm, int cpu, long long tags, long long[::1] vpns, Py_ssize_t start
    ) noexcept
    cdef void _count_run(self, int mm, long long n) noexcept
    cdef bint _walk(self, int mm, int cpu, long long tags, long long vpn, int op) noexcept
    cdef bint _fill(self, int mm, int cpu, long long tags, long long vpn, int op, long long slot, int level) noexcept
    cdef long long _search(self, int cpu, long long tag) noexcept
    cdef void _insert(self, int cpu, long long tag, long long data) noexcept
    cdef void _insert_l1(self, int cpu, long long tag, long long data) noexcept
