"""Page counters: limits, marks, protection, and sizes as they are written."""

from __future__ import annotations

import errno

import pytest

from kmemd.errors import KernelError
from kmemd.mm.page_counter import PAGE_COUNTER_MAX, PageCounter, effective_protection, page_counter_memparse


def test_a_charge_counts_all_the_way_up_or_not_at_all() -> None:
    root = PageCounter()
    child = PageCounter(root)
    root.max = 10
    assert child.try_charge(8) is None
    assert child.try_charge(3) is root
    assert (child.usage, root.usage, root.failcnt, child.failcnt) == (8, 8, 1, 0)
    child.charge(5)
    child.uncharge(9)
    assert (child.usage, child.watermark, root.watermark, child.margin()) == (4, 13, 13, 6)


@pytest.mark.parametrize(
    ("text", "pages"),
    [("max\n", PAGE_COUNTER_MAX), ("0", 0), ("5000", 1), ("20k", 5), ("0x1000", 1), ("1T\n", 1 << 28), ("1E", 1 << 48)],
)
def test_sizes(text: str, pages: int) -> None:
    assert page_counter_memparse(text, "max") == pages


@pytest.mark.parametrize("text", ["-1", "abc", "10 M", "1.5M", "maxi"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(KernelError) as caught:
        page_counter_memparse(text, "max")
    assert caught.value.errno == errno.EINVAL


def test_protected_usage_is_summed_up_for_the_parent() -> None:
    parent = PageCounter()
    a, b = PageCounter(parent), PageCounter(parent)
    a.set_protection("low", 100)
    b.set_protection("low", 50)
    a.charge(60)
    b.charge(80)
    assert (parent.children_low, parent.children_min) == (110, 0)
    a.uncharge(20)
    assert parent.children_low == 90
    b.leave()
    assert parent.children_low == 40


def test_children_share_what_the_parent_protects() -> None:
    assert effective_protection(60, 200, 100, 500, 110) == 60
    assert effective_protection(60, 200, 100, 55, 110) == 30
    assert effective_protection(60, 200, 0, 55, 0) == 0
