"""Handles: named pointers."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from kmemd.errors import KernelError
from kmemd.mm.handles import Handle, Handles, Kind


def slab(*addresses: int) -> Handle:
    return Handle(Kind.SLAB, np.array(addresses, dtype=np.uint64), size=64)


def pages(*pfns: int) -> Handle:
    return Handle(Kind.PAGES, pfns=np.array(pfns, dtype=np.int64), order=1)


def test_items_that_are_given_back_leave_gaps_until_compacted() -> None:
    handle = slab(0x1000, 0x2000, 0x3000, 0x4000)
    handle.clear(np.array([0, 2]))
    assert handle.pointers().tolist() == [0x2000, 0x4000]
    assert len(handle) == 4
    handle.compact()
    assert handle.addresses.tolist() == [0x2000, 0x4000]
    assert (len(handle), handle.address) == (2, 0x2000)


def test_pages_are_frames_and_no_pointers() -> None:
    handle = pages(7, 0, 300000)
    assert (len(handle), handle.pfn, handle.address) == (3, 7, 0)
    assert handle.pointers().tolist() == []
    handle.clear(np.array([0]))
    handle.compact()
    assert handle.pfns.tolist() == [0, 300000]


def test_pointers_of_all_handles_are_the_roots() -> None:
    handles = Handles()
    assert handles.pointers().tolist() == []
    handles.bind("a", slab(0x1000, 0x2000))
    handles.bind("b", slab(0xFFFF888000000000))
    handles.bind("t", Handle(Kind.TASK, pid=3))
    handles.bind("p", pages(5))
    assert handles.pointers().tolist() == [0x1000, 0x2000, 0xFFFF888000000000]
    handles.forget("a")
    assert handles.pointers().tolist() == [0xFFFF888000000000]


def test_a_name_that_is_gone_is_enoent() -> None:
    handles = Handles()
    handles.bind("a", slab(1))
    assert "a" in handles
    assert handles.name_of(handles["a"]) == "a"
    handles.forget("a")
    assert handles.get("a") is None
    for use in (handles.forget, handles.__getitem__):
        with pytest.raises(KernelError) as caught:
            use("a")
        assert caught.value.errno == errno.ENOENT


def test_names_are_listed_in_the_order_in_which_they_were_made() -> None:
    handles = Handles()
    for name in "cab":
        handles.bind(name, slab(1))
    assert [name for name, _ in handles.items()] == ["c", "a", "b"]
    assert list(handles) == ["c", "a", "b"]
    assert len(handles.values()) == len(handles) == 3
