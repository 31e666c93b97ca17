"""The operations object without a mount: what each request answers."""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
from collections.abc import Callable
from types import SimpleNamespace

import pyfuse3
import pytest
import trio
from pyfuse3 import FUSEError

from kmemd.fs import operations as module
from kmemd.fs.operations import Operations
from tests.fs.fake import FakeKernel, namespace

ROOT = SimpleNamespace(pid=os.getpid(), uid=0, gid=0)


class Mounted:
    """Requests by path, as the kernel would send them."""

    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self.invalidated: list[tuple[int, bytes]] = []
        self.ops = Operations(
            namespace(self.kernel),
            invalidate=lambda parent, name: self.invalidated.append((parent, name)),
            slice_s=0,
        )

    async def walk(self, path: str) -> int:
        inode = pyfuse3.ROOT_INODE
        for name in path.strip("/").split("/"):
            inode = (await self.ops.lookup(inode, name.encode(), ROOT)).st_ino
        return inode

    async def open(self, path: str, flags: int = os.O_RDONLY, ctx: SimpleNamespace = ROOT) -> int:
        return (await self.ops.open(await self.walk(path), flags, ctx)).fh

    async def write(self, path: str, data: bytes) -> int:
        fh = await self.open(path, os.O_WRONLY)
        try:
            return await self.ops.write(fh, 0, data)
        finally:
            await self.ops.release(fh)

    async def read(self, path: str, offset: int = 0, size: int = 4096) -> bytes:
        fh = await self.open(path)
        try:
            return await self.ops.read(fh, offset, size)
        finally:
            await self.ops.release(fh)


@pytest.fixture
def fs() -> Mounted:
    return Mounted()


def refuses(number: int) -> pytest.RaisesExc:
    return pytest.RaisesExc(FUSEError, check=lambda error: error.errno == number)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bytes]]:
    """Takes the place of the reply buffer, with room for a number of entries."""
    names: list[bytes] = []

    def reply(token: int, name: bytes, attributes: pyfuse3.EntryAttributes, next_id: int) -> bool:
        if len(names) >= token:
            return False
        names.append(name)
        return True

    monkeypatch.setattr(module.pyfuse3, "readdir_reply", reply)
    return names


async def test_attributes_are_the_declared_ones(fs: Mounted) -> None:
    proc_file = await fs.ops.getattr(await fs.walk("/proc/version"), ROOT)
    sys_file = await fs.ops.getattr(await fs.walk("/sys/kernel/run"), ROOT)
    link = await fs.ops.getattr(await fs.walk("/proc/self"), ROOT)
    debug = await fs.ops.getattr(await fs.walk("/sys/kernel/debug"), ROOT)
    assert (proc_file.st_mode, proc_file.st_size) == (stat.S_IFREG | 0o444, 0)
    assert (sys_file.st_mode, sys_file.st_size) == (stat.S_IFREG | 0o644, 4096)
    assert link.st_mode == stat.S_IFLNK | 0o777
    assert debug.st_mode == stat.S_IFDIR | 0o700
    assert proc_file.attr_timeout >= 1
    assert proc_file.entry_timeout >= 1


async def test_lookup_of_what_is_not_there(fs: Mounted) -> None:
    with refuses(errno.ENOENT):
        await fs.walk("/proc/nothing")
    with refuses(errno.ENOTDIR):
        await fs.walk("/proc/version/x")
    with refuses(errno.ENOENT):
        await fs.walk("/proc/43")


async def test_the_same_name_has_the_same_inode(fs: Mounted) -> None:
    assert await fs.walk("/proc/42/status") == await fs.walk("/proc/42/status")
    assert await fs.walk("/proc/42/status") != await fs.walk("/proc/1/status")


async def test_reads_are_slices_of_one_snapshot(fs: Mounted) -> None:
    fs.kernel.pair = (1, 1)
    fh = await fs.open("/proc/pair")
    assert await fs.ops.read(fh, 0, 2) == b"1 "
    fs.kernel.pair = (2, 2)
    assert await fs.ops.read(fh, 2, 10) == b"1\n"
    assert await fs.ops.read(fh, 4, 10) == b""
    assert await fs.ops.read(fh, 0, 10) == b"2 2\n"


async def test_files_are_opened_with_direct_io(fs: Mounted) -> None:
    info = await fs.ops.open(await fs.walk("/proc/version"), os.O_RDONLY, ROOT)
    assert info.direct_io
    assert not info.keep_cache


