"""Mounts, paths and inodes (fs/namei.c, fs/open.c, mm/shmem.c and fs/ext2 as file systems).

Models the mounts that hold files of the model: the initramfs and /dev, which are tmpfs, those that ``mount`` makes,
and a disk at /mnt, which is mounted when something below it is first asked for, as an automount is. Left out:
directories (any path below a mount has one), links, owners and modes, blocks on the disk: a file's bytes are there,
or are zeros.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NoReturn, Protocol

from kmemd.errors import KernelError
from kmemd.mm.file_io import FileIo
from kmemd.mm.filemap import File, FileKind, FileOperations, PageCache
from kmemd.mm.shmem import Shmem
from kmemd.mm.units import GIB, PAGE_SHIFT, PAGE_SIZE

PATH_MAX, NAME_MAX = 4096, 255
EXT2_FIRST_INODE = 12
"""Behind lost+found."""
EXT2_MAX_BYTES = 2 << 40
"""s_maxbytes with blocks of 4 KiB."""
SHMEM_MAX_BYTES = (1 << 63) - 1
DISK, DISK_NUMBER, DISK_POINT, DISK_BYTES = "/dev/ram0", "01:00", "/mnt", 4096 * GIB
FOREIGN = ("/proc", "/sys")
"""Trees in which nobody makes files."""
EXT2, TMPFS = "ext2", "tmpfs"
FIRST_FREE_MINOR = 8
"""Behind those of what boot mounts."""


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
    files: dict[str, File] = field(default_factory=dict)
    freed: list[int] = field(default_factory=list)

    @property
    def is_shmem(self) -> bool:
        """Whether its files live in memory."""
        return self.kind != EXT2

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
        heappush(self.freed, file.ino)


class SwapAreas(Protocol):
    """Which files are swapped to."""

    def find(self, path: str) -> object | None: ...


class Vfs:
    """All files by path. ``tmpfs_blocks`` is what a tmpfs may hold by default, in pages."""

    def __init__(self, cache: PageCache, io: FileIo, shmem: Shmem, areas: SwapAreas, tmpfs_blocks: int) -> None:
        self._cache, self._io, self._shmem, self._areas = cache, io, shmem, areas
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

    @staticmethod
    def _disk_number(source: str) -> str:
        name = source.rpartition("/")[2]
        if name.startswith("ram") and name[3:].isdigit():
            return f"01:{int(name[3:]):02x}"
        if name[:2] in ("vd", "sd") and len(name) == 3 and name[2].islower():
            return f"{254 if name[0] == 'v' else 8:02x}:{16 * (ord(name[2]) - ord('a')):02x}"
        _fail(errno.ENODEV, f"there is no block device {source}")

    def _add(self, mount: Mount) -> Mount:
        self.mounts.append(mount)
        self.added.append(mount)
        return mount

    def umount(self, point: str) -> Mount:
        """umount(2): what is dirty is written, and all pages go. EINVAL, EBUSY."""
        mount = next((mount for mount in self.added if mount.point == point), None)
        if mount is None:
            _fail(errno.EINVAL, f"nothing was mounted at {point}")
        if any(file.maps or file.users for file in mount.files.values()):
            _fail(errno.EBUSY, f"a file below {point} is mapped or open")
        for file in list(mount.files.values()):
            if not mount.is_shmem:
                self._io.writeback(file)
            self._evict(file)
        self.mounts.remove(mount)
        self.added.remove(mount)
        return mount

    # -- files -------------------------------------------------------------------------------------------

    def lookup(self, path: str) -> File:
        """The file at a path. ENOENT, EISDIR, EINVAL, ENAMETOOLONG."""
        _check(path)
        mount = self.mount_of(path)
        file = mount.files.get(path)
        if file is None:
            if self._is_directory(path):
                _fail(errno.EISDIR, f"{path} is a directory")
            _fail(errno.ENOENT, f"there is no file {path}")
        return file

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
        blocked = next((name for name in mount.files if _below(path, name)), None)
        if blocked is not None:
            _fail(errno.ENOTDIR, f"{blocked} is a file")
        self._check_size(mount, size)
        number = mount.inode() if ino is None else ino
        mount.next_inode = max(mount.next_inode, number + 1)
        if mount.is_shmem:
            file = self._shmem.new_file(path, number, mount.device, size)
        else:
            file = self._cache.new_file(path, number, mount.device, FileKind.DISK, self._io.ops, size)
            self._set_blocks(mount, file)
        file.mount = mount
        mount.files[path] = file
        return file

    def mknod(self, path: str, ops: FileOperations) -> File:
        """A device's file, which has neither bytes nor pages of its own. Preconditions: nothing is there."""
        mount = self.mount_of(path)
        file = self._cache.new_file(path, mount.inode(), mount.device, FileKind.DEVICE, ops)
        file.mount = mount
        mount.files[path] = file
        return file

    @staticmethod
    def _set_blocks(mount: Mount, file: File) -> None:
        """A file of a disk has blocks for all its bytes."""
        mount.used += file.pages - file.blocks
        file.blocks = file.pages

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
        """A file of a disk got longer: it has blocks for that."""
        if file.mount is not None and not file.is_shmem:
            self._set_blocks(file.mount, file)

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
            self._set_blocks(file.mount, file)
        return file

    def unlink(self, path: str) -> File:
        """unlink(2): the file goes when nothing maps it any more. ENOENT, EISDIR, EPERM for a swap file."""
        file = self.lookup(path)
        self._not_swap(file, errno.EPERM)
        del self.mount_of(path).files[path]
        file.deleted = True
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
        inside = path.rstrip("/") + "/"
        return (
            path == "/"
            or any(mount.point == path for mount in self.mounts)
            or any(name.startswith(inside) for mount in self.mounts for name in mount.files)
        )

    def check(self) -> None:
        """Every named file is in the page cache's table."""
        for file in self.files():
            assert self._cache.files.get(file.id) is file, f"{file.path} has no page cache"


def room(file: File, pages: int) -> None:
    """Pages for a tmpfs file, as far as its mount has room, or back from it when below 0. ENOSPC."""
    mount: Mount | None = file.mount
    if mount is None:
        return
    if pages > 0 and mount.blocks and mount.used + pages > mount.blocks:
        _fail(errno.ENOSPC, f"{mount.point} is full: it may hold {mount.blocks} pages")
    mount.used += pages


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
