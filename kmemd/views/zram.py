"""zram devices: ``/sys/class/zram-control``, ``/sys/block/zramN``, debugfs ``zram`` (drivers/block/zram/zram_drv.c)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm import kstrtox
from kmemd.mm.clock import NSEC_PER_SEC, NSEC_PER_USEC
from kmemd.mm.units import PAGE_SHIFT, PAGE_SIZE
from kmemd.mm.zram import Zram
from kmemd.steps import Steps
from kmemd.views.stream import StreamFile
from kmemd.views.sysctl import one_page
from kmemd.views.tree import Caller, debugfs, sysfs

DISK = "block/{disk}"


def _loaded(kernel: Kernel) -> bool:
    return kernel.user.swap_storage.zram.loaded


def _is_zram(kernel: Kernel, disk: str) -> bool:
    return kernel.user.swap_storage.zram.find(f"/dev/{disk}") is not None


def _zram(kernel: Kernel, disk: str) -> Zram:
    found = kernel.user.swap_storage.zram.find(f"/dev/{disk}")
    assert found is not None, "the file exists for zram devices alone"
    return found


# -- devices -------------------------------------------------------------------------------------------------

sysfs.dir("class/zram-control", exists=_loaded)


@sysfs.file("class/zram-control/hot_add", mode=0o400, exists=_loaded)
def hot_add(kernel: Kernel) -> str:
    """Reading makes a device, and tells its number."""
    return f"{kernel.user.swap_storage.zram.add().id}\n"


@sysfs.write_only("class/zram-control/hot_remove", mode=0o200, exists=_loaded)
def hot_remove(kernel: Kernel, text: str) -> Steps[None]:
    """Take the device of a number away. EINVAL, ERANGE, ENODEV, EBUSY."""
    yield from kernel.user.swap_storage.zram.remove(one_page(text))


# -- what is shown -------------------------------------------------------------------------------------------

Show = Callable[[Zram], str]


def _mm_stat(zram: Zram) -> str:
    """Bytes stored, compressed, taken, allowed, taken at most; pages same-filled, compacted, huge, ever huge."""
    stats = zram.stats
    compacted = zram.pool.pages_compacted if zram.pool is not None else 0
    values = (
        *(stats.pages_stored << PAGE_SHIFT, stats.compr_data_size, zram.used_pages << PAGE_SHIFT),
        *(zram.limit_pages << PAGE_SHIFT, stats.max_used_pages << PAGE_SHIFT),
        *(stats.same_pages, compacted, stats.huge_pages, stats.huge_pages_since),
    )
    return " ".join(f"{value:8}" for value in values) + "\n"


def _io_stat(zram: Zram) -> str:
    """Reads and writes that failed, requests that were none, slots that were freed."""
    stats = zram.stats
    values = (stats.failed_reads, stats.failed_writes, stats.invalid_io, stats.notify_free)
    return " ".join(f"{value:8}" for value in values) + "\n"


def _bd_stat(zram: Zram) -> str:
    """Pages on the backing device, read from it, written to it."""
    return f"{zram.stats.bd_count:8} {zram.stats.bd_reads:8} {zram.stats.bd_writes:8}\n"


def _debug_stat(zram: Zram) -> str:
    """Writes that had to wait for memory, slots that were missed when they were freed."""
    return f"version: 1\n{zram.stats.writestall:8} {zram.stats.miss_free:8}\n"


def _backing_dev(zram: Zram) -> str:
    return f"{zram.backing.path if zram.backing is not None else 'none'}\n"


SHOWN: tuple[tuple[str, Show], ...] = (
    ("initstate", lambda zram: f"{int(bool(zram.disksize))}\n"),
    ("mm_stat", _mm_stat),
    ("io_stat", _io_stat),
    ("bd_stat", _bd_stat),
    ("debug_stat", _debug_stat),
)
Store = Callable[[Kernel, Zram, str], Steps[None] | None]


def _set_limit(kernel: Kernel, zram: Zram, text: str) -> None:
    """``writeback_limit``. EINVAL."""
    zram.wb_limit = _number(text)


def _enable_limit(kernel: Kernel, zram: Zram, text: str) -> None:
    """``writeback_limit_enable``. EINVAL."""
    zram.wb_limit_enable = bool(_number(text))


def _number(text: str) -> int:
    try:
        return kstrtox.kstrtoull(kstrtox.to_bytes(text), 10)
    except KernelError as error:
        raise KernelError(errno.EINVAL, error.reason) from error


def _reset(kernel: Kernel, zram: Zram, text: str) -> Steps[None]:
    """EINVAL, ERANGE, EBUSY."""
    value = kstrtox.kstrtouint(kstrtox.to_bytes(text))
    if value >> 16:
        raise KernelError(errno.ERANGE, "reset takes 16 bits")
    if not value:
        raise KernelError(errno.EINVAL, "reset takes 1")
    yield from zram.reset()


STORED: tuple[tuple[str, int, Show | None, Store], ...] = (
    ("disksize", 0o644, lambda zram: f"{zram.disksize}\n", lambda kernel, zram, text: zram.set_disksize(text)),
    ("comp_algorithm", 0o644, Zram.algorithms, lambda kernel, zram, text: zram.set_algorithm(text)),
    ("mem_limit", 0o200, None, lambda kernel, zram, text: zram.set_mem_limit(text)),
    ("mem_used_max", 0o200, None, lambda kernel, zram, text: zram.reset_used_max(text)),
    ("idle", 0o200, None, lambda kernel, zram, text: zram.mark_idle(text)),
    ("compact", 0o200, None, lambda kernel, zram, text: zram.compact()),
    ("reset", 0o200, None, _reset),
    ("backing_dev", 0o644, _backing_dev, lambda kernel, zram, text: zram.set_backing(text)),
    ("writeback", 0o200, None, lambda kernel, zram, text: zram.writeback(text)),
    ("writeback_limit", 0o644, lambda zram: f"{zram.wb_limit}\n", _set_limit),
    ("writeback_limit_enable", 0o644, lambda zram: f"{int(zram.wb_limit_enable)}\n", _enable_limit),
)


def _shown(show: Show) -> Callable[[Kernel, str], str]:
    return lambda kernel, disk: show(_zram(kernel, disk))


def _stored(store: Store) -> Callable[[Kernel, str, str], Steps[int]]:
    """A write of at most a page; an empty one does nothing."""

    def write(kernel: Kernel, disk: str, text: str) -> Steps[int]:
        page = one_page(text)
        if page:
            steps = store(kernel, _zram(kernel, disk), page)
            if steps is not None:
                yield from steps
        return len(kstrtox.to_bytes(page))

    return write


for _name, _show in SHOWN:
    sysfs.file(f"{DISK}/{_name}", exists=_is_zram)(_shown(_show))
for _name, _mode, _shows, _store in STORED:
    if _shows is None:
        sysfs.write_only(f"{DISK}/{_name}", mode=_mode, exists=_is_zram)(_stored(_store))
    else:
        sysfs.file(f"{DISK}/{_name}", mode=_mode, exists=_is_zram)(_shown(_shows)).store(_stored(_store))


@sysfs.file(f"{DISK}/max_comp_streams", mode=0o644, exists=_is_zram)
def max_comp_streams(kernel: Kernel, disk: str) -> str:
    """Each CPU has its own; writes change nothing."""
    return f"{kernel.machine.cpus}\n"


@max_comp_streams.store
def max_comp_streams_store(kernel: Kernel, disk: str, text: str) -> None:
    """Nothing is left to set."""


# -- debugfs -------------------------------------------------------------------------------------------------


@debugfs.keys("zram/{disk}")
def debug_devices(kernel: Kernel) -> list[str]:
    """A directory for each device."""
    return [zram.name for zram in kernel.user.swap_storage.zram.devices.values()]


@debugfs.device("zram/{disk}/block_state", mode=0o400)
def block_state(kernel: Kernel, disk: str, caller: Caller) -> StreamFile:
    """Each page that is stored: when it was used, and whether it is same-filled, written back, huge, idle."""
    return StreamFile(lambda: _states(_zram(kernel, disk)))


def _states(zram: Zram) -> Iterator[str]:
    if not zram.disksize:
        raise KernelError(errno.EINVAL, f"{zram.name} has no size")
    for index in sorted(zram.pages):
        page = zram.pages.get(index)
        if page is None:
            continue
        marks = (
            ("s", page.handle is None and not page.block),
            ("w", bool(page.block)),
            ("h", page.size == PAGE_SIZE and not page.block),
            ("i", page.idle),
        )
        seconds, rest = divmod(page.accessed_ns, NSEC_PER_SEC)
        flags = "".join(letter if on else "." for letter, on in marks)
        yield f"{index:12} {seconds:12}.{rest // NSEC_PER_USEC:06} {flags}\n"
