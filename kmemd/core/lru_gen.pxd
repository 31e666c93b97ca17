from kmemd.core.lru_gen_lists cimport GenLists
