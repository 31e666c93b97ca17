from kmemd.core.buddy cimport Buddy


cdef class BuddyState:
    cdef Buddy _buddy


