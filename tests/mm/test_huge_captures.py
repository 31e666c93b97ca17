"""Huge pages through the command language, against what a real kernel showed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmemd.errors import KernelError
from kmemd.machine import Machine
from kmemd.system import System

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "process"
MIB = 1 << 20
HUGE = 2 * MIB
FIXED = "flags=MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED"


class Program:
    """A process of a captured machine, driven as the captured program drove itself."""

    def __init__(self, nodes: int, cpus: int, size: int) -> None:
        per_node = cpus // nodes
        node_cpus = tuple(tuple(range(nid * per_node, (nid + 1) * per_node)) for nid in range(nodes))
        distances = tuple(tuple(10 if a == b else 20 for b in range(nodes)) for a in range(nodes))
        machine = Machine.of_memory("captured", "x86_64", cpus, (size,) * nodes, node_cpus, distances)
        self.system = System.boot(machine)
        self.pid = self.command("p = spawn uo")["pid"]

    def command(self, text: str) -> dict[str, str]:
        """The words of a command's reply."""
        return dict(word.split("=", 1) for word in self.system.command(text).split() if "=" in word)

    def map_aligned(self, size: int) -> int:
        """Map anonymous memory at a multiple of 2 MiB, and call it ``m``."""
        found = int(self.command(f"room = mmap p {size + HUGE}")["addr"], 16)
        self.command(f"munmap p {found:#x} {size + HUGE}")
        at = -(-found // HUGE) * HUGE
        self.command(f"m = mmap p {size} addr={at:#x} {FIXED}")
        return at

    def lines(self, path: str, names: list[str]) -> list[str]:
        """The lines of a file that begin with some words."""
        return [line for line in self.system.read(path).decode().splitlines() if line.split()[0] in names]

    def smaps(self, at: int) -> list[str]:
        """The entry of a mapping, without its first line."""
        text = self.system.read(f"/proc/{self.pid}/smaps").decode()
        lines = text[text.index(f"{at:x}-") :].splitlines()[1:]
        last = next(i for i, line in enumerate(lines) if line.startswith("VmFlags"))
        return lines[: last + 1]


class Capture:
    """A captured text, taken part by part."""

    def __init__(self, path: str) -> None:
        self._lines = (CAPTURES / path).read_text().splitlines()

    def smaps(self) -> list[str]:
        """The next smaps entry, without its first line."""
        start = next(i for i, line in enumerate(self._lines) if line.startswith("Size:"))
        end = next(i for i, line in enumerate(self._lines) if i > start and line.startswith("VmFlags:"))
        found, self._lines = self._lines[start : end + 1], self._lines[end + 1 :]
        return [line.rstrip() for line in found]

    def after(self, title: str) -> list[str]:
        """The lines below the next title ``== TITLE``."""
        at = self._lines.index(f"== {title}")
        self._lines = self._lines[at + 1 :]
        return list(self._until_title())

    def _until_title(self) -> Iterator[str]:
        for line in self._lines:
            if line.startswith(("==", "--")) or re.match(r"7f[0-9a-f]+-", line):
                return
            if "[rollup]" not in line:
                yield line


def names_of(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines]


def stripped(lines: list[str]) -> list[str]:
    return [line.rstrip() for line in lines]


def test_khugepaged() -> None:
    program, capture = Program(1, 2, 1024 * MIB), Capture("x86_64-1G-2cpu/uo_khuge_16")
    at = program.map_aligned(16 * MIB)
    program.command("madvise p m 16M MADV_NOHUGEPAGE")
    program.command("access p m 16M w")
    assert stripped(program.smaps(at)) == capture.smaps()
    program.command("madvise p m 16M MADV_HUGEPAGE")
    program.system.advance(20)
    assert stripped(program.smaps(at)) == capture.smaps()
    wanted = capture.after("/proc/vmstat")
    assert program.lines("/proc/vmstat", names_of(wanted)) == wanted
    program.command("mprotect p m+12288 4096 PROT_READ")
    rollup = {line.split()[0]: line.split()[1] for line in capture.after("/proc/self/smaps_rollup")}
    shown = program.lines(f"/proc/{program.pid}/smaps_rollup", ["AnonHugePages:"])
    assert shown[0].split()[1] == rollup["AnonHugePages:"]
    wanted = capture.after("/proc/vmstat")
    assert program.lines("/proc/vmstat", names_of(wanted)) == wanted
    program.system.check()


def test_transparent_huge_pages() -> None:
    program, capture = Program(2, 4, 2048 * MIB), Capture("x86_64-2node-4G-4cpu/uo_thp_16")
    at = program.map_aligned(16 * MIB)
    program.command("madvise p m 16M MADV_HUGEPAGE")
    program.command("access p m 16M w")
    assert stripped(program.smaps(at)) == capture.smaps()
    wanted = capture.after("/proc/vmstat")
    assert program.lines("/proc/vmstat", names_of(wanted)) == wanted
    program.command("munmap p m+20480 4096")
    rollup = capture.after("/proc/self/smaps_rollup")
    shown = program.lines(f"/proc/{program.pid}/smaps_rollup", ["AnonHugePages:"])
    assert shown == [line for line in rollup if line.startswith("AnonHugePages")]
    wanted = capture.after("/proc/vmstat")
    assert program.lines("/proc/vmstat", names_of(wanted)) == wanted
    program.system.check()


@pytest.mark.parametrize(
    ("name", "pool", "overcommit"), [("0", 0, 0), ("4", 4, 0), ("10", 10, 0), ("4_surplus3", 4, 3)]
)
def test_hugetlb(name: str, pool: int, overcommit: int) -> None:
    program, capture = Program(1, 2, 1024 * MIB), Capture(f"x86_64-1G-2cpu/uo_hugetlb_6_of_{name}")
    program.system.write("/proc/sys/vm/nr_hugepages", f"{pool}\n".encode())
    program.system.write("/proc/sys/vm/nr_overcommit_hugepages", f"{overcommit}\n".encode())

    def meminfo_is_captured() -> None:
        wanted = capture.after("/proc/meminfo")
        assert program.lines("/proc/meminfo", names_of(wanted)) == wanted

    meminfo_is_captured()
    mmap = "m = mmap p 12M flags=MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB"
    if pool + overcommit < 6:
        with pytest.raises(KernelError) as error:
            program.command(mmap)
        assert error.value.errno == 12
        return
    at = int(program.command(mmap)["addr"], 16)
    meminfo_is_captured()
    program.command("access p m 6M w")
    meminfo_is_captured()
    map_line = next(line for line in capture._lines if "anon_hugepage" in line)
    shown = program.lines(f"/proc/{program.pid}/maps", [f"{at:x}-{at + 12 * MIB:x}"])
    fields = [re.split(r" +", line) for line in (map_line, *shown)]
    assert [row[1:4] + row[5:] for row in fields[:1]] == [row[1:4] + row[5:] for row in fields[1:]]
    assert stripped(program.smaps(at)) == capture.smaps()
    numa = next(line for line in capture._lines if "kernelpagesize" in line)
    assert program.lines(f"/proc/{program.pid}/numa_maps", [f"{at:x}"])[0].split()[1:] == numa.split()[1:]
    wanted = capture.after("/proc/self/status")
    assert program.lines(f"/proc/{program.pid}/status", names_of(wanted)) == wanted
    program.system.check()
    program.command("munmap p m 12M")
    meminfo_is_captured()
    program.system.check()
