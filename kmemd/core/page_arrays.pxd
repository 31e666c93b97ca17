cdef class PageArrays:
    cdef unsigned int[::1] _flags
    cdef int[::1] _mapping
    cdef long long[::1] _index
    cdef int[::1] _mapcount
    cdef int[::1] _meta
    cdef short[::1] _memcg
    cdef long long[::1] _private
    cdef long long[::1] _events
    cdef long long[:, ::1] _node_stat
    cdef long long[::1] _zone_nid
    cdef long long[::1] _zone_start
    cdef long long[::1] _zone_end
    cdef int _zone

    # These have their twins in the .py: here every module that derives from the class gets them inline.
    cdef inline int _zone_of(self, long long pfn) noexcept:
        cdef int zi = self._zone
        if pfn < self._zone_start[zi] or pfn >= self._zone_end[zi]:
            zi = 0
            while zi < self._zone_start.shape[0] and (pfn < self._zone_start[zi] or pfn >= self._zone_end[zi]):
                zi += 1
            if zi == self._zone_start.shape[0]:
                return 0
            self._zone = zi
        return zi

    cdef inline long long _nid_of(self, long long pfn) noexcept:
        return self._zone_nid[self._zone_of(pfn)]
