"""Who allocated each page: page_owner's records (struct page_owner in mm/page_owner.c) as arrays by PFN.

The buddy core fills them (``__set_page_owner``, ``__reset_page_owner``) when the machine was booted with
``page_owner=on``; otherwise there is no table and no cost. ``debug/page_owner`` turns them into text.
The arrays are zero-filled lazily, and zero means "never".
"""

from kmemd.core.pages import lazy_zeros

ALLOCATED = 1


class OwnerTable:
    """Per-page records; every page of a high-order allocation carries the record of its head, as in Linux.

    ``allocated`` is 0 (free, or never allocated) or ALLOCATED. ``order`` is that of the last allocation,
    ``gfp`` its mask, ``stack`` a stack depot handle, ``comm`` an index into ``Context.comms``; ``ts`` and
    ``free_ts`` are model time in ns; ``migrate_reason`` is last_migrate_reason + 1 (0: never migrated).
    """

    def __init__(self, max_pfn: int) -> None:
        self.max_pfn = max_pfn
        self.allocated = lazy_zeros(max_pfn, "uint8")
        self.order = lazy_zeros(max_pfn, "int8")
        self.migrate_reason = lazy_zeros(max_pfn, "int8")
        self.gfp = lazy_zeros(max_pfn, "uint32")
        self.stack = lazy_zeros(max_pfn, "uint32")
        self.pid = lazy_zeros(max_pfn, "int32")
        self.tgid = lazy_zeros(max_pfn, "int32")
        self.comm = lazy_zeros(max_pfn, "uint32")
        self.ts = lazy_zeros(max_pfn, "int64")
        self.free_ts = lazy_zeros(max_pfn, "int64")
