"""The inode table: the nodes of a ``Namespace`` that the kernel's dentry cache knows (fs/proc/inode.c).

Attributes, but for a true size, never change while a node exists, so the kernel may keep them; what can change
is whether a name with a parameter exists (``/proc/PID``, a slab cache, a control group). ``vanished`` finds
the names that are gone. Whether a declared entry ``exists`` on a machine is settled at boot.

Invariants: an inode is in the table from its first lookup until the kernel forgot it; numbers are never
used twice; a static node keeps its inode for the life of the mount.
"""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pyfuse3 import ROOT_INODE, EntryAttributes, InodeT

from kmemd.errors import KernelError
from kmemd.views.tree import Caller, Directory, Namespace, Node, Pattern

BLOCK_SIZE = 4096
KEEP_S = 3600
"""How long the kernel may keep names and attributes. They change only by vanishing, which is announced."""
NOBODY = Caller()
Version = Callable[[Any], int]


class Inode:
    """One known node. ``lookups`` counts the references that the kernel holds.

    ``may_vanish``: the name has a parameter whose values change.
    """

    __slots__ = ("attributes", "dead", "entries", "lookups", "may_vanish", "name", "node", "number", "parent")

    def __init__(self, number: int, node: Node, parent: Inode | None, attributes: EntryAttributes) -> None:
        self.number = number
        self.node = node
        self.parent = parent
        self.name = node.path.rpartition("/")[2]
        self.attributes = attributes
        self.lookups = 0
        self.dead = False
        self.entries: dict[str, Inode] = {}
        self.may_vanish = _has_parameter(self) and not _pattern_of(self).fixed


class Watch:
    """The known entries of one directory that come from one pattern, and what the pattern listed last.

    Invariants: after ``vanished``, and as long as ``keys`` are listed again and ``unlisted`` is False,
    all ``inodes`` exist. ``unlisted``: an entry exists that no listing has (``Pattern.has``). ``nr_removed``: how many
    keys had gone then, where the pattern counts them (``Pattern.removed``).
    """

    __slots__ = ("directory", "inodes", "keys", "nr_removed", "pattern", "unlisted")

    def __init__(self, directory: Inode, pattern: Pattern) -> None:
        self.directory = directory
        self.pattern = pattern
        self.inodes: dict[int, Inode] = {}
        self.keys: list[Any] | None = None
        self.nr_removed: int | None = None
        self.unlisted = False

    def vanished(self, kernel: Any) -> list[Inode]:
        """The entries that are gone since the last time."""
        outer = self.directory.node.parameters
        if self.pattern.removed is not None:
            return self._removed(kernel, *self.pattern.removed(kernel, *outer))
        keys = list(self.pattern.keys(kernel, *outer)) if self.pattern.keys is not None else []
        if keys == self.keys and not self.unlisted:
            return []
        self.keys = keys
        names = set(map(self.pattern.name, keys))
        others = [inode for inode in self.inodes.values() if inode.name not in names]
        gone = [inode for inode in others if not self._has(kernel, inode)]
        self.unlisted = len(others) > len(gone)
        return gone

    def _removed(self, kernel: Any, nr_removed: int, last: Sequence[Any]) -> list[Inode]:
        """The entries of keys that were removed since the last time; all are looked at when nobody knows which."""
        before, self.nr_removed = self.nr_removed, nr_removed
        if before == nr_removed:
            return []
        if before is None or nr_removed - before > len(last):
            candidates = list(self.inodes.values())
        else:
            names = map(self.pattern.name, last[before - nr_removed :])
            found = [self.directory.entries.get(name) for name in dict.fromkeys(names)]
            candidates = [inode for inode in found if inode is not None and inode.number in self.inodes]
        return [inode for inode in candidates if not self._has(kernel, inode)]

    def _has(self, kernel: Any, inode: Inode) -> bool:
        if self.pattern.has is None:
            return False
        found = self.pattern.match(kernel, self.directory.node.parameters, inode.name)
        return bool(found == inode.node.parameters[-1])


