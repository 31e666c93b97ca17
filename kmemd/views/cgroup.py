"""Control groups as directories under ``sys/fs/cgroup``: ``cgroup.*`` and the pressure files (kernel/cgroup/cgroup.c).

A directory is a group; mkdir and rmdir make and remove them. Every file is declared once, for the root where the root
has it and for all others. Left out: cpu.stat, and irq.pressure, a kernel option that is off.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Callable, Iterator
from typing import Any

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm import kstrtox
from kmemd.mm.cgroup import INT_MAX, Cgroup
from kmemd.mm.psi import RESOURCES
from kmemd.mm.units import PAGE_SIZE
from kmemd.steps import Steps
from kmemd.views.pressure import PressureFile
from kmemd.views.tree import Caller, Device, Directory, Entry, File, OpenFile, Pattern, cgroupfs, render

Show = Callable[[Kernel, Cgroup], Any]
Store = Callable[[Kernel, Cgroup, str], Steps[None] | None]
TOP = cgroupfs.dir("")
GROUP = Directory(0o755)
"""What every group below the root holds."""


def children(kernel: Kernel, *above: Cgroup) -> list[Cgroup]:
    """The groups of a directory."""
    return list((above[-1] if above else kernel.cgroups.root).children.values())


def _find(kernel: Kernel, *above_and_name: Any) -> Cgroup | None:
    *above, name = above_and_name
    parent = above[-1] if above else kernel.cgroups.root
    found: Cgroup | None = parent.children.get(name)
    return found


def _removed(kernel: Kernel, *above: Cgroup) -> tuple[int, list[str]]:
    """How many groups of a directory were removed, and the names of the last ones."""
    parent = above[-1] if above else kernel.cgroups.root
    return parent.nr_removed, list(parent.last_removed)


def _mkdir(kernel: Kernel, *parent_and_name: Any) -> None:
    *above, name = parent_and_name
    directory = GROUP if above else TOP
    parent = above[-1] if above else kernel.cgroups.root
    entry = directory.names.get(name)
    if entry is not None and (entry.exists is None or entry.exists(kernel, *above)):
        raise KernelError(errno.EEXIST, f"{parent.path} has a file {name}")
    kernel.dump_stack.halt.refuse()
    kernel.cgroups.mkdir(parent, name)


def _rmdir(kernel: Kernel, *parent_and_name: Any) -> None:
    *above, name = parent_and_name
    parent = above[-1] if above else kernel.cgroups.root
    if name not in parent.children:
        number = errno.ENOTDIR if name in (GROUP if above else TOP).names else errno.ENOENT
        raise KernelError(number, f"{parent.path} has no group {name}")
    kernel.dump_stack.halt.refuse()
    kernel.cgroups.rmdir(parent.children[name])


for _directory in (TOP, GROUP):
    _directory.mkdir, _directory.rmdir = _mkdir, _rmdir
    _directory.patterns.append(Pattern("", "", "cgroup", GROUP, children, _find, outer=0, removed=_removed))


def names_version(kernel: Kernel) -> int:
    """A number that changes when files of a group come or go."""
    return kernel.cgroups.version


def declare(name: str, entry: Callable[[Callable[..., Cgroup]], Entry], *, on_root: bool) -> None:
    """Put a file into every group. ``entry(group_of)`` makes it; ``group_of(kernel, *parameters)`` is the group."""
    if on_root:
        TOP.names[name] = entry(lambda kernel, *_: kernel.cgroups.root)
    GROUP.names[name] = entry(lambda _kernel, group, *_: group)


def cgroup_file(
    name: str,
    *,
    store: Store | None = None,
    on_root: bool = True,
    exists: Callable[[Kernel, Cgroup], bool] | None = None,
    version: Callable[[Cgroup], int] | None = None,
) -> Callable[[Show], Show]:
    """Decorator: a file of every group. ``version(group)`` changes when poll is to tell of an event."""

    def decorate(show: Show) -> Show:
        def entry(group_of: Callable[..., Cgroup]) -> Entry:
            mode = 0o644 if store is not None else 0o444
            made: Entry
            if version is not None:
                made = Device(mode, 0, lambda kernel, *rest: EventsFile(kernel, group_of(kernel, *rest), show, version))
            else:
                made = File(mode, 0, lambda kernel, *rest: show(kernel, group_of(kernel, *rest)))
                made.write = _writer(group_of, store) if store is not None else None
            return _conditional(made, group_of, exists)

        declare(name, entry, on_root=on_root)
        return show

    return decorate


def write_only(
    name: str, *, on_root: bool = True, exists: Callable[[Kernel, Cgroup], bool] | None = None
) -> Callable[[Store], Store]:
    """Decorator: the function is the store of a file that cannot be read."""

    def decorate(store: Store) -> Store:
        def entry(group_of: Callable[..., Cgroup]) -> Entry:
            made = File(0o200, 0, None)
            made.write = _writer(group_of, store)
            return _conditional(made, group_of, exists)

        declare(name, entry, on_root=on_root)
        return store

    return decorate


def _conditional(entry: Entry, group_of: Callable[..., Cgroup], exists: Any) -> Entry:
    if exists is not None:
        entry.exists = lambda kernel, *rest: exists(kernel, group_of(kernel, *rest))
        entry.version = names_version
    return entry


def _writer(group_of: Callable[..., Cgroup], store: Store) -> Callable[..., Steps[None] | None]:
    def write(kernel: Kernel, *rest: Any) -> Steps[None] | None:
        *parameters, text = rest
        if len(kstrtox.to_bytes(text)) > PAGE_SIZE:
            raise KernelError(errno.E2BIG, "more than a page at once")
        return store(kernel, group_of(kernel, *parameters), text) if text else None

    return write


class EventsFile:
    """A file of counts that poll tells of: POLLPRI and POLLERR until it is read again (``kernfs_notify``)."""

    pollable = True

    def __init__(self, kernel: Kernel, group: Cgroup, show: Show, version: Callable[[Cgroup], int]) -> None:
        self._kernel, self._group, self._show, self._version = kernel, group, show, version
        self._seen = version(group)
        self._snapshot = b""

    def read(self, offset: int, size: int) -> bytes:
        """The text, taken anew at offset 0."""
        if offset == 0:
            self._seen = self._version(self._group)
            self._snapshot = render(self._show(self._kernel, self._group))
        return self._snapshot[offset : offset + size]

    def write(self, data: bytes) -> Steps[int]:
        """EINVAL."""
        raise KernelError(errno.EINVAL, "the file cannot be written")
        yield

    def poll(self) -> int:
        """What poll(2) gets beside readiness."""
        return select.POLLPRI | select.POLLERR if self.woken() else 0

    def woken(self) -> bool:
        """Whether something happened since the last read."""
        return self._version(self._group) != self._seen

    def close(self) -> None:
        """Nothing to let go."""


def number(text: str) -> int:
    """An int as ``kstrtoint`` reads it. EINVAL, ERANGE."""
    return kstrtox.kstrtoint(kstrtox.strip(kstrtox.c_string(kstrtox.to_bytes(text))), 0)


def flag(text: str) -> bool:
    """0 or 1. EINVAL; ERANGE for other numbers."""
    value = number(text)
    if value not in (0, 1):
        raise KernelError(errno.ERANGE, f"{value} is neither 0 nor 1")
    return bool(value)


def _limit(text: str) -> int:
    """``max``, or a number of groups or levels. EINVAL; ERANGE below 0."""
    if kstrtox.strip(kstrtox.c_string(kstrtox.to_bytes(text))) == b"max":
        return INT_MAX
    value = number(text)
    if value < 0:
        raise KernelError(errno.ERANGE, f"{value} is below 0")
    return value


def _shown(limit: int) -> str:
    return "max\n" if limit == INT_MAX else f"{limit}\n"


def _set_depth(kernel: Kernel, group: Cgroup, text: str) -> None:
    group.max_depth = _limit(text)


def _set_descendants(kernel: Kernel, group: Cgroup, text: str) -> None:
    group.max_descendants = _limit(text)


def _move(kernel: Kernel, group: Cgroup, text: str) -> None:
    kernel.cgroups.write_procs(group, text)


def _move_thread(kernel: Kernel, group: Cgroup, text: str) -> None:
    """A thread moves within its domain alone. EOPNOTSUPP."""
    pid = number(text)
    task = kernel.tasks.find(pid) if pid > 0 else None
    if task is not None and kernel.cgroups.of(task).domain is not group.domain:
        raise KernelError(errno.EOPNOTSUPP, f"{group.path} is of another domain than pid {pid}")
    kernel.cgroups.write_procs(group, text)


@cgroup_file("cgroup.type", store=lambda kernel, group, text: kernel.cgroups.write_type(group, text), on_root=False)
def cgroup_type(kernel: Kernel, group: Cgroup) -> str:
    """domain, domain threaded, domain invalid or threaded."""
    return group.kind + "\n"


@cgroup_file("cgroup.procs", store=_move)
def cgroup_procs(kernel: Kernel, group: Cgroup) -> Iterator[str]:
    """The processes, one a line; a pid that is written moves the process here."""
    return iter([f"{pid}\n" for pid in kernel.cgroups.procs(group)])


@cgroup_file("cgroup.threads", store=_move_thread)
def cgroup_threads(kernel: Kernel, group: Cgroup) -> Iterator[str]:
    """The threads, one a line."""
    return iter([f"{pid}\n" for pid in kernel.cgroups.threads(group)])


@cgroup_file("cgroup.controllers")
def cgroup_controllers(kernel: Kernel, group: Cgroup) -> str:
    """The controllers that may be handed to children."""
    return "".join(f"{name}\n" for name in kernel.cgroups.controllers(group))


def _set_control(kernel: Kernel, group: Cgroup, text: str) -> None:
    kernel.cgroups.write_subtree_control(group, text)


@cgroup_file("cgroup.subtree_control", store=_set_control)
def cgroup_subtree_control(kernel: Kernel, group: Cgroup) -> str:
    """The controllers that are handed to children."""
    return "memory\n" if group.controls else ""


@cgroup_file("cgroup.events", on_root=False, version=lambda group: group.events_version)
def cgroup_events(kernel: Kernel, group: Cgroup) -> str:
    """Whether there are processes in or below the group, and whether all are frozen."""
    return f"populated {int(group.populated > 0)}\nfrozen {int(group.frozen)}\n"


@cgroup_file("cgroup.max.descendants", store=_set_descendants)
def cgroup_max_descendants(kernel: Kernel, group: Cgroup) -> str:
    """How many groups may be below."""
    return _shown(group.max_descendants)


@cgroup_file("cgroup.max.depth", store=_set_depth)
def cgroup_max_depth(kernel: Kernel, group: Cgroup) -> str:
    """How deep groups may be below."""
    return _shown(group.max_depth)


@cgroup_file("cgroup.stat")
def cgroup_stat(kernel: Kernel, group: Cgroup) -> str:
    """How many groups are below, and how many were removed and are still charged for something."""
    return f"nr_descendants {group.nr_descendants}\nnr_dying_descendants {group.nr_dying}\n"


def _freeze(kernel: Kernel, group: Cgroup, text: str) -> None:
    kernel.cgroups.set_freeze(group, flag(text))


@cgroup_file("cgroup.freeze", store=_freeze, on_root=False)
def cgroup_freeze(kernel: Kernel, group: Cgroup) -> str:
    """Whether the group is to be frozen."""
    return f"{int(group.freeze)}\n"


@write_only("cgroup.kill", on_root=False)
def cgroup_kill(kernel: Kernel, group: Cgroup, text: str) -> None:
    """1 kills all processes in and below the group. EINVAL, ERANGE, EOPNOTSUPP."""
    if number(text) != 1:
        raise KernelError(errno.ERANGE, "1 kills, and nothing else means anything")
    kernel.cgroups.kill(group)


def _has_pressure(kernel: Kernel, group: Cgroup) -> bool:
    """Whether there are pressure files: not where they were switched off, for the group or for all."""
    return bool(group.psi.enabled) and "pressure" not in kernel.cgroups_disabled


def _pressure_file(resource: str) -> Callable[[Callable[..., Cgroup]], Entry]:
    def entry(group_of: Callable[..., Cgroup]) -> Entry:
        def opened(kernel: Kernel, *rest: Any) -> OpenFile:
            caller: Caller = rest[-1]
            return PressureFile(group_of(kernel, *rest).psi, resource, caller, in_cgroup=True)

        return _conditional(Device(0o644, 0, opened, True), group_of, _has_pressure)

    return entry


for _resource in RESOURCES:
    declare(f"{_resource}.pressure", _pressure_file(_resource), on_root=True)


def _set_pressure(kernel: Kernel, group: Cgroup, text: str) -> None:
    kernel.cgroups.set_pressure(group, flag(text))


@cgroup_file(
    "cgroup.pressure",
    store=_set_pressure,
    exists=lambda kernel, group: kernel.psi.enabled and "pressure" not in kernel.cgroups_disabled,
)
def cgroup_pressure(kernel: Kernel, group: Cgroup) -> str:
    """Whether pressure is accounted."""
    return f"{int(group.psi.enabled)}\n"
