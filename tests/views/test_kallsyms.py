"""/proc/kallsyms for those who may see addresses, and for others."""

import re

from kmemd.system import System
from kmemd.views.tree import Caller


def read_as(system, uid):
    node = system.tree.lookup("/proc/kallsyms")
    return system.tree.open(node, Caller(uid=uid)).read(0, 1 << 22).decode().splitlines()


def test_root_sees_addresses_and_others_zeros():
    system = System.boot(cmdline="nokaslr")
    root, user = read_as(system, 0), read_as(system, 1000)
    assert len(root) == len(user) > 1500
    assert root[0] == "ffffffff81000000 T _stext"
    assert all(re.fullmatch(r"[0-9a-f]{16} [TtDB] [\w.]+(\t\[\w+\])?", line) for line in root)
    assert {line.split()[0] for line in user} == {"0" * 16}
    assert [line.split()[2] for line in root] == [line.split()[2] for line in user]


def test_kptr_restrict_hides_them_from_root_too():
    system = System.boot(cmdline="nokaslr")
    system.write("/proc/sys/kernel/kptr_restrict", "2")
    assert read_as(system, 0)[0] == "0000000000000000 T _stext"


def test_a_module_shows_with_its_functions():
    system = System.boot(cmdline="nokaslr")
    system.command("leak = kmalloc 100 by=leaky_probe+0x2a[leaky_drv]")
    system.command("forget leak")
    system.advance(6)
    system.write("/sys/kernel/debug/kmemleak", "scan")
    system.read("/sys/kernel/debug/kmemleak")
    assert read_as(system, 0)[-1] == "ffffffffc0000000 t leaky_probe\t[leaky_drv]"
