"""Open files and open directories, by the number that FUSE calls ``fh``."""

from __future__ import annotations

import errno
import os
from typing import Any

from kmemd.errors import KernelError
from kmemd.fs.inodes import Inode
from kmemd.views.tree import Device, Node, OpenFile


class Handle:
    """One open file: what reads and writes go to, and who opened it.

    ``poll_handle`` is what ``poll(2)`` left to be told when a pollable file becomes readable.
    """

    __slots__ = ("file", "inode", "nonblocking", "pid", "poll_handle", "pollable")

    def __init__(self, inode: Inode, file: OpenFile, flags: int, pid: int) -> None:
        self.inode = inode
        self.file = file
        self.nonblocking = bool(flags & os.O_NONBLOCK)
        self.pid = pid
        entry = inode.node.entry
        self.pollable = (isinstance(entry, Device) and entry.pollable) or bool(getattr(file, "pollable", False))
        self.poll_handle: Any = None


class Listing:
    """One open directory. The entries are taken at the start of a listing, so that none shows twice."""

    __slots__ = ("inode", "nodes")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.nodes: list[Node] = []


class Handles:
    """The table of open files and directories. Numbers are not used again."""

    def __init__(self) -> None:
        self._next = 1
        self._files: dict[int, Handle] = {}
        self._listings: dict[int, Listing] = {}

    def add(self, handle: Handle) -> int:
        """Enter an open file; its number."""
        number = self._next
        self._next = number + 1
        self._files[number] = handle
        return number

    def add_listing(self, listing: Listing) -> int:
        """Enter an open directory; its number."""
        number = self._next
        self._next = number + 1
        self._listings[number] = listing
        return number

    def file(self, number: int) -> Handle:
        """The open file of a number. EBADF."""
        try:
            return self._files[number]
        except KeyError:
            raise KernelError(errno.EBADF, f"file handle {number} is not open") from None

    def listing(self, number: int) -> Listing:
        """The open directory of a number. EBADF."""
        try:
            return self._listings[number]
        except KeyError:
            raise KernelError(errno.EBADF, f"directory handle {number} is not open") from None

    def remove(self, number: int) -> Handle | None:
        """Drop an open file."""
        return self._files.pop(number, None)

    def remove_listing(self, number: int) -> None:
        """Drop an open directory."""
        self._listings.pop(number, None)

    def polled(self) -> list[Handle]:
        """The open files that somebody polls."""
        return [handle for handle in self._files.values() if handle.poll_handle is not None]

    def __len__(self) -> int:
        return len(self._files) + len(self._listings)


def truncated(file: OpenFile, flags: int) -> None:
    """Tell a file that it was opened with O_TRUNC, which clears a few (``trace``, ``set_event``)."""
    if flags & os.O_TRUNC and hasattr(file, "truncate"):
        file.truncate()
