"""The tables of open files and directories."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest

from kmemd.errors import KernelError
from kmemd.fs.handles import Handle, Handles, Listing
from kmemd.fs.inodes import InodeTable
from tests.fs.fake import namespace


def test_numbers_are_not_used_again() -> None:
    handles = Handles()
    root = InodeTable(namespace(), 0, 0).root
    first = handles.add(Handle(root, SimpleNamespace(), os.O_RDONLY, 1))
    handles.remove(first)
    second, third = handles.add(Handle(root, SimpleNamespace(), os.O_RDONLY, 1)), handles.add_listing(Listing(root))
    assert len({first, second, third}) == 3
    assert len(handles) == 2


def test_what_is_not_open() -> None:
    handles = Handles()
    for find in (handles.file, handles.listing):
        with pytest.raises(KernelError) as error:
            find(7)
        assert error.value.errno == errno.EBADF
    assert handles.remove(7) is None


def test_a_handle_remembers_how_it_was_opened() -> None:
    inodes = InodeTable(namespace(), 0, 0)
    kmsg = inodes.lookup(inodes.lookup(inodes.root, "dev"), "kmsg")
    handle = Handle(kmsg, SimpleNamespace(), os.O_RDWR | os.O_NONBLOCK, 42)
    assert (handle.nonblocking, handle.pid, handle.pollable) == (True, 42, True)


def test_only_polled_files_are_told() -> None:
    inodes = InodeTable(namespace(), 0, 0)
    handles = Handles()
    quiet, polled = (Handle(inodes.root, SimpleNamespace(), 0, 1) for _ in range(2))
    handles.add(quiet)
    handles.add(polled)
    polled.poll_handle = object()
    assert handles.polled() == [polled]
