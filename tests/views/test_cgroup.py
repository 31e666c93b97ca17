"""Control groups as directories: which files are there, modes, errors, poll."""

from __future__ import annotations

import errno
import select

import pytest

from kmemd.fs.inodes import InodeTable, Watch
from kmemd.steps import finish
from kmemd.system import System, SystemCallError
from kmemd.views.tree import Caller, OpenFile

ROOT = "/sys/fs/cgroup"
CORE = (
    *("cgroup.controllers", "cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure", "cgroup.procs"),
    *("cgroup.stat", "cgroup.subtree_control", "cgroup.threads", "cpu.pressure", "io.pressure", "memory.pressure"),
)


@pytest.fixture
def system() -> System:
    system = System.boot("default")
    system.mkdir(f"{ROOT}/a")
    return system


def names(system: System, path: str) -> set[str]:
    return {node.path.rpartition("/")[2] for node in system.tree.children(system.tree.lookup(path))}


def opened(system: System, path: str) -> OpenFile:
    return system.tree.open(system.tree.lookup(path), Caller())


def refused(system: System, path: str, text: str) -> int:
    with pytest.raises(SystemCallError) as caught:
        system.write(path, text)
    return caught.value.errno


def test_files_of_the_root(system: System) -> None:
    memory = {"memory.numa_stat", "memory.reclaim", "memory.stat"}
    assert names(system, ROOT) == {*CORE, *memory, "a"}


def test_memory_files_come_and_go_with_the_controller(system: System) -> None:
    plain = {*CORE, "cgroup.events", "cgroup.freeze", "cgroup.kill", "cgroup.type"}
    assert names(system, f"{ROOT}/a") == plain
    system.write(f"{ROOT}/cgroup.subtree_control", "+memory")
    assert len(names(system, f"{ROOT}/a") - plain) == 18
    system.write(f"{ROOT}/a/cgroup.pressure", "0")
    assert "memory.pressure" not in names(system, f"{ROOT}/a")
    system.write(f"{ROOT}/cgroup.subtree_control", "-memory")
    assert not [name for name in names(system, f"{ROOT}/a") if name.startswith("memory")]


def test_inodes_of_files_that_went_are_told(system: System) -> None:
    table = InodeTable(system.tree, 0, 0)
    inode = table.root
    system.write(f"{ROOT}/cgroup.subtree_control", "+memory")
    for name in ("sys", "fs", "cgroup", "a"):
        inode = table.lookup(inode, name)
    kept, gone = table.lookup(inode, "cgroup.procs"), table.lookup(inode, "memory.max")
    assert table.vanished() == []
    system.write(f"{ROOT}/cgroup.subtree_control", "-memory")
    assert table.vanished() == [gone]
    assert (gone.dead, kept.dead) == (True, False)
    system.rmdir(f"{ROOT}/a")
    assert table.vanished() == [inode]
    assert kept.dead


def test_names_of_groups_that_went_are_told_without_looking_at_the_others(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = InodeTable(system.tree, 0, 0)
    above = table.root
    for name in ("sys", "fs", "cgroup"):
        above = table.lookup(above, name)
    for number in range(200):
        system.mkdir(f"{ROOT}/g{number}")
    inodes = {f"g{number}": table.lookup(above, f"g{number}") for number in range(200)}
    assert table.vanished() == []
    looked: list[str] = []
    has = Watch._has
    monkeypatch.setattr(
        Watch, "_has", lambda self, kernel, inode: looked.append(inode.name) or has(self, kernel, inode)
    )
    system.mkdir(f"{ROOT}/other")
    assert (table.vanished(), looked) == ([], [])
    system.rmdir(f"{ROOT}/g7")
    system.rmdir(f"{ROOT}/g8")
    system.mkdir(f"{ROOT}/g8")
    assert table.vanished() == [inodes["g7"], inodes["g8"]], "a name that came back is another group"
    assert looked == ["g7", "g8"]
    for number in range(10, 110):
        system.rmdir(f"{ROOT}/g{number}")
    assert {inode.name for inode in table.vanished()} == {f"g{number}" for number in range(10, 110)}


def test_groups_nest(system: System) -> None:
    system.mkdir(f"{ROOT}/a/b")
    system.mkdir(f"{ROOT}/a/b/c")
    assert system.read(f"{ROOT}/a/b/c/cgroup.type") == b"domain\n"
    assert system.read(f"{ROOT}/a/cgroup.stat").startswith(b"nr_descendants 2\n")
    for path, number in ((f"{ROOT}/a/b", errno.EBUSY), (f"{ROOT}/x", errno.ENOENT), ("/proc/x", errno.EPERM)):
        with pytest.raises(SystemCallError) as caught:
            system.rmdir(path)
        assert caught.value.errno == number
    with pytest.raises(SystemCallError) as caught:
        system.mkdir(f"{ROOT}/a/cgroup.procs")
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("cgroup.max.depth", "-1", errno.ERANGE),
        ("cgroup.max.depth", "x", errno.EINVAL),
        ("cgroup.freeze", "2", errno.ERANGE),
        ("cgroup.kill", "0", errno.ERANGE),
        ("cgroup.type", "domain", errno.EINVAL),
        ("cgroup.procs", "99999", errno.ESRCH),
        ("cgroup.controllers", "memory", errno.EINVAL),
        ("memory.pressure", "some 1", errno.EINVAL),
        ("cgroup.pressure", "2", errno.ERANGE),
        ("cgroup.procs", "1" * 5000, errno.E2BIG),
    ],
)
def test_what_cannot_be_written(system: System, name: str, text: str, number: int) -> None:
    assert refused(system, f"{ROOT}/a/{name}", text) == number


