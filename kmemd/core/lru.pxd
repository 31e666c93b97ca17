from kmemd.core.lru_lists cimport LruLists
