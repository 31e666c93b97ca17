"""/sys/devices/system/cpu and memory."""

import pytest

from kmemd import System


@pytest.fixture(scope="module")
def system():
    return System.boot("two-node")


def read(system, path):
    return system.read(f"/sys/devices/system/{path}").decode()


def names(system, path):
    return {
        node.path.rpartition("/")[2] for node in system.tree.children(system.tree.lookup(f"/sys/devices/system/{path}"))
    }


def test_cpu_lists(system):
    assert [read(system, f"cpu/{name}") for name in ("online", "possible", "present", "offline", "isolated")] == [
        "0-3\n",
        "0-3\n",
        "0-3\n",
        "4-7\n",
        "\n",
    ]
    assert read(system, "cpu/kernel_max") == "7\n"


def test_topology_is_one_package(system):
    base = "cpu/cpu2/topology"
    assert read(system, f"{base}/core_id") == "2\n"
    assert read(system, f"{base}/thread_siblings_list") == "2\n"
    assert read(system, f"{base}/core_siblings_list") == "0-3\n"
    assert read(system, f"{base}/package_cpus") == "f\n"
    assert "node1" in names(system, "cpu/cpu2")
    assert read(system, "cpu/cpu0/cache/index2/size") == "512K\n"
    assert read(system, "cpu/cpu0/cache/index2/number_of_sets") == "512\n"


def test_i386_cpus_know_no_node():
    highmem = System.boot("highmem")
    assert not {name for name in names(highmem, "cpu/cpu0") if name.startswith("node")}
    with pytest.raises(OSError, match="ENOENT"):
        highmem.read("/sys/devices/system/memory/block_size_bytes")


def test_memory_blocks_cover_memory_and_not_the_hole(system):
    blocks = sorted(int(name[6:]) for name in names(system, "memory") if name[6:].isdigit())
    assert blocks == [*range(24), *range(32, 40)]
    assert read(system, "memory/block_size_bytes") == "8000000\n"
    assert read(system, "memory/memory33/phys_index") == "00000021\n"
    assert [read(system, f"memory/memory{block}/valid_zones") for block in (0, 1, 33)] == [
        "none\n",
        "DMA32\n",
        "Normal\n",
    ]
    assert "memory16" in names(system, "node/node1")
    assert "memory15" in names(system, "node/node0")
    assert "node1" in names(system, "memory/memory16")


def test_large_machines_have_large_blocks():
    server = System.boot("server-1t")
    assert read(server, "memory/block_size_bytes") == "80000000\n"
    assert len(names(server, "memory")) == 513 + 2  # 1 TiB and the PCI hole, and two files


def test_blocks_stay_online(system):
    path = "/sys/devices/system/memory/memory3/state"
    assert system.write(path, "online\n") == 7
    for file, text, errno in (
        (path, "offline", "EBUSY"),
        (path, "x", "EINVAL"),
        (path.replace("state", "online"), "0", "EBUSY"),
    ):
        with pytest.raises(OSError, match=errno):
            system.write(file, text)
    assert system.read(path) == b"online\n"