async def test_a_true_size_is_taken_anew(fs: Mounted) -> None:
    inode = await fs.walk("/kmemd/dmesg")
    await fs.write("/dev/kmsg", b"hello\n")
    attributes = await fs.ops.getattr(inode, ROOT)
    assert (attributes.st_size, attributes.attr_timeout) == (6, 0)
    assert not (await fs.ops.open(inode, os.O_RDONLY, ROOT)).direct_io


async def test_binary_files_are_computed_for_the_range(fs: Mounted) -> None:
    assert await fs.read("/proc/pages", 254, 4) == bytes([254, 255, 0, 1])


async def test_self_is_the_caller(fs: Mounted) -> None:
    inode = await fs.walk("/proc/self")
    assert await fs.ops.readlink(inode, SimpleNamespace(pid=17, uid=0, gid=0)) == b"17"
    assert await fs.ops.readlink(inode, SimpleNamespace(pid=18, uid=0, gid=0)) == b"18"


async def test_the_user_who_mounts_is_root() -> None:
    ops = Operations(namespace(), owner_uid=1000, owner_gid=1000)
    proc = (await ops.lookup(pyfuse3.ROOT_INODE, b"proc", ROOT)).st_ino
    whoami = await ops.lookup(proc, b"whoami", ROOT)
    assert whoami.st_uid == 1000
    seen = {}
    for uid in (1000, 0, 7):
        info = await ops.open(whoami.st_ino, os.O_RDONLY, SimpleNamespace(pid=1, uid=uid, gid=uid))
        seen[uid] = await ops.read(info.fh, 0, 100)
    assert seen[1000] == b"0\n"
    assert seen[7] == b"7\n"


async def test_a_write_reaches_the_store_and_its_error_the_writer(fs: Mounted) -> None:
    assert await fs.write("/sys/kernel/run", b"12\n") == 3
    assert await fs.read("/sys/kernel/run") == b"12\n"
    with refuses(errno.EINVAL):
        await fs.write("/sys/kernel/run", b"x\n")
    assert await fs.read("/sys/kernel/run") == b"12\n"


async def test_writing_where_nothing_is_stored(fs: Mounted) -> None:
    with refuses(errno.EIO):
        await fs.write("/proc/version", b"x")


@pytest.mark.parametrize(
    ("path", "flags"),
    [
        ("/sys/kernel/fixed", os.O_WRONLY),
        ("/sys/kernel/fixed", os.O_RDWR),
        ("/sys/kernel/shrink", os.O_RDONLY),
    ],
)
async def test_sysfs_holds_root_to_the_mode_bits(fs: Mounted, path: str, flags: int) -> None:
    with refuses(errno.EACCES):
        await fs.open(path, flags)


async def test_a_bug_of_the_model_is_eio_and_logged(fs: Mounted, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), refuses(errno.EIO):
        await fs.read("/proc/crash")
    assert "a bug of the model" in caplog.text
    with refuses(errno.EIO):
        await fs.write("/kmemd/ctl", b"crash\n")
    assert await fs.write("/kmemd/ctl", b"fine\n") == 5


async def test_a_command_has_the_errno_of_its_failure(fs: Mounted) -> None:
    with refuses(errno.ENOMEM):
        await fs.write("/kmemd/ctl", f"fail {errno.ENOMEM}\n".encode())


async def test_lines_may_be_split_between_writes(fs: Mounted) -> None:
    fh = await fs.open("/kmemd/ctl", os.O_RDWR)
    await fs.ops.write(fh, 0, b"lo")
    await fs.ops.write(fh, 2, b"g a\n")
    assert fs.kernel.commands == ["log a"]
    assert await fs.ops.read(fh, 6, 100) == b"done=log a\n"


async def test_readers_get_in_between_slices_and_see_whole_states(fs: Mounted) -> None:
    fh = await fs.open("/kmemd/ctl", os.O_WRONLY)
    seen = set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.ops.write, fh, 0, b"work 50\n")
        while not fs.kernel.commands:
            await trio.lowlevel.checkpoint()
        while fs.ops.writing:
            seen.add(await fs.read("/proc/pair"))
            await trio.lowlevel.checkpoint()
    assert len(seen) > 10
    assert all(len(set(pair.split())) == 1 for pair in seen)


