"""page_owner's text, on a machine booted with and without it."""

import re
from pathlib import Path

import pytest

from kmemd.core import pages as p
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.gfp import GFP_HIGHUSER_MOVABLE, GFP_KERNEL, F

CAPTURE = Path(__file__).parents[1] / "captures" / "linux-6.1" / "debug" / "page_owner"
HEAD = re.compile(
    r"Page allocated via order (\d+), mask 0x([0-9a-f]+)\(([\w|]+)\), pid (\d+), tgid (\d+) \((.+)\), "
    r"ts (\d+) ns, free_ts (\d+) ns"
)
SECOND = re.compile(r"PFN (\d+) type (\w+) Block (\d+) type (\w+) Flags 0x([0-9a-f]+)\(([\w|=]+)\)")


@pytest.fixture(scope="module")
def kernel():
    return Kernel.boot(Machine.load("default"), 1, "page_owner=on nokaslr")


def records(kernel, pfn=0):
    for piece in kernel.page_owner.text(pfn):
        yield from piece.split("\n\n")[:-1]


def record_of(kernel, pfn):
    return next(records(kernel, pfn)).splitlines()


def test_the_captured_head_is_what_the_patterns_mean():
    first, second = CAPTURE.read_text().splitlines()[:2]
    assert HEAD.fullmatch(first)
    assert SECOND.fullmatch(second)


def test_a_record_says_who_and_where(kernel):
    kernel.context.switch(40, 39, "sh", 0)
    kernel.context.site = kernel.depot.save(("leaky_probe+0x2a[leaky_drv]", "vfs_write"))
    pfn = kernel.page_alloc.alloc_pages(GFP_KERNEL | F.COMP, 2)
    head, second, *stack = record_of(kernel, pfn)
    order, mask, names, pid, tgid, comm, ts, _ = HEAD.fullmatch(head).groups()
    assert (order, mask, names) == ("2", "40cc0", "GFP_KERNEL|__GFP_COMP")
    assert (pid, tgid, comm) == ("40", "39", "sh")
    assert 0 < int(ts) <= kernel.context.now
    found = SECOND.fullmatch(second).groups()
    assert found[:4] == (str(pfn), "Unmovable", str(pfn >> 9), "Unmovable")
    assert [line.split("+")[0] for line in stack] == [
        " post_alloc_hook",
        " prep_new_page",
        " get_page_from_freelist",
        " __alloc_pages",
        " leaky_probe",
        " vfs_write",
    ]
    assert record_of(kernel, pfn + 1)[1].split()[1] != str(pfn + 1)
    kernel.page_alloc.free_pages(pfn, 2)
    assert f"PFN {pfn} " not in "\n".join(record_of(kernel, pfn))
    again = kernel.page_alloc.alloc_pages(GFP_KERNEL | F.COMP, 2)
    assert int(HEAD.fullmatch(record_of(kernel, again)[0])[8]) > 0 or again != pfn
    kernel.page_alloc.free_pages(again, 2)
    kernel.page_owner.check()


def test_user_pages_are_charged_and_migrated_ones_say_why(kernel):
    pfn = kernel.page_alloc.alloc_pages(GFP_HIGHUSER_MOVABLE, 0)
    assert record_of(kernel, pfn)[-1].startswith(" ")
    kernel.pages.flags[pfn] |= 1 << p.PG_LRU | 1 << p.PG_UPTODATE | 1 << p.PG_SWAPBACKED
    kernel.owner.migrate_reason[pfn] = 1
    lines = record_of(kernel, pfn)
    assert "(uptodate|lru|swapbacked|node=0|zone=" in lines[1]
    assert lines[-2:] == [
        "Page has been migrated, last migrate reason: compaction",
        "Charged to memcg /",
    ]
    kernel.pages.flags[pfn] = 0
    kernel.page_alloc.free_pages(pfn, 0)


def test_every_record_is_well_formed_and_pfns_ascend(kernel):
    last = -1
    for record in records(kernel):
        head, second, *stack = record.splitlines()
        assert HEAD.fullmatch(head), head
        pfn = int(SECOND.fullmatch(second)[1])
        assert pfn > last
        assert 1 <= sum(line.startswith(" ") for line in stack) <= 16
        last = pfn


def test_without_the_parameter_there_is_nothing_and_no_memory():
    kernel = Kernel.boot(Machine.load("default"), 1, "nokaslr")
    assert not kernel.page_owner.enabled
    assert list(kernel.page_owner.text()) == []
    kernel.page_owner.check()
