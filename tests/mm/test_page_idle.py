"""mm.page_idle: which pages of programs nobody used since they were marked idle."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from kmemd.errors import KernelError
from kmemd.mm.page_idle import PageIdle
from kmemd.views.mm_sysfs import PageIdleBitmap
from tests.mm.files_fixture import Box

BITMAP = "/sys/kernel/mm/page_idle/bitmap"
KPF_IDLE = 25


@pytest.fixture
def box() -> Box:
    found = Box()
    found.run("p = spawn t", "m = mmap p 4M prot=rw", "madvise p m 4M MADV_NOHUGEPAGE", "access p m 4M w")
    found.kernel.user.lru.drain_local()  # pages in a CPU's batch are on no list
    return found


def frames(box: Box, pid: int) -> list[int]:
    """The frames of the mapping m, in order of address."""
    mm = box.kernel.tasks.find(pid).mm
    vma = next(vma for vma in mm.vmas if vma.pages == 1024)
    slots = [box.kernel.mmu.slot(mm.id, vma.vpn + k) for k in range(1024)]
    return [int(box.kernel.mmu.words[slot]) >> 12 & (1 << 40) - 1 for slot in slots]


def idle(box: Box) -> PageIdle:
    kernel = box.kernel
    return PageIdle(kernel.pages, kernel.mmu, kernel.rmap, kernel.vmstat.hpage_pmd_nr)


def test_pages_are_idle_until_somebody_uses_them(box: Box) -> None:
    pid = int(box.run("access p m 4K r")["pid"])
    pfns = frames(box, pid)
    low = min(pfns) // 64 * 64
    high = -(-(max(pfns) + 1) // 64) * 64
    assert not idle(box).idle(low, high).any()
    idle(box).set_idle(low, np.ones(high - low, dtype=bool))
    marked = idle(box).idle(low, high)
    assert marked[[pfn - low for pfn in pfns]].all()
    flags = np.frombuffer(box.system.read("/proc/kpageflags", low * 8, (high - low) * 8), dtype="<u8")
    assert (flags[[pfn - low for pfn in pfns]] >> np.uint64(KPF_IDLE) & np.uint64(1)).all()
    box.kernel.mmu.flush_mm(box.kernel.tasks.find(pid).mm.id)  # what a TLB has sets no accessed bit
    box.run("access p m 64K w")
    after = idle(box).idle(low, high)[[pfn - low for pfn in pfns]]
    assert not after[:16].any()
    assert after[16:].all()


def test_a_page_that_tracking_made_old_still_counts_as_used(box: Box) -> None:
    pid = int(box.run("access p m 4M r")["pid"])
    pfns = np.array(frames(box, pid))
    idle(box).set_idle(0, np.ones(box.kernel.pages.max_pfn, dtype=bool))
    counts, _ = box.kernel.user.page_reclaim.list_scan.referenced(pfns)
    assert (counts == 1).all(), "young, though no entry says so"
    counts, _ = box.kernel.user.page_reclaim.list_scan.referenced(pfns)
    assert not counts.any()


def test_system_calls_use_pages_too(box: Box) -> None:
    box.run("create /mnt/f 1M", "read_file /mnt/f")
    box.kernel.user.lru.drain_local()
    everything = np.ones(box.kernel.pages.max_pfn, dtype=bool)
    idle(box).set_idle(0, everything)
    before = int(idle(box).idle(0, len(everything)).sum())
    box.run("read_file /mnt/f")
    assert before - int(idle(box).idle(0, len(everything)).sum()) >= 256


def test_a_huge_page_is_idle_as_a_whole(box: Box) -> None:
    box.run("h = mmap p 4M prot=rw", "madvise p h 4M MADV_HUGEPAGE", "access p h 4M w")
    box.kernel.user.lru.drain_local()
    size = box.kernel.pages.max_pfn
    idle(box).set_idle(0, np.ones(size, dtype=bool))
    before = idle(box).idle(0, size)
    box.kernel.mmu.flush_mm(next(task for task in box.kernel.tasks if task.comm == "t").mm.id)
    box.run("access p h+2M 4K r")
    gone = np.flatnonzero(before & ~idle(box).idle(0, size))
    huge = gone[box.kernel.pages.order[gone & -512] == 9]
    assert len(huge) == 512
    assert huge[0] % 512 == 0


def test_the_bitmap_is_of_whole_words(box: Box) -> None:
    pid = int(box.run("access p m 4K r")["pid"])
    at = frames(box, pid)[700] // 64 * 8
    box.system.write(BITMAP, bytes(8))
    assert box.system.read(BITMAP, at, 8) == bytes(8)
    for offset, size in ((4, 8), (0, 7)):
        with pytest.raises(OSError, match="EINVAL"):
            box.system.read(BITMAP, offset, size)
    with pytest.raises(OSError, match="EINVAL") as error:
        box.system.write(BITMAP, b"\xff" * 7)
    assert error.value.errno == errno.EINVAL


def test_what_is_written_at_an_offset_is_for_the_pages_there(box: Box) -> None:
    pid = int(box.run("access p m 4K r")["pid"])
    pfn = frames(box, pid)[700]
    opened = PageIdleBitmap(box.kernel)
    word = (1 << pfn % 64).to_bytes(8, "little")
    with pytest.raises(StopIteration) as taken:
        next(opened.write_at(pfn // 64 * 8, word))
    assert taken.value.value == 8
    assert box.system.read(BITMAP, pfn // 64 * 8, 8) == word
    assert b"|idle" in box.kernel.page_flags.of_page(pfn).encode()
    with pytest.raises(KernelError) as error:
        next(opened.write_at(1 << 40, word))
    assert error.value.errno == errno.ENXIO
