cdef class LeakIndex:
    cdef readonly long long live
    cdef readonly long long rows
    cdef readonly int word
    cdef readonly dict areas
    cdef readonly dict excess
    cdef readonly long long lookups
    cdef readonly long long edges
    cdef readonly long long edge_free
    cdef readonly object record
    cdef readonly object count
    cdef readonly object min_count
    cdef readonly object first_edge
    cdef readonly object flags
    cdef readonly object pointer
    cdef readonly object size
    cdef readonly object checksum
    cdef readonly object born
    cdef readonly object task
    cdef readonly object stack
    cdef readonly object fill
    cdef readonly object seq
    cdef readonly object edge
    cdef int[::1] _record
    cdef unsigned long long[::1] _wide
    cdef unsigned int[::1] _checksum
    cdef long long[::1] _born
    cdef int[::1] _task
    cdef unsigned int[::1] _stack
    cdef unsigned short[::1] _fill
    cdef long long[::1] _seq
    cdef long long _created
    cdef long long _free_row
    cdef unsigned long long[::1] _edge
    cdef dict _arrays
    cdef unsigned long long[::1] _regions
    cdef long long _nregions
    cdef long long _region_mask
    cdef int _region_shift
    cdef long long[::1] _leaf
    cdef long long _nleaves
    cdef int[::1] _slots
    cdef long long _nslots
    cdef long long[::1] _spare
    cdef int[::1] _queue
    cdef long long _head
    cdef long long _tail
    cdef unsigned long long[::1] _words
    cdef long long[::1] _from
    cdef long long[::1] _hits
    cdef long long _nwords
    cdef unsigned long long _min_addr
    cdef unsigned long long _max_addr

    cdef long long _enter_region(self, unsigned long long number)
    cpdef long long find(self, unsigned long long pointer)
    cpdef long long find_containing(self, unsigned long long address)
    cdef void _find_words(self, long long n) noexcept
    cdef bint _cover(self, long long row, unsigned long long start, unsigned long long end)
    cdef unsigned long long _cover_piece(self, long long row, unsigned long long at, unsigned long long end)
    cdef bint _cover_part(self, long long row, long long page, unsigned long long at, unsigned long long end)
    cdef bint _overlaps(self, long long row, unsigned long long at, unsigned long long end)
    cdef unsigned long long _end(self, long long row) noexcept
    cdef void _refine(self, long long page, unsigned long long at, unsigned long long end) except *
    cdef long long _new_leaf(self)
    cdef long long _new_slots(self, int shift)
    cdef void _drop_slots(self, long long entry) noexcept
    cdef void _uncover(self, unsigned long long start, unsigned long long end) noexcept
