"""A booted model as a Python program uses it: boot, read, write, command, advance, check.

``System`` joins a kernel with its files and its command language; a mount and the command line tools are
built on it. It is synchronous, and it is not for several threads at a time.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Self

from kmemd import views
from kmemd.control.interpreter import Interpreter
from kmemd.control.session import Session
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.steps import finish
from kmemd.views.tree import Caller, Namespace, OpenFile

CLOCKS = ("manual", "real")
READ_SIZE = 1 << 20
LOADED_LATE = ("numpy.ma", "numpy.random")
"""Parts of numpy that it loads when they are first used, which takes 15 ms each."""

assert views.__doc__  # importing the package is what declares the files


class SystemCallError(KernelError, OSError):  # type: ignore[misc]
    """What ``System`` raises: the kernel's errno and reason, as an ``OSError``."""

    def __init__(self, error: KernelError, path: str | None = None) -> None:
        super().__init__(error.errno, error.reason, error.column)
        self.strerror = error.reason
        self.filename = path


class System:
    """One booted machine.

    ``clock`` is "manual" (only work and ``advance`` move model time) or "real" (a clock driver calls
    ``advance_to`` as wall time passes).
    """

    def __init__(self, kernel: Kernel, clock: str = "manual") -> None:
        if clock not in CLOCKS:
            raise ValueError(f"clock={clock!r}: there is {' and '.join(CLOCKS)}")
        self.kernel = kernel
        self.clock = clock
        self.tree = Namespace(kernel, kernel.dump_stack.halt.refuse)
        self._interpreter = Interpreter(kernel)
        self._real_base_ns = kernel.clock.now

    @classmethod
    def boot(
        cls, machine: str | Path | Machine = "default", seed: int = 0, cmdline: str = "", clock: str = "manual"
    ) -> Self:
        """Boot a machine: one by name, a TOML file, a folder with a capture, or a ``Machine``.

        ``cmdline`` is added to the machine's own kernel command line.
        """
        found = machine if isinstance(machine, Machine) else Machine.load(machine)
        return cls(Kernel.boot(found, seed=seed, cmdline=cmdline), clock)

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        """The whole of a file, as root reads it, or ``size`` bytes from ``offset`` on in one ``pread(2)``.

        OSError with the kernel's errno; EAGAIN where a reader would wait.
        """
        try:
            file = self._open(path)
            try:
                return self._read_all(file, path) if size is None else file.read(offset, size) or b""
            finally:
                file.close()
        except KernelError as error:
            raise SystemCallError(error, path) from None

    def write(self, path: str, data: bytes | str, *, append: bool = False) -> int:
        """One ``write(2)`` by root: the number of bytes taken. OSError with the kernel's errno.

        The file is opened as ``>`` opens it, which clears some (``trace``, ``set_event``); ``append``: as ``>>``.
        """
        taken = data.encode() if isinstance(data, str) else data
        try:
            file = self._open(path)
            try:
                self._not_under_way(file)
                if not append and hasattr(file, "truncate"):
                    file.truncate()
                return finish(file.write(taken))
            finally:
                file.close()
        except KernelError as error:
            raise SystemCallError(error, path) from None

    def mkdir(self, path: str) -> None:
        """Make a directory where Linux has a mkdir: control groups. OSError with the kernel's errno."""
        self._change_directory(path, "mkdir")

    def rmdir(self, path: str) -> None:
        """Remove such a directory. OSError with the kernel's errno."""
        self._change_directory(path, "rmdir")

    def _change_directory(self, path: str, how: str) -> None:
        above, _, name = path.rstrip("/").rpartition("/")
        try:
            node = self.tree.lookup(above)
            function = getattr(node.entry, how, None)
            if function is None:
                raise KernelError(errno.EPERM if node.is_dir else errno.ENOTDIR, f"{above}: not a place to {how}")
            function(self.kernel, *node.parameters, name)
        except KernelError as error:
            raise SystemCallError(error, path) from None

    def command(self, line: str) -> str:
        """Run one line of the command language; the reply, "" for a comment. OSError with errno and reason."""
        if "\n" in line.rstrip("\n"):
            raise SystemCallError(KernelError(errno.EINVAL, "one line at a time; run() takes a script"))
        try:
            self._not_under_way(None)
            return finish(self._interpreter.run(line.rstrip("\n"))) or ""
        except KernelError as error:
            raise SystemCallError(error) from None

    def run(self, script: str | Iterable[str]) -> list[str]:
        """Run a script's lines; the replies of those that gave one. Ends at the first error, which is raised."""
        lines = script.splitlines() if isinstance(script, str) else script
        return [reply for line in lines if (reply := self.command(line))]

    def warm_up(self) -> None:
        """Make what is otherwise made on first use, so that no command takes longer than the next like it."""
        self.kernel.kallsyms.load()
        for name in LOADED_LATE:
            import_module(name)

    def advance(self, seconds: float) -> None:
        """Let idle model time pass; kernel threads and timers that are due run."""
        if seconds < 0:
            raise ValueError(f"{seconds} s: time does not go back")
        self.kernel.advance(round(seconds * NSEC_PER_SEC))

    def advance_to(self, elapsed_s: float) -> None:
        """Let idle time follow the wall clock, which is ``elapsed_s`` past the boot of this system.

        Does nothing when work has already taken the model further, and nothing with the manual clock.
        """
        target = self._real_base_ns + round(elapsed_s * NSEC_PER_SEC)
        if self.clock == "real" and target > self.kernel.clock.now:
            self.kernel.advance(target - self.kernel.clock.now)

    def check(self) -> None:
        """Recompute every cached number from the truth. AssertionError or KernelError on a difference."""
        self.kernel.check()

    def _open(self, path: str) -> OpenFile:
        caller = Caller()
        return self.tree.open(self.tree.lookup(path, caller), caller)

    @staticmethod
    def _read_all(file: OpenFile, path: str) -> bytes:
        parts: list[bytes] = []
        offset = 0
        while True:
            part = file.read(offset, READ_SIZE)
            if part is None and not parts:
                raise KernelError(errno.EAGAIN, f"{path} has nothing to read yet")
            if not part:
                return b"".join(parts)
            parts.append(part)
            offset += len(part)

    def _not_under_way(self, file: OpenFile | None) -> None:
        """EBUSY when another writer's command is under way: it cannot go on until this call returns."""
        if self.kernel.commands.busy and (file is None or isinstance(file, Session)):
            raise KernelError(errno.EBUSY, "another command is under way")
