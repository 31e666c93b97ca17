"""How ``%p`` hides an address (lib/vsprintf.c ``ptr_to_id``, lib/siphash.c).

The key of the hash comes from the random number generator once that is ready. In the model its one source at boot is
the CPU's RDRAND, unless ``random.trust_cpu=off`` (drivers/char/random.c ``random_init``); without it no key ever comes,
as on the captured machines. ``debug_boot_weak_hash`` uses a hash without a key, as in Linux.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from kmemd.mm.params import CommandLine

MASK = (1 << 64) - 1
GOLDEN_RATIO_64 = 0x61C8864680B583EB
GOLDEN_RATIO_32 = 0x61C88647
HASH_BITS = 32
_INIT = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & MASK


def _rounds(v: tuple[int, int, int, int], count: int) -> tuple[int, int, int, int]:
    a, b, c, d = v
    for _ in range(count):
        a = a + b & MASK
        b = _rotate(b, 13) ^ a
        a = _rotate(a, 32)
        c = c + d & MASK
        d = _rotate(d, 16) ^ c
        a = a + d & MASK
        d = _rotate(d, 21) ^ a
        c = c + b & MASK
        b = _rotate(b, 17) ^ c
        c = _rotate(c, 32)
    return a, b, c, d


def siphash(value: int, size: int, key: tuple[int, int]) -> int:
    """SipHash-2-4 of ``size`` bytes, at most 8, of a number: ``siphash_1u64`` and ``siphash_1u32``."""
    first, second = key
    a, b, c, d = (init ^ half for init, half in zip(_INIT, (first, second, first, second), strict=True))
    words = [value, size << 56] if size == 8 else [size << 56 | value]
    for word in words:
        a, b, c, d = _rounds((a, b, c, d ^ word), 2)
        a ^= word
    a, b, c, d = _rounds((a, b, c ^ 0xFF, d), 4)
    return a ^ b ^ c ^ d


def keyed(seed: int, pointer_size: int) -> Callable[[int], int]:
    """The hash of a machine whose random numbers come from ``seed``; it shows 32 bits."""
    bits = Random(f"ptr_key {seed}").getrandbits(128)
    key = bits & MASK, bits >> 64
    return lambda address: siphash(address, pointer_size, key) & (1 << HASH_BITS) - 1


def weak(pointer_size: int) -> Callable[[int], int]:
    """``hash_long(address, 32)``."""
    if pointer_size == 8:
        return lambda address: (address * GOLDEN_RATIO_64 & MASK) >> 64 - HASH_BITS
    return lambda address: address * GOLDEN_RATIO_32 & (1 << HASH_BITS) - 1


def chosen(cmdline: CommandLine, seed: int, pointer_size: int, *, crng_ready: bool) -> Callable[[int], int] | None:
    """The hash of a booted machine, None where no key ever comes."""
    if cmdline.has("debug_boot_weak_hash"):
        return weak(pointer_size)
    return keyed(seed, pointer_size) if crng_ready else None
