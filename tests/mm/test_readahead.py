"""How much is read ahead of who reads: the device's window, errors, and what readahead(2) and WILLNEED read at most."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from tests.mm.files_fixture import Box


@pytest.fixture
def box() -> Iterator[Box]:
    found = Box()
    yield found
    found.system.check()


def read_in_order(box: Box, path: str, calls: int, first: int = 0) -> list[int]:
    """The pages that the cache has of a file after each read of a page."""
    lines = [f"read_file {path} offset={4 * page}K n=4K" for page in range(first, first + calls)]
    return [int(box.run(line, f"fincore {path}")["pages"]) for line in lines]


def growth(pages: list[int]) -> list[int]:
    """How many pages came at a time."""
    return [after - before for before, after in zip([0, *pages], pages, strict=False) if after > before]


@pytest.mark.parametrize(("kib", "windows"), [(128, [4, 8, 16, 32]), (32, [2, 4, 8, 8, 8]), (64, [2, 4, 8, 16, 16])])
def test_windows_grow_to_what_the_device_says(box: Box, kib: int, windows: list[int]) -> None:
    box.run("create /mnt/f 4M")
    box.system.write("/sys/block/ram0/queue/read_ahead_kb", str(kib))
    assert growth(read_in_order(box, "/mnt/f", 40))[: len(windows)] == windows


def test_each_page_that_cannot_be_read_makes_the_window_a_quarter(box: Box) -> None:
    box.run("create /mnt/f 4M")
    readahead, file = box.kernel.user.file_io.readahead, box.kernel.user.vfs.lookup("/mnt/f")
    assert readahead.ra_pages(file) == 32
    box.run("disk_error ram0 read")
    assert box.errno("read_file /mnt/f n=4K") == errno.EIO
    assert readahead.ra_pages(file) == 8
    assert box.errno("read_file /mnt/f n=4K") == errno.EIO
    assert readahead.ra_pages(file) == 2
    box.run("disk_error ram0 off")
    assert set(growth(read_in_order(box, "/mnt/f", 24, first=256))[1:]) == {2}  # the first one is read alone
    box.run("fadvise /mnt/f NORMAL")
    assert readahead.ra_pages(file) == 32


@pytest.mark.parametrize("line", ["fadvise /mnt/f WILLNEED", "readahead /mnt/f 0 8M"])
def test_what_is_read_at_once_is_what_the_disk_takes(box: Box, line: str) -> None:
    box.run("create /mnt/f 8M")
    at_once = box.kernel.user.vfs.lookup("/mnt/f").wb.disk.io_pages
    assert box.run(line)["pages"] == str(at_once)
    assert box.run("fincore /mnt/f")["pages"] == str(at_once)


def test_readahead_reads_a_range_and_no_more(box: Box) -> None:
    box.run("create /mnt/f 1M")
    assert box.run("readahead /mnt/f 64K 32K")["pages"] == "8"
    assert box.run("readahead /mnt/f 64K 40K")["pages"] == "2"
    assert box.run("readahead /mnt/f 2M 4K")["pages"] == "0"
    box.run("create /tmp/t 64K")
    assert box.run("readahead /tmp/t 0 64K")["pages"] == "0"
    assert box.errno("readahead /mnt/none 0 4K") == errno.ENOENT
