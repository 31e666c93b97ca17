"""Control groups: the unified hierarchy (kernel/cgroup/cgroup.c, kernel/cgroup/freezer.c).

Models the tree that mkdir and rmdir make, which tasks are where, which controllers a group hands to its children with
the rule that a group with controllers has no processes of its own, limits of depth and number, threaded groups,
freezing and killing. The one controller is memory. Left out: delegation to other users, namespaces, the hierarchies of
version 1, and that a frozen task stops: the commands of the model are what its tasks do, whenever they are given.

Invariants: a task is in the ``members`` of exactly one group, the root for those that nobody moved; ``populated``
counts tasks in and below a group; ``memcg`` of a group is its own memory cgroup or the nearest one above it.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

from kmemd.errors import KernelError
from kmemd.mm import kstrtox
from kmemd.mm.sched import PF_NO_SETAFFINITY, Task, TaskTable
from kmemd.mm.signals import SIGKILL

INT_MAX = (1 << 31) - 1
MEMORY = "memory"
ROOT_CGROUP_INO = 1
REMEMBERED = 64
"""Names of children that were removed, for those who have looked since."""
MOUNT_OPTIONS = ("nsdelegate", "favordynmods", "memory_localevents", "memory_recursiveprot")
"""In the order in which they are shown; the first two change nothing here."""


class MemoryController(Protocol):
    """What the memory controller does when groups come and go."""

    def css_alloc(self, cgroup: Cgroup, parent: Any) -> Any: ...
    def css_offline(self, memcg: Any) -> None: ...
    def mount_options(self, options: Collection[str]) -> None: ...


class Pressure(Protocol):
    """Pressure of a group."""

    enabled: bool

    def restart(self) -> None: ...


class Cgroup:
    """One group, a directory. ``controls``: the memory controller is handed to its children (subtree_control)."""

    def __init__(self, name: str, ino: int, parent: Cgroup | None, psi: Any) -> None:
        self.name, self.ino, self.parent, self.psi = name, ino, parent, psi
        self.children: dict[str, Cgroup] = {}
        self.members: dict[int, Task] = {}
        self.populated = 0
        self.controls = False
        self.own_memcg: Any = None
        self.memcg: Any = parent.memcg if parent is not None else None
        self.threaded = False
        self.max_depth = self.max_descendants = INT_MAX
        self.nr_descendants = self.nr_dying = self.threaded_children = 0
        self.freeze = False
        self.frozen = False
        self.dead = False
        self.events_version = 0
        self.nr_removed = 0
        self.last_removed: deque[str] = deque(maxlen=REMEMBERED)

    def __str__(self) -> str:
        """The name of the directory."""
        return self.name

    @property
    def is_root(self) -> bool:
        """Whether this is the root of the hierarchy."""
        return self.parent is None

    @property
    def path(self) -> str:
        """Where it is below the mount, as ``/proc/PID/cgroup`` shows it."""
        if self.parent is None:
            return "/"
        return f"{self.parent.path.rstrip('/')}/{self.name}"

    def upwards(self) -> Iterator[Cgroup]:
        """This group and those above it."""
        group: Cgroup | None = self
        while group is not None:
            yield group
            group = group.parent

    def descendants(self) -> Iterator[Cgroup]:
        """This group and those below it, parents first."""
        yield self
        for child in self.children.values():
            yield from child.descendants()

    @property
    def has_memory(self) -> bool:
        """Whether the memory controller is there: the parent hands it out."""
        return self.parent is None or (self.parent.controls and not self.threaded)

    # -- threads -----------------------------------------------------------------------------------------

    @property
    def domain(self) -> Cgroup:
        """The group that the resources of a threaded one belong to (``dom_cgrp``)."""
        return self.parent.domain if self.threaded and self.parent is not None else self

    @property
    def is_thread_root(self) -> bool:
        """Whether threaded groups are below (``cgroup_is_thread_root``)."""
        return not self.threaded and self.threaded_children > 0

    @property
    def can_be_thread_root(self) -> bool:
        """``cgroup_can_be_thread_root``."""
        if self.is_root:
            return True
        domains = any(child.populated for child in self.children.values() if not child.threaded)
        return not self.threaded and not domains and not self.controls

    @property
    def is_valid_domain(self) -> bool:
        """Whether it may have processes: threaded groups and domains do not mix (``cgroup_is_valid_domain``)."""
        if self.threaded:
            return False
        above = [group for group in self.upwards() if group is not self]
        return not any(group.threaded or (group.is_thread_root and not group.is_root) for group in above)

    @property
    def kind(self) -> str:
        """What ``cgroup.type`` shows."""
        if self.threaded:
            return "threaded"
        if not self.is_valid_domain:
            return "domain invalid"
        return "domain threaded" if self.is_thread_root else "domain"


class Cgroups:
    """The hierarchy. ``memory`` is the controller, None when it is switched off; ``kill(task)`` ends a task;
    ``psi()`` makes the pressure accounting of a new group.

    ``version`` changes whenever a file of a group comes or goes.
    """

    def __init__(
        self,
        tasks: TaskTable,
        memory: MemoryController | None,
        make_psi: Callable[[], Any],
        kill: Callable[[Task], object],
    ) -> None:
        self._tasks, self._memory, self._make_psi, self._kill = tasks, memory, make_psi, kill
        self._next_ino = ROOT_CGROUP_INO
        self.root = Cgroup("", self._ino(), None, make_psi())
        self.version = 0
        self.options: tuple[str, ...] = ()
        self.made = 0
        if memory is not None:
            self.root.own_memcg = self.root.memcg = memory.css_alloc(self.root, None)

    def _ino(self) -> int:
        number = self._next_ino
        self._next_ino += 1
        return number

    @property
    def has_memory(self) -> bool:
        """Whether there is a memory controller."""
        return self._memory is not None

    @property
    def memory_groups(self) -> int:
        """Groups of the hierarchy that the memory controller is in (``num_cgroups``)."""
        return self.root.nr_descendants + 1

    def of(self, task: Task) -> Cgroup:
        """The group of a task."""
        return task.cgroup if task.cgroup is not None else self.root

    def find(self, path: str) -> Cgroup:
        """The group at a path below the root. ENOENT."""
        group = self.root
        for name in filter(None, path.split("/")):
            if name not in group.children:
                raise KernelError(errno.ENOENT, f"there is no control group {path}")
            group = group.children[name]
        return group

    def remount(self, options: Collection[str]) -> None:
        """Mount the hierarchy anew: options that are not named are off (``cgroup_reconfigure``). EINVAL."""
        unknown = [name for name in options if name not in (*MOUNT_OPTIONS, "rw", "relatime")]
        if unknown:
            raise KernelError(errno.EINVAL, f"cgroup2 has no mount option {unknown[0]!r}")
        self.options = tuple(name for name in MOUNT_OPTIONS if name in options)
        if self._memory is not None:
            self._memory.mount_options(self.options)

    # -- mkdir and rmdir ---------------------------------------------------------------------------------

    def mkdir(self, parent: Cgroup, name: str) -> Cgroup:
        """Make a group (``cgroup_mkdir``). EINVAL, ENODEV, EEXIST, EAGAIN beyond a limit, ENOSPC."""
        if "\n" in name:
            raise KernelError(errno.EINVAL, "a newline in its name would garble /proc/PID/cgroup")
        if parent.dead:
            raise KernelError(errno.ENODEV, f"{parent.path} was removed")
        if name in parent.children:
            raise KernelError(errno.EEXIST, f"{parent.path} has a group {name}")
        for level, group in enumerate(parent.upwards()):
            if group.nr_descendants >= group.max_descendants or level >= group.max_depth:
                raise KernelError(errno.EAGAIN, f"{group.path} may have no more groups below it, or none so deep")
        child = Cgroup(name, self._ino(), parent, self._make_psi())
        child.freeze = child.frozen = parent.freeze
        if parent.controls and self._memory is not None:
            child.own_memcg = child.memcg = self._memory.css_alloc(child, parent.memcg)
        parent.children[name] = child
        for group in parent.upwards():
            group.nr_descendants += 1
        self.made += 1
        return child

    def rmdir(self, group: Cgroup) -> None:
        """Remove a group without tasks and children (``cgroup_rmdir``). EBUSY; EPERM for the root."""
        if group.parent is None:
            raise KernelError(errno.EPERM, "the root stays")
        if group.populated:
            raise KernelError(errno.EBUSY, f"{group.path} has processes")
        if group.children:
            raise KernelError(errno.EBUSY, f"{group.path} has groups below it")
        group.dead = True
        del group.parent.children[group.name]
        group.parent.nr_removed += 1
        group.parent.last_removed.append(group.name)
        group.parent.threaded_children -= group.threaded
        for above in group.parent.upwards():
            above.nr_descendants -= 1
        self._take_memory(group)

    def _take_memory(self, group: Cgroup) -> None:
        """A group loses its memory cgroup, which lives on while pages are charged to it."""
        memcg, group.own_memcg = group.own_memcg, None
        if memcg is None or self._memory is None:
            return
        for above in list(group.upwards())[1:]:
            above.nr_dying += 1
        self._memory.css_offline(memcg)

    def released(self, parent: Cgroup | None) -> None:
        """The last charge of a removed group is gone: nothing of it is left below ``parent``."""
        for above in parent.upwards() if parent is not None else ():
            above.nr_dying -= 1

    # -- controllers -------------------------------------------------------------------------------------

    def controllers(self, group: Cgroup) -> list[str]:
        """The controllers that a group may hand to its children (``cgroup_control``)."""
        there = group.is_root or (group.parent is not None and group.parent.controls and not group.threaded)
        return [MEMORY] if self._memory is not None and there else []

    def write_subtree_control(self, group: Cgroup, text: str) -> None:
        """``+memory`` or ``-memory``. EINVAL, ENOENT, EBUSY, EOPNOTSUPP."""
        enable = disable = False
        for word in kstrtox.strip(kstrtox.c_string(kstrtox.to_bytes(text))).split(b" "):
            if not word:
                continue
            if word[1:] != MEMORY.encode() or self._memory is None or word[:1] not in (b"+", b"-"):
                raise KernelError(errno.EINVAL, f"{word.decode('latin-1')!r} is not + or - and a controller")
            enable, disable = word[:1] == b"+", word[:1] == b"-"
        self._not_dead(group, errno.ENODEV)
        if enable and not group.controls:
            self._enable(group)
        elif disable and group.controls:
            if any(child.controls for child in group.children.values()):
                raise KernelError(errno.EBUSY, "a group below hands the controller out")
            group.controls = False
            for child in group.children.values():
                self._take_memory(child)
                self._hand_down(child)
            self.version += 1

    def _enable(self, group: Cgroup) -> None:
        if MEMORY not in self.controllers(group):
            raise KernelError(errno.ENOENT, f"{group.path} has no memory controller to hand out")
        if not group.domain.is_valid_domain:
            raise KernelError(errno.EOPNOTSUPP, f"{group.path} is an invalid domain")
        if not group.is_root:
            if group.is_thread_root or group.threaded:
                raise KernelError(errno.EOPNOTSUPP, "memory is not shared out among threads")
            if group.members:
                raise KernelError(errno.EBUSY, f"{group.path} has processes, which its children would compete with")
        group.controls = True
        assert self._memory is not None
        for child in group.children.values():
            if not child.threaded:
                child.own_memcg = self._memory.css_alloc(child, group.memcg)
                self._hand_down(child)
        self.version += 1

    @staticmethod
    def _hand_down(group: Cgroup) -> None:
        """What memory cgroup a group and those below it have from now on."""
        for below in group.descendants():
            assert below.parent is not None
            below.memcg = below.own_memcg or below.parent.memcg

    def write_type(self, group: Cgroup, text: str) -> None:
        """``threaded`` (``cgroup_enable_threaded``). EINVAL, EOPNOTSUPP."""
        if kstrtox.strip(kstrtox.c_string(kstrtox.to_bytes(text))) != b"threaded":
            raise KernelError(errno.EINVAL, "a group can be made threaded, and that is all")
        self._not_dead(group, errno.ENOENT)
        if group.threaded:
            return
        assert group.parent is not None
        domain = group.parent.domain
        if group.populated or group.controls or not domain.is_valid_domain or not domain.can_be_thread_root:
            raise KernelError(errno.EOPNOTSUPP, f"{group.path} cannot be made threaded where it is")
        self._take_memory(group)
        group.threaded = True
        group.parent.threaded_children += 1
        self._hand_down(group)
        self.version += 1

    # -- tasks -------------------------------------------------------------------------------------------

    def write_procs(self, group: Cgroup, text: str) -> None:
        """Move a task into a group; its charges stay where they are. EINVAL, ESRCH, EBUSY, EOPNOTSUPP, ENODEV."""
        self._not_dead(group, errno.ENODEV)
        data = kstrtox.strip(kstrtox.c_string(kstrtox.to_bytes(text)))
        try:
            pid = kstrtox.kstrtoint(data, 0)
        except KernelError as error:
            raise KernelError(errno.EINVAL, error.reason) from None
        if pid < 0:
            raise KernelError(errno.EINVAL, f"{pid} is no pid")
        task = self._tasks.find(pid) if pid else self._tasks.current() or self._tasks.find(1)
        if task.flags & PF_NO_SETAFFINITY:
            raise KernelError(errno.EINVAL, f"{task.comm} is a kernel thread of one CPU")
        if not group.domain.is_valid_domain:
            raise KernelError(errno.EOPNOTSUPP, f"{group.path} is an invalid domain")
        if group.controls and not (group.is_root or group.can_be_thread_root or group.threaded):
            raise KernelError(errno.EBUSY, f"{group.path} hands controllers out and may have no processes")
        self.move(task, group)

    def move(self, task: Task, group: Cgroup) -> None:
        """Put a task into a group."""
        self._leave(task)
        self.enter(task, group)

    def enter(self, task: Task, group: Cgroup | None) -> None:
        """A task that is nowhere yet, a child of fork, is in a group from now on; None is the root."""
        if group is None or group.is_root:
            task.cgroup = None
            return
        task.cgroup = group
        group.members[task.pid] = task
        self._count(group, 1)

    def _leave(self, task: Task) -> None:
        group = task.cgroup
        if group is not None:
            del group.members[task.pid]
            task.cgroup = None
            self._count(group, -1)

    def exit(self, task: Task) -> None:
        """A task ends."""
        self._leave(task)

    def _count(self, group: Cgroup, change: int) -> None:
        for above in group.upwards():
            before = above.populated
            above.populated += change
            if not before or not above.populated:
                above.events_version += 1

    def procs(self, group: Cgroup) -> list[int]:
        """Pids of the processes. EOPNOTSUPP in a threaded group, whose domain lists them."""
        if group.threaded:
            raise KernelError(errno.EOPNOTSUPP, f"{group.path} is threaded: its processes are listed by its domain")
        found = self.threads(group)
        for child in group.children.values():
            if child.threaded:
                found += [pid for below in child.descendants() if below.threaded for pid in below.members]
        return found

    def threads(self, group: Cgroup) -> list[int]:
        """Pids of the threads."""
        if group.is_root:
            return [task.pid for task in self._tasks.in_order_of_fork() if task.cgroup is None]
        return list(group.members)

    def kill(self, group: Cgroup) -> None:
        """SIGKILL to all processes in and below a group. EOPNOTSUPP for a threaded one."""
        self._not_dead(group, errno.ENOENT)
        if group.threaded:
            raise KernelError(errno.EOPNOTSUPP, f"{group.path} is threaded")
        for below in list(group.descendants()):
            for task in list(below.members.values()):
                if not task.is_kthread:
                    task.killed = SIGKILL
                    self._kill(task)

    def set_freeze(self, group: Cgroup, freeze: bool) -> None:
        """Freeze or thaw a group and those below it; a group says that it is frozen when all its tasks are."""
        self._not_dead(group, errno.ENOENT)
        group.freeze = freeze
        for below in group.descendants():
            frozen = any(above.freeze for above in below.upwards())
            if frozen != below.frozen:
                below.frozen = frozen
                below.events_version += 1

    def set_pressure(self, group: Cgroup, enable: bool) -> None:
        """Switch pressure accounting of a group; its files are there while it is on."""
        self._not_dead(group, errno.ENOENT)
        if group.psi.enabled != enable:
            group.psi.enabled = enable
            self.version += 1
            if enable:
                group.psi.restart()

    @staticmethod
    def _not_dead(group: Cgroup, number: int) -> None:
        if group.dead:
            raise KernelError(number, f"{group.path} was removed")

    # -- proof -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Every task is where its group has it, and the counts are sums. AssertionError."""
        moved = {task.pid: task for task in self._tasks if task.cgroup is not None}
        for group in self.root.descendants():
            below = list(group.descendants())
            threaded = sum(child.threaded for child in group.children.values())
            assert threaded == group.threaded_children, f"{group.path}: {threaded} children are threaded"
            tasks = sum(len(each.members) for each in below)
            assert tasks == group.populated, f"{group.path}: {tasks} tasks, populated says {group.populated}"
            assert len(below) - 1 == group.nr_descendants, f"{group.path}: nr_descendants is {group.nr_descendants}"
            for pid, task in group.members.items():
                assert moved.pop(pid, None) is task, f"{group.path}: pid {pid} is elsewhere"
                assert task.cgroup is group, f"pid {pid} is in {group.path} and does not know"
        assert not moved, f"pids {sorted(moved)} are in groups that are gone"
