from kmemd.core.buddy cimport Buddy


cdef class FreeScanner:
    cdef readonly long long scan_pfn
    cdef readonly long long scanned
    cdef Buddy _buddy

    cdef Py_ssize_t _isolate_free(self, int zi, long long pfn, int order, long long[::1] out, Py_ssize_t at) noexcept
    cdef void _rotate_behind(self, int zi, int order, long long pfn) noexcept
