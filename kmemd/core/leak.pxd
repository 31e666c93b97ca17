from kmemd.core.leak_index cimport LeakIndex
