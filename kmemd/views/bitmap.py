"""Sets of CPUs and nodes as the kernel prints them (lib/bitmap.c ``%*pbl`` and ``%*pb``)."""

from __future__ import annotations

from collections.abc import Iterable

MASK_WORD_BITS = 32


def format_list(members: Iterable[int]) -> str:
    """Members as ranges: ``0-3,8``; an empty set is an empty string."""
    runs: list[list[int]] = []
    for member in sorted(members):
        if runs and member == runs[-1][1] + 1:
            runs[-1][1] = member
        else:
            runs.append([member, member])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def format_mask(members: Iterable[int], nr_bits: int) -> str:
    """Members as a mask of ``nr_bits`` bits in hexadecimal words: ``3``, ``00000001,0000000f``."""
    mask = sum(1 << member for member in members)
    words = []
    for start in range(0, nr_bits, MASK_WORD_BITS):
        width = -(-min(MASK_WORD_BITS, nr_bits - start) // 4)
        words.append(f"{mask >> start & 0xFFFFFFFF:0{width}x}")
    return ",".join(reversed(words))