def test_knobs_keep_what_is_written(system: System) -> None:
    for name, text in (("cgroup.max.depth", "3"), ("cgroup.max.descendants", "0x10"), ("cgroup.freeze", "1")):
        system.write(f"{ROOT}/a/{name}", text)
        assert system.read(f"{ROOT}/a/{name}") == f"{int(text, 0)}\n".encode()
    assert system.read(f"{ROOT}/a/cgroup.events") == b"populated 0\nfrozen 1\n"


def test_events_are_told_to_who_polls(system: System) -> None:
    file = opened(system, f"{ROOT}/a/cgroup.events")
    assert (file.read(0, 4096), file.poll()) == (b"populated 0\nfrozen 0\n", 0)
    pid = system.command("spawn hog").split("pid=")[1].split()[0]
    system.write(f"{ROOT}/a/cgroup.procs", pid)
    assert file.poll() == select.POLLPRI | select.POLLERR
    assert file.read(0, 4096) == b"populated 1\nfrozen 0\n"
    assert not file.woken()


def test_who_polls_a_group_that_is_removed_is_told(system: System) -> None:
    system.write(f"{ROOT}/cgroup.subtree_control", "+memory")
    file = opened(system, f"{ROOT}/a/memory.events")
    assert not file.woken()
    system.rmdir(f"{ROOT}/a")
    assert file.woken()


def test_a_trigger_is_polled(system: System) -> None:
    file = opened(system, f"{ROOT}/a/memory.pressure")
    assert finish(file.write(b"some 150000 1000000")) == 19
    with pytest.raises(Exception, match="trigger already"):
        finish(file.write(b"some 150000 1000000"))
    assert file.poll() == 0
    group = system.kernel.cgroups.find("a")
    group.psi.stall("memory", 200_000_000, full=True)
    system.advance(0.2)
    assert file.woken()
    assert file.poll() == select.POLLPRI
    assert file.poll() == 0
    file.close()


def test_pressure_can_be_switched_off_for_good() -> None:
    groups, whole = System.boot("default", cmdline="cgroup_disable=pressure"), System.boot("default", cmdline="psi=0")
    assert not [name for name in names(groups, ROOT) if "pressure" in name]
    assert groups.read("/proc/pressure/memory").startswith(b"some avg10=0.00")
    assert "pressure" not in names(whole, "/proc")
    assert not [name for name in names(whole, ROOT) if "pressure" in name]


def test_local_events_have_pollers_of_their_own(system: System) -> None:
    system.mkdir(f"{ROOT}/a/b")
    for path in ("", "/a"):
        system.write(f"{ROOT}{path}/cgroup.subtree_control", "+memory")
    whole, local = (opened(system, f"{ROOT}/a/memory.events{suffix}") for suffix in ("", ".local"))
    system.kernel.cgroups.find("a/b").memcg.event(0)
    assert (whole.woken(), local.woken()) == (True, False)
