"""Mounts, paths and inodes (fs/namei.c, fs/open.c, mm/shmem.c and fs/ext2 as file systems).

Models the mounts that hold files of the model: the initramfs and /dev, which are tmpfs, those that ``mount`` makes,
and a disk at /mnt, which is mounted when something below it is first asked for, as an automount is. Left out:
directories (any path below a mount has one), links, owners and modes. A file's bytes are on its disk, or are zeros.
"""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NoReturn, Protocol
from zlib import crc32

from kmemd.errors import KernelError
from kmemd.mm.blk_mq import Disks
from kmemd.mm.buffer import Buffers
from kmemd.mm.dcache import Dcache
from kmemd.mm.ext2 import ROOT_INODE, Ext2
from kmemd.mm.file_io import FileIo
from kmemd.mm.filemap import File, FileKind, FileOperations, PageCache
from kmemd.mm.fs_writeback import Flushers
from kmemd.mm.shmem import Shmem
from kmemd.mm.units import GIB, PAGE_SHIFT, PAGE_SIZE
from kmemd.steps import Steps

PATH_MAX, NAME_MAX = 4096, 255
EXT2_FIRST_INODE = 12
"""Behind lost+found."""
EXT2_MAX_BYTES = 2 << 40
"""s_maxbytes with blocks of 4 KiB."""
SHMEM_MAX_BYTES = (1 << 63) - 1
DISK_NAME = re.compile(r"ram\d+|[vs]d[a-z]\d*")
DISK, DISK_NUMBER, DISK_POINT, DISK_BYTES = "/dev/ram0", "01:00", "/mnt", 4096 * GIB
FOREIGN = ("/proc", "/sys")
"""Trees in which nobody makes files."""
EXT2, TMPFS = "ext2", "tmpfs"
POPULATED_INODES = 1 << 14
"""Inode numbers from which on directories that are only said to be full have theirs."""
SLICE = 1 << 11
"""Pages that are written or dropped before others may run."""
FIRST_FREE_MINOR = 8
"""Behind those of what boot mounts."""


class Names(dict[str, File]):
    """Files by path. ``inside`` counts how many are somewhere below each directory."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: Counter[str] = Counter()

    def __setitem__(self, path: str, file: File) -> None:
        if path not in self:
            self._count(path, 1)
        super().__setitem__(path, file)

    def __delitem__(self, path: str) -> None:
        super().__delitem__(path)
        self._count(path, -1)

    def _count(self, path: str, change: int) -> None:
        at = path.rfind("/")
        while at > 0:
            self.inside[path[:at]] += change
            if not self.inside[path[:at]]:
                del self.inside[path[:at]]
            at = path.rfind("/", 0, at)


@dataclass(eq=False)
class Mount:
    """One file system at its mount point. ``blocks`` is how many pages its files may have (0: any), ``used`` how many
    they have."""

    source: str
    point: str
    kind: str
    device: str
    options: str
    next_inode: int
    blocks: int = 0
    used: int = 0
    files: Names = field(default_factory=Names)
    freed: list[int] = field(default_factory=list)
    fs: Ext2 | None = None
    populated: dict[str, int] = field(default_factory=dict)

    @property
    def is_shmem(self) -> bool:
        """Whether its files live in memory."""
        return self.kind != EXT2

    def has(self, path: str) -> bool:
        """Whether a file has that name; ``populated`` are directories with so many empty files, f0 and on."""
        return path in self.files or self._empty(path) is not None

    def _empty(self, path: str) -> int | None:
        directory, _, name = path.rpartition("/")
        count = self.populated.get(directory, 0)
        return int(name[1:]) if name[:1] == "f" and name[1:].isdecimal() and int(name[1:]) < count else None

    def has_directory(self, path: str) -> bool:
        """Whether a file is somewhere below a path."""
        if path in self.populated or path in self.files.inside:
            return True
        inside = path.rstrip("/") + "/"
        return any(name.startswith(inside) for name in self.populated)

    def number_of(self, path: str) -> int:
        """The inode number of a file that there is."""
        file = self.files.get(path)
        if file is not None:
            return file.ino
        return POPULATED_INODES + crc32(path.rpartition("/")[0].encode()) % POPULATED_INODES + (self._empty(path) or 0)

    def grown(self, file: File) -> None:
        """A file of a disk got longer by a write: it has blocks for that, and the disk's bitmaps say so."""
        if self.fs is not None:
            self.fs.allocated(self.set_blocks(file))

    def set_blocks(self, file: File) -> list[tuple[int, int]]:
        """A file of a disk has blocks for all its bytes: the runs of blocks that changed hands."""
        self.used += file.pages - file.blocks
        file.blocks = file.pages
        return self.fs.resize(file, file.blocks) if self.fs is not None else []

    def inode(self) -> int:
        """A number for a new file: a disk uses those of evicted files again, the lowest first."""
        if self.freed:
            return heappop(self.freed)
        self.next_inode += 1
        return self.next_inode - 1

    def evicted(self, file: File) -> None:
        """A file of a disk is gone: its blocks and its number are free."""
        self.used -= file.blocks
        file.blocks = 0
        if self.fs is not None:
            gone = self.fs.resize(file, 0)
            del self.fs.files[file]
            file.blocks_at = None
            if file.deleted:
                self.fs.allocated(gone)
                self.fs.inode_changed(file.ino)
        heappush(self.freed, file.ino)


