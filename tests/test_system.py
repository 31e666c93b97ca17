"""The Python API: boot, read, write, command, advance, check."""

from __future__ import annotations

import errno

import pytest

import kmemd
from kmemd import KernelError, System
from kmemd.machine import Machine, MachineError
from kmemd.system import SystemCallError


@pytest.fixture(scope="module")
def shared() -> System:
    """A machine for tests that leave it as it is."""
    return System.boot(seed=1)


@pytest.fixture
def system() -> System:
    return System.boot(seed=1)


def test_the_package_exports_what_programs_use() -> None:
    assert kmemd.System is System
    assert kmemd.KernelError is KernelError
    with pytest.raises(AttributeError, match="nothing"):
        _ = kmemd.nothing


def test_a_machine_boots_by_name_and_as_an_object(shared: System) -> None:
    assert shared.kernel.machine.name == "default"
    two = System.boot(Machine.load("two-node"), cmdline="quiet")
    assert len(two.kernel.nodes) == 2
    assert two.kernel.cmdline.text.endswith("quiet")


def test_an_unknown_machine_is_named(shared: System) -> None:
    with pytest.raises(MachineError, match="no-such"):
        System.boot("no-such")
    with pytest.raises(ValueError, match="clock"):
        System.boot(clock="sundial")


def test_read_gives_the_whole_file(shared: System) -> None:
    assert shared.read("/proc/buddyinfo").startswith(b"Node 0, zone ")
    assert shared.read("proc/buddyinfo") == shared.read("/proc/buddyinfo")


@pytest.mark.parametrize(
    ("path", "number"),
    [("/proc/nope", errno.ENOENT), ("/proc", errno.EISDIR), ("/proc/buddyinfo/x", errno.ENOTDIR)],
)
def test_read_errors_are_the_kernels(shared: System, path: str, number: int) -> None:
    with pytest.raises(OSError, match=r"is a directory|not a directory|does not exist") as caught:
        shared.read(path)
    assert (caught.value.errno, caught.value.filename) == (number, path)


def test_an_error_is_an_oserror_and_a_kernel_error(shared: System) -> None:
    with pytest.raises(SystemCallError) as caught:
        shared.command("alloc_pages order=11")
    error = caught.value
    assert isinstance(error, OSError)
    assert isinstance(error, KernelError)
    assert (error.errno, error.column, error.strerror) == (errno.EINVAL, 18, error.reason)
    assert str(error) == "EINVAL: order: 11 is beyond 10"


def test_a_command_gives_its_reply(system: System) -> None:
    reply = dict(word.split("=") for word in system.command("p = alloc_pages order=3").split())
    assert {"pfn", "addr", "order", "zone", "node", "n", "ns"} == set(reply)
    assert reply["order"] == "3"
    assert int(reply["ns"]) > 0
    assert system.command("# nothing to say") == ""


def test_one_command_is_one_line(system: System) -> None:
    with pytest.raises(OSError, match="one line"):
        system.command("a = alloc_pages\nb = alloc_pages")
    assert len(system.kernel.handles) == 0
    assert system.command("a = alloc_pages\n")


def test_a_script_ends_at_the_first_error(system: System) -> None:
    replies = system.run("# two blocks\na = alloc_pages\n\nb = alloc_pages\n")
    assert len(replies) == 2
    with pytest.raises(OSError, match="no verb"):
        system.run(["c = alloc_pages", "nonsense", "d = alloc_pages"])
    assert list(system.kernel.handles) == ["a", "b", "c"]


def test_write_to_the_command_file(system: System) -> None:
    assert system.write("/kmemd/ctl", b"a = alloc_pages\nb = alloc_pages\n") == 32
    assert system.write("/kmemd/ctl", "a = alloc_pages\n# no\n" * 0 + "c = alloc_pages\nnonsense\n") == 16
    with pytest.raises(OSError, match="no verb nonsense") as caught:
        system.write("/kmemd/ctl", "nonsense\n")
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == "/kmemd/ctl"
    assert list(system.kernel.handles) == ["a", "b", "c"]


def test_write_to_a_file_that_takes_none(shared: System) -> None:
    with pytest.raises(OSError, match="buddyinfo") as caught:
        shared.write("/proc/buddyinfo", b"1\n")
    assert caught.value.errno == errno.EIO


def test_reading_ctl_lists_the_verbs(shared: System) -> None:
    lines = shared.read("/kmemd/ctl").decode().splitlines()
    assert lines[0] == "# Pages"
    assert lines[1].startswith("alloc_pages ")
    assert any(line.startswith("help ") for line in lines)


def test_time_moves_only_by_work_and_advance(system: System) -> None:
    start = system.kernel.clock.now
    system.read("/proc/buddyinfo")
    assert system.kernel.clock.now == start
    system.advance(1.5)
    assert system.kernel.clock.now == start + 1_500_000_000
    with pytest.raises(ValueError, match="back"):
        system.advance(-1)


def test_the_real_clock_follows_the_wall_and_never_goes_back() -> None:
    system = System.boot(clock="real")
    start = system.kernel.clock.now
    system.advance_to(2.0)
    assert system.kernel.clock.now == start + 2 * 10**9
    system.advance_to(1.0)
    assert system.kernel.clock.now == start + 2 * 10**9


def test_the_manual_clock_does_not_follow(system: System) -> None:
    start = system.kernel.clock.now
    system.advance_to(5.0)
    assert system.kernel.clock.now == start


def test_check_finds_a_number_that_is_wrong(system: System) -> None:
    system.check()
    assert system.read("/kmemd/check") == b"ok\n"
    system.kernel.vmstat.zone_stat[1, 0] += 1
    with pytest.raises((AssertionError, KernelError)):
        system.check()
    with pytest.raises(OSError, match="contradicts itself") as caught:
        system.read("/kmemd/check")
    assert caught.value.errno == errno.EIO


def test_the_same_seed_and_commands_give_the_same_bytes() -> None:
    def run(seed: int) -> tuple[list[str], bytes, bytes]:
        system = System.boot("two-node", seed=seed)
        replies = system.run(
            "a = alloc_pages order=2 n=3000\nfree_pages a every=3\nb = alloc_pages n=5000\nsleep 3\nfree_pages a\n"
        )
        return replies, system.read("/proc/buddyinfo"), system.read("/proc/zoneinfo")

    assert run(7) == run(7)


def test_warm_up_changes_no_byte() -> None:
    cold, warm = System.boot(cmdline="page_owner=on"), System.boot(cmdline="page_owner=on")
    warm.warm_up()
    for system in (cold, warm):
        system.command("p = kmalloc 100 n=3 by=probe+0x2a[drv]")
    for path in ("/proc/kallsyms", "/sys/kernel/debug/page_owner", "/proc/vmallocinfo"):
        assert cold.read(path) == warm.read(path)
