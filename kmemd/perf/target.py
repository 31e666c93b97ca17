"""What perf watches: a machine, and the script or the program that is run on it.

Either a machine in this process, whose files and commands are functions, or a mounted one. perf itself uses files
and commands only, so that both are the same to it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from kmemd.daemon import mountpoint, run
from kmemd.daemon.syscalls import write_once
from kmemd.perf.options import PerfError
from kmemd.system import System

Boot = Callable[[argparse.Namespace], System]


class Target(Protocol):
    """A machine and what is run on it."""

    name: str

    def read(self, path: str) -> str:
        """A file of the machine."""

    def command(self, line: str) -> str:
        """Run a line of the command language; the reply. PerfError."""

    def run(self) -> int:
        """Run the script or the program; its exit status. PerfError."""


class Booted:
    """A machine of this process, with a script."""

    def __init__(self, system: System, script: str | None) -> None:
        self.system = system
        self._script = script
        self.name = script or "nothing"

    def read(self, path: str) -> str:
        """A file of the machine."""
        try:
            return self.system.read(f"/{path}").decode("utf-8", "replace")
        except OSError as error:
            raise PerfError(f"{path}: {error.strerror}") from None

    def command(self, line: str) -> str:
        """Run a line of the command language."""
        try:
            return self.system.command(line)
        except OSError as error:
            raise PerfError(str(error.strerror)) from None

    def run(self) -> int:
        """Run the script; replies go to standard output."""
        for number, line in enumerate(self._lines(), 1):
            try:
                reply = self.system.command(line)
            except OSError as error:
                raise PerfError(f"{self.name}:{number}: {error.strerror}") from None
            if reply:
                print(reply)
        return 0

    def _lines(self) -> list[str]:
        if self._script is None:
            return []
        if self._script == "-":
            return sys.stdin.read().splitlines()
        with open(self._script, encoding="utf-8") as file:
            return file.read().splitlines()


class Mounted:
    """A mounted machine, with a program."""

    def __init__(self, at: str, program: list[str]) -> None:
        self._at = at
        self._program = program
        self.name = " ".join(program)

    def read(self, path: str) -> str:
        """A file of the machine."""
        try:
            with open(os.path.join(self._at, path), encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError as error:
            raise PerfError(f"{error.filename}: {error.strerror}") from None

    def command(self, line: str) -> str:
        """Run a line of the command language."""
        descriptor = -1
        try:
            descriptor = os.open(os.path.join(self._at, "kmemd/ctl"), os.O_RDWR)
            failed = False
            try:
                write_once(descriptor, f"{line}\n".encode())
            except OSError:
                failed = True
            reply = b"".join(iter(lambda: os.read(descriptor, 1 << 16), b"")).decode("utf-8", "replace")
        except OSError as error:
            raise PerfError(f"{error.filename}: {error.strerror}") from None
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if failed:
            raise PerfError(re.sub(r"^.*?reason=", "", reply.strip()))
        return reply

    def run(self) -> int:
        """Run the program."""
        return run.run(self._program, self._at) if self._program else 0


def _is_script(name: str) -> bool:
    """Whether the word is a file of commands, and not a program."""
    return name == "-" or (os.path.isfile(name) and not os.access(name, os.X_OK))


@contextmanager
def target(options: argparse.Namespace, cmdline: str = "") -> Iterator[Target]:
    """The machine that the options name, and what they want run on it. ``cmdline``: more kernel parameters."""
    words = getattr(options, "target", [])
    words = words[1:] if words[:1] == ["--"] else words
    if options.at is not None:
        yield Mounted(mountpoint.find(options.at), words)
        return
    options.cmdline = f"{options.cmdline} {cmdline}".strip()
    script = words[0] if words else None
    if len(words) < 2 and (script is None or _is_script(script)):
        boot: Boot = options.boot
        yield Booted(boot(options), script)
        return
    machine = [f"--machine={options.machine}", f"--cmdline={options.cmdline}", f"--seed={options.seed}"]
    with run.temporary_machine([*machine, "--clock=manual"]) as at:
        yield Mounted(at, words)