class InodeTable:
    """Inodes by number, and by name within their directory."""

    def __init__(self, namespace: Namespace, owner_uid: int, owner_gid: int) -> None:
        self._namespace = namespace
        self._owner = (owner_uid, owner_gid)
        self._mounted_ns = time.time_ns()
        self._next = int(ROOT_INODE)
        self._numbers: dict[int, Inode] = {}
        self._watches: dict[tuple[int, int], Watch] = {}
        self._volatile: dict[Version, dict[int, Inode]] = {}
        self._versions: dict[Version, int] = {}
        self.root = self._add(namespace.root, None)
        self.root.lookups = 1

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> Inode:
        """The inode of a number. ESTALE, which makes the kernel look the path up anew, when its name is gone."""
        inode = self._numbers.get(number)
        if inode is None or inode.dead:
            raise KernelError(errno.ESTALE, f"inode {number} is gone")
        return inode

    def directory(self, number: int) -> Inode:
        """The inode of a directory that somebody is in. ENOENT when its name is gone, as in procfs."""
        inode = self._numbers.get(number)
        if inode is None or inode.dead:
            raise KernelError(errno.ENOENT, f"directory {number} is gone")
        return inode

    def lookup(self, parent: Inode, name: str, caller: Caller = NOBODY) -> Inode:
        """The inode of ``name`` in a directory, with one more reference. ENOENT, ENOTDIR."""
        return self.enter(parent, self._namespace.child(parent.node, name, caller), name)

    def enter(self, parent: Inode, node: Node, name: str) -> Inode:
        """The inode of ``node``, an entry of ``parent``, with one more reference."""
        inode = parent.entries.get(name)
        if inode is None:
            inode = parent.entries[name] = self._add(node, parent)
            if inode.may_vanish:
                self._watch(inode)
            version = node.entry.version
            if version is not None:
                self._versions.setdefault(version, version(self._namespace.kernel))
                self._volatile.setdefault(version, {})[inode.number] = inode
        inode.lookups += 1
        return inode

    def attributes(self, inode: Inode) -> EntryAttributes:
        """What stat(2) shows, with the size as it is now where the entry has a true one."""
        length = inode.node.entry.length
        if length is not None:
            inode.attributes.st_size = length(self._namespace.kernel, *inode.node.parameters)
        return inode.attributes

    def forget(self, number: int, count: int) -> None:
        """The kernel dropped ``count`` references. An inode of changeable state goes with the last."""
        inode = self._numbers.get(number)
        if inode is None:
            return
        inode.lookups -= count
        if inode.lookups <= 0 and not inode.entries and (inode.node.parameters or inode.dead):
            self._remove(inode)

    def vanished(self) -> list[Inode]:
        """Inodes whose name no longer exists; they and what is below them answer ESTALE from now on."""
        gone: list[Inode] = []
        for watch in list(self._watches.values()):
            if not watch.directory.dead:
                for inode in watch.vanished(self._namespace.kernel):
                    self._bury(inode)
                    gone.append(inode)
        return gone + self._no_longer_there()

    def _no_longer_there(self) -> list[Inode]:
        """Entries whose ``exists`` has changed its answer."""
        kernel, gone = self._namespace.kernel, []
        for version, inodes in self._volatile.items():
            now = version(kernel)
            if now == self._versions[version]:
                continue
            self._versions[version] = now
            for inode in list(inodes.values()):
                exists = inode.node.entry.exists
                if not inode.dead and exists is not None and not exists(kernel, *inode.node.parameters):
                    self._bury(inode)
                    gone.append(inode)
        return gone

    def _bury(self, inode: Inode) -> None:
        for below in _subtree(inode):
            below.dead = True
            self._forget_version(below)
            if below.may_vanish:
                self._unwatch(below)
        self._detach(inode)

    def _watch(self, inode: Inode) -> None:
        assert inode.parent is not None
        pattern = _pattern_of(inode)
        key = (inode.parent.number, id(pattern))
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = Watch(inode.parent, pattern)
        watch.inodes[inode.number] = inode
        watch.unlisted = watch.unlisted or pattern.has is not None

    def _unwatch(self, inode: Inode) -> None:
        assert inode.parent is not None
        key = (inode.parent.number, id(_pattern_of(inode)))
        watch = self._watches.get(key)
        if watch is not None:
            watch.inodes.pop(inode.number, None)
            if not watch.inodes:
                del self._watches[key]

    def _add(self, node: Node, parent: Inode | None) -> Inode:
        number = self._next
        self._next += 1
        inode = Inode(number, node, parent, self._attributes(number, node))
        self._numbers[number] = inode
        return inode

    def _remove(self, inode: Inode) -> None:
        del self._numbers[inode.number]
        self._forget_version(inode)
        if inode.may_vanish:
            self._unwatch(inode)
        self._detach(inode)

    def _forget_version(self, inode: Inode) -> None:
        version = inode.node.entry.version
        if version is not None:
            self._volatile.get(version, {}).pop(inode.number, None)

    @staticmethod
    def _detach(inode: Inode) -> None:
        parent = inode.parent
        if parent is not None and parent.entries.get(inode.name) is inode:
            del parent.entries[inode.name]

    def _attributes(self, number: int, node: Node) -> EntryAttributes:
        attributes = EntryAttributes()
        attributes.st_ino = InodeT(number)
        attributes.st_mode = _file_type(node) | node.entry.mode
        attributes.st_nlink = 1
        uid = self._namespace.owner(node)
        attributes.st_uid, attributes.st_gid = (uid, uid) if uid else self._owner
        attributes.st_size = node.entry.size
        attributes.st_blksize = BLOCK_SIZE
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = self._mounted_ns
        attributes.entry_timeout = KEEP_S
        attributes.attr_timeout = KEEP_S if node.entry.length is None else 0
        return attributes


def _file_type(node: Node) -> int:
    if node.is_dir:
        return stat.S_IFDIR
    return stat.S_IFLNK if node.is_link else stat.S_IFREG


def _has_parameter(inode: Inode) -> bool:
    return inode.parent is not None and inode.node.parameters != inode.parent.node.parameters


def _pattern_of(inode: Inode) -> Pattern:
    """The declaration that an inode with a parameter in its name comes from."""
    assert inode.parent is not None
    directory = inode.parent.node.entry
    assert isinstance(directory, Directory)
    return next(pattern for pattern in directory.patterns if pattern.entry is inode.node.entry)


def _subtree(inode: Inode) -> Iterator[Inode]:
    yield inode
    for below in inode.entries.values():
        yield from _subtree(below)
