"""Pseudo files: how one is declared, and the tree that the declarations make.

A file is one function. ``show`` takes the kernel (and the path's parameters) and gives text, bytes
or an iterator of text; ``store`` takes the kernel, the parameters and what was written::

    @proc.file("buddyinfo")
    def buddyinfo(kernel): ...

    @sysfs.file("kernel/mm/ksm/run", mode=0o644)
    def ksm_run(kernel): ...

    @ksm_run.store
    def ksm_run_store(kernel, text): ...

A path may hold parameters, ``devices/system/node/node{nid}/meminfo``; ``@sysfs.keys("devices/system/node/node{nid}")``
declares which values exist, and the functions get the value as it was listed (an int stays an int).

Nothing here knows what the files say, nor who serves them.
"""

from __future__ import annotations

import errno
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kmemd.errors import KernelError
from kmemd.mm.units import PAGE_SIZE
from kmemd.steps import Steps
from kmemd.views.sliced import Sliced

Text = str | bytes | Iterable[str]
DIR_MODE = 0o555


def _unknown() -> Iterator[int]:
    return iter(())


def _by_uid() -> int | None:
    return None


@dataclass(frozen=True)
class Caller:
    """Who opens a file: ids as the kernel sees them.

    ``relatives()`` gives the process that the thread ``pid`` belongs to and its ancestors, as far as they are known;
    ``capabilities()`` its effective set as bits, None for all of root's and none of others'. ``gid`` is the group of
    the user's number where it is not given.
    """

    pid: int = 0
    uid: int = 0
    relatives: Callable[[], Iterator[int]] = field(default=_unknown, compare=False)
    gid: int | None = None
    capabilities: Callable[[], int | None] = field(default=_by_uid, compare=False)

    @property
    def group(self) -> int:
        """The group that files and tasks are compared with."""
        return self.uid if self.gid is None else self.gid

    def capable(self, capability: int) -> bool:
        """Whether the caller has a capability (``file_ns_capable`` of the initial user namespace)."""
        held = self.capabilities()
        return self.uid == 0 if held is None else bool(held >> capability & 1)

    @property
    def process(self) -> int:
        """The process that the thread belongs to."""
        return next(self.relatives(), self.pid)


class OpenFile(Protocol):
    """What an open ``device`` file does. One object per open."""

    def read(self, offset: int, size: int) -> bytes | None:
        """Bytes at ``offset``; ``b""`` is the end; None would block."""

    def write(self, data: bytes) -> Steps[int]:
        """Take ``data``, in slices. A file to which the position of a write matters has ``write_at`` too."""

    def close(self) -> None:
        """The last reference is gone."""


def write_at(file: OpenFile, offset: int, data: bytes) -> Steps[int]:
    """Write to an open file at an offset, which means something to few."""
    positioned = getattr(file, "write_at", None)
    steps: Steps[int] = file.write(data) if positioned is None else positioned(offset, data)
    return steps


@dataclass
class Entry:
    """A declared directory entry: the last component's owner is its parent ``Directory``.

    ``version(kernel)`` is for entries that come and go while the machine runs: a number that changes when the answer of
    ``exists`` does, for this entry anywhere.
    ``length(kernel, *parameters)`` gives a true st_size, for programs that map the file;
    ``may_open(kernel, *parameters, caller)`` raises what an open gets that the mode allows;
    ``owner(kernel, *parameters)`` is the user whose it is, with all below it: root's without.
    """

    mode: int
    size: int = 0
    exists: Callable[..., bool] | None = field(default=None, kw_only=True)
    length: Callable[..., int] | None = field(default=None, kw_only=True)
    version: Callable[[Any], int] | None = field(default=None, kw_only=True)
    may_open: Callable[..., None] | None = field(default=None, kw_only=True)
    owner: Callable[..., int] | None = field(default=None, kw_only=True)


