"""Every captured /proc/sys/vm and /sys/kernel/mm default, computed on a machine of the same shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.huge_memory import HugeMemory
from kmemd.mm.kernel_sysctl import KernelSysctl
from kmemd.mm.mmap import Mmap
from kmemd.mm.panic import Taint
from kmemd.mm.params import CommandLine
from kmemd.views.tree import Caller, Namespace

BOOT = Path(__file__).parent.parent / "captures/linux-6.1/boot"
MACHINES = sorted(path.name for path in BOOT.glob("x86_64-*"))


@pytest.mark.parametrize("name", MACHINES)
def test_defaults(name: str) -> None:
    kernel = Kernel(Machine.from_capture(BOOT / name, shape_only=True))
    tree = Namespace(kernel)
    wrong = {}
    folder = BOOT / name
    files = [*folder.glob("proc/sys/vm/*"), *folder.glob("sys/kernel/mm/**/*")]
    for file in files:
        text = file.read_bytes() if file.is_file() else b""
        if text and file.name != "bitmap":
            path = "/" + str(file.relative_to(folder))
            have = tree.open(tree.lookup(path), Caller()).read(0, 4096)
            if have != text:
                wrong[path] = (text, have)
    assert len(files) > 80
    assert wrong == {}


def test_small_machines_have_no_huge_pages() -> None:
    told: list[bool] = []
    thp = HugeMemory(CommandLine("transparent_hugepage=always"), 100_000, 512, told.append)
    assert (thp.enabled, thp.defrag, thp.use_zero_page, told) == ("never", "never", 0, [])


def test_khugepaged_raises_min_free_kbytes() -> None:
    told: list[bool] = []
    thp = HugeMemory(CommandLine("transparent_hugepage=madvise"), 1 << 20, 512, told.append)
    row = next(row for row in thp.TUNABLES if row.attr == "enabled")
    thp.tune(row, "never\n")
    assert (thp.enabled, told) == ("never", [True, False])


def test_commit_limit() -> None:
    mmap = Mmap(100_000, lambda: 1000, lambda: 200, lambda: 50)
    assert mmap.commit_limit() == 450
    mmap.overcommit_ratio = 25
    mmap.on_overcommit_ratio()
    assert mmap.commit_limit() == 250
    mmap.overcommit_kbytes = 4096
    mmap.on_overcommit_kbytes()
    assert (mmap.commit_limit(), mmap.overcommit_ratio) == (1074, 0)
    assert (mmap.user_reserve_kbytes, mmap.admin_reserve_kbytes) == (3125, 3125)


def test_i386_bounds_of_mmap_rnd_bits() -> None:
    row = next(row for row in Mmap.TUNABLES if row.attr == "mmap_rnd_bits")
    narrow = Mmap(0, lambda: 0, lambda: 0, lambda: 0, long_bits=32)
    here = narrow.knob(row)
    assert here is not None
    assert (here.min, here.max, narrow.mmap_rnd_bits) == (8, 16, 8)


def test_restore_takes_what_differs() -> None:
    thp = HugeMemory(CommandLine(""), 1 << 20, 512, lambda _on: None)
    base = "sys/kernel/mm/transparent_hugepage/"
    thp.restore({base + "enabled": "always [madvise] never\n", base + "khugepaged/max_ptes_none": "100\n"})
    assert (thp.enabled, thp.max_ptes_none, thp.max_ptes_swap) == ("madvise", 100, 64)


def test_log_level_of_the_command_line() -> None:
    class Tasks:
        pid_max = 4096

    from random import Random

    sysctl = KernelSysctl(
        "6.1", "#1", CommandLine("quiet loglevel=6 panic=-1"), Tasks(), 64, lambda: 1 << 18, Random(1), Taint()
    )
    assert (sysctl.printk[0], sysctl.panic, sysctl.threads_max) == (6, -1, 8192)
    row = next(row for row in sysctl.TUNABLES if row.attr == "pid_max")
    here = sysctl.knob(row)
    assert here is not None
    assert here.min == 512