async def test_a_view_made_in_slices_lets_readers_in_while_the_model_stands_still(fs: Mounted) -> None:
    fh = await fs.open("/kmemd/ctl", os.O_WRONLY)
    views: list[bytes] = []
    reads = 0

    async def look() -> None:
        views.append(await fs.read("/proc/long"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fs.ops.write, fh, 0, b"work 100\n")
        while not fs.kernel.commands:
            await trio.lowlevel.checkpoint()
        nursery.start_soon(look)
        while not views:
            reads += bool(await fs.read("/proc/version"))
            await trio.lowlevel.checkpoint()
    assert reads > 10
    assert len(set(views[0].splitlines())) == 1, "the command went on while the view was made"
    assert fs.kernel.pair == (99, 99)


async def test_a_view_does_not_keep_a_command_waiting_for_ever(fs: Mounted) -> None:
    fh = await fs.open("/kmemd/ctl", os.O_WRONLY)
    done = False

    async def look() -> None:
        while not done:
            await fs.read("/proc/long")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(look)
        with trio.fail_after(20):
            await fs.ops.write(fh, 0, b"work 100\n")
        done = True
    assert fs.kernel.pair == (99, 99)


async def test_writers_queue_in_order(fs: Mounted) -> None:
    handles = [await fs.open("/kmemd/ctl", os.O_WRONLY) for _ in range(4)]
    async with trio.open_nursery() as nursery:
        for number, fh in enumerate(handles):
            nursery.start_soon(fs.ops.write, fh, 0, f"work {number + 5}\nnote {number}\n".encode())
            await trio.testing.wait_all_tasks_blocked() if number == 0 else None
    commands = fs.kernel.commands
    assert len(commands) == 8
    assert all(commands[i].split()[0] == "work" and commands[i + 1].split()[0] == "note" for i in range(0, 8, 2))


async def test_a_failed_write_lets_the_next_writer_go(fs: Mounted) -> None:
    with refuses(errno.EINVAL):
        await fs.write("/sys/kernel/run", b"x")
    assert not fs.ops.writing


async def test_nonblocking_read_of_an_empty_device(fs: Mounted) -> None:
    fh = await fs.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    with refuses(errno.EAGAIN):
        await fs.ops.read(fh, 0, 100)


async def test_a_waiting_read_ends_when_there_is_data(fs: Mounted, autojump_clock: trio.testing.MockClock) -> None:
    fh = await fs.open("/dev/kmsg")
    got = []

    async def reader() -> None:
        got.append(await fs.ops.read(fh, 0, 100))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await trio.sleep(1)
        assert got == []
        await fs.write("/kmemd/ctl", b"log hello\n")
    assert got == [b"hello\n"]


async def test_a_waiting_read_ends_when_its_program_is_gone(
    fs: Mounted, autojump_clock: trio.testing.MockClock
) -> None:
    gone = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(gone, 0)
    fh = await fs.open("/dev/kmsg", ctx=SimpleNamespace(pid=gone, uid=0, gid=0))
    with refuses(errno.EINTR):
        await fs.ops.read(fh, 0, 100)


async def test_poll_tells_when_a_device_becomes_readable(fs: Mounted) -> None:
    told = []
    fh = await fs.open("/dev/kmsg")
    inode = await fs.walk("/dev/kmsg")
    handle = SimpleNamespace(notify=lambda: told.append(True))
    assert not await fs.ops.poll(inode, fh, handle, ROOT) & select.POLLIN
    await fs.write("/kmemd/ctl", b"nothing\n")
    assert told == []
    await fs.write("/kmemd/ctl", b"log hello\n")
    assert told == [True]
    assert await fs.ops.poll(inode, fh, None, ROOT) & select.POLLIN
    await fs.write("/kmemd/ctl", b"log again\n")
    assert told == [True]


async def test_ordinary_files_are_always_ready(fs: Mounted) -> None:
    fh = await fs.open("/proc/version")
    assert await fs.ops.poll(await fs.walk("/proc/version"), fh, None, ROOT) & select.POLLIN


async def test_release_closes_the_file(fs: Mounted) -> None:
    fh = await fs.open("/dev/kmsg")
    await fs.ops.release(fh)
    assert fs.kernel.closed == 1
    with refuses(errno.EBADF):
        await fs.ops.read(fh, 0, 1)


async def test_what_exits_is_forgotten_by_the_kernel_before_the_command_returns(fs: Mounted) -> None:
    proc, status = await fs.walk("/proc"), await fs.walk("/proc/42/status")
    await fs.write("/kmemd/ctl", b"exit 42\n")
    assert fs.invalidated == [(proc, b"42")]
    with refuses(errno.ESTALE):
        await fs.ops.open(status, os.O_RDONLY, ROOT)
    with refuses(errno.ENOENT):
        await fs.walk("/proc/42")


async def test_a_name_that_comes_back_is_a_new_inode(fs: Mounted) -> None:
    before = await fs.walk("/proc/42")
    await fs.write("/kmemd/ctl", b"exit 42\n")
    await fs.write("/kmemd/ctl", b"spawn 42\n")
    after = await fs.walk("/proc/42")
    assert after != before
    assert await fs.read("/proc/42/status") == b"Name:\tnew\n"


async def test_what_never_was_looked_up_is_not_announced(fs: Mounted) -> None:
    await fs.write("/kmemd/ctl", b"exit 42\n")
    assert fs.invalidated == []


async def test_readdir_lists_all_and_goes_on_where_it_stopped(fs: Mounted, listed: list[bytes]) -> None:
    fh = await fs.ops.opendir(await fs.walk("/proc"), ROOT)
    await fs.ops.readdir(fh, 0, 3)
    assert len(listed) == 3
    await fs.ops.readdir(fh, 3, 100)
    assert len(listed) == len(set(listed))
    assert {b"version", b"self", b"1", b"42"} <= set(listed)
    await fs.ops.releasedir(fh)
    with refuses(errno.EBADF):
        await fs.ops.readdir(fh, 0, 100)


async def test_readdir_counts_references_only_for_what_it_gave(fs: Mounted, listed: list[bytes]) -> None:
    fh = await fs.ops.opendir(await fs.walk("/proc"), ROOT)
    await fs.ops.readdir(fh, 0, 4)
    third = (await fs.ops.lookup(await fs.walk("/proc"), b"pair", ROOT)).st_ino
    assert listed == [b".", b"..", b"version", b"numbers"]
    assert fs.ops._inodes[third].lookups == 1


async def test_mkdir_and_rmdir_where_linux_has_them(fs: Mounted) -> None:
    groups = await fs.walk("/sys/cgroup")
    made = await fs.ops.mkdir(groups, b"mine", 0o755, ROOT)
    assert stat.S_ISDIR(made.st_mode)
    assert await fs.read("/sys/cgroup/mine/stat") == b"mine"
    with refuses(errno.EEXIST):
        await fs.ops.mkdir(groups, b"mine", 0o755, ROOT)
    await fs.ops.rmdir(groups, b"mine", ROOT)
    with refuses(errno.ENOENT):
        await fs.walk("/sys/cgroup/mine")


async def test_nothing_can_be_made_or_removed_elsewhere(fs: Mounted) -> None:
    proc, kernel = await fs.walk("/proc"), await fs.walk("/sys/kernel")
    with refuses(errno.ENOENT):
        await fs.ops.mkdir(proc, b"x", 0o755, ROOT)
    with refuses(errno.ENOENT):
        await fs.ops.create(proc, b"x", 0o644, os.O_WRONLY, ROOT)
    with refuses(errno.EACCES):
        await fs.ops.create(kernel, b"x", 0o644, os.O_WRONLY, ROOT)
    with refuses(errno.EPERM):
        await fs.ops.mkdir(kernel, b"x", 0o755, ROOT)
    with refuses(errno.EPERM):
        await fs.ops.rmdir(proc, b"42", ROOT)
    with refuses(errno.EPERM):
        await fs.ops.unlink(proc, b"version", ROOT)
    with refuses(errno.EPERM):
        await fs.ops.symlink(kernel, b"x", b"y", ROOT)
    with refuses(errno.EPERM):
        await fs.ops.rename(kernel, b"run", kernel, b"x", 0, ROOT)


async def test_truncation_is_accepted_and_chmod_refused(fs: Mounted) -> None:
    inode = await fs.walk("/sys/kernel/run")
    fields = SimpleNamespace(update_mode=False, update_uid=False, update_gid=False, update_size=True)
    assert (await fs.ops.setattr(inode, None, fields, None, ROOT)).st_size == 4096
    fields.update_mode = True
    with refuses(errno.EPERM):
        await fs.ops.setattr(inode, None, fields, None, ROOT)


async def test_flush_does_nothing_and_is_not_asked_again(fs: Mounted) -> None:
    with refuses(errno.ENOSYS):
        await fs.ops.flush(await fs.open("/kmemd/ctl", os.O_WRONLY))
    assert fs.kernel.commands == []
