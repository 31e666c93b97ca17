"""A booted machine and what tests of files and swap ask of it."""

from __future__ import annotations

import pytest

from kmemd import System
from kmemd.machine import Machine


class Box:
    """A system whose every command is checked."""

    def __init__(self, machine: str | Machine = "default", cmdline: str = "") -> None:
        self.system = System.boot(machine, seed=1, cmdline=cmdline)
        self.kernel = self.system.kernel

    def run(self, *lines: str) -> dict[str, str]:
        """Run lines; the words of the last reply."""
        reply = ""
        for line in lines:
            reply = self.system.command(line)
        self.system.check()
        return dict(word.split("=", 1) for word in reply.split() if "=" in word)

    def errno(self, line: str) -> int:
        """The errno of a line that fails."""
        with pytest.raises(OSError, match=r"^E[A-Z0-9]+: ") as error:
            self.system.command(line)
        self.system.check()
        return error.value.errno or 0

    def vmstat(self, *names: str) -> list[int]:
        """Lines of /proc/vmstat."""
        rows = dict(line.split() for line in self.system.read("/proc/vmstat").decode().splitlines())
        return [int(rows[name]) for name in names]

    def meminfo(self, name: str) -> int:
        """A line of /proc/meminfo, in pages."""
        rows = dict(line.split(":") for line in self.system.read("/proc/meminfo").decode().splitlines())
        return int(rows[name].split()[0]) // 4

    def smaps(self, pid: str, name: str) -> list[dict[str, int]]:
        """The figures in KiB of each mapping of a file, in order of address."""
        found: list[dict[str, int]] = []
        inside = False
        for line in self.system.read(f"/proc/{pid}/smaps").decode().splitlines():
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                inside = " ".join(words[5:]) == name
                if inside:
                    found.append({})
            elif inside and words[-1] == "kB":
                found[-1][words[0].rstrip(":")] = int(words[1])
        return found
