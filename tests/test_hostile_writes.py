"""Every writable file of a booted machine under random and hostile writes: an errno of Linux's, and nothing breaks."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator

import pytest

from kmemd import System
from kmemd.views.tree import Namespace, Node

HOSTILE = [
    b"",
    b"\0",
    b"\0\0\0\0",
    b"\n",
    b" ",
    b" \t\n",
    b"-1",
    b"-0",
    b"+1",
    b"-9223372036854775808",
    b"9223372036854775807",
    b"18446744073709551615",
    b"18446744073709551616",
    b"99999999999999999999999999999999",
    b"4294967295",
    b"4294967296",
    b"2147483648",
    b"0x",
    b"0xffffffffffffffffff",
    b"010",
    b"1 2 3 4 5 6 7 8 9",
    b"1\0002",
    b"1,2,3",
    b"1.5",
    b"1e9",
    "größer ∞ 数".encode(),
    b"\xff\xfe\xfd",
    b"%s%n%x",
    b"always madvise never",
    b"x" * (1 << 20),
]
ERRNOS = {
    errno.EINVAL,
    errno.EIO,
    errno.EPERM,
    errno.ENOMEM,
    errno.EBUSY,
    errno.ERANGE,
    errno.ENOSPC,
    errno.ENOENT,
    errno.EFAULT,
    errno.ESRCH,
    errno.EOPNOTSUPP,
    errno.E2BIG,
    errno.EAGAIN,
    errno.ENOSYS,
    errno.EACCES,
    errno.EOVERFLOW,
    errno.ENAMETOOLONG,
}
SAMPLE = 2
"""Entries tried of each directory pattern (nodes, slab caches, processes): they share their functions."""


def files(tree: Namespace, node: Node) -> Iterator[Node]:
    """The files below a directory; of a pattern's directories just the first few."""
    fixed = set(getattr(node.entry, "names", ()))
    seen = 0
    for child in tree.children(node):
        if child.path.rpartition("/")[2] not in fixed:
            seen += 1
            if seen > SAMPLE:
                continue
        if child.is_dir:
            yield from files(tree, child)
        elif not child.is_link:
            yield child


def writable(system: System) -> list[str]:
    return [node.path for node in files(system.tree, system.tree.root) if node.entry.mode & 0o222]


def random_text(rng: random.Random) -> bytes:
    kind = rng.randrange(5)
    if kind == 0:
        return str(rng.randrange(-10, 300)).encode()
    if kind == 1:
        return str(rng.randrange(-(1 << 65), 1 << 65)).encode()
    if kind == 2:
        return rng.randbytes(rng.randrange(40))
    if kind == 3:
        words = (
            "on",
            "off",
            "scan",
            "clear",
            "always",
            "never",
            "1",
            "0x10",
            "some 1 2",
            "dump=0xffff888000001000",
            "=",
        )
        return " ".join(rng.choices(words, k=rng.randrange(1, 4))).encode()
    return bytes(rng.choices(b"0123456789abcdefx -+\n\t", k=rng.randrange(12)))


HALTS = ("panic_on_oom", "panic_on_oops", "panic_on_warn", "oops_limit", "warn_limit")
"""Knobs that let the machine end at the next accident, after which nothing could be tried."""


def attempts(path: str, rng: random.Random) -> Iterator[bytes]:
    """What is written to a file; not what crashes the machine on purpose."""
    for data in [random_text(rng) for _ in range(200)] + HOSTILE:
        if not (path.endswith("sysrq-trigger") and data.startswith(b"c")):
            yield data
    if path.endswith(HALTS):
        yield b"0"


def test_no_write_breaks_the_machine() -> None:
    system = System.boot(cmdline="kmemleak=on")
    rng = random.Random(1)
    paths = writable(system)
    assert len(paths) > 80
    for path in paths:
        for data in attempts(path, rng):
            try:
                taken = system.write(path, data)
            except OSError as error:
                assert error.errno in ERRNOS, (path, data[:60], error)  # noqa: PT017
            else:
                assert 0 <= taken <= len(data), (path, data[:60])
        system.check()


@pytest.mark.parametrize("path", ["/proc/meminfo", "/proc/buddyinfo", "/proc/version"])
def test_read_only_files_cannot_be_written(path: str) -> None:
    with pytest.raises(OSError, match=path) as failure:
        System.boot().write(path, b"1")
    assert failure.value.errno in (errno.EIO, errno.EACCES, errno.EPERM)
