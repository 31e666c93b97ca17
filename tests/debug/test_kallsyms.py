"""The symbol table: addresses, frames, modules, and who may see a pointer."""

import pytest

from kmemd import System
from kmemd.debug.kallsyms import Kallsyms, show_values, split_frame
from kmemd.errors import KernelError
from kmemd.mm.layout import Layout
from kmemd.mm.stackdepot import StackDepot


def make(**options):
    depot = StackDepot()
    return Kallsyms(Layout("x86_64", 0x80000), depot, **options), depot


def test_table_is_large_sorted_and_inside_text():
    kallsyms, _ = make()
    kallsyms.check()
    symbols = list(kallsyms.symbols())
    assert len(symbols) > 1500
    addresses = [symbol.address for symbol in symbols]
    assert addresses == sorted(addresses)
    assert symbols[0].name == "_stext"
    assert symbols[-1].address == 0xFFFFFFFF81000000 + 0x101C000


def test_addresses_and_names_are_inverse():
    kallsyms, _ = make()
    for name in ("__kmalloc", "vfs_write", "entry_SYSCALL_64_after_hwframe"):
        address, size = kallsyms.lookup(name)
        assert kallsyms.symbolize(address + 3) == f"{name}+0x3/{size:#x}"
    assert kallsyms.symbolize(0x1000) == "0x1000"
    with pytest.raises(KernelError):
        kallsyms.lookup("no_such_function")


def test_frame_without_offset_is_a_return_address_that_depends_on_the_callee():
    kallsyms, depot = make()
    handle = depot.save(("__kmalloc", "vfs_write", "ksys_write"))
    texts = kallsyms.stack(handle)
    assert [text.split("+")[0] for text in texts] == ["__kmalloc", "vfs_write", "ksys_write"]
    assert kallsyms.frame("vfs_write", "__kmalloc")[1] == texts[1]
    assert kallsyms.frame("vfs_write", "kfree")[1] != texts[1]
    for address, text in zip(kallsyms.addresses(handle), texts, strict=True):
        assert kallsyms.symbolize(address) == text


def test_a_module_is_made_by_naming_one_of_its_functions():
    kallsyms, depot = make()
    (text,) = kallsyms.stack(depot.save(("leaky_probe+0x2a[leaky_drv]",)))
    assert text.startswith("leaky_probe+0x2a/0x")
    assert text.endswith(" [leaky_drv]")
    address, _ = kallsyms.lookup("leaky_probe", "leaky_drv")
    assert address == 0xFFFFFFFFC0000000
    assert kallsyms.modules() == ["leaky_drv"]
    assert kallsyms.symbolize(address + 0x2A) == text
    kallsyms.frame("other+0x10[second]")
    assert kallsyms.lookup("other", "second")[0] == address + 0x10000
    assert list(kallsyms.symbols())[-1].module == "second"


def test_an_unknown_function_of_the_kernel_is_added_behind_the_others():
    kallsyms, _ = make()
    _, text = kallsyms.frame("made_up_function+0x900")
    assert text.startswith("made_up_function+0x900/0x9")
    kallsyms.check()


def test_offsets_that_no_function_has_still_render():
    kallsyms, depot = make()
    handle = depot.save(("huge+0xffffff", "huge+0xffffff[mod]", "small+0x1[mod]", "vfs_write+0xffff"))
    assert [text.split("/")[0] for text in kallsyms.stack(handle)] == [
        "huge+0xffffff",
        "huge+0xffffff",
        "small+0x1",
        "vfs_write+0xffff",
    ]
    addresses = [symbol.address for symbol in kallsyms.symbols() if symbol.name in ("huge", "small")]
    assert len(set(addresses)) == 3
    assert kallsyms.modules() == ["mod"]


@pytest.mark.parametrize("bad", ["", "+0x2a", "a b", "f+", "f+0xzz", "f[", "f+1[mod", "1f"])
def test_bad_frames(bad):
    with pytest.raises(KernelError):
        split_frame(bad)


def test_pointers_are_hidden_as_on_the_captured_machines():
    kallsyms, _ = make()
    address = 0xFFFFC90000001000
    assert kallsyms.pK(address, 0, trusted=True) == "(____ptrval____)"
    assert kallsyms.pK(address, 1, trusted=True) == "ffffc90000001000"
    assert kallsyms.pK(address, 1, trusted=False) == "0000000000000000"
    assert kallsyms.pK(address, 2, trusted=True) == "0000000000000000"
    plain, _ = make(no_hash_pointers=True)
    assert plain.p(address) == plain.pK(address, 0, trusted=False) == "ffffc90000001000"
    assert Kallsyms(Layout("i386", 0x1000), StackDepot()).p(1) == "(ptrval)"


@pytest.mark.parametrize(
    ("trusted", "restrict", "paranoid", "shown"),
    [
        (True, 0, 2, True),
        (False, 0, 2, False),
        (False, 0, 1, True),
        (True, 1, 2, True),
        (False, 1, 1, False),
        (True, 2, 1, False),
    ],
)
def test_who_sees_kallsyms(trusted, restrict, paranoid, shown):
    assert show_values(trusted, restrict, paranoid) is shown


def test_kaslr_is_switched_on_behind_the_machines_own_nokaslr():
    """The captured machines had nokaslr, and so have the built-in ones."""
    bases = set()
    for seed in (1, 2, 3):
        system = System.boot(machine="default", seed=seed, cmdline="kaslr", clock="manual")
        bases.add(system.read("/proc/kallsyms")[:16])
        system.command("a = kmalloc 64")
        system.check()
    assert len(bases) == 3
    plain = System.boot(machine="default", cmdline="kaslr nokaslr", clock="manual")
    assert plain.read("/proc/kallsyms").startswith(b"ffffffff81000000 ")