@dataclass
class File(Entry):
    """A file that is rendered whole at the first read of an open.

    ``takes_position``: the store also takes ``position=``, the bytes that this open has written before;
    ``takes_writer``: it takes ``caller=``, who opened the file.
    """

    show: Callable[..., Text] | None = None
    write: Callable[..., Any] | None = None
    takes_caller: bool = False
    takes_position: bool = field(default=False, kw_only=True)
    takes_writer: bool = field(default=False, kw_only=True)

    def store(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: ``function(kernel, *parameters, text)`` takes a write.

        It returns None when it took everything, or the number of bytes taken; it may be a generator
        that yields between slices.
        """
        self.write = function
        return function

    def store_as_caller(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: as ``store``, of a function that also takes ``caller``, for what not everybody may write."""
        self.takes_writer = True
        return self.store(function)


@dataclass
class Binary(Entry):
    """A file computed for the range that is read, ``read(kernel, *parameters, offset, size) -> bytes``."""

    read: Callable[..., bytes] | None = None
    takes_caller: bool = False


@dataclass
class Device(Entry):
    """A file with state per open, ``open(kernel, *parameters, caller) -> OpenFile``."""

    open: Callable[..., OpenFile] | None = None
    pollable: bool = False


@dataclass
class Link(Entry):
    """A symbolic link, ``target(kernel, *parameters, caller) -> str``."""

    target: Callable[..., str] | None = None


@dataclass
class Directory(Entry):
    """Names declared below one directory: fixed ones, and patterns with a parameter."""

    mode: int = DIR_MODE
    names: dict[str, Entry] = field(default_factory=dict)
    patterns: list[Pattern] = field(default_factory=list)
    mkdir: Callable[..., None] | None = None
    rmdir: Callable[..., None] | None = None


@dataclass
class Pattern:
    """``node{nid}``: the names that ``keys(kernel, *outer parameters)`` lists. ``fixed``: for good, at boot.

    ``outer``: how many of the outer parameters the entry keeps, None for all of them: a directory that holds more of
    its kind keeps none, and its files have the innermost one. ``removed(kernel, *outer parameters)``: how many keys
    have gone so far, and the last of them, for places with so many that listing them all takes long.
    """

    prefix: str
    suffix: str
    parameter: str
    entry: Entry
    keys: Callable[..., Iterable[Any]] | None = None
    has: Callable[..., Any] | None = None
    fixed: bool = False
    takes_caller: bool = False
    outer: int | None = None
    removed: Callable[..., tuple[int, Sequence[Any]]] | None = None

    def parameters(self, outer: tuple[Any, ...], key: Any) -> tuple[Any, ...]:
        """The parameters of the entry for a key."""
        return (*outer[: self.outer], key)

    def name(self, key: Any) -> str:
        """The directory entry for a key."""
        return f"{self.prefix}{key}{self.suffix}"

    def match(self, kernel: Any, parameters: tuple[Any, ...], name: str, caller: Caller = Caller()) -> Any:
        """The key that ``name`` stands for, to ``caller``, or None."""
        if not (name.startswith(self.prefix) and name.endswith(self.suffix)):
            return None
        text = name[len(self.prefix) : len(name) - len(self.suffix)]
        if self.has is not None:
            extra = {"caller": caller} if self.takes_caller else {}
            return self.has(kernel, *parameters, text, **extra)
        if self.keys is None:
            return None
        return next((key for key in self.keys(kernel, *parameters) if str(key) == text), None)


_PARAMETER = re.compile(r"^(.*)\{(\w+)\}(.*)$")

TREE = Directory(DIR_MODE)
"""The root of the mount. Filled by importing ``kmemd.views``; read-only afterwards."""


class Root:
    """A part of the tree that has its own rules: proc, sysfs, debugfs. ``size`` is the files' st_size."""

    def __init__(self, path: str, dir_mode: int = DIR_MODE, size: int = 0) -> None:
        self.path = path
        self.dir_mode = dir_mode
        self.size = size
        self.dir("")

    def dir(self, path: str, mode: int | None = None, *, exists: Callable[..., bool] | None = None) -> Directory:
        """Declare a directory (those above a declared file need no declaration).

        ``exists(kernel, *parameters)``, here and for files: whether a machine has it, settled at boot.
        """
        directory = self._walk(path)
        if mode is not None:
            directory.mode = mode
        if exists is not None:
            directory.exists = exists
        return directory

    def file(
        self,
        path: str,
        mode: int = 0o444,
        *,
        caller: bool = False,
        exists: Callable[..., bool] | None = None,
        length: Callable[..., int] | None = None,
    ) -> Callable[[Callable[..., Text]], File]:
        """Decorator: the function renders the file; ``caller``: it takes ``caller=``. ``length``: see ``Entry``."""

        def declare(show: Callable[..., Text]) -> File:
            readable = bool(mode & 0o444)
            render = show if readable else None
            declared = File(mode, self.size, render, takes_caller=caller, exists=exists, length=length)
            if not readable:
                declared.write = show
            self._put(path, declared)
            return declared

        return declare

    def write_only(
        self, path: str, mode: int = 0o200, *, exists: Callable[..., bool] | None = None
    ) -> Callable[[Callable[..., Any]], File]:
        """Decorator: the function is the store of a file that cannot be read."""
        return self.file(path, mode, exists=exists)

    def add(self, path: str, entry: Entry) -> None:
        """Declare an entry made by hand (knobs made from tables)."""
        self._put(path, entry)

    def binary(
        self, path: str, mode: int = 0o400, size: int = 0, *, caller: bool = False
    ) -> Callable[[Callable[..., bytes]], Binary]:
        """Decorator: the function gives the bytes of a range; ``caller``: it takes ``caller=``."""

        def declare(read: Callable[..., bytes]) -> Binary:
            declared = Binary(mode, size, read, caller)
            self._put(path, declared)
            return declared

        return declare

    def device(
        self, path: str, mode: int, *, pollable: bool = False, exists: Callable[..., bool] | None = None
    ) -> Callable[[Callable[..., OpenFile]], Device]:
        """Decorator: the function opens the file and returns its ``OpenFile``."""

        def declare(opener: Callable[..., OpenFile]) -> Device:
            declared = Device(mode, 0, opener, pollable, exists=exists)
            self._put(path, declared)
            return declared

        return declare

    def link(self, path: str) -> Callable[[Callable[..., str]], Link]:
        """Decorator: the function gives the link's target."""

        def declare(target: Callable[..., str]) -> Link:
            declared = Link(0o777, 0, target)
            self._put(path, declared)
            return declared

        return declare

    def keys(
        self, path: str, has: Callable[..., Any] | None = None, *, fixed: bool = False, caller: bool = False
    ) -> Callable[[Callable[..., Iterable[Any]]], Callable[..., Iterable[Any]]]:
        """Decorator: the function lists the values of the last parameter in ``path``.

        ``has(kernel, *outer, text)`` may give the key for one name without listing (or None).
        ``fixed``: the values that boot made stay as long as the outer ones, and there are no others.
        ``caller``: ``has`` also takes ``caller=``.
        """

        def declare(function: Callable[..., Iterable[Any]]) -> Callable[..., Iterable[Any]]:
            *above, last = path.strip("/").split("/")
            pattern = self._pattern(self._walk("/".join(above)), last, Directory(self.dir_mode))
            pattern.keys = function
            pattern.has = has
            pattern.fixed = fixed
            pattern.takes_caller = caller
            return function

        return declare

    def _walk(self, path: str) -> Directory:
        directory: Entry = TREE
        full = f"{self.path}/{path}".strip("/")
        for component in filter(None, full.split("/")):
            assert isinstance(directory, Directory), f"{full}: {component} is below a file"
            if _PARAMETER.match(component):
                directory = self._pattern(directory, component, Directory(self.dir_mode)).entry
            else:
                directory = directory.names.setdefault(component, Directory(self.dir_mode))
        assert isinstance(directory, Directory)
        return directory

    def _put(self, path: str, entry: Entry) -> None:
        *above, last = path.strip("/").split("/")
        directory = self._walk("/".join(above))
        if _PARAMETER.match(last):
            self._pattern(directory, last, entry)
            return
        assert last not in directory.names, f"{self.path}/{path} is declared twice"
        directory.names[last] = entry

    @staticmethod
    def _pattern(directory: Directory, component: str, entry: Entry) -> Pattern:
        found = _PARAMETER.match(component)
        assert found is not None
        prefix, parameter, suffix = found.groups()
        for pattern in directory.patterns:
            if (pattern.prefix, pattern.suffix, pattern.parameter) == (prefix, suffix, parameter):
                return pattern
        pattern = Pattern(prefix, suffix, parameter, entry)
        directory.patterns.append(pattern)
        return pattern


proc = Root("proc")
sysfs = Root("sys", 0o755, PAGE_SIZE)
debugfs = Root("sys/kernel/debug", 0o755)
tracefs = Root("sys/kernel/tracing", 0o750)
cgroupfs = Root("sys/fs/cgroup", 0o755)
dev = Root("dev", 0o755)
kmemd = Root("kmemd", 0o755)
debugfs.dir("", 0o700)
tracefs.dir("", 0o700)


@dataclass(frozen=True)
class Node:
    """An entry at one path: the declaration and the values of the path's parameters."""

    path: str
    entry: Entry
    parameters: tuple[Any, ...] = ()
    owner: Callable[..., int] | None = None

    def below(self, name: str, entry: Entry, parameters: tuple[Any, ...]) -> Node:
        """An entry of this directory."""
        return Node(f"{self.path.rstrip('/')}/{name}", entry, parameters, entry.owner or self.owner)

    @property
    def is_dir(self) -> bool:
        """Whether this is a directory."""
        return isinstance(self.entry, Directory)

    @property
    def is_link(self) -> bool:
        """Whether this is a symbolic link."""
        return isinstance(self.entry, Link)


class Namespace:
    """The tree as it stands for one kernel: parameters take the values that exist now.

    ``may_store()`` raises what writers of files get once the machine does nothing any more.
    """

    def __init__(self, kernel: Any, may_store: Callable[[], None] = lambda: None) -> None:
        self.kernel = kernel
        self._may_store = may_store
        self.root = Node("/", TREE)

    def child(self, node: Node, name: str, caller: Caller = Caller()) -> Node:
        """The entry ``name`` of a directory, as ``caller`` finds it. ENOENT, ENOTDIR."""
        directory = node.entry
        if not isinstance(directory, Directory):
            raise KernelError(errno.ENOTDIR, f"{node.path} is not a directory")
        entry = directory.names.get(name)
        if entry is not None and self._exists(entry, node.parameters):
            return node.below(name, entry, node.parameters)
        for pattern in directory.patterns:
            key = pattern.match(self.kernel, node.parameters, name, caller)
            if key is not None and self._exists(pattern.entry, pattern.parameters(node.parameters, key)):
                return node.below(name, pattern.entry, pattern.parameters(node.parameters, key))
        raise KernelError(errno.ENOENT, f"{node.path.rstrip('/')}/{name} does not exist")

    def owner(self, node: Node) -> int:
        """The user whose an entry is."""
        return node.owner(self.kernel, *node.parameters) if node.owner is not None else 0

    def _exists(self, entry: Entry, parameters: tuple[Any, ...]) -> bool:
        return entry.exists is None or entry.exists(self.kernel, *parameters)

    def children(self, node: Node) -> Iterator[Node]:
        """The entries of a directory, in the order of declaration."""
        directory = node.entry
        if not isinstance(directory, Directory):
            raise KernelError(errno.ENOTDIR, f"{node.path} is not a directory")
        for name, entry in directory.names.items():
            if self._exists(entry, node.parameters):
                yield node.below(name, entry, node.parameters)
        for pattern in directory.patterns:
            if pattern.keys is None:
                continue
            for key in pattern.keys(self.kernel, *node.parameters):
                parameters = pattern.parameters(node.parameters, key)
                if self._exists(pattern.entry, parameters):
                    yield node.below(pattern.name(key), pattern.entry, parameters)

    def lookup(self, path: str, caller: Caller = Caller()) -> Node:
        """The node at an absolute path, links followed. ENOENT, ENOTDIR, ELOOP."""
        node, depth = self.root, 0
        todo = [part for part in path.split("/") if part][::-1]
        trail = [node]
        while todo:
            name = todo.pop()
            if name in (".", ""):
                continue
            if name == "..":
                trail = trail[:-1] or [self.root]
                continue
            node = self.child(trail[-1], name, caller)
            if not node.is_link:
                trail.append(node)
                continue
            depth += 1
            if depth > 40:
                raise KernelError(errno.ELOOP, f"{path}: too many links")
            target = self.readlink(node, caller)
            if target.startswith("/"):
                trail = [self.root]
            todo += [part for part in target.split("/") if part][::-1]
        return trail[-1]

    def readlink(self, node: Node, caller: Caller) -> str:
        """The target of a link."""
        link = node.entry
        assert isinstance(link, Link)
        assert link.target is not None
        return link.target(self.kernel, *node.parameters, caller)

    def check_open(self, node: Node, caller: Caller) -> None:
        """Raise what a file or a directory says to this caller when it is opened."""
        if node.entry.may_open is not None:
            node.entry.may_open(self.kernel, *node.parameters, caller)

    def open(self, node: Node, caller: Caller) -> OpenFile:
        """Open a file. EISDIR for a directory, and what the file says to this caller."""
        entry = node.entry
        self.check_open(node, caller)
        if isinstance(entry, File):
            return _OpenText(self.kernel, node, entry, caller, self._may_store)
        if isinstance(entry, Binary):
            return _OpenBinary(self.kernel, node, entry, caller)
        if isinstance(entry, Device):
            assert entry.open is not None
            return entry.open(self.kernel, *node.parameters, caller)
        raise KernelError(errno.EISDIR, f"{node.path} is a directory")


def render(text: Text) -> bytes:
    """Text of any allowed form as bytes."""
    if isinstance(text, bytes):
        return text
    if isinstance(text, str):
        return text.encode()
    return "".join(text).encode()


def refusal(path: str) -> int:
    """The errno of reading or writing where the kernel has no function for it, by the file system it is in."""
    if path.startswith(("/sys/kernel/debug/", "/sys/kernel/tracing/", "/sys/fs/cgroup/", "/dev/")):
        return errno.EINVAL
    if path.startswith("/proc/") and not path.startswith("/proc/sys/"):
        return errno.EINVAL if path.split("/")[2].isdigit() else errno.EIO
    return errno.EACCES


class _OpenText:
    """An open ``File``: one consistent snapshot for each read from offset 0."""

    def __init__(self, kernel: Any, node: Node, declared: File, caller: Caller, may_store: Callable[[], None]) -> None:
        self._kernel = kernel
        self._may_store = may_store
        self._node = node
        self._file = declared
        self._caller = caller
        self._snapshot: bytes | None = None
        self._fresh = False
        self._position = 0

    def read(self, offset: int, size: int) -> bytes:
        if (offset == 0 and not self._fresh) or self._snapshot is None:
            self._snapshot = render(self._show())
        self._fresh = False
        return self._snapshot[offset : offset + size]

    def prepare(self, offset: int) -> Steps[None] | None:
        """What is to be done in slices before a read from ``offset`` on; None when a read takes no time."""
        if offset and self._snapshot is not None:
            return None
        text = self._show()
        if isinstance(text, Sliced):
            return self._collect(text)
        self._snapshot, self._fresh = render(text), True
        return None

    def _collect(self, text: Sliced) -> Steps[None]:
        parts: list[str] = []
        for part in text:
            parts.append(part)
            yield
        self._snapshot, self._fresh = "".join(parts).encode(), True

    def _show(self) -> Text:
        if self._file.show is None:
            raise KernelError(refusal(self._node.path), f"{self._node.path} cannot be read")
        extra = {"caller": self._caller} if self._file.takes_caller else {}
        return self._file.show(self._kernel, *self._node.parameters, **extra)

    def write(self, data: bytes) -> Steps[int]:
        if self._file.write is None:
            raise KernelError(refusal(self._node.path), f"{self._node.path} cannot be written")
        self._may_store()
        extra: dict[str, Any] = {"position": self._position} if self._file.takes_position else {}
        if self._file.takes_writer:
            extra["caller"] = self._caller
        text = data.decode("utf-8", "surrogateescape")
        taken = self._file.write(self._kernel, *self._node.parameters, text, **extra)
        if inspect.isgenerator(taken):
            taken = yield from taken
        done = len(data) if taken is None else int(taken)
        self._position += done
        return done

    def close(self) -> None:
        self._snapshot = None


class _OpenBinary:
    """An open ``Binary``: nothing is kept but who opened it."""

    def __init__(self, kernel: Any, node: Node, declared: Binary, caller: Caller) -> None:
        self._kernel = kernel
        self._node = node
        self._read = declared.read
        self._extra = {"caller": caller} if declared.takes_caller else {}

    def read(self, offset: int, size: int) -> bytes:
        assert self._read is not None
        return self._read(self._kernel, *self._node.parameters, offset, size, **self._extra)

    def write(self, data: bytes) -> Steps[int]:
        raise KernelError(refusal(self._node.path), f"{self._node.path} cannot be written")
        yield

    def close(self) -> None:
        """Nothing to let go."""
