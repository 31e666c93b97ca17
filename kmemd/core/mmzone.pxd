cdef class Zones:
    cdef readonly object pages
    cdef readonly int nzones
    cdef readonly int ncpus
    cdef readonly int pageblock_order
    cdef public int numa_nodes
    cdef public bint numa_stat_on
    cdef public bint mobility_disabled
    cdef public long long boost_factor
    cdef public long long cost_pcp
    cdef public long long cost_buddy
    cdef readonly object owner
    cdef int[::1] _next
    cdef int[::1] _prev
    cdef int[::1] _meta
    cdef unsigned int[::1] _flags
    cdef long long[::1] _ctx
    cdef object _trace
    cdef long long[::1] _log
    cdef long long[::1] _control
    cdef long long[::1] _events
    cdef long long[::1] _zone_stat
    cdef long long[::1] _numa_stat
    cdef int[::1] _head_next
    cdef int[::1] _head_prev
    cdef long long[::1] _nr_list
    cdef unsigned char[::1] _block_type
    cdef unsigned char[::1] _block_zone
    cdef int[::1] _zone_nid
    cdef int[::1] _zone_type
    cdef long long[::1] _zone_start
    cdef long long[::1] _zone_end
    cdef long long[::1] _managed
    cdef long long[::1] _wmark
    cdef long long[::1] _boost
    cdef long long[::1] _reserve
    cdef long long[::1] _highatomic
    cdef unsigned char[::1] _kswapd_wake
    cdef unsigned char[::1] _reclaim_active
    cdef long long[::1] _isolated
    cdef int[::1] _pcp_count
    cdef int[::1] _pcp_factor
    cdef int[::1] _pcp_high
    cdef int[::1] _pcp_batch
    cdef long long[::1] _front_lo
    cdef long long[::1] _front_hi
    cdef int[::1] _front_n
    cdef long long[::1] _front_blocks
    cdef int[::1] _cpu_node
    cdef int[::1] _zonelists
    cdef int[::1] _ev_alloc
    cdef int _last_zone
    cdef int _pcp_base
    cdef int _stat_items
    cdef int _nr_free_pages
    cdef int _nr_free_cma
    cdef int _ev_free
    cdef int _types
    cdef int _row
    cdef bint _owner_on
    cdef signed char[::1] _own_order
    cdef unsigned int[::1] _own_gfp
    cdef unsigned int[::1] _own_stack
    cdef int[::1] _own_pid
    cdef int[::1] _own_tgid
    cdef unsigned int[::1] _own_comm
    cdef long long[::1] _own_ts
    cdef long long[::1] _own_free_ts
    cdef unsigned char[::1] _own_allocated
    cdef readonly object nr_list
    cdef readonly object block_type
    cdef readonly object wmark
    cdef readonly object boost
    cdef readonly object reserve
    cdef readonly object highatomic
    cdef readonly object kswapd_wake
    cdef readonly object reclaim_active
    cdef readonly object pcp_count
    cdef readonly object pcp_factor
    cdef readonly object pcp_high
    cdef readonly object pcp_batch
    cdef readonly object managed

    cdef int _zone_of(self, long long pfn) noexcept
    cdef void _set_block(self, long long pfn, int mt) noexcept
    cdef void _set_owner(self, long long pfn, int order, long long gfp) noexcept
    cdef void _set_owners(self, int at, Py_ssize_t n, int order, long long gfp) noexcept
    cdef void _reset_owner(self, long long pfn, int order) noexcept
    cdef Py_ssize_t _emit(self, int event, long long pfn, long long a, long long b, long long c) noexcept
