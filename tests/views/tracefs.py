"""A machine with short words for its tracing files, for the tests of tracefs."""

from __future__ import annotations

import re

import pytest

from kmemd import System
from kmemd.machine import Machine

TRACING = "/sys/kernel/tracing/"
KMALLOC = "events/kmem/kmalloc/"


class Tracefs:
    """A machine, and short words for its tracing files."""

    def __init__(self, machine: str | Machine = "two-node", cmdline: str = "") -> None:
        self.system = System.boot(machine=machine, cmdline=cmdline)
        self.command = self.system.command

    def read(self, name: str) -> str:
        return self.system.read(TRACING + name).decode()

    def write(self, name: str, text: str, *, append: bool = False) -> int:
        return self.system.write(TRACING + name, text, append=append)

    def append(self, name: str, text: str) -> int:
        return self.write(name, text, append=True)

    def refused(self, name: str, text: str, *, append: bool = False) -> int | None:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            self.write(name, text, append=append)
        return caught.value.errno

    def lines(self, name: str = "trace") -> list[str]:
        return [line for line in self.read(name).split("\n") if line and not line.startswith("#")]

    def events(self, name: str = "trace") -> list[str]:
        return [match[1] for line in self.lines(name) if (match := re.search(r"\d: (\w+):", line))]

    def error(self) -> tuple[str, str, str]:
        """The last entry of the error log: what, the command, and what stands above the caret."""
        what, command, caret = self.read("error_log").rstrip("\n").split("\n")[-3:]
        command = command.removeprefix("  Command: ")
        return what.partition("] ")[2], command, command[len(caret) - 1 - len("  Command: ") :]
