"""Where root needs the mode bits too."""

from __future__ import annotations

import errno
import os

import pytest

from kmemd.errors import KernelError
from kmemd.fs.access import check_open, is_strict
from kmemd.views.tree import File, Node


@pytest.mark.parametrize(
    ("path", "strict"),
    [
        ("/sys/kernel/mm/ksm/run", True),
        ("/sys/kernel/slab/kmalloc-64/order", True),
        ("/proc/sys/vm/swappiness", True),
        ("/proc/buddyinfo", False),
        ("/proc/1/status", False),
        ("/sys/kernel/debug/kmemleak", False),
        ("/sys/kernel/tracing/trace", False),
        ("/dev/kmsg", False),
        ("/kmemd/ctl", False),
    ],
)
def test_sysfs_and_sysctl_are_strict(path: str, strict: bool) -> None:
    assert is_strict(path) == strict


@pytest.mark.parametrize(
    ("mode", "flags", "allowed"),
    [
        (0o444, os.O_RDONLY, True),
        (0o444, os.O_WRONLY, False),
        (0o444, os.O_RDWR, False),
        (0o200, os.O_WRONLY | os.O_TRUNC, True),
        (0o200, os.O_RDONLY, False),
        (0o644, os.O_RDWR, True),
    ],
)
def test_a_strict_file_opens_as_its_mode_says(mode: int, flags: int, allowed: bool) -> None:
    node = Node("/sys/kernel/file", File(mode))
    if allowed:
        check_open(node, flags)
        return
    with pytest.raises(KernelError) as error:
        check_open(node, flags)
    assert error.value.errno == errno.EACCES


def test_root_opens_other_files_whatever_the_mode() -> None:
    check_open(Node("/proc/buddyinfo", File(0o444)), os.O_RDWR)
