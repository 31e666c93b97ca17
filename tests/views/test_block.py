"""/proc/partitions and /proc/diskstats: what the machine swaps to."""

import dataclasses

import pytest

from kmemd import System
from kmemd.machine import Machine, SwapDevice


def text(system, path):
    return system.read(path).decode()


def test_the_swap_device_is_a_disk_that_nobody_has_used():
    system = System.boot("default")
    assert text(system, "/proc/partitions") == "major minor  #blocks  name\n\n 254       16    1048576 vdb\n"
    assert text(system, "/proc/diskstats") == " 254      16 vdb 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"


@pytest.mark.parametrize(
    ("path", "numbers"), [("/dev/sda3", (8, 3)), ("/dev/vdc1", (254, 33)), ("/dev/nvme0n1p2", (259, 0))]
)
def test_numbers_follow_from_the_name(path, numbers):
    swap = (SwapDevice(path, 1 << 30), SwapDevice("/swap", 1 << 30, "file"))
    system = System.boot(dataclasses.replace(Machine.load("default"), swap=swap))
    (line,) = text(system, "/proc/diskstats").splitlines()
    assert tuple(map(int, line.split()[:2])) == numbers
    assert len(line.split()) == 20


def test_without_swap_there_is_no_disk():
    system = System.boot(dataclasses.replace(Machine.load("default"), swap=()))
    assert text(system, "/proc/partitions") == text(system, "/proc/diskstats") == ""
