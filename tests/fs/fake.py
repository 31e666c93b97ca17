"""A tiny machine for the tests of fs and daemon: a kernel of a few values, and a tree that shows them."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from kmemd.errors import KernelError
from kmemd.views.sliced import Sliced
from kmemd.views.tree import Binary, Caller, Device, Directory, File, Link, Namespace, Node, Pattern


class FakeClock:
    def __init__(self) -> None:
        self.now = 0
        self.next_timer_ns = None


class FakeKernel:
    """``values`` are the knobs, ``pids`` the processes, ``log`` what ``dev/kmsg`` gives out."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.values = {"run": 0}
        self.pids = {1: "init", 42: "sleep"}
        self.groups = ["system"]
        self.log: list[bytes] = []
        self.commands: list[str] = []
        self.slices_seen: list[int] = []
        self.closed = 0
        self.pair = (0, 0)

    def advance_steps(self, ns: int) -> Iterator[None]:
        self.clock.now += ns
        yield


class Kmsg:
    """A record for each read; None when all were read."""

    def __init__(self, kernel: FakeKernel, caller: Caller) -> None:
        self._kernel = kernel
        self._next = 0

    def readable(self) -> bool:
        return self._next < len(self._kernel.log)

    def read(self, offset: int, size: int) -> bytes | None:
        if not self.readable():
            return None
        record = self._kernel.log[self._next]
        if len(record) > size:
            raise KernelError(errno.EINVAL, "the buffer is smaller than the record")
        self._next += 1
        return record

    def write(self, data: bytes):
        self._kernel.log.append(data)
        yield
        return len(data)

    def close(self) -> None:
        self._kernel.closed += 1


class Ctl:
    """A few commands, line by line; a partial line is kept. The last reply can be read."""

    def __init__(self, kernel: FakeKernel, caller: Caller) -> None:
        self._kernel = kernel
        self._partial = b""
        self._reply = b"help\n"
        self._given = 0

    def read(self, offset: int, size: int) -> bytes:
        data, self._given = self._reply[self._given : self._given + size], self._given + size
        return data

    def write(self, data: bytes):
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            yield from self._command(line.decode())
        return len(data)

    def _command(self, line: str):
        self._kernel.commands.append(line)
        verb, _, argument = line.partition(" ")
        if verb == "fail":
            raise KernelError(int(argument), "asked to")
        if verb == "interrupt":
            self._kernel.values["run"] += 1
            raise KernelError(errno.EINTR, "a signal ended it")
        if verb == "crash":
            raise ZeroDivisionError("a bug of the model")
        if verb == "exit":
            del self._kernel.pids[int(argument)]
        if verb == "spawn":
            self._kernel.pids[int(argument)] = "new"
        if verb == "work":
            for step in range(int(argument)):
                self._kernel.pair = (step, self._kernel.pair[1])
                self._kernel.pair = (step, step)
                yield
        if verb == "log":
            self._kernel.log.append(argument.encode() + b"\n")
        self._reply, self._given = f"done={line}\n".encode(), 0

    def close(self) -> None:
        self._kernel.closed += 1


def _status(kernel: FakeKernel, pid: int) -> str:
    return f"Name:\t{kernel.pids[pid]}\n"


def _set_run(kernel: FakeKernel, text: str) -> None:
    if not text.strip().isdigit():
        raise KernelError(errno.EINVAL, f"{text!r} is not a number")
    kernel.values["run"] = int(text)


def _crash(kernel: FakeKernel) -> str:
    raise RuntimeError("a bug of the model")


def _mkdir(kernel: FakeKernel, name: str) -> None:
    if name in kernel.groups:
        raise KernelError(errno.EEXIST, name)
    kernel.groups.append(name)


def _numbers(kernel: FakeKernel) -> Iterator[str]:
    for number in range(20000):
        yield f"{number}\n"


def _long(kernel: FakeKernel) -> Sliced:
    """``pair`` again and again, with a place for others after each."""
    return Sliced("{} {}\n".format(*kernel.pair) for _ in range(20))


def directory(mode: int = 0o555, patterns: list[Pattern] | None = None, **names) -> Directory:
    return Directory(mode, names=names, patterns=patterns or [])


def tree() -> Directory:
    """The declared tree."""
    pid = Pattern("", "", "pid", directory(status=File(0o444, show=_status)), keys=lambda kernel: list(kernel.pids))
    group = Pattern(
        "", "", "group", directory(0o755, stat=File(0o444, show=lambda kernel, group: group)),
        keys=lambda kernel: list(kernel.groups),
    )  # fmt: skip
    cgroup = directory(0o755, [group])
    cgroup.mkdir = _mkdir
    cgroup.rmdir = lambda kernel, name: kernel.groups.remove(name)
    return directory(
        0o755,
        proc=directory(
            0o555,
            [pid],
            version=File(0o444, show=lambda kernel: "Linux version 6.1\n"),
            numbers=File(0o444, show=_numbers),
            uptime=File(0o444, show=lambda kernel: f"{kernel.clock.now}\n"),
            pair=File(0o444, show=lambda kernel: "{} {}\n".format(*kernel.pair)),
            long=File(0o444, show=_long),
            crash=File(0o444, show=_crash),
            secret=File(0o400, show=lambda kernel: "root only\n"),
            pages=Binary(
                0o400,
                read=lambda kernel, offset, size: bytes(i % 256 for i in range(offset, min(offset + size, 65536))),
            ),
            self=Link(0o777, target=lambda kernel, caller: str(caller.pid)),
            whoami=File(0o444, show=lambda kernel, caller: f"{caller.uid}\n", takes_caller=True),
        ),
        sys=directory(
            0o755,
            kernel=directory(
                0o755,
                run=File(0o644, 4096, show=lambda kernel: f"{kernel.values['run']}\n", write=_set_run),
                fixed=File(0o444, 4096, show=lambda kernel: "1\n"),
                shrink=File(0o200, 4096, write=lambda kernel, text: None),
                debug=directory(0o700, leaks=File(0o644, show=lambda kernel: "none\n")),
            ),
            cgroup=cgroup,
        ),
        dev=directory(0o755, kmsg=Device(0o644, open=Kmsg, pollable=True)),
        kmemd=directory(
            0o755,
            ctl=Device(0o600, open=Ctl),
            dmesg=File(
                0o444,
                show=lambda kernel: b"".join(kernel.log),
                length=lambda kernel: len(b"".join(kernel.log)),
            ),
        ),
    )


def namespace(kernel: FakeKernel | None = None) -> Namespace:
    """A fresh machine's tree."""
    made = Namespace(kernel or FakeKernel())
    made.root = Node("/", tree())
    return made


class FakeSystem:
    """What the daemon serves."""

    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self.tree = namespace(self.kernel)
