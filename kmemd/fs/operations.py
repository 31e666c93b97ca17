"""The FUSE operations over a ``Namespace`` (what fs/proc/generic.c, fs/kernfs and fs/seq_file.c do).

Between two awaits nothing else runs, and only two handlers wait: ``read`` of a device file that has
nothing yet, and ``write``, which runs in slices under one lock. So a reader never sees a torn state.

Left out: FLUSH, which bash sends before its first write and which therefore cannot mean anything, extended
attributes and ``mmap``. Answering ENOSYS makes the kernel stop asking for them.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, InodeT, RequestContext

from kmemd.errors import KernelError
from kmemd.fs.access import check_open
from kmemd.fs.answers import failure, handler, waiting_handler
from kmemd.fs.handles import Handle, Handles, Listing, truncated
from kmemd.fs.inodes import Inode, InodeTable
from kmemd.fs.relatives import Capabilities, relatives
from kmemd.fs.waiting import POLL_S, Change, Waiter, never_waits
from kmemd.steps import Steps, finish
from kmemd.views.tree import Caller, Directory, Namespace, write_at

NAME_MAX = 255
BLOCK_SIZE = 4096
ALWAYS_READY = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
WRITABLE = select.POLLOUT | select.POLLWRNORM
READABLE = select.POLLIN | select.POLLRDNORM
DOTS = 2
"""``.`` and ``..`` come first in every listing: sysctl -a skips two entries without looking."""

SLICE_S = 0.001

Invalidate = Callable[[InodeT, bytes], None]


class Operations(pyfuse3.Operations):
    """One mounted tree.

    ``owner_uid`` and ``owner_gid`` own all files: the user who mounts is the root of the modelled machine.
    ``slice_s``: work lets others in when it has run for so many seconds.
    ``invalidate(parent, name)`` makes the kernel forget a name; it may block and runs in a thread.
    """

    supports_dot_lookup = False

    def __init__(
        self,
        namespace: Namespace,
        owner_uid: int = 0,
        owner_gid: int = 0,
        invalidate: Invalidate | None = None,
        slice_s: float = SLICE_S,
    ) -> None:
        super().__init__()
        self._namespace = namespace
        self._owner_uid = owner_uid
        self._invalidate = invalidate
        self._slice_s = slice_s
        self._inodes = InodeTable(namespace, owner_uid, owner_gid)
        self._handles = Handles()
        self._writer = trio.Lock()
        self._rendering = 0
        self._resumed = trio.lowlevel.ParkingLot()
        self._change = Change()

    # Names and attributes

    @handler
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """The inode of a name. ``.`` and ``..`` never arrive: the kernel resolves them."""
        parent = self._inodes.directory(parent_inode)
        inode = self._inodes.lookup(parent, os.fsdecode(name), self._caller(ctx))
        return self._inodes.attributes(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel dropped references; there is no answer to this one, so no error either."""
        for number, count in inode_list:
            self._inodes.forget(number, count)

    @handler
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """The attributes of an inode."""
        return self._inodes.attributes(self._inodes[inode])

    @handler
    def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """Truncation and times are accepted and mean nothing; owner and mode are Linux's. EPERM."""
        if fields.update_mode or fields.update_uid or fields.update_gid:
            raise KernelError(errno.EPERM, "owner and mode of a pseudo file are fixed")
        return self._inodes.attributes(self._inodes[inode])

    @handler
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """The target of a link, which may depend on who asks."""
        return os.fsencode(self._namespace.readlink(self._inodes[inode].node, self._caller(ctx)))

    @handler
    def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """A file system without blocks, as procfs."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_SIZE
        data.f_namemax = NAME_MAX
        return data

    # Files

    @handler
    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open a file, with direct_io unless it has a true size: else a file of size 0 reads as nothing."""
        target = self._inodes[inode]
        node = target.node
        check_open(node, flags)
        file = self._namespace.open(node, self._caller(ctx))
        truncated(file, flags)
        number = self._handles.add(Handle(target, file, flags, ctx.pid))
        return FileInfo(number, node.entry.length is None, False)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Bytes at an offset; waits only for a device file that has nothing yet."""
        try:
            handle = self._handles.file(fh)
            prepare = getattr(handle.file, "prepare", None)
            steps = prepare(off) if prepare is not None else None
            if steps is not None:
                await self._render(steps)
            data = handle.file.read(off, size)
            return data if data is not None else await self._wait_for_data(handle, off, size)
        except Exception as error:
            raise failure(error, "read") from None

    async def _render(self, steps: Steps[None]) -> None:
        """Make a view in slices. The model stands still: commands wait at the end of theirs.

        A view that comes while a command waits is made at once, so that the command has its turn.
        """
        if self._resumed:
            finish(steps)
            return
        self._rendering += 1
        try:
            began = time.perf_counter()
            for _ in steps:
                if time.perf_counter() - began >= self._slice_s:
                    await trio.lowlevel.checkpoint()
                    began = time.perf_counter()
        finally:
            self._rendering -= 1
            if not self._rendering:
                self._resumed.unpark_all()

    async def _stands_still(self) -> None:
        """Wait while a view is made."""
        while self._rendering:
            await self._resumed.park()

    async def _wait_for_data(self, handle: Handle, off: int, size: int) -> bytes:
        if handle.nonblocking or never_waits(handle.pid, handle.inode.node.path):
            raise KernelError(errno.EAGAIN, f"{handle.inode.node.path} has nothing to read")
        with Waiter(handle.pid) as waiter:
            while not waiter.interrupted():
                await self._change.wait(POLL_S)
                data = handle.file.read(off, size)
                if data is not None:
                    return data
        raise KernelError(errno.EINTR, f"{handle.inode.node.path}: the reader got a signal")

    @waiting_handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Take what was written; the bytes taken."""
        return await self.run(write_at(self._handles.file(fh).file, off, buf))

    async def run(self, steps: Steps[int]) -> int:
        """Run work on the model in slices between which readers get in. Writers queue.

        Returns what ``steps`` returns, after readers were woken and names that are gone are forgotten.
        """
        await self._lock()
        try:
            return await self._run_slices(steps)
        finally:
            self._writer.release()
            await self._model_changed()

    @property
    def writing(self) -> bool:
        """Whether work on the model is under way."""
        return self._writer.locked()

    async def _lock(self) -> None:
        try:
            self._writer.acquire_nowait()
        except trio.WouldBlock:
            await self._writer.acquire()
        try:
            await self._stands_still()
        except BaseException:
            self._writer.release()
            raise

    async def _run_slices(self, steps: Steps[int]) -> int:
        """Let others in where the work allows it and has run for a while; a turn of trio is not cheap."""
        began = time.perf_counter()
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                return int(stop.value)
            if time.perf_counter() - began >= self._slice_s:
                self._tell_readers()
                await trio.lowlevel.checkpoint()
                await self._stands_still()
                began = time.perf_counter()

    @handler
    def release(self, fh: int) -> None:
        """The last descriptor of an open is closed."""
        handle = self._handles.remove(fh)
        if handle is not None:
            handle.file.close()

    @handler
    def poll(self, inode: int, fh: int, poll_handle: Any, ctx: RequestContext) -> int:
        """Which of reading and writing would not wait. Only pollable devices are ever not ready."""
        handle = self._handles.file(fh)
        if not handle.pollable:
            return ALWAYS_READY
        if poll_handle is not None:
            handle.poll_handle = poll_handle
        return _readiness(handle)

    # Directories

    @handler
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Open a directory, to those whom it lets in."""
        directory = self._inodes.directory(inode)
        self._namespace.check_open(directory.node, self._caller(ctx))
        return self._handles.add_listing(Listing(directory))

    @handler
    def readdir(self, fh: int, start_id: int, token: Any) -> None:
        """List entries from position ``start_id`` on, as many as fit."""
        listing = self._handles.listing(fh)
        if start_id == 0:
            listing.nodes = list(self._namespace.children(listing.inode.node))
        for position, (dots, directory) in enumerate(_dots(listing.inode), 1):
            attributes = self._inodes.attributes(directory)
            if position > start_id and not pyfuse3.readdir_reply(token, dots, attributes, position):
                return
        first = max(start_id - DOTS, 0)
        for position, node in enumerate(listing.nodes[first:], first + DOTS + 1):
            name = node.path.rpartition("/")[2]
            inode = self._inodes.enter(listing.inode, node, name)
            if not pyfuse3.readdir_reply(token, os.fsencode(name), self._inodes.attributes(inode), position):
                inode.lookups -= 1
                return

    @handler
    def releasedir(self, fh: int) -> None:
        """A directory is closed."""
        self._handles.remove_listing(fh)

    @waiting_handler
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """Make a directory where Linux has a mkdir. EPERM elsewhere, ENOENT in procfs."""
        parent, directory = self._directory(parent_inode)
        if directory.mkdir is None:
            raise _cannot_create(parent, errno.EPERM)
        await self._lock()
        try:
            directory.mkdir(self._namespace.kernel, *parent.node.parameters, os.fsdecode(name))
        finally:
            self._writer.release()
        self._tell_readers()
        return self._inodes.lookup(parent, os.fsdecode(name)).attributes

    @waiting_handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove a directory where Linux has a rmdir. EPERM elsewhere."""
        parent, directory = self._directory(parent_inode)
        if directory.rmdir is None:
            raise KernelError(errno.EPERM, f"{parent.node.path}: entries cannot be removed")
        await self._lock()
        try:
            directory.rmdir(self._namespace.kernel, *parent.node.parameters, os.fsdecode(name))
        finally:
            self._writer.release()
        self._tell_readers()
        self._inodes.vanished()  # the kernel drops the name itself, while it holds the directory's lock

    def _directory(self, number: int) -> tuple[Inode, Directory]:
        inode = self._inodes[number]
        entry = inode.node.entry
        if not isinstance(entry, Directory):
            raise KernelError(errno.ENOTDIR, f"{inode.node.path} is not a directory")
        return inode, entry

    # What no pseudo file system lets anybody do

    @handler
    def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext) -> Any:
        """No file can be made. EACCES, ENOENT in procfs."""
        raise _cannot_create(self._inodes[parent_inode], errno.EACCES)

    @handler
    def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> Any:
        """No node can be made. EPERM, ENOENT in procfs."""
        raise _cannot_create(self._inodes[parent_inode], errno.EPERM)

    @handler
    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> Any:
        """No link can be made. EPERM, ENOENT in procfs."""
        raise _cannot_create(self._inodes[parent_inode], errno.EPERM)

    @handler
    def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> Any:
        """No link can be made. EPERM, ENOENT in procfs."""
        raise _cannot_create(self._inodes[new_parent_inode], errno.EPERM)

    @handler
    def rename(self, old: int, name_old: bytes, new: int, name_new: bytes, flags: int, ctx: RequestContext) -> None:
        """Nothing can be renamed. EPERM, ENOENT in procfs."""
        raise _cannot_create(self._inodes[new], errno.EPERM)

    @handler
    def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Nothing can be removed. EPERM."""
        raise KernelError(errno.EPERM, f"{os.fsdecode(name)}: a pseudo file cannot be removed")

    # The model's changes

    async def _model_changed(self) -> None:
        """The model has moved on: wake readers that wait, and make the kernel drop names that are gone."""
        self._tell_readers()
        gone = self._inodes.vanished()
        if gone and self._invalidate is not None:
            await trio.to_thread.run_sync(_forget_names, self._invalidate, gone)

    def _tell_readers(self) -> None:
        self._change.announce()
        for handle in self._handles.polled():
            if _is_woken(handle):
                poll_handle, handle.poll_handle = handle.poll_handle, None
                poll_handle.notify()

    def _caller(self, ctx: RequestContext) -> Caller:
        """Who asks. The user who mounts is root, with all capabilities where that user is no root of the host."""
        related = partial(relatives, ctx.pid)
        if ctx.uid != self._owner_uid:
            return Caller(ctx.pid, ctx.uid, related, ctx.gid, Capabilities(ctx.pid, root=ctx.uid == 0))
        if self._owner_uid:
            return Caller(ctx.pid, 0, related)
        return Caller(ctx.pid, 0, related, ctx.gid, Capabilities(ctx.pid, root=True))


def _dots(inode: Inode) -> tuple[tuple[bytes, Inode], ...]:
    """A directory and its parent as entries of the directory; they take no reference."""
    return (b".", inode), (b"..", inode.parent or inode)


def _readiness(handle: Handle) -> int:
    poll = getattr(handle.file, "poll", None)
    if poll is not None:
        return ALWAYS_READY | int(poll())
    readable = getattr(handle.file, "readable", None)
    if readable is None or readable():
        return ALWAYS_READY
    return WRITABLE


def _is_woken(handle: Handle) -> bool:
    """Whether who polls is to be told: a file with events of its own (``woken``) has one, others are readable."""
    woken = getattr(handle.file, "woken", None)
    return bool(woken()) if woken is not None else bool(_readiness(handle) & READABLE)


def _cannot_create(parent: Inode, number: int) -> KernelError:
    """procfs looks a name up before it may be made, and says that it is not there."""
    path = parent.node.path
    if path == "/proc" or path.startswith("/proc/"):
        number = errno.ENOENT
    return KernelError(number, f"{path}: nothing can be made here")


def _forget_names(invalidate: Invalidate, inodes: Iterable[Inode]) -> None:
    for inode in inodes:
        assert inode.parent is not None
        try:
            invalidate(InodeT(inode.parent.number), os.fsencode(inode.name))
        except FileNotFoundError:
            continue  # the kernel had dropped the name already