class SwapAreas(Protocol):
    """Which files are swapped to."""

    def find(self, path: str) -> object | None: ...


@dataclass(frozen=True)
class Storage:
    """Disks, and what is cached of the file systems on them besides pages of files. ``ext2_registered()`` has the slab
    cache of ext2's inodes made, when it is not there yet."""

    disks: Disks
    flushers: Flushers
    buffers: Buffers
    dcache: Dcache
    ext2_registered: Callable[[], None]


class Vfs:
    """All files by path. ``tmpfs_blocks`` is what a tmpfs may hold by default, in pages."""

    def __init__(
        self, cache: PageCache, io: FileIo, shmem: Shmem, areas: SwapAreas, tmpfs_blocks: int, storage: Storage
    ) -> None:
        self._cache, self._io, self._shmem, self._areas, self.storage = cache, io, shmem, areas, storage
        self._tmpfs_blocks = tmpfs_blocks
        self._next_minor = FIRST_FREE_MINOR
        self._automount: Mount | None = Mount(
            DISK, DISK_POINT, EXT2, DISK_NUMBER, "rw,relatime", EXT2_FIRST_INODE, DISK_BYTES >> PAGE_SHIFT
        )
        self.mounts = [
            Mount("rootfs", "/", "rootfs", "00:02", "rw", 1, tmpfs_blocks),
            Mount("dev", "/dev", "devtmpfs", "00:05", "rw,relatime", 1, tmpfs_blocks),
        ]
        self.added: list[Mount] = []

    # -- mounts ------------------------------------------------------------------------------------------

    def mount_of(self, path: str) -> Mount:
        """The mount that a path is in; the disk is mounted when it is asked for."""
        if self._automount is not None and _below(path, self._automount.point):
            self._add(self._automount)
            self._automount = None
        holding = [mount for mount in self.mounts if _below(path, mount.point)]
        return max(holding, key=lambda mount: len(mount.point))

    def mount(self, source: str, point: str, kind: str, blocks: int = 0) -> Mount:
        """mount(2) of a new, empty file system. EINVAL, EBUSY, ENODEV."""
        _check(point)
        if kind not in (EXT2, TMPFS):
            _fail(errno.ENODEV, f"{kind} is no file system that can be mounted: tmpfs and ext2 are")
        if self._automount is not None and point == self._automount.point:
            self._automount = None
        if any(mount.point == point for mount in self.mounts):
            _fail(errno.EBUSY, f"{point} is a mount point")
        if kind == EXT2 and any(mount.source == source for mount in self.mounts):
            _fail(errno.EBUSY, f"{source} is mounted")
        device, options, first = f"00:{self._next_minor:02x}", "rw,relatime", 2
        if kind == EXT2:
            device, first = self._disk_number(source), EXT2_FIRST_INODE
        elif blocks:
            options += f",size={blocks * (PAGE_SIZE >> 10)}k"
        self._next_minor += kind == TMPFS
        found = Mount(source, point, kind, device, options, first, blocks or self._tmpfs_blocks)
        if kind == EXT2:
            found.blocks = blocks or DISK_BYTES >> PAGE_SHIFT
        return self._add(found)

    def _disk_number(self, source: str) -> str:
        return self.storage.disks.get(source).device

    def _add(self, mount: Mount) -> Mount:
        self.mounts.append(mount)
        self.added.append(mount)
        if not mount.is_shmem:
            disk = self.storage.disks.get(mount.source)
            self.storage.ext2_registered()
            mount.fs = Ext2(disk, self.storage.buffers)
            mount.fs.mounted()
        self.storage.dcache.mounted(mount, f"{mount.kind}:{mount.source.rpartition('/')[2]}")
        return mount

    def umount(self, point: str) -> Steps[Mount]:
        """umount(2): what is dirty is written, and all pages go. EINVAL, EBUSY."""
        mount = next((mount for mount in self.added if mount.point == point), None)
        if mount is None:
            _fail(errno.EINVAL, f"nothing was mounted at {point}")
        if any(file.maps or file.users for file in mount.files.values()):
            _fail(errno.EBUSY, f"a file below {point} is mapped or open")
        self.mounts.remove(mount)
        self.added.remove(mount)
        for file in list(mount.files.values()):
            if mount.is_shmem:
                yield from self._drop_steps(file, 0)
            else:
                for start in range(0, file.pages, SLICE):
                    self._io.writeback(file, start, start + SLICE)
                    yield
                self._io.write_inode(file)
                for start in range(0, file.pages, SLICE):
                    self._io.truncate_pages(file, start, start + SLICE)
                    yield
            self._evict(file)
            yield
        yield from self.storage.dcache.unmounted(mount)
        if mount.fs is not None:
            device = self.storage.buffers.device(mount.fs.disk)
            self._io.writeback(device)
            self._io.truncate_pages(device, 0)
            mount.fs = None
        return mount

    # -- files -------------------------------------------------------------------------------------------

    def lookup(self, path: str) -> File:
        """The file at a path, whose names and inode are cached then. ENOENT, EISDIR, EINVAL, ENAMETOOLONG, ENOMEM."""
        _check(path)
        mount = self.mount_of(path)
        self.storage.dcache.lookup(mount, path)
        file = mount.files.get(path)
        if file is None and mount.has(path):
            file = self.create(path)
        if file is None:
            if self._is_directory(path):
                _fail(errno.EISDIR, f"{path} is a directory")
            _fail(errno.ENOENT, f"there is no file {path}")
        return file

    def readable(self, path: str) -> File:
        """``lookup``, or the page cache of a disk in /dev, which is made when it is first asked for."""
        directory, _, name = path.rpartition("/")
        if directory != "/dev" or not DISK_NAME.fullmatch(name) or self.mount_of(path).has(path):
            return self.lookup(path)
        return self.storage.buffers.device(self.storage.disks.get(path))

    def stat(self, path: str) -> tuple[str, int]:
        """What a path names, ``file`` or ``directory``, and its inode number. ENOENT, EINVAL, ENAMETOOLONG, ENOMEM."""
        _check(path)
        mount = self.mount_of(path)
        inode = self.storage.dcache.lookup(mount, path)
        if mount.has(path):
            return "file", mount.number_of(path)
        if not self._is_directory(path):
            _fail(errno.ENOENT, f"there is no file {path}")
        return "directory", inode.ino if inode is not None else ROOT_INODE

    def populate(self, path: str, count: int) -> None:
        """A directory has ``count`` empty files at least, f0 and on. EPERM, EINVAL, ENOTDIR."""
        _check(path)
        mount = self.mount_of(path)
        if mount.is_shmem:
            _fail(errno.EPERM, f"{path} is in memory: only files that were made there exist")
        if path in mount.files:
            _fail(errno.ENOTDIR, f"{path} is a file")
        mount.populated[path] = max(mount.populated.get(path, 0), count)

    def files(self) -> list[File]:
        """All files that have a name."""
        return [file for mount in self.mounts for file in mount.files.values()]

    def create(self, path: str, size: int = 0, ino: int | None = None) -> File:
        """A new file of ``size`` bytes, which read as zeros. EEXIST, EISDIR, ENOTDIR, EPERM, EFBIG, ENOSPC."""
        _check(path)
        if any(_below(path, tree) for tree in FOREIGN):
            _fail(errno.EPERM, f"no files are made below {path[: path.index('/', 1)] if '/' in path[1:] else path}")
        mount = self.mount_of(path)
        if path in mount.files:
            _fail(errno.EEXIST, f"there is a file {path}")
        if self._is_directory(path):
            _fail(errno.EISDIR, f"{path} is a directory")
        blocked = next((name for name in _parents(path) if name in mount.files), None)
        if blocked is not None:
            _fail(errno.ENOTDIR, f"{blocked} is a file")
        self._check_size(mount, size)
        number = mount.inode() if ino is None else ino
        mount.next_inode = max(mount.next_inode, number + 1)
        if mount.is_shmem:
            file = self._shmem.new_file(path, number, mount.device, size)
        else:
            file = self._cache.new_file(path, number, mount.device, FileKind.DISK, self._io.ops, size)
            assert mount.fs is not None
            mount.fs.attach(file)
            file.wb = self.storage.flushers.get(mount.fs.disk)
            mount.set_blocks(file)
        file.mount = mount
        mount.files[path] = file
        if ino is None:
            self.storage.dcache.created(mount, path)
        return file

    def mknod(self, path: str, ops: FileOperations) -> File:
        """A device's file, which has neither bytes nor pages of its own. Preconditions: nothing is there."""
        mount = self.mount_of(path)
        file = self._cache.new_file(path, mount.inode(), mount.device, FileKind.DEVICE, ops)
        file.mount = mount
        mount.files[path] = file
        return file

    def _check_size(self, mount: Mount, size: int, old: int = 0) -> None:
        """EFBIG, ENOSPC."""
        most = SHMEM_MAX_BYTES if mount.is_shmem else EXT2_MAX_BYTES
        if size > most:
            _fail(errno.EFBIG, f"a file of {mount.kind} has at most {most} bytes")
        more = (size - old + PAGE_SIZE - 1) >> PAGE_SHIFT
        if not mount.is_shmem and mount.used + more > mount.blocks:
            _fail(errno.ENOSPC, f"{mount.point} is full: it has {mount.blocks} blocks")

    def check_write(self, file: File, end: int) -> None:
        """Whether a file may be written up to ``end``, and grow so far. EFBIG, ENOSPC, ETXTBSY."""
        self._not_swap(file, errno.ETXTBSY)
        if file.kind is FileKind.DEVICE:
            _fail(errno.EPERM, f"{file.path} is a device: it can be mapped")
        if file.mount is not None and end > file.size:
            self._check_size(file.mount, end, file.size)

    def grown(self, file: File) -> None:
        """A file of a disk got longer without being written: it has blocks for that."""
        if file.mount is not None and not file.is_shmem:
            file.mount.set_blocks(file)

    def truncate(self, path: str, size: int) -> File:
        """truncate(2). ENOENT, EISDIR, EFBIG, ENOSPC, ETXTBSY."""
        file = self.lookup(path)
        self._not_swap(file, errno.ETXTBSY)
        if file.kind is FileKind.DEVICE:
            _fail(errno.EINVAL, f"{path} is a device, which has no length")
        self._check_size(self.mount_of(path), size, file.size)
        if file.is_shmem:
            self._shmem.resize(file, size)
        else:
            old, file.size = file.size, size
            if size < old:
                self._io.truncate_pages(file, file.pages)
            changed = file.mount.set_blocks(file)
            if size < old:
                file.mount.fs.allocated(changed)
            self.storage.flushers.mark_inode_dirty(file)
        return file

    def truncate_steps(self, path: str, size: int) -> Steps[File]:
        """``truncate`` in slices: most of what goes, goes first."""
        file = self.lookup(path)
        if file.kind is not FileKind.DEVICE and size < file.size and not self.is_swapfile(file):
            yield from self._drop_steps(file, (size + PAGE_SIZE - 1) >> PAGE_SHIFT)
        return self.truncate(path, size)

    def unlink_steps(self, path: str) -> Steps[File]:
        """``unlink`` in slices: most of the pages of a file that nothing holds go first."""
        file = self.lookup(path)
        if not file.maps and not file.users and not self.is_swapfile(file):
            yield from self._drop_steps(file, 0)
        return self.unlink(path)

    def _drop_steps(self, file: File, start: int) -> Steps[None]:
        drop = self._shmem.truncate if file.is_shmem else self._io.truncate_pages
        for at in range(start, file.slots.end, SLICE):
            drop(file, at, at + SLICE)
            yield

    def unlink(self, path: str) -> File:
        """unlink(2): the file goes when nothing maps it any more. ENOENT, EISDIR, EPERM for a swap file."""
        file = self.lookup(path)
        self._not_swap(file, errno.EPERM)
        mount = self.mount_of(path)
        del mount.files[path]
        file.deleted = True
        self.storage.dcache.unlinked(mount, path)
        if not file.maps and not file.users:
            self._evict(file)
        return file

    def is_swapfile(self, file: File) -> bool:
        """Whether a file is swapped to."""
        return self._areas.find(file.path) is not None and not file.deleted

    def _not_swap(self, file: File, number: int) -> None:
        if self.is_swapfile(file):
            _fail(number, f"{file.path} is a swap area that is on")

    def _evict(self, file: File) -> None:
        if file.is_shmem:
            self._shmem.evict(file)
        else:
            self._io.evict(file)

    def _is_directory(self, path: str) -> bool:
        return path == "/" or any(mount.point == path or mount.has_directory(path) for mount in self.mounts)

    def check(self) -> None:
        """Every named file is in the page cache's table."""
        for file in self.files():
            assert self._cache.files.get(file.id) is file, f"{file.path} has no page cache"
        for mount in self.added:
            if mount.fs is not None:
                mount.fs.check()
        self.storage.buffers.check()
        self.storage.dcache.check()
        self.storage.flushers.check(list(self._cache.files.values()))


