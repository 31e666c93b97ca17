from kmemd.core.tlb cimport Tlb


cdef class MappedPages:
    cdef Tlb _mmu
