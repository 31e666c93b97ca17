"""What %p shows: hashes, and when there are any."""

from __future__ import annotations

import re

import pytest

from kmemd import System
from kmemd.debug.ptr_hash import keyed, siphash, weak

KEY = (0x0706050403020100, 0x0F0E0D0C0B0A0908)


def test_siphash_is_the_published_one():
    """lib/test_siphash.c has these outputs for the key 00 01 … 0f and the bytes 00 01 02 …"""
    assert siphash(0x0706050403020100, 8, KEY) == 0x93F5F5799A932462
    assert siphash(0x03020100, 4, KEY) == 0xCF2794E0277187B7


def test_a_hash_has_32_bits_and_its_key_comes_from_the_seed():
    one, other = keyed(1, 8), keyed(2, 8)
    assert one(0xFFFF888000001000) == keyed(1, 8)(0xFFFF888000001000) != other(0xFFFF888000001000)
    assert max(one(0xFFFF888000000000 + 64 * i) for i in range(1000)) >> 31 == 1
    assert weak(8)(0xFFFF888000001000) < 1 << 32


LAPTOP = {"machine": "laptop", "seed": 3, "clock": "manual"}


def shown(system: System) -> list[str]:
    text = system.read("/proc/vmallocinfo").decode()
    return re.findall(r"^0x([^-]+)-0x", text, re.MULTILINE)


@pytest.mark.parametrize(("cmdline", "entropy"), [("", 256), ("random.trust_cpu=off", 0)])
def test_rdrand_gives_the_key_at_boot_unless_it_is_not_trusted(cmdline: str, entropy: int):
    system = System.boot(cmdline=cmdline, **LAPTOP)
    assert int(system.read("/proc/sys/kernel/random/entropy_avail")) == entropy
    assert ("random: crng init done" in system.read("/kmemd/dmesg").decode()) is bool(entropy)
    form = r"00000000[0-9a-f]{8}" if entropy else r"\(____ptrval____\)"
    assert all(re.fullmatch(form, word) for word in shown(system))


def test_the_same_address_hashes_the_same_wherever_it_is_shown():
    system = System.boot(cmdline="", **LAPTOP)
    system.write("/sys/kernel/tracing/events/kmem/kmalloc/enable", "1")
    reply = dict(word.split("=") for word in system.command("a = kmalloc 64").split())
    trace = system.read("/sys/kernel/tracing/trace").decode()
    found = re.findall(r"ptr=(\S+)", trace)
    assert found == [system.kernel.kallsyms.p(int(reply["addr"], 16))]
    assert found[0].startswith("00000000")
    assert found[0] != f"{int(reply['addr'], 16):016x}"


def test_null_and_error_numbers_are_shown():
    p = System.boot(**LAPTOP).kernel.kallsyms.p
    assert p(0) == "0" * 16
    assert p((1 << 64) - 12) == "fffffffffffffff4"


def test_the_weak_hash_needs_no_random_numbers():
    system = System.boot(machine="default", seed=1, cmdline="debug_boot_weak_hash", clock="manual")
    assert re.fullmatch("00000000[0-9a-f]{8}", shown(system)[0])
    assert shown(system)[0] == system.kernel.kallsyms.p(next(iter(system.kernel.vmalloc.areas())).address)
