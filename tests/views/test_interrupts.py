"""/proc/interrupts and /proc/softirqs: a column per CPU, and no counts."""

from types import SimpleNamespace

import pytest

from kmemd import System
from kmemd.views import interrupts
from kmemd.views.machine_files import SOFTIRQS


def test_interrupts_have_a_column_for_each_cpu():
    lines = System.boot("default").read("/proc/interrupts").decode().splitlines()
    assert lines[0] == "           CPU0       CPU1       "
    assert lines[1] == "NMI:          0          0   Non-maskable interrupts"
    assert lines[-1] == "MIS:          0"
    assert [line.split(":")[0] for line in lines[1:3]] == ["NMI", "LOC"]


@pytest.mark.parametrize(("cpus", "width"), [(1, 3), (119, 3), (120, 4)])
def test_the_first_column_has_room_for_the_highest_number(cpus, width):
    kernel = SimpleNamespace(machine=SimpleNamespace(cpus=cpus))
    header, *rows = interrupts.interrupts.show(kernel)
    assert header.index("CPU0") == width + 8
    assert rows[0].startswith("NMI".rjust(width) + ": ")
    assert rows[0].split()[1:-2] == ["0"] * cpus


def test_softirqs_have_the_columns_of_stat():
    lines = System.boot("default").read("/proc/softirqs").decode().splitlines()
    assert lines[0] == " " * 20 + "CPU0       CPU1       "
    assert lines[1] == "          HI:          0          0"
    assert lines[-1] == "         RCU:          0          0"
    assert len(lines) == 1 + SOFTIRQS
