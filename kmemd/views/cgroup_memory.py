"""``memory.*`` of control groups (mm/memcontrol.c ``memory_files``, ``swap_files``, ``zswap_files``).

They are there where the parent hands the memory controller out; the root has the few that mean something for all.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.cgroup import Cgroup
from kmemd.mm.memcontrol_group import EVENTS, SWAP_EVENTS, SWAP_HIGH, MemCgroup
from kmemd.mm.memcontrol_zswap import zswap_bytes
from kmemd.mm.page_counter import PAGE_COUNTER_MAX, page_counter_memparse
from kmemd.mm.units import PAGE_SIZE
from kmemd.steps import Steps
from kmemd.views.cgroup import cgroup_file, number, write_only
from kmemd.views.sliced import Sliced

Show = Callable[[Kernel, MemCgroup], Any]
Store = Callable[[Kernel, MemCgroup, str], Steps[None] | None]


def _has_memory(kernel: Kernel, group: Cgroup) -> bool:
    return group.own_memcg is not None


def memory_file(
    name: str,
    *,
    store: Store | None = None,
    on_root: bool = False,
    version: Callable[[MemCgroup], int] | None = None,
) -> Callable[[Show], Show]:
    """Decorator: ``memory.NAME`` of every group that the controller is on in."""

    def decorate(show: Show) -> Show:
        def put(kernel: Kernel, group: Cgroup, text: str) -> Steps[None] | None:
            assert store is not None
            return store(kernel, _memcg(group), text)

        cgroup_file(
            f"memory.{name}",
            store=put if store is not None else None,
            on_root=on_root,
            exists=_has_memory,
            # -1: the group is gone, which pollers of a file that is still open are told
            version=(lambda group: version(group.own_memcg) if group.own_memcg is not None else -1)
            if version is not None
            else None,
        )(lambda kernel, group: show(kernel, _memcg(group)))
        return show

    return decorate


def _memcg(group: Cgroup) -> MemCgroup:
    """The group's memory cgroup. ENODEV when it was taken away while the file was open."""
    if group.own_memcg is None:
        raise KernelError(errno.ENODEV, f"{group.path} has no memory controller any more")
    memcg: MemCgroup = group.own_memcg
    return memcg


def _size(pages: int) -> str:
    return "max\n" if pages == PAGE_COUNTER_MAX else f"{pages * PAGE_SIZE}\n"


@memory_file("current")
def current(kernel: Kernel, memcg: MemCgroup) -> str:
    """Bytes that are charged."""
    return f"{memcg.memory.usage * PAGE_SIZE}\n"


@memory_file("peak")
def peak(kernel: Kernel, memcg: MemCgroup) -> str:
    """The most that ever was."""
    return f"{memcg.memory.watermark * PAGE_SIZE}\n"


def _declare_protection(kind: str) -> None:
    def put(kernel: Kernel, memcg: MemCgroup, text: str) -> None:
        memcg.memory.set_protection(kind, page_counter_memparse(text, "max"))

    memory_file(kind, store=put)(lambda kernel, memcg: _size(getattr(memcg.memory, kind)))


for _kind in ("min", "low"):
    _declare_protection(_kind)


@memory_file("high", store=lambda kernel, memcg, text: kernel.memcg_limits.write_high(memcg, text))
def high(kernel: Kernel, memcg: MemCgroup) -> str:
    """Above it, who charges has to reclaim and is slowed down."""
    return _size(memcg.memory.high)


@memory_file("max", store=lambda kernel, memcg, text: kernel.memcg_limits.write_max(memcg, text))
def maximum(kernel: Kernel, memcg: MemCgroup) -> str:
    """The limit."""
    return _size(memcg.memory.max)


def _event_lines(counts: list[int]) -> Iterator[str]:
    for name, count in zip(EVENTS, counts, strict=False):
        yield f"{name} {count}\n"


