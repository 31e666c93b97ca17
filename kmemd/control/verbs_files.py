"""Verbs of files and swap: ``create``, ``read_file``, ``write_file``, ``fadvise``, ``mount``, ``swapon`` and more.

Linux: fs/open.c, fs/read_write.c, mm/fadvise.c, fs/namespace.c, mm/swapfile.c. A file is named by its path; there
are no descriptors.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from kmemd.control.language import Reply, Slices, invalid, quoted, suggestion, verb
from kmemd.control.words import Number, Size, Text
from kmemd.errors import KernelError
from kmemd.mm.filemap import File
from kmemd.mm.swap_header import SIGNATURE_AT, check_header, make_header
from kmemd.mm.units import KIB_PER_PAGE, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from kmemd.kernel import Kernel

PIECE = 8 << 20
"""Bytes that are read or written before others may run."""
SHOWN = 64
"""Bytes that a reply shows at most."""
ADVICE = ("NORMAL", "RANDOM", "SEQUENTIAL", "WILLNEED", "DONTNEED", "NOREUSE")
MODES = ("allocate", "punch_hole")
SYNC_FLAGS = ("WAIT_BEFORE", "WRITE", "WAIT_AFTER")
DISK_OPERATIONS = ("read", "write", "off")
NAMES = 256
"""Names that are looked up before others may run."""


def _described(file: File) -> dict[str, int | str]:
    return {"path": file.path, "inode": file.ino, "device": file.device, "size": file.size}


@verb
def create(kernel: Kernel, path: Text, size: Size = 0) -> Reply:
    """Make a file of SIZE bytes, which read as zeros.

    Paths below /mnt are on a disk; others are in the root file system, a tmpfs, or where mount put a file system. A
    file on the disk has its blocks, one of a tmpfs gets a page where it is used.
    """
    return Reply(_described(kernel.user.vfs.create(path, size)))


@verb
def truncate(kernel: Kernel, path: Text, size: Size) -> Reply:
    """Make a file shorter or longer. Its pages behind the new end go, mapped or not: who touches them gets SIGBUS."""
    return Reply(_described(kernel.user.vfs.truncate(path, size)))


@verb
def unlink(kernel: Kernel, path: Text) -> Reply:
    """Take a file's name away. The file lives as long as somebody maps it, and is shown as (deleted)."""
    return Reply(_described(kernel.user.vfs.unlink(path)))


@verb
def read_file(kernel: Kernel, path: Text, *, offset: Size = 0, n: Size | None = None) -> Slices:
    """Read n bytes of a file, without n= to its end: what the cache lacks comes from the disk, with readahead.

    data= has the bytes in hexadecimal, when they are 64 at most.
    """
    files = kernel.user.files
    file = files.vfs.lookup(path)
    end = file.size if n is None else min(offset + n, file.size)
    done = 0
    while offset + done < end:
        got = files.read(file, offset + done, min(PIECE, end - offset - done))
        done += got
        yield
        if not got:
            break
    words: dict[str, int | str] = {"path": path, "n": done}
    if 0 < done <= SHOWN:
        words["data"] = files.io.load(file, offset, done).hex()
    return Reply(words)


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
    done = 0
    while done < count:
        done += files.write(file, offset + done, min(PIECE, count - done), sync=bool(sync) and not content)
        yield
    if content:
        files.io.store(file, offset, content)
        if sync:
            files.fsync(file, offset >> PAGE_SHIFT, (offset + count + PAGE_SIZE - 1) >> PAGE_SHIFT)
    return Reply({"path": path, "n": done, "size": file.size})


