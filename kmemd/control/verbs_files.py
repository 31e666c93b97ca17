"""Verbs of files and swap: ``create``, ``read_file``, ``write_file``, ``fadvise``, ``mount``, ``swapon`` and more.

Linux: fs/open.c, fs/read_write.c, mm/fadvise.c, fs/namespace.c, mm/swapfile.c. A file is named by its path; there
are no descriptors.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np

from kmemd.control.language import Reply, Slices, invalid, quoted, suggestion, verb
from kmemd.control.verbs_access import Pattern, pages
from kmemd.control.words import Number, Size, Text
from kmemd.errors import KernelError
from kmemd.mm.blk_mq import ERRORS, DiskSpeed
from kmemd.mm.clock import NSEC_PER_SEC
from kmemd.mm.file_read import Reads
from kmemd.mm.filemap import File
from kmemd.mm.pace import Pace
from kmemd.mm.swap_header import SIGNATURE_AT, check_header, make_header
from kmemd.mm.units import KIB_PER_PAGE, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

NS_PER_US = NSEC_PER_SEC // 1_000_000
PIECE = 2 << 20
"""Bytes that are read or written before others may run, where memory is not short."""
SHOWN = 64
"""Bytes that a reply shows at most."""
ADVICE = ("NORMAL", "RANDOM", "SEQUENTIAL", "WILLNEED", "DONTNEED", "NOREUSE")
MODES = ("allocate", "punch_hole")
SYNC_FLAGS = ("WAIT_BEFORE", "WRITE", "WAIT_AFTER")
DISCARD_POLICIES = ("once", "pages", "both")
DISK_OPERATIONS = ("read", "write", "off")
NAMES = 96
"""Names that are looked up before others may run."""


def _described(file: File) -> dict[str, int | str]:
    return {"path": file.path, "inode": file.ino, "device": file.device, "size": file.size}


def _pace(kernel: Kernel) -> Pace:
    return Pace(lambda: kernel.page_alloc.slow_paths, PIECE >> PAGE_SHIFT)


@verb
def create(kernel: Kernel, path: Text, size: Size = 0) -> Reply:
    """Make a file of SIZE bytes, which read as zeros.

    Paths below /mnt are on a disk; others are in the root file system, a tmpfs, or where mount put a file system. A
    file on the disk has its blocks, one of a tmpfs gets a page where it is used.
    """
    return Reply(_described(kernel.user.vfs.create(path, size)))


@verb
def truncate(kernel: Kernel, path: Text, size: Size) -> Slices:
    """Make a file shorter or longer. Its pages behind the new end go, mapped or not: who touches them gets SIGBUS."""
    return Reply(_described((yield from kernel.user.vfs.truncate_steps(path, size))))


@verb
def unlink(kernel: Kernel, path: Text) -> Slices:
    """Take a file's name away. The file lives as long as somebody maps it, and is shown as (deleted)."""
    return Reply(_described((yield from kernel.user.vfs.unlink_steps(path))))


