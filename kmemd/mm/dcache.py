"""Names that were looked up: dentries, their lists, and their shrinking (fs/dcache.c, fs/namei.c, fs/super.c).

Models: a dentry with its slab object for each component of a path that was looked up, also of names that do not exist
(negative), the list of those that nobody uses, with a second chance, and the shrinker of each file system, which prunes
dentries and then the inodes that they held, scaled by vfs_cache_pressure. On a tmpfs names stay as long as files and
no negative one is kept. Left out: the hash, aliases, mount points, names in proc and sysfs, whose objects boot
counts, inodes of deleted files that are mapped still.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol
from zlib import crc32

from kmemd.mm import gfp as g
from kmemd.mm.filemap import File
from kmemd.mm.inode import Inode, InodeLru

DENTRY_AGE_LIMIT = 45
GFP_DENTRY = g.GFP_KERNEL | g.F.RECLAIMABLE | g.F.ACCOUNT
SUPER_BATCH = 1024
DIRECTORY_INODES = 1 << 14
EXT2_INODE_BYTES = {8: 744, 4: 480}
"""sizeof(struct ext2_inode_info) by the size of a pointer."""


class Slab(Protocol):
    """Where dentries and inodes come from."""

    def cache(self, name: str) -> Any: ...
    def kmem_cache_alloc_bulk(self, cache: Any, gfp: int, n: int) -> Any: ...
    def kmem_cache_free(self, cache: Any, address: int) -> None: ...


class FileSystem(Protocol):
    """A mounted file system, as far as names go (``Mount``)."""

    point: str
    files: dict[str, File]
    fs: Any

    @property
    def is_shmem(self) -> bool: ...
    def has(self, path: str) -> bool: ...
    def has_directory(self, path: str) -> bool: ...
    def number_of(self, path: str) -> int: ...


@dataclass(eq=False, slots=True)
class Dentry:
    """A name. ``children`` of them are cached below it; without an inode it is negative."""

    path: str
    address: int
    nid: int
    parent: Dentry | None
    inode: Inode | None
    children: int = 0
    referenced: bool = False


@dataclass(eq=False)
class SuperBlock:
    """What is cached of one file system. Invariants: a dentry is on a list if nothing is cached below it."""

    mount: FileSystem
    inode_cache: str
    inodes: InodeLru
    dentries: dict[str, Dentry] = field(default_factory=dict)
    by_path: dict[str, Inode] = field(default_factory=dict)
    lru: dict[int, OrderedDict[Dentry, None]] = field(default_factory=dict)
    shrinker: Any = None


class Dcache:
    """All names of the file systems that the model has files on. ``nid_of(address)`` is where an object is,
    ``pressure()`` vfs_cache_pressure; ``register`` and ``unregister`` are the shrinkers'."""

    def __init__(
        self,
        slab: Slab,
        kernel_data: Callable[[], AbstractContextManager[None]],
        nid_of: Callable[[int], int],
        pressure: Callable[[], int],
        register: Callable[..., Any],
        unregister: Callable[[Any], None],
        invalidate: Callable[[File], int],
        stolen: Callable[[int], None],
    ) -> None:
        self._slab, self._kernel_data, self._nid_of, self._pressure = slab, kernel_data, nid_of, pressure
        self._register, self._unregister, self._invalidate, self._stolen = register, unregister, invalidate, stolen
        self.supers: dict[str, SuperBlock] = {}
        self.nr_dentry = self.nr_unused = self.nr_negative = self.nr_inodes = 0

    # -- file systems ------------------------------------------------------------------------------------

    def mounted(self, mount: FileSystem, kind: str) -> None:
        """A file system can be looked into: its shrinker is registered (``alloc_super``)."""
        cache = "shmem_inode_cache" if mount.is_shmem else "ext2_inode_cache"
        inodes = InodeLru(lambda inode: self._evict(block, inode), self._steal)
        block = self.supers[mount.point] = SuperBlock(mount, cache, inodes)
        name = f"sb-{kind}"
        block.shrinker = self._register(
            name, lambda nid: self.count(block, nid), lambda nid, n: self.scan(block, nid, n), batch=SUPER_BATCH
        )

    def unmounted(self, mount: FileSystem) -> None:
        """All of a file system's names and inodes go (``generic_shutdown_super``)."""
        block = self.supers.pop(mount.point)
        self._unregister(block.shrinker)
        for dentry in list(block.dentries.values())[::-1]:
            self._kill(block, dentry)
        for inode in list(block.by_path.values()):
            self._evict(block, inode)

    # -- looking up --------------------------------------------------------------------------------------

    def lookup(self, mount: FileSystem, path: str) -> Inode | None:
        """Walk a path: what is not cached is read (``link_path_walk``). The inode, None when there is none. ENOMEM."""
        block = self.supers.get(mount.point)
        if block is None or path == mount.point:
            return None
        dentry: Dentry | None = None
        for name in self._components(block, path):
            found = block.dentries.get(name)
            if found is None:
                found = self._new(block, name, dentry)
            dentry = found
            if dentry.inode is None:
                break
        assert dentry is not None
        self._put(block, dentry)
        return dentry.inode if dentry.path == path else None

    @staticmethod
    def _components(block: SuperBlock, path: str) -> Iterator[str]:
        """The paths on the way, below the mount point."""
        at = len(block.mount.point.rstrip("/"))
        while at >= 0:
            at = path.find("/", at + 1)
            yield path if at < 0 else path[:at]

    def _new(self, block: SuperBlock, path: str, parent: Dentry | None) -> Dentry:
        """A name that is not cached (``d_alloc``, and the file system's ``lookup``)."""
        address = self._alloc("dentry")
        dentry = block.dentries[path] = Dentry(path, address, self._nid_of(address), parent, None)
        self.nr_dentry += 1
        if parent is not None:
            if not parent.children:
                self._unlist(block, parent)
            parent.children += 1
        try:
            dentry.inode = self._inode(block, path)
        except BaseException:
            self.nr_negative += 1
            self._kill(block, dentry)
            raise
        if dentry.inode is None:
            self.nr_negative += 1
        return dentry

    def _inode(self, block: SuperBlock, path: str) -> Inode | None:
        """The inode that a name stands for, held by the name; read from the disk when it is not in memory."""
        inode = block.by_path.get(path)
        if inode is None:
            mount = block.mount
            if mount.has(path):
                number = mount.number_of(path)
            elif mount.has_directory(path):
                number = 1 + crc32(path.encode()) % DIRECTORY_INODES
            else:
                return None
            if mount.fs is not None:
                mount.fs.read_inode(number)
            address = self._alloc(block.inode_cache)
            inode = block.by_path[path] = Inode(path, number, address, self._nid_of(address))
            self.nr_inodes += 1
        inode.file = inode.file or block.mount.files.get(path)
        inode.count += 1
        block.inodes.remove(inode)
        return inode

    def _alloc(self, cache: str) -> int:
        with self._kernel_data():
            return int(self._slab.kmem_cache_alloc_bulk(self._slab.cache(cache), GFP_DENTRY, 1)[0])

    def _put(self, block: SuperBlock, dentry: Dentry) -> None:
        """Who walked there is gone (``dput``): an unused name is on the list, a second time it was used."""
        if dentry.children:
            return
        if block.mount.is_shmem:
            if dentry.inode is None:
                self._kill(block, dentry)
            return
        lru = block.lru.setdefault(dentry.nid, OrderedDict())
        if dentry in lru:
            dentry.referenced = True
        else:
            lru[dentry] = None
            self.nr_unused += 1

    def _unlist(self, block: SuperBlock, dentry: Dentry) -> None:
        lru = block.lru.get(dentry.nid)
        if lru is not None and dentry in lru:
            del lru[dentry]
            self.nr_unused -= 1

    # -- names and inodes go -----------------------------------------------------------------------------

    def _kill(self, block: SuperBlock, dentry: Dentry) -> None:
        """A name that nothing is cached below goes (``__dentry_kill``); its parent may be unused then."""
        self._unlist(block, dentry)
        block.dentries.pop(dentry.path, None)
        self.nr_dentry -= 1
        self._slab.kmem_cache_free(self._slab.cache("dentry"), dentry.address)
        if dentry.inode is None:
            self.nr_negative -= 1
        else:
            dentry.inode.count -= 1
            if not dentry.inode.count:
                block.inodes.add(dentry.inode)
        parent = dentry.parent
        if parent is not None:
            parent.children -= 1
            if not parent.children and parent.path in block.dentries:
                self._put(block, parent)

    def _evict(self, block: SuperBlock, inode: Inode) -> None:
        """An inode leaves memory (``evict``); its file is on the disk still."""
        block.inodes.remove(inode)
        block.by_path.pop(inode.path, None)
        self._free_inode(block, inode)

    def _free_inode(self, block: SuperBlock, inode: Inode) -> None:
        if inode.file is not None:
            inode.file.wb_err = 0
            inode.file.openers.clear()
            inode.file = None
        self.nr_inodes -= 1
        self._slab.kmem_cache_free(self._slab.cache(block.inode_cache), inode.address)

    def _steal(self, file: File) -> int:
        pages = self._invalidate(file)
        self._stolen(pages)
        return pages

    def unlinked(self, mount: FileSystem, path: str) -> None:
        """A name was removed (``d_delete``): its inode goes when nothing maps it, and the name is negative."""
        block = self.supers.get(mount.point)
        if block is None:
            return
        dentry, inode = block.dentries.get(path), block.by_path.pop(path, None)
        if inode is not None:
            block.inodes.remove(inode)
            self._free_inode(block, inode)
        if dentry is not None:
            dentry.inode = None
            self.nr_negative += 1
            if block.mount.is_shmem:
                self._kill(block, dentry)

    def created(self, mount: FileSystem, path: str) -> None:
        """A file got a name: a negative dentry of that name has an inode now (``d_instantiate``). ENOMEM."""
        block = self.supers.get(mount.point)
        if block is None:
            return
        dentry = block.dentries.get(path)
        if dentry is not None and dentry.inode is None:
            dentry.inode = self._inode(block, path)
            self.nr_negative -= dentry.inode is not None
        self.lookup(mount, path)

    # -- shrinking ---------------------------------------------------------------------------------------

    def count(self, block: SuperBlock, nid: int) -> int:
        """What could go of a file system, scaled by the pressure (``super_cache_count``)."""
        return (len(block.lru.get(nid, ())) + block.inodes.count(nid)) * self._pressure() // 100

    def scan(self, block: SuperBlock, nid: int, scan: int) -> int:
        """Look at so many, dentries and inodes in proportion (``super_cache_scan``). How many went."""
        dentries, inodes = len(block.lru.get(nid, ())), block.inodes.count(nid)
        total = dentries + inodes + 1
        freed = self._prune(block, nid, scan * dentries // total + 1)
        return freed + block.inodes.prune(nid, scan * inodes // total + 1)

    def _prune(self, block: SuperBlock, nid: int, scan: int) -> int:
        """Look at names, the oldest first (``prune_dcache_sb``); those used since have a second chance."""
        lru, freed = block.lru.get(nid, OrderedDict()), 0
        gone: list[Dentry] = []
        for _ in range(min(scan, len(lru))):
            dentry, _ = lru.popitem(last=False)
            if dentry.referenced:
                dentry.referenced = False
                lru[dentry] = None
            else:
                self.nr_unused -= 1
                gone.append(dentry)
        for dentry in gone:
            self._kill(block, dentry)
            freed += 1
        return freed

    def unused_inodes(self) -> int:
        """Inodes on the lists."""
        return sum(len(block.inodes) for block in self.supers.values())

    # -- proof -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Counts and links agree. AssertionError."""
        blocks = list(self.supers.values())
        names = [dentry for block in blocks for dentry in block.dentries.values()]
        assert len(names) == self.nr_dentry, f"{len(names)} dentries, nr_dentry is {self.nr_dentry}"
        assert sum(len(lru) for block in blocks for lru in block.lru.values()) == self.nr_unused, "nr_unused is off"
        negative = sum(dentry.inode is None for dentry in names)
        assert negative == self.nr_negative, f"{negative} negative dentries, nr_negative is {self.nr_negative}"
        assert sum(len(block.by_path) for block in blocks) == self.nr_inodes, "nr_inodes is off"
        below: dict[int, int] = {}
        held: dict[int, int] = {}
        for dentry in names:
            if dentry.parent is not None:
                below[id(dentry.parent)] = below.get(id(dentry.parent), 0) + 1
            if dentry.inode is not None:
                held[id(dentry.inode)] = held.get(id(dentry.inode), 0) + 1
        for dentry in names:
            assert dentry.children == below.get(id(dentry), 0), f"{dentry.path}: children are off"
        for block in blocks:
            for path, inode in block.by_path.items():
                assert inode.count == held.get(id(inode), 0), f"{path}: the inode's count is off"
