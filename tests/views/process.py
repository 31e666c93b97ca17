"""A process of the model for tests of what /proc/PID shows, driven by commands."""

from __future__ import annotations

import re
from pathlib import Path

from kmemd import System

CAPTURES = Path(__file__).parents[1] / "captures/linux-6.1/process"
TWO_NODES, ONE_GIB = CAPTURES / "x86_64-2node-4G-4cpu", CAPTURES / "x86_64-1G-2cpu"
PAGE = 4096
MIB = 1 << 20


class Process:
    """One process and the files about it."""

    def __init__(self, system: System, command: str = "spawn uo") -> None:
        self.system = system
        self.pid = int(re.search(r"pid=(\d+)", system.command(command))[1])

    def do(self, verb: str, *words: object) -> str:
        """A command whose first argument is the pid."""
        return self.system.command(" ".join([verb, str(self.pid), *map(str, words)]))

    def mmap(self, length: int, *words: object) -> int:
        """A new mapping; its address."""
        return int(re.search(r"addr=(0x[0-9a-f]+)", self.do("mmap", length, *words))[1], 16)

    def fork(self) -> Process:
        """A child."""
        return Process(self.system, f"fork {self.pid}")

    def read(self, name: str) -> str:
        """A file of the process."""
        return self.system.read(f"/proc/{self.pid}/{name}").decode()

    def smaps(self, address: int) -> str:
        """What smaps says of the mapping at an address, without the line of its name."""
        return blocks(self.read("smaps"))[address]

    def fields(self, name: str) -> dict[str, int]:
        """The figures in KiB of a file."""
        return kib(self.read(name))


def kib(text: str) -> dict[str, int]:
    """Lines of names and KiB."""
    return {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}


def blocks(smaps: str) -> dict[int, str]:
    """Mappings of a smaps file by their address, without the lines of their names."""
    parts = re.split(r"^([0-9a-f]+)-[0-9a-f]+ \S{4} .*\n", smaps, flags=re.M)[1:]
    return {int(address, 16): block for address, block in zip(parts[::2], parts[1::2], strict=True)}


def captured(path: Path) -> list[str]:
    """The mappings in a capture, in order: each without the line of its name, up to what follows its VmFlags."""
    found = re.findall(r"^[0-9a-f]+-[0-9a-f]+ \S{4} .*\n(Size:(?:.*\n)*?VmFlags:.*\n)", path.read_text(), re.M)
    assert found, f"{path} shows no mapping"
    return list(found)
