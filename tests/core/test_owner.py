"""The per-page records of page_owner."""

import resource

from kmemd.core.owner import ALLOCATED, OwnerTable


def test_a_table_of_a_terabyte_costs_nothing_until_it_is_used():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = OwnerTable(1 << 28)
    table.allocated[1 << 27] = ALLOCATED
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096
    assert int(table.allocated[(1 << 27) - 1]) == 0
    assert len(table.ts) == len(table.free_ts) == 1 << 28