@verb
def read_file(
    kernel: Kernel,
    path: Text,
    *,
    offset: Size = 0,
    length: Size | None = None,
    n: Size | None = None,
    pattern: Pattern | None = None,
) -> Slices:
    """Read a range of a file, without length= to its end: what the cache lacks comes from the disk, with readahead.

    /dev/vda and the like is a disk itself, whose pages are Buffers of meminfo.

    Without a pattern n= is the same as length=, and data= has the bytes in hexadecimal, when they are 64 at most. With
    pattern= the range is read by n calls of a page each, by default as many as it has pages: one page after the other,
    random ones, or zipf:S. hits= says how many of these found their page in the cache.
    """
    files = kernel.user.files
    file = files.vfs.readable(path)
    if pattern is not None:
        return (yield from _read_pattern(kernel, file, offset, length, n, pattern))
    n = length if n is None else n
    end = file.size if n is None else min(offset + n, file.size)
    done, pace = 0, _pace(kernel)
    while offset + done < end:
        piece = min(PAGE_SIZE * pace.next(-(-(end - offset - done) // PAGE_SIZE)), end - offset - done)
        got = files.read(file, offset + done, piece)
        done += got
        yield
        if not got:
            break
    words: dict[str, int | str] = {"path": path, "n": done}
    if 0 < done <= SHOWN:
        words["data"] = files.io.load(file, offset, done).hex()
    return Reply(words)


def _read_pattern(
    kernel: Kernel, file: File, offset: int, length: int | None, n: int | None, pattern: tuple[str, float]
) -> Slices:
    """Reads of single pages of a range."""
    first = offset >> PAGE_SHIFT
    end = file.pages if length is None else min((offset + length + PAGE_SIZE - 1) >> PAGE_SHIFT, file.pages)
    if first >= end:
        return Reply({"path": file.path, "n": 0, "bytes": 0, "hits": 0})
    reads, done = kernel.user.file_reads, Reads()
    rng = np.random.default_rng(kernel.rng.getrandbits(64))
    for indices in pages(pattern, first, end - first, n or end - first, rng):
        yield from reads.read_pages(file, indices, done)
        yield
    return Reply({"path": file.path, "n": done.calls, "bytes": done.bytes, "hits": done.calls - done.missed})


@verb
def write_file(
    kernel: Kernel, path: Text, *, offset: Size = 0, n: Size | None = None, data: Text | None = None, sync: Number = 0
) -> Slices:
    """Write n bytes to a file, which grows as it must, or the text of data=. The pages are dirty then.

    A writer that makes too much dirty has to wait. With sync=1 each write waits until the disk has it (O_SYNC).
    """
    if (n is None) == (data is None):
        invalid("write_file needs n= or data=, one of them")
    files = kernel.user.files
    file = files.vfs.lookup(path)
    content = data.encode() if data is not None else b""
    count = n if n is not None else len(content)
    done, pace = 0, _pace(kernel)
    while done < count:
        piece = min(PAGE_SIZE * pace.next(-(-(count - done) // PAGE_SIZE)), count - done)
        done += files.write(file, offset + done, piece, sync=bool(sync) and not content)
        yield
    if content:
        files.io.store(file, offset, content)
        if sync:
            files.fsync(file, offset >> PAGE_SHIFT, (offset + count + PAGE_SIZE - 1) >> PAGE_SHIFT)
    return Reply({"path": path, "n": done, "size": file.size})


@verb
def fadvise(kernel: Kernel, path: Text, advice: Text, *, offset: Size = 0, n: Size = 0) -> Slices:
    """Say how a range of a file will be used: WILLNEED reads it, DONTNEED writes it and drops what is clean.

    WILLNEED reads as much as the disk takes at once at most. What DONTNEED cannot drop is the next to be reclaimed.
    SEQUENTIAL doubles the readahead window, RANDOM turns readahead off, NORMAL takes both back. Without n= the range
    goes to the end. pages= says how many pages were read, or dropped.
    """
    word = advice.upper().removeprefix("POSIX_FADV_")
    if word not in ADVICE:
        invalid(f"advice: no advice {quoted(advice)}{suggestion(word, ADVICE)}")
    files = kernel.user.files
    file = files.vfs.lookup(path)
    pages = yield from files.fadvise(file, word, offset, n)
    return Reply({"path": path, "pages": pages})


@verb
def readahead(kernel: Kernel, path: Text, offset: Size, length: Size) -> Reply:
    """Read a range of a file into memory before it is needed (readahead(2)), as much as the disk takes at once at most.

    pages= says how many pages were read. A tmpfs has nothing to read ahead.
    """
    files = kernel.user.files
    file = files.vfs.lookup(path)
    end = min((offset + length + PAGE_SIZE - 1) >> PAGE_SHIFT, file.pages)
    return Reply({"path": path, "pages": files.force_readahead(file, offset >> PAGE_SHIFT, end)})


WHOLE = 1 << 62
"""Where a range ends that has no end, in pages."""


@verb
def fsync(kernel: Kernel, path: Text) -> Slices:
    """Write a file's dirty pages and its inode to its disk and wait.

    EIO when a page could not be written since the calling process was last told, be it now or before.
    """
    files = kernel.user.files
    file = files.vfs.lookup(path)
    done = 0
    part, pages = PIECE >> PAGE_SHIFT, max(file.pages, 1)
    for start in range(0, pages, part):
        done += files.io.writeback(file, start, start + part if start + part < pages else WHOLE)
        yield
    files.fsync(file)
    return Reply({"path": path, "pages": done})


@verb
def sync_file_range(kernel: Kernel, path: Text, *, offset: Size = 0, n: Size = 0, flags: Text = "WRITE") -> Slices:
    """Begin to write a range of a file, or wait for it.

    flags= is one of WAIT_BEFORE, WRITE and WAIT_AFTER, or several with | between; the range goes to the end without n=.
    """
    bits = {name: 1 << bit for bit, name in enumerate(SYNC_FLAGS)}
    words = [word.upper().removeprefix("SYNC_FILE_RANGE_") for word in flags.split("|")]
    for word in words:
        if word not in bits:
            invalid(f"flags: no flag {quoted(word)}{suggestion(word, SYNC_FLAGS)}")
    files = kernel.user.files
    pages = yield from files.sync_file_range(files.vfs.lookup(path), offset, n, sum({bits[word] for word in words}))
    return Reply({"path": path, "pages": pages})


@verb
def sync(kernel: Kernel) -> Slices:
    """Write everything that is dirty to the disks and wait (sync(2)). pages= says how many pages of files."""
    return Reply({"pages": (yield from kernel.user.files.sync())})


@verb
def stat(kernel: Kernel, path: Text) -> Reply:
    """Look a path up: its names and its inode are cached then; ENOENT leaves a negative name behind on a disk."""
    kind, ino = kernel.user.vfs.stat(path)
    return Reply({"path": path, "type": kind, "inode": ino})


@verb
def lookup(kernel: Kernel, path: Text, *, n: Number = 1, missing: Number = 0) -> Slices:
    """Look up n names in directory PATH, f0, f1 and on, as ls -R would; the disk has empty files of these names.

    With missing=1 names that do not exist, none0 and on: they leave negative dentries behind.
    """
    vfs = kernel.user.vfs
    if n < 1:
        invalid("n: at least one name")
    mount = vfs.mount_of(path)
    vfs.populate(path, 0 if missing else n)
    name = "none" if missing else "f"
    for start in range(0, n, NAMES):
        names = [f"{name}{number}" for number in range(start, min(start + NAMES, n))]
        vfs.storage.dcache.lookup_names(mount, path, names)
        yield
    dcache = vfs.storage.dcache
    return Reply({"path": path, "n": n, "dentries": dcache.nr_dentry, "unused": dcache.nr_unused})


@verb
def disk_error(kernel: Kernel, device: Text, operation: Text, *, sectors: Text = "all", error: Text = "EIO") -> Reply:
    """Make sectors of a disk bad: OPERATION is read, write, or off; sectors=FIRST-LAST of 512 bytes, or all.

    A request that touches one of them fails, as a broken disk's does, until off. error= is what the disk says: EIO,
    ENODATA (a bad medium), ENOSPC (a thin disk is full), ETIMEDOUT, EREMOTEIO, ENOLINK, EILSEQ or ENODEV.
    """
    path = device if device.startswith("/") else f"/dev/{device}"
    codes = {errno.errorcode[number]: number for number in ERRORS}
    if error.upper() not in codes:
        invalid(f"error: no error of a disk is {quoted(error)}{suggestion(error.upper(), codes)}")
    if operation not in DISK_OPERATIONS:
        invalid(f"operation: read, write or off, not {quoted(operation)}{suggestion(operation, DISK_OPERATIONS)}")
    disk = kernel.user.block.disks.get(path)
    if operation == "off":
        for ranges in disk.bad:
            ranges.clear()
    else:
        disk.bad[DISK_OPERATIONS.index(operation)].append((*_sectors(sectors), codes[error.upper()]))
    return Reply({"device": disk.name, "reads": len(disk.bad[0]), "writes": len(disk.bad[1])})


@verb
def disk_speed(
    kernel: Kernel,
    device: Text,
    *,
    read_latency: Number | None = None,
    write_latency: Number | None = None,
    read_bandwidth: Size | None = None,
    write_bandwidth: Size | None = None,
) -> Reply:
    """Say how fast a disk is: latencies of a request in microseconds, bandwidths in bytes a second.

    What is not said stays; without any word the reply says how it is.
    """
    disk = kernel.user.block.disks.get(device if device.startswith("/") else f"/dev/{device}")
    old = disk.speed
    for name, value in (("read_latency", read_latency), ("write_latency", write_latency)):
        if value is not None and value < 0:
            invalid(f"{name}: 0 or more microseconds")
    if read_bandwidth == 0 or write_bandwidth == 0:
        invalid("bandwidth: at least one byte a second")
    disk.speed = DiskSpeed(
        old.read if read_latency is None else read_latency * NS_PER_US,
        old.write if write_latency is None else write_latency * NS_PER_US,
        old.read_page if read_bandwidth is None else PAGE_SIZE * NSEC_PER_SEC // read_bandwidth,
        old.write_page if write_bandwidth is None else PAGE_SIZE * NSEC_PER_SEC // write_bandwidth,
    )
    return Reply(
        {
            "device": disk.name,
            "read_latency": disk.speed.read // NS_PER_US,
            "write_latency": disk.speed.write // NS_PER_US,
            "read_bandwidth": PAGE_SIZE * NSEC_PER_SEC // max(disk.speed.read_page, 1),
            "write_bandwidth": PAGE_SIZE * NSEC_PER_SEC // max(disk.speed.write_page, 1),
        }
    )


def _sectors(text: str) -> tuple[int, int]:
    """A range of sectors, the end behind the last."""
    if text == "all":
        return 0, 1 << 62
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal()) or int(last or first) < int(first):
        invalid(f"sectors: FIRST-LAST or all, not {quoted(text)}")
    return int(first), int(last or first) + 1


@verb
def fallocate(kernel: Kernel, path: Text, offset: Size, length: Size, *, mode: Text = "allocate") -> Slices:
    """Give a range of a tmpfs file its pages, or take them away: mode=punch_hole. ext2 cannot (EOPNOTSUPP)."""
    if mode not in MODES:
        invalid(f"mode: allocate or punch_hole, not {quoted(mode)}{suggestion(mode, MODES)}")
    if not length:
        invalid("length: a range has at least one byte")
    files = kernel.user.files
    file = files.vfs.lookup(path)
    if mode == "punch_hole":
        yield from files.punch_hole(file, offset, length)
    else:
        files.vfs.check_write(file, offset + length)
        yield from files.fallocate(file, offset, length)
    return Reply(_described(file))


@verb
def fincore(kernel: Kernel, path: Text) -> Slices:
    """Say how many of a file's pages are in memory, dirty, being written, and in swap."""
    file = kernel.user.vfs.lookup(path)
    state = yield from kernel.user.files.state(file)
    return Reply({**_described(file), **state})


@verb
def mount(kernel: Kernel, source: Text, point: Text, *, type: Text = "tmpfs", size: Size = 0) -> Reply:
    """Mount an empty file system: type=tmpfs, or type=ext2 of a disk (/dev/ram0, /dev/vdc); size= limits it."""
    found = kernel.user.vfs.mount(source, point, type, (size + PAGE_SIZE - 1) >> PAGE_SHIFT)
    return Reply({"source": found.source, "point": found.point, "type": found.kind, "device": found.device})


@verb
def umount(kernel: Kernel, point: Text) -> Slices:
    """Unmount what mount mounted. Dirty pages are written, all pages go; EBUSY while a file is mapped."""
    found = yield from kernel.user.vfs.umount(point)
    return Reply({"source": found.source, "point": found.point})


@verb
def mkswap(kernel: Kernel, path: Text) -> Reply:
    """Write a swap area's header into a file or a zram device, as large as that is."""
    zram = kernel.user.swap_storage.zram.find(path)
    if zram is not None:
        zram.write_header(make_header(zram.disksize))
        return Reply({"path": path, "pages": (zram.disksize >> PAGE_SHIFT) - 1})
    files = kernel.user.files
    file = files.vfs.lookup(path)
    header = make_header(file.size)
    files.write(file, 0, PAGE_SIZE)
    files.io.store(file, 0, header)
    return Reply({"path": path, "pages": (file.size >> PAGE_SHIFT) - 1})


@verb
def swapon(kernel: Kernel, path: Text, *, priority: Number | None = None, discard: Text = "") -> Reply:
    """Turn a swap area on: a device of the machine, or a zram device or file of a disk with a header (mkswap).

    Areas without a priority are used one after the other, in the order in which they were turned on; those of the same
    priority in turn. discard=once tells a disk that can use it that all of the area is empty, discard=pages whenever a
    cluster of slots becomes free, discard=both of either, as swapon(8) does by --discard.
    """
    _privileged(kernel)
    if discard and discard not in DISCARD_POLICIES:
        invalid(f"discard takes {', '.join(DISCARD_POLICIES)}, not {discard}")
    device = kernel.swap.devices.get(path)
    wanted = -1 if priority is None else priority
    zram = kernel.user.swap_storage.zram.find(path)
    if zram is not None:
        size = check_header(zram.header, zram.disksize, kernel.printk)
        area = kernel.swap.files.swapon(path, "partition", size, wanted, discard=discard)
    elif device is not None:
        area = kernel.swap.files.swapon(path, device.kind, device.size, wanted, discard=discard)
    else:
        size = _swap_file(kernel, path)
        file = kernel.user.vfs.lookup(path)
        area = kernel.swap.files.swapon(path, "file", size, wanted, disk=file.wb.disk.name, discard=discard)
        file.users += 1
    return Reply({"path": path, "size": area.pages * KIB_PER_PAGE << 10, "priority": area.priority})


def _swap_file(kernel: Kernel, path: str) -> int:
    """How large a file with a header is. ENOENT, EISDIR, EINVAL, EBUSY."""
    file = kernel.user.vfs.lookup(path)
    if kernel.swap.files.find(path) is not None:
        raise KernelError(errno.EBUSY, f"{path} is a swap area that is on")
    if file.is_shmem:
        raise KernelError(errno.EINVAL, f"{path} is in memory, where nothing can be swapped to")
    files = kernel.user.files
    files.read(file, 0, PAGE_SIZE)
    return check_header(files.io.load(file, 0, SIGNATURE_AT + 10), file.size, kernel.printk)


@verb
def swapoff(kernel: Kernel, path: Text) -> Slices:
    """Turn a swap area off: all that is in it comes back into memory first."""
    _privileged(kernel)
    vfs, task = kernel.user.vfs, kernel.tasks.current()
    area = kernel.swap.files.find(path)
    if path not in kernel.swap.devices and area is None and kernel.user.swap_storage.zram.find(path) is None:
        vfs.lookup(path)
    try:
        if task is not None:
            task.oom_flag_origin = True  # if memory runs out, it is because of this
        pages = yield from kernel.user.swap_off.swapoff(path)
    finally:
        if task is not None:
            task.oom_flag_origin = False
    if area is not None and area.kind == "file" and path not in kernel.swap.devices:
        vfs.lookup(path).users -= 1
    return Reply({"path": path, "pages": pages})


def _privileged(kernel: Kernel) -> None:
    """EPERM for a task that is not root's."""
    task = kernel.tasks.current()
    if task is not None and task.uid:
        raise KernelError(errno.EPERM, f"{os.strerror(errno.EPERM)}: only root changes swap areas")
