"""What execve puts on top of a stack, against the addresses of captured processes."""

from __future__ import annotations

from random import Random

import pytest

from kmemd import System
from kmemd.mm.elf_tables import STACK_RANDOM, ElfTables

TOP = 0x7FFFFFFFF000


@pytest.mark.parametrize(("arch", "word"), [("x86_64", 8), ("i386", 4)])
def test_strings_are_below_a_null_word(arch: str, word: int) -> None:
    tables = ElfTables.make(arch, TOP, ["cat", "file"], ["A=b"], "/bin/cat", None)
    assert tables.strings == b"cat\0file\0A=b\0/bin/cat\0" + bytes(word)
    assert TOP - tables.arg_start == len(tables.strings)
    assert (tables.arg_end - tables.arg_start, tables.env_end - tables.arg_end) == (9, 4)
    assert tables.start_stack % 16 == 0
    assert tables.start_stack < tables.random == tables.platform - 16 < tables.arg_start


def test_the_captured_ends_follow_from_the_name() -> None:
    """stat of cat /proc/self/stat, which busybox ran as /proc/self/exe, on a machine of 2 nodes."""
    tables = ElfTables.make("x86_64", 140728961048576, ["cat", "/proc/self/stat"], ["x" * 41], "/proc/self/exe", None)
    ends = (tables.arg_start, tables.arg_end, tables.arg_end, tables.env_end)
    assert ends == (140728961048491, 140728961048511, 140728961048511, 140728961048553)


def test_chance_moves_the_pointers_only() -> None:
    fixed = ElfTables.make("x86_64", TOP, ["a"], [], "/a", None)
    moved = [ElfTables.make("x86_64", TOP, ["a"], [], "/a", Random(seed)) for seed in range(20)]
    assert {tables.arg_start for tables in moved} == {fixed.arg_start}
    assert len({tables.start_stack for tables in moved}) > 10
    assert all(0 <= fixed.start_stack - tables.start_stack <= STACK_RANDOM for tables in moved)


@pytest.mark.parametrize("machine", ["default", "highmem"])
def test_the_files_of_a_process_agree(machine: str) -> None:
    system = System.boot(machine, seed=1)
    system.command("p = spawn worker")
    pid = system.kernel.handles["p"].pid
    stat = system.read(f"/proc/{pid}/stat").split()
    arg_start, arg_end, env_start, env_end = map(int, stat[47:51])
    assert system.read(f"/proc/{pid}/mem", arg_start, arg_end - arg_start) == b"worker\0"
    assert system.read(f"/proc/{pid}/cmdline") == b"worker\0"
    assert system.read(f"/proc/{pid}/mem", env_start, env_end - env_start) == system.read(f"/proc/{pid}/environ")
    width = system.kernel.layout.pointer_size
    auxv = system.read(f"/proc/{pid}/auxv")
    words = [int.from_bytes(auxv[at : at + width], "little") for at in range(0, len(auxv), width)]
    vector = dict(zip(words[::2], words[1::2], strict=True))
    assert vector[31] == env_end
    assert system.read(f"/proc/{pid}/mem", vector[31], 9) == b"/bin/tiny"
    assert int(stat[27]) < vector[25] < vector[15] < arg_start