@verb
def fadvise(kernel: Kernel, path: Text, advice: Text, *, offset: Size = 0, n: Size = 0) -> Slices:
    """Say how a range of a file will be used: WILLNEED reads it, DONTNEED writes it and drops what is clean.

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
def fsync(kernel: Kernel, path: Text) -> Slices:
    """Write a file's dirty pages and its inode to its disk and wait.

    EIO when a page could not be written since the calling process was last told, be it now or before.
    """
    files = kernel.user.files
    file = files.vfs.lookup(path)
    done = 0
    for start in range(0, max(file.pages, 1), PIECE >> PAGE_SHIFT):
        done += files.io.writeback(file, start, start + (PIECE >> PAGE_SHIFT))
        yield
    files.fsync(file)
    return Reply({"path": path, "pages": done})


@verb
def sync_file_range(kernel: Kernel, path: Text, *, offset: Size = 0, n: Size = 0, flags: Text = "WRITE") -> Reply:
    """Begin to write a range of a file, or wait for it.

    flags= is one of WAIT_BEFORE, WRITE and WAIT_AFTER, or several with | between; the range goes to the end without n=.
    """
    bits = {name: 1 << bit for bit, name in enumerate(SYNC_FLAGS)}
    words = [word.upper().removeprefix("SYNC_FILE_RANGE_") for word in flags.split("|")]
    for word in words:
        if word not in bits:
            invalid(f"flags: no flag {quoted(word)}{suggestion(word, SYNC_FLAGS)}")
    files = kernel.user.files
    pages = files.sync_file_range(files.vfs.lookup(path), offset, n, sum({bits[word] for word in words}))
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
    if not missing:
        vfs.populate(path, n)
    for start in range(0, n, NAMES):
        for number in range(start, min(start + NAMES, n)):
            vfs.storage.dcache.lookup(mount, f"{path}/none{number}" if missing else f"{path}/f{number}")
        yield
    dcache = vfs.storage.dcache
    return Reply({"path": path, "n": n, "dentries": dcache.nr_dentry, "unused": dcache.nr_unused})


@verb
def disk_error(kernel: Kernel, device: Text, operation: Text, *, sectors: Text = "all") -> Reply:
    """Make sectors of a disk bad: OPERATION is read, write, or off; sectors=FIRST-LAST of 512 bytes, or all.

    A request that touches one of them fails with EIO, as a broken disk's does, until off.
    """
    path = device if device.startswith("/") else f"/dev/{device}"
    if operation not in DISK_OPERATIONS:
        invalid(f"operation: read, write or off, not {quoted(operation)}{suggestion(operation, DISK_OPERATIONS)}")
    disk = kernel.user.block.disks.get(path)
    if operation == "off":
        for ranges in disk.bad:
            ranges.clear()
    else:
        disk.bad[DISK_OPERATIONS.index(operation)].append(_sectors(sectors))
    return Reply({"device": disk.name, "reads": len(disk.bad[0]), "writes": len(disk.bad[1])})


def _sectors(text: str) -> tuple[int, int]:
    """A range of sectors, the end behind the last."""
    if text == "all":
        return 0, 1 << 62
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal()) or int(last or first) < int(first):
        invalid(f"sectors: FIRST-LAST or all, not {quoted(text)}")
    return int(first), int(last or first) + 1


@verb
def fallocate(kernel: Kernel, path: Text, offset: Size, length: Size, *, mode: Text = "allocate") -> Reply:
    """Give a range of a tmpfs file its pages, or take them away: mode=punch_hole. ext2 cannot (EOPNOTSUPP)."""
    if mode not in MODES:
        invalid(f"mode: allocate or punch_hole, not {quoted(mode)}{suggestion(mode, MODES)}")
    if not length:
        invalid("length: a range has at least one byte")
    files = kernel.user.files
    file = files.vfs.lookup(path)
    if mode == "punch_hole":
        files.punch_hole(file, offset, length)
    else:
        files.vfs.check_write(file, offset + length)
        files.fallocate(file, offset, length)
    return Reply(_described(file))


@verb
def fincore(kernel: Kernel, path: Text) -> Reply:
    """Say how many of a file's pages are in memory, dirty, being written, and in swap."""
    file = kernel.user.vfs.lookup(path)
    state = kernel.user.files.state(file)
    return Reply({**_described(file), **state})


@verb
def mount(kernel: Kernel, source: Text, point: Text, *, type: Text = "tmpfs", size: Size = 0) -> Reply:
    """Mount an empty file system: type=tmpfs, or type=ext2 of a disk (/dev/ram0, /dev/vdc); size= limits it."""
    found = kernel.user.vfs.mount(source, point, type, (size + PAGE_SIZE - 1) >> PAGE_SHIFT)
    return Reply({"source": found.source, "point": found.point, "type": found.kind, "device": found.device})


@verb
def umount(kernel: Kernel, point: Text) -> Reply:
    """Unmount what mount mounted. Dirty pages are written, all pages go; EBUSY while a file is mapped."""
    found = kernel.user.vfs.umount(point)
    return Reply({"source": found.source, "point": found.point})


@verb
def mkswap(kernel: Kernel, path: Text) -> Reply:
    """Write a swap area's header into a file, as large as the file is."""
    files = kernel.user.files
    file = files.vfs.lookup(path)
    header = make_header(file.size)
    files.write(file, 0, PAGE_SIZE)
    files.io.store(file, 0, header)
    return Reply({"path": path, "pages": (file.size >> PAGE_SHIFT) - 1})


@verb
def swapon(kernel: Kernel, path: Text, *, priority: Number | None = None) -> Reply:
    """Turn a swap area on: a device that the machine names, or a file of a disk with a header (mkswap).

    Areas without a priority are used one after the other, in the order in which they were turned on; those of the same
    priority in turn.
    """
    _privileged(kernel)
    device = kernel.swap.devices.get(path)
    wanted = -1 if priority is None else priority
    if device is not None:
        area = kernel.swap.files.swapon(path, device.kind, device.size, wanted)
    else:
        area = kernel.swap.files.swapon(path, "file", _swap_file(kernel, path), wanted)
        kernel.user.vfs.lookup(path).users += 1
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
    if path not in kernel.swap.devices and kernel.swap.files.find(path) is None:
        vfs.lookup(path)
    try:
        if task is not None:
            task.oom_flag_origin = True  # if memory runs out, it is because of this
        pages = yield from kernel.user.swap_off.swapoff(path)
    finally:
        if task is not None:
            task.oom_flag_origin = False
    if path not in kernel.swap.devices:
        vfs.lookup(path).users -= 1
    return Reply({"path": path, "pages": pages})


def _privileged(kernel: Kernel) -> None:
    """EPERM for a task that is not root's."""
    task = kernel.tasks.current()
    if task is not None and task.uid:
        raise KernelError(errno.EPERM, f"{os.strerror(errno.EPERM)}: only root changes swap areas")
