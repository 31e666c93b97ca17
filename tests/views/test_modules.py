"""/proc/modules: a module is there once a call site is in it."""

import pytest

from kmemd import System
from kmemd.views.tree import Caller


@pytest.fixture
def system():
    system = System.boot("default", cmdline="page_owner=on")
    assert system.read("/proc/modules") == b""
    system.command("leak = alloc_pages by=probe+0x2a[drv]")
    assert b"[drv]" in system.read("/sys/kernel/debug/page_owner")
    return system


def test_a_module_is_where_kallsyms_has_it(system):
    name, size, users, used_by, state, address = system.read("/proc/modules").decode().splitlines()[-1].split()
    assert (name, users, used_by, state) == ("drv", "0", "-", "Live")
    assert int(size) % 4096 == 0
    symbols = [line for line in system.read("/proc/kallsyms").decode().splitlines() if line.endswith("[drv]")]
    assert min(int(line.split()[0], 16) for line in symbols) == int(address, 16)


def test_others_do_not_see_addresses(system):
    caller = Caller(4242, 1000)
    line = system.tree.open(system.tree.lookup("/proc/modules", caller), caller).read(0, 4096).decode()
    assert line.startswith("drv ") or "\ndrv " in line
    assert "0xffff" not in line