def room(file: File, pages: int) -> None:
    """Pages for a tmpfs file, as far as its mount has room, or back from it when below 0. ENOSPC."""
    mount: Mount | None = file.mount
    if mount is None:
        return
    if pages > 0 and mount.blocks and mount.used + pages > mount.blocks:
        _fail(errno.ENOSPC, f"{mount.point} is full: it may hold {mount.blocks} pages")
    mount.used += pages


def _parents(path: str) -> Iterator[str]:
    """The directories on the way to a path."""
    at = path.find("/", 1)
    while at > 0:
        yield path[:at]
        at = path.find("/", at + 1)


def _below(path: str, point: str) -> bool:
    return point == "/" or path == point or path.startswith(point + "/")


def _check(path: str) -> None:
    """EINVAL, ENOENT, ENAMETOOLONG."""
    if not path.startswith("/"):
        _fail(errno.EINVAL, f"{path[:40]} is not an absolute path")
    if len(path) >= PATH_MAX or any(len(name) > NAME_MAX for name in path.split("/")):
        _fail(errno.ENAMETOOLONG, f"a path has less than {PATH_MAX} bytes, a name at most {NAME_MAX}")
    if "//" in path or (path != "/" and path.endswith("/")) or {".", ".."} & set(path.split("/")):
        _fail(errno.EINVAL, f"{path[:40]}: write the path without //, . and .., and no / at its end")


def _fail(number: int, reason: str) -> NoReturn:
    raise KernelError(number, reason)
