"""Repetition and freeing in chunks."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from kmemd.control.bulk import Batch, chunks, gather, release
from kmemd.control.words import Reference
from kmemd.errors import KernelError
from kmemd.mm.handles import Handle, Handles, Kind


def last(steps):
    yields = 0
    while True:
        try:
            next(steps)
            yields += 1
        except StopIteration as stop:
            return yields, stop.value


def test_chunks_add_up() -> None:
    assert list(chunks(10, 4)) == [4, 4, 2]
    assert list(chunks(0)) == []


def test_everything_is_got() -> None:
    yields, got = last(gather(Batch(10, 99, "no", 4), np.int64, lambda count: list(range(count))))
    assert (yields, got.items.tolist()) == (3, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
    assert got.partial(10) == ""


def test_memory_that_runs_out_is_told_with_what_was_got() -> None:
    supply = iter([4, 3])
    _, got = last(gather(Batch(10, 8, "no more", 4), np.int64, lambda count: range(next(supply))))
    assert len(got.items) == 7
    assert got.partial(10) == "no more; got 7 of 10"


def test_nothing_got_is_the_error_itself() -> None:
    def refuse(count):
        raise KernelError(errno.ENOMEM, "none")

    _, got = last(gather(Batch(3, 3, "no"), np.int64, refuse))
    with pytest.raises(KernelError) as caught:
        got.partial(3)
    assert (caught.value.errno, caught.value.reason) == (errno.ENOMEM, "none")


def test_other_errors_are_not_shortage() -> None:
    def refuse(count):
        raise KernelError(errno.EINVAL, "bad")

    with pytest.raises(KernelError):
        last(gather(Batch(3, 3, "no"), np.int64, refuse))


@pytest.fixture
def held() -> tuple[Handles, Handle]:
    handles = Handles()
    handle = Handle(Kind.SLAB, np.arange(1, 11, dtype=np.uint64))
    handles.bind("p", handle)
    return handles, handle


def test_freeing_some_leaves_the_rest(held: tuple[Handles, Handle]) -> None:
    handles, handle = held
    freed: list[int] = []
    what = Reference("p", 1, handle, "p")
    steps = release(handles, what, what.positions(every=3), lambda at: freed.extend(handle.addresses[at]), 2)
    assert last(steps) == (2, 4)
    assert freed == [1, 4, 7, 10]
    assert handle.addresses.tolist() == [2, 3, 5, 6, 8, 9]
    assert "p" in handles


def test_a_handle_without_items_is_gone(held: tuple[Handles, Handle]) -> None:
    handles, handle = held
    what = Reference("p", 1, handle, "p")
    last(release(handles, what, what.positions(), lambda at: None))
    assert "p" not in handles


def test_a_refused_item_does_not_keep_the_others(held: tuple[Handles, Handle]) -> None:
    handles, handle = held
    chunks_seen = 0

    def free(at):
        nonlocal chunks_seen
        chunks_seen += 1
        if chunks_seen == 2:
            raise KernelError(errno.EFAULT, "bad")

    what = Reference("p", 1, handle, "p")
    with pytest.raises(KernelError):
        last(release(handles, what, what.positions(), free, 4))
    assert chunks_seen == 3
    assert "p" not in handles