@memory_file("events", version=lambda memcg: memcg.events_version)
def events(kernel: Kernel, memcg: MemCgroup) -> Iterator[str]:
    """What happened in the group and below it."""
    return _event_lines(memcg.events)


@memory_file("events.local", version=lambda memcg: memcg.local_version)
def events_local(kernel: Kernel, memcg: MemCgroup) -> Iterator[str]:
    """What happened in the group itself."""
    return _event_lines(memcg.events_local)


@memory_file("stat", on_root=True)
def stat(kernel: Kernel, memcg: MemCgroup) -> Sliced:
    """What the memory is, and what became of it."""
    return Sliced(_from_pages(kernel, kernel.memcg_stat.lines(memcg)))


@memory_file("numa_stat", on_root=True)
def numa_stat(kernel: Kernel, memcg: MemCgroup) -> Sliced:
    """The same for each node."""
    return Sliced(_from_pages(kernel, kernel.memcg_stat.numa_lines(memcg)))


def _from_pages(kernel: Kernel, lines: Iterator[str]) -> Iterator[str]:
    yield from kernel.memcg_stat.refresh()
    for line in lines:
        yield f"{line}\n"


def _set_oom_group(kernel: Kernel, memcg: MemCgroup, text: str) -> None:
    """0 or 1. EINVAL."""
    value = number(text)
    if value not in (0, 1):
        raise KernelError(errno.EINVAL, f"{value} is neither 0 nor 1")
    memcg.oom_group = bool(value)


@memory_file("oom.group", store=_set_oom_group)
def oom_group(kernel: Kernel, memcg: MemCgroup) -> str:
    """Whether the OOM killer takes all of the group or none."""
    return f"{int(memcg.oom_group)}\n"


@write_only("memory.reclaim", exists=_has_memory)
def reclaim(kernel: Kernel, group: Cgroup, text: str) -> Steps[None]:
    """Free so many bytes. EINVAL, EAGAIN."""
    return kernel.memcg_limits.write_reclaim(_memcg(group), text)


@memory_file("swap.current")
def swap_current(kernel: Kernel, memcg: MemCgroup) -> str:
    """Bytes in swap."""
    return f"{memcg.swap.usage * PAGE_SIZE}\n"


def _set_swap_high(kernel: Kernel, memcg: MemCgroup, text: str) -> None:
    memcg.swap.high = page_counter_memparse(text, "max")


def _set_swap_max(kernel: Kernel, memcg: MemCgroup, text: str) -> None:
    memcg.swap.max = page_counter_memparse(text, "max")


def _set_zswap_max(kernel: Kernel, memcg: MemCgroup, text: str) -> None:
    memcg.zswap_max = page_counter_memparse(text, "max")


@memory_file("swap.high", store=_set_swap_high)
def swap_high(kernel: Kernel, memcg: MemCgroup) -> str:
    """Above it, who charges memory is slowed down."""
    return _size(memcg.swap.high)


@memory_file("swap.max", store=_set_swap_max)
def swap_max(kernel: Kernel, memcg: MemCgroup) -> str:
    """The limit of swap."""
    return _size(memcg.swap.max)


@memory_file("swap.events", version=lambda memcg: memcg.swap_events_version)
def swap_events(kernel: Kernel, memcg: MemCgroup) -> Iterator[str]:
    """What happened with swap in the group and below it."""
    for name, count in zip(SWAP_EVENTS, memcg.events[SWAP_HIGH:], strict=True):
        yield f"{name} {count}\n"


@memory_file("zswap.current")
def zswap_current(kernel: Kernel, memcg: MemCgroup) -> str:
    """Bytes of compressed pages."""
    return f"{zswap_bytes(memcg)}\n"


@memory_file("zswap.max", store=_set_zswap_max)
def zswap_max(kernel: Kernel, memcg: MemCgroup) -> str:
    """The limit of compressed pages."""
    return _size(memcg.zswap_max)
