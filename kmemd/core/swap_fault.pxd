from kmemd.core.page_arrays cimport PageArrays
