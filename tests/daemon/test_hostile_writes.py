"""Bad input through the mount: 200 random and all hostile writes to every kind of writable file, and all goes on."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmemd import System
from tests.fs.mounting import end, start
from tests.test_hostile_writes import ERRNOS, attempts, writable

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="/dev/fuse is missing"),
]
REFUSED_AT_OPEN = (errno.ENOENT, errno.EACCES)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "m"
    path.mkdir()
    process = start(path, ["kmemd", "mount", "--clock", "manual", "--cmdline", "page_owner=on", str(path)])
    try:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        yield path
    finally:
        end(path, process)


def attempt(path: Path, data: bytes) -> None:
    """One write(2): bytes taken, or one of the kernel's errors."""
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except OSError as error:
        assert error.errno in REFUSED_AT_OPEN, (path, error)  # noqa: PT017
        return
    try:
        assert 0 <= os.write(descriptor, data) <= len(data)
    except OSError as error:
        assert error.errno in ERRNOS, (path, data[:60], error)  # noqa: PT017
    finally:
        os.close(descriptor)


def test_no_write_through_the_mount_breaks_the_daemon(mount: Path) -> None:
    rng = random.Random(2)
    paths = [path for path in writable(System.boot(cmdline="page_owner=on")) if (mount / path[1:]).exists()]
    assert len(paths) > 80
    for path in paths:
        for data in attempts(path, rng):
            attempt(mount / path[1:], data)
    assert (mount / "kmemd/check").read_text() == "ok\n"
    assert (mount / "proc/buddyinfo").read_text().startswith("Node 0, zone")
