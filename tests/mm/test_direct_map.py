"""mm.direct_map against the captured machines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kmemd.mm.direct_map import from_meminfo, map_memory

BOOT = Path(__file__).parent.parent / "captures" / "linux-6.1" / "boot"
MACHINES = sorted(path.name for path in BOOT.iterdir() if path.is_dir())


@pytest.mark.parametrize("machine", MACHINES)
def test_captured_machines(machine: str) -> None:
    iomem = (BOOT / machine / "proc" / "iomem").read_text()
    meminfo = (BOOT / machine / "proc" / "meminfo").read_text()
    ranges = [
        (int(start, 16), int(last, 16) + 1)
        for start, last in re.findall(r"^(\w+)-(\w+) : System RAM", iomem, re.MULTILINE)
    ]
    arch, limit = ("i386", 0x36FFE000) if machine.startswith("i386") else ("x86_64", 1 << 46)
    captured = [(label, int(kib)) for label, kib in re.findall(r"(DirectMap\w+): +(\d+)", meminfo)]
    assert list(map_memory(arch, ranges, limit).lines) == captured


def test_a_range_smaller_than_a_large_page() -> None:
    mapped = map_memory("x86_64", [(1 << 20, (1 << 20) + 8192)], 1 << 46)
    assert dict(mapped.lines) == {"DirectMap4k": 1032, "DirectMap2M": 0}


def test_whole_gibs() -> None:
    ranges = [(1 << 20, 3 << 30), (4 << 30, (5 << 30) + (2 << 20))]
    mapped = dict(map_memory("x86_64", ranges, 1 << 46, gbpages=True).lines)
    assert mapped["DirectMap1G"] == 3 << 20
    plain = dict(map_memory("x86_64", ranges, 1 << 46).lines)
    assert plain["DirectMap2M"] == mapped["DirectMap2M"] + mapped["DirectMap1G"]
    assert plain["DirectMap4k"] == mapped["DirectMap4k"]


def test_a_twin_has_the_map_of_its_original() -> None:
    mapped = from_meminfo({"MemTotal": 5, "DirectMap1G": 1 << 20, "DirectMap4k": 8, "DirectMap2M": 0})
    assert mapped is not None
    assert mapped.lines == (("DirectMap4k", 8), ("DirectMap2M", 0), ("DirectMap1G", 1 << 20))
    assert from_meminfo({"MemTotal": 5}) is None
