"""Names that were looked up: dentries, their lists, and their shrinking (fs/dcache.c, fs/namei.c, fs/super.c).

Models: a dentry with its slab object for each component of a path that was looked up, also of names that do not exist
(negative), the list of those that nobody uses, with a second chance, and the shrinker of each file system, which prunes
dentries and then the inodes that they held, scaled by vfs_cache_pressure. On a tmpfs names stay as long as files and
no negative one is kept. Left out: the hash, aliases, mount points, names in proc and sysfs, whose objects boot
counts, inodes of deleted files that are mapped still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol
from zlib import crc32

import numpy as np

from kmemd.core.names import Dentry, Inode
from kmemd.mm import gfp as g
from kmemd.mm.filemap import File
from kmemd.mm.inode import InodeLru
from kmemd.mm.name_tables import NameTable, Queue
from kmemd.mm.units import PAGE_SHIFT
from kmemd.steps import Steps

DENTRY_AGE_LIMIT = 45
GFP_DENTRY = g.GFP_KERNEL | g.F.RECLAIMABLE | g.F.ACCOUNT
SUPER_BATCH = 1024
AT_ONCE = 256
"""Names or inodes that go before others may run."""
DIRECTORY_INODES = 1 << 14
EXT2_INODE_BYTES = {8: 744, 4: 480}
"""sizeof(struct ext2_inode_info) by the size of a pointer."""


class Slab(Protocol):
    """Where dentries and inodes come from."""

    def cache(self, name: str) -> Any: ...
    def kmem_cache_alloc_bulk(self, cache: Any, gfp: int, n: int) -> Any: ...
    def kmem_cache_free_bulk(self, cache: Any, addresses: Any) -> None: ...


class FileSystem(Protocol):
    """A mounted file system, as far as names go (``Mount``)."""

    point: str
    fs: Any

    @property
    def files(self) -> Mapping[str, File]: ...
    @property
    def is_shmem(self) -> bool: ...
    def has(self, path: str) -> bool: ...
    def has_directory(self, path: str) -> bool: ...
    def number_of(self, path: str) -> int: ...


@dataclass(eq=False)
class SuperBlock:
    """What is cached of one file system. Invariants: a dentry is on a list if nothing is cached below it."""

    mount: FileSystem
    inode_cache: str
    inodes: InodeLru
    dentries: NameTable[Dentry] = field(default_factory=NameTable)
    by_path: NameTable[Inode] = field(default_factory=NameTable)
    lru: dict[int, Queue[Dentry]] = field(default_factory=dict)
    shrinker: Any = None


def objects_of(paths: Sequence[str], addresses: Sequence[int], nids: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """Paths with the objects that there are for them."""
    return zip(paths, addresses, nids, strict=False)


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
        *,
        highmem: bool = False,
    ) -> None:
        self._highmem = highmem
        self._slab, self._kernel_data, self._nid_of, self._pressure = slab, kernel_data, nid_of, pressure
        self._register, self._unregister, self._invalidate, self._stolen = register, unregister, invalidate, stolen
        self.supers: dict[str, SuperBlock] = {}
        self.nr_dentry = self.nr_unused = self.nr_negative = self.nr_inodes = 0
        self._dead: dict[str, list[int]] = {}

    # -- file systems ------------------------------------------------------------------------------------

    def mounted(self, mount: FileSystem, kind: str) -> None:
        """A file system can be looked into: its shrinker is registered (``alloc_super``)."""
        cache = "shmem_inode_cache" if mount.is_shmem else "ext2_inode_cache"
        inodes = InodeLru(
            lambda inode: self._evict(block, inode),
            self._steal,
            mount.files.get,
            shrinkable=self._highmem and not mount.is_shmem,
        )
        block = self.supers[mount.point] = SuperBlock(mount, cache, inodes)
        name = f"sb-{kind}"
        block.shrinker = self._register(
            name, lambda nid: self.count(block, nid), lambda nid, n: self.scan(block, nid, n), batch=SUPER_BATCH
        )

    def unmounted(self, mount: FileSystem) -> Steps[None]:
        """All of a file system's names and inodes go (``generic_shutdown_super``)."""
        block = self.supers[mount.point]
        self._unregister(block.shrinker)
        while block.dentries:
            for _ in range(min(len(block.dentries), AT_ONCE)):
                self._kill(block, block.dentries.popitem()[1])
            self._free_dead()
            yield
        while block.by_path:
            for _ in range(min(len(block.by_path), AT_ONCE)):
                self._evict(block, block.by_path.popitem()[1])
            self._free_dead()
            yield
        del self.supers[mount.point]

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
        self._free_dead()
        inode: Inode | None = dentry.inode
        return inode if dentry.path == path else None

    def lookup_names(self, mount: FileSystem, directory: str, names: Sequence[str]) -> None:
        """``lookup`` of many names of a directory, with one call of the slab allocator for all that are new. ENOMEM."""
        self.lookup(mount, directory)
        block = self.supers.get(mount.point)
        parent = block.dentries.get(directory) if block is not None else None
        if block is None or block.mount.is_shmem or (parent is None and directory != mount.point):
            return
        if parent is not None and parent.inode is None:
            return
        prefix, fresh = directory.rstrip("/") + "/", list[str]()
        for name in names:
            found = block.dentries.get(prefix + name)
            if found is None:
                fresh.append(prefix + name)
            else:
                self._put(block, found)
        if fresh:
            self._new_names(block, fresh, parent)

    def _new_names(self, block: SuperBlock, paths: list[str], parent: Dentry | None) -> None:
        """Names of one directory that are not cached; those that no memory was left for are looked up alone."""
        self._hold(block, parent, len(paths))
        try:
            numbers = {path: self._number(block, path) for path in paths if path not in block.by_path}
            wanted = [path for path, number in numbers.items() if number]
            if block.mount.fs is not None:
                block.mount.fs.read_inodes([numbers[path] for path in wanted])
            inodes = self._alloc_bulk(block.inode_cache, len(wanted))
            for path, address, nid in objects_of(wanted, inodes, self._nids(inodes)):
                block.by_path[path] = Inode(path, numbers[path] or 0, address, nid)
                self.nr_inodes += 1
                block.inodes.add(block.by_path[path])
            entries = self._alloc_bulk("dentry", len(paths))
            done = 0
            for path, address, nid in objects_of(paths, entries, self._nids(entries)):
                if numbers.get(path) and path not in block.by_path:
                    break  # reclaim took the inode
                self._add(block, path, address, nid, parent)
                done += 1
            self._dead.setdefault("dentry", []).extend(entries[done:])
            self._free_dead()
        finally:
            self._release(block, parent, len(paths))
        for path in paths[done:]:
            self.lookup(block.mount, path)

    def _add(self, block: SuperBlock, path: str, address: int, nid: int, parent: Dentry | None) -> None:
        """A name with its object, unused. Preconditions: its inode is in memory if there is one."""
        inode = block.by_path.get(path)
        dentry = block.dentries[path] = Dentry(path, address, nid, parent, inode)
        self.nr_dentry += 1
        if parent is not None:
            parent.children += 1
        if inode is None:
            self.nr_negative += 1
        else:
            inode.count += 1
            block.inodes.remove(inode)
        self._put(block, dentry)

    def _hold(self, block: SuperBlock, dentry: Dentry | None, count: int = 1) -> None:
        """A directory is in use while names below it are made: reclaim cannot take it (``dget``)."""
        if dentry is not None:
            if not dentry.children:
                self._unlist(block, dentry)
            dentry.children += count

    def _release(self, block: SuperBlock, dentry: Dentry | None, count: int = 1) -> None:
        """The end of ``_hold`` (``dput``)."""
        if dentry is not None:
            dentry.children -= count
            self._put(block, dentry)

    def _nids(self, addresses: Sequence[int]) -> list[int]:
        """The nodes of objects."""
        pages = {address >> PAGE_SHIFT for address in addresses}
        nids = {page: self._nid_of(page << PAGE_SHIFT) for page in pages}
        return [nids[address >> PAGE_SHIFT] for address in addresses]

    def _alloc_bulk(self, cache: str, count: int) -> list[int]:
        """Objects, fewer when memory is short. ENOMEM when there is none."""
        if not count:
            return []
        with self._kernel_data():
            found: list[int] = self._slab.kmem_cache_alloc_bulk(self._slab.cache(cache), GFP_DENTRY, count).tolist()
        return found

    @staticmethod
    def _components(block: SuperBlock, path: str) -> Iterator[str]:
        """The paths on the way, below the mount point."""
        at = len(block.mount.point.rstrip("/"))
        while at >= 0:
            at = path.find("/", at + 1)
            yield path if at < 0 else path[:at]

    def _new(self, block: SuperBlock, path: str, parent: Dentry | None) -> Dentry:
        """A name that is not cached (``d_alloc``, and the file system's ``lookup``)."""
        self._hold(block, parent)
        try:
            address = self._alloc_bulk("dentry", 1)[0]
        except BaseException:
            self._release(block, parent)
            raise
        dentry = block.dentries[path] = Dentry(path, address, self._nid_of(address), parent, None)
        self.nr_dentry += 1
        try:
            dentry.inode = self._inode(block, path)
        except BaseException:
            self.nr_negative += 1
            self._kill(block, dentry)
            self._free_dead()
            raise
        if dentry.inode is None:
            self.nr_negative += 1
        return dentry

    def _inode(self, block: SuperBlock, path: str) -> Inode | None:
        """The inode that a name stands for, held by the name; read from the disk when it is not in memory."""
        inode = block.by_path.get(path)
        if inode is None:
            number = self._number(block, path)
            if number is None:
                return None
            if block.mount.fs is not None:
                block.mount.fs.read_inodes([number])
            address = self._alloc_bulk(block.inode_cache, 1)[0]
            inode = block.by_path[path] = Inode(path, number, address, self._nid_of(address))
            self.nr_inodes += 1
        inode.count += 1
        block.inodes.remove(inode)
        return inode

    @staticmethod
    def _number(block: SuperBlock, path: str) -> int | None:
        """The number of the inode of what has that name; None when nothing has it."""
        mount = block.mount
        if mount.has(path):
            return mount.number_of(path)
        return 1 + crc32(path.encode()) % DIRECTORY_INODES if mount.has_directory(path) else None

    def _put(self, block: SuperBlock, dentry: Dentry) -> None:
        """Who walked there is gone (``dput``): an unused name is on the list, a second time it was used."""
        if dentry.children:
            return
        if block.mount.is_shmem:
            if dentry.inode is None:
                self._kill(block, dentry)
            return
        lru = block.lru.get(dentry.nid)
        if lru is None:
            lru = block.lru[dentry.nid] = Queue()
        if dentry in lru:
            dentry.referenced = True
        else:
            lru.append(dentry)
            self.nr_unused += 1

    def _unlist(self, block: SuperBlock, dentry: Dentry) -> None:
        lru = block.lru.get(dentry.nid)
        if lru is not None and lru.remove(dentry):
            self.nr_unused -= 1

    # -- names and inodes go -----------------------------------------------------------------------------

    def _kill(self, block: SuperBlock, dentry: Dentry) -> None:
        """A name that nothing is cached below goes (``__dentry_kill``); its parent may be unused then."""
        self._unlist(block, dentry)
        block.dentries.pop(dentry.path)
        self.nr_dentry -= 1
        self._dead.setdefault("dentry", []).append(dentry.address)
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
        block.by_path.pop(inode.path)
        self._free_inode(block, inode)

    def _free_inode(self, block: SuperBlock, inode: Inode) -> None:
        file = block.mount.files.get(inode.path)
        if file is not None:
            file.wb_err = 0
            file.openers.clear()
        self.nr_inodes -= 1
        self._dead.setdefault(block.inode_cache, []).append(inode.address)

    def _free_dead(self) -> None:
        """The objects of names and inodes that went go back to their slabs."""
        while self._dead:
            name, addresses = self._dead.popitem()
            self._slab.kmem_cache_free_bulk(self._slab.cache(name), np.array(addresses, dtype=np.uint64))

    def _steal(self, file: File) -> int:
        pages = self._invalidate(file)
        self._stolen(pages)
        return pages

    def unlinked(self, mount: FileSystem, path: str) -> None:
        """A name was removed (``d_delete``): its inode goes when nothing maps it, and the name is negative."""
        block = self.supers.get(mount.point)
        if block is None:
            return
        dentry, inode = block.dentries.get(path), block.by_path.pop(path)
        if inode is not None:
            block.inodes.remove(inode)
            self._free_inode(block, inode)
        if dentry is not None:
            dentry.inode = None
            self.nr_negative += 1
            if block.mount.is_shmem:
                self._kill(block, dentry)
        self._free_dead()

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

    def scan(self, block: SuperBlock, nid: int, scan: int) -> Steps[int]:
        """Look at so many, dentries and inodes in proportion (``super_cache_scan``). How many went."""
        dentries, inodes = len(block.lru.get(nid, ())), block.inodes.count(nid)
        total = dentries + inodes + 1
        freed = 0
        for part in _parts(scan * dentries // total + 1):
            freed += self._prune(block, nid, part)
            yield
        for part in _parts(scan * inodes // total + 1):
            freed += block.inodes.prune(nid, part)
            self._free_dead()
            yield
        return freed

    def _prune(self, block: SuperBlock, nid: int, scan: int) -> int:
        """Look at names, the oldest first (``prune_dcache_sb``); those used since have a second chance."""
        lru, freed = block.lru.get(nid, Queue[Dentry]()), 0
        gone: list[Dentry] = []
        for _ in range(min(scan, len(lru))):
            dentry = lru.popleft()
            if dentry.referenced:
                dentry.referenced = False
                lru.append(dentry)
            else:
                self.nr_unused -= 1
                gone.append(dentry)
        for dentry in gone:
            self._kill(block, dentry)
            freed += 1
        self._free_dead()
        return freed

    def unused_inodes(self) -> int:
        """Inodes on the lists."""
        return sum(len(block.inodes) for block in self.supers.values())

    # -- proof -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Counts and links agree. AssertionError."""
        assert not self._dead, "objects of names that went are not freed"
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


def _parts(count: int) -> Iterator[int]:
    """How many at a time."""
    for start in range(0, count, AT_ONCE):
        yield min(AT_ONCE, count - start)
