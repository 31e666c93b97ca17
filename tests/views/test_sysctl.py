"""Knobs as files: offsets, page limits, what exists where, and pools and pressure below them."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.machine import Machine
from kmemd.steps import finish
from kmemd.views.tree import Caller, Namespace, Node

MIB = 1 << 20
ROOT = Caller()


def boot(arch: str = "x86_64", nodes: int = 1) -> Namespace:
    cpus = tuple((cpu,) for cpu in range(nodes))
    distances = tuple(tuple(10 if a == b else 20 for b in range(nodes)) for a in range(nodes))
    return Namespace(Kernel(Machine.of_memory("test", arch, nodes, (512 * MIB,) * nodes, cpus, distances)))


@pytest.fixture(scope="module")
def tree() -> Namespace:
    return boot()


def read(tree: Namespace, path: str) -> str:
    data = tree.open(tree.lookup(path), ROOT).read(0, 1 << 16)
    assert data is not None
    return data.decode()


def write(tree: Namespace, path: str, data: bytes) -> int:
    return finish(tree.open(tree.lookup(path), ROOT).write(data))


def files(tree: Namespace, node: Node) -> Iterator[Node]:
    for child in tree.children(node):
        if child.is_dir:
            yield from files(tree, child)
        else:
            yield child


def test_a_number_at_an_offset_is_ignored(tree: Namespace) -> None:
    file = tree.open(tree.lookup("/proc/sys/vm/swappiness"), ROOT)
    assert finish(file.write(b"10 20")) == 3
    assert finish(file.write(b"20")) == 2
    assert read(tree, "/proc/sys/vm/swappiness") == "10\n"


def test_without_strictness_a_number_at_an_offset_counts() -> None:
    tree = boot()
    write(tree, "/proc/sys/kernel/sysctl_writes_strict", b"0")
    file = tree.open(tree.lookup("/proc/sys/vm/swappiness"), ROOT)
    finish(file.write(b"10\n"))
    finish(file.write(b"30\n"))
    assert read(tree, "/proc/sys/vm/swappiness") == "30\n"
    assert "wrote to swappiness" in tree.kernel.printk.since(0)[-1].text


def test_a_string_goes_on_at_the_offset(tree: Namespace) -> None:
    file = tree.open(tree.lookup("/proc/sys/kernel/hostname"), ROOT)
    finish(file.write(b"twin"))
    finish(file.write(b"-one\n"))
    assert read(tree, "/proc/sys/kernel/hostname") == "twin-one\n"


def test_proc_sys_takes_less_than_4_mib(tree: Namespace) -> None:
    with pytest.raises(KernelError) as raised:
        write(tree, "/proc/sys/vm/swappiness", b"1" + b" " * (4 * MIB))
    assert raised.value.errno == errno.ENOMEM
    assert write(tree, "/proc/sys/vm/swappiness", b"1" + b" " * MIB) == MIB + 1


def test_sysfs_takes_a_page(tree: Namespace) -> None:
    path = "/sys/kernel/mm/numa/demotion_enabled"
    assert write(tree, path, b"y" * MIB) == 4096
    assert write(tree, path, b"") == 0
    assert read(tree, path) == "true\n"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/sys/kernel/mm/ksm/pages_shared", errno.EACCES),
        ("/proc/sys/kernel/osrelease", errno.EACCES),
        ("/proc/swaps", errno.EIO),
    ],
)
def test_read_only_files(tree: Namespace, path: str, error: int) -> None:
    with pytest.raises(KernelError) as raised:
        write(tree, path, b"1")
    assert raised.value.errno == error


@pytest.mark.parametrize("path", ["/proc/sys/vm/drop_caches", "/proc/sys/vm/compact_memory"])
def test_triggers_cannot_be_read(tree: Namespace, path: str) -> None:
    with pytest.raises(KernelError) as raised:
        read(tree, path)
    assert raised.value.errno == errno.EACCES


def test_an_i386_machine_has_its_own_set() -> None:
    tree = boot("i386")
    here = {node.path.rpartition("/")[2] for node in files(tree, tree.lookup("/proc/sys/vm"))}
    assert {"highmem_is_dirtyable", "vdso_enabled", "nr_hugepages"} <= here
    assert not here & {"zone_reclaim_mode", "numa_stat", "nr_hugepages_mempolicy", "hugetlb_optimize_vmemmap"}
    names = [node.path.rpartition("/")[2] for node in tree.children(tree.lookup("/sys/kernel/mm"))]
    assert not {"lru_gen", "numa"} & set(names)
    assert read(tree, "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size") == "4194304\n"
    with pytest.raises(KernelError):
        write(tree, "/proc/sys/vm/admin_reserve_kbytes", b"4294967296")


def test_every_knob_survives_hostile_writes() -> None:
    tree = boot()
    knobs = [
        node for top in ("/proc/sys", "/sys/kernel/mm", "/proc/pressure") for node in files(tree, tree.lookup(top))
    ]
    hostile = [b"", b"\0", b"-1", b"9" * 30, b"0x", "\u00e9".encode(), b"\xff\xfe", b" " * 5000, b"1\0", b"-" * 4096]
    assert len(knobs) > 120
    for node in knobs:
        for data in hostile:
            reason = 0
            try:
                assert 0 <= finish(tree.open(node, ROOT).write(data)) <= len(data)
            except KernelError as error:
                reason = error.errno
            assert reason in (0, errno.EINVAL, errno.ERANGE, errno.EACCES, errno.ENXIO), (node.path, data)
    tree.kernel.check()


def test_pools_of_nodes() -> None:
    tree = boot(nodes=2)
    pool = "hugepages/hugepages-2048kB"
    node = f"/sys/devices/system/node/node1/{pool}"
    assert write(tree, f"{node}/nr_hugepages", b"3\n") == 2
    assert read(tree, f"/sys/kernel/mm/{pool}/nr_hugepages") == "3\n"
    assert read(tree, f"{node}/free_hugepages") == "3\n"
    assert read(tree, f"/sys/devices/system/node/node0/{pool}/nr_hugepages") == "0\n"
    assert read(tree, "/proc/sys/vm/nr_hugepages") == "3\n"
    with pytest.raises(KernelError) as raised:
        write(tree, f"{node}/nr_hugepages", b"18446744073709551616")
    assert raised.value.errno == errno.ERANGE


def test_compact_takes_anything(tree: Namespace) -> None:
    assert write(tree, "/sys/devices/system/node/node0/compact", b"abc") == 3
    assert write(tree, "/proc/sys/vm/compact_memory", b"abc") == 3


def test_drop_caches_says_so_in_the_log(tree: Namespace) -> None:
    write(tree, "/proc/sys/vm/drop_caches", b"3")
    assert tree.kernel.printk.since(0)[-1].text.endswith("drop_caches: 3")


def test_pressure_has_one_trigger_per_open(tree: Namespace) -> None:
    assert read(tree, "/proc/pressure/io").splitlines() == [
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=0",
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=0",
    ]
    file = tree.open(tree.lookup("/proc/pressure/memory"), ROOT)
    assert finish(file.write(b"some 150000 1000000\n")) == 20
    with pytest.raises(KernelError) as raised:
        finish(file.write(b"some 150000 1000000\n"))
    assert raised.value.errno == errno.EBUSY


def test_swaps() -> None:
    tree = Namespace(Kernel(Machine.load("default")))
    head, area = read(tree, "/proc/swaps").splitlines()
    assert head.split() == ["Filename", "Type", "Size", "Used", "Priority"]
    assert area.split()[1:] == ["partition", "1048572", "0", "-2"]
    assert area.index("partition") == 40


def test_oom_score_adj_of_a_task() -> None:
    tree = boot()
    pid = tree.kernel.tasks.spawn("sleep").pid
    assert write(tree, f"/proc/{pid}/oom_adj", b" -17\n") == 5
    assert read(tree, f"/proc/{pid}/oom_score_adj") == "-1000\n"
    assert write(tree, f"/proc/{pid}/oom_score_adj", b"1000" + b" " * 40) == 12
    assert read(tree, f"/proc/{pid}/oom_adj") == "15\n"
    with pytest.raises(KernelError):
        write(tree, f"/proc/{pid}/oom_score_adj", b"1001")


def test_the_names_are_listed_in_order():
    tree = Namespace(Kernel(Machine.load("default")))
    for path in ("/proc/sys", "/proc/sys/vm", "/proc/sys/kernel"):
        names = [node.path for node in tree.children(tree.lookup(path))]
        assert len(names) > 1
        assert names == sorted(names)
