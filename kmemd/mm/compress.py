"""How small a page gets: the compressors that zswap and zram know (crypto/lzo.c, lz4.c, zstd.c and their like).

The model does not compress: a page's size is drawn from what stands in it. Bytes that a command wrote are measured;
pages filled by a pattern, and pages whose bytes nobody asked for, get a size that follows from where the page belongs
(its owner and index), so that the same page has the same size each time. ``docs/fidelity.md`` has the shares.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kmemd.core.pages import PageMap
from kmemd.mm.contents import CONTENT, Content, Contents, Pattern
from kmemd.mm.units import PAGE_SIZE

PFNs = npt.NDArray[np.int64]

SAME_FILLED = 0
"""The size of a page that repeats one word: nothing of it is stored but the word."""
WORST = PAGE_SIZE + PAGE_SIZE // 16 + 67
"""What lzo makes of noise (lzo1x_worst_compress)."""
SHARES = ((0.10, SAME_FILLED, SAME_FILLED), (0.75, 410, 1843), (0.92, 1843, 3277), (1.0, WORST, WORST))
"""Of pages whose bytes nobody asked for: up to which share, and the least and most bytes that lzo makes of them."""
TEXT = (1229, 1720)


@dataclass(frozen=True)
class Algorithm:
    """One compressor: its output as a share of lzo's, and ns for a page each way."""

    share: float
    compress_ns: int
    decompress_ns: int


ALGORITHMS = {
    "lzo": Algorithm(1.0, 9_000, 5_000),
    "lzo-rle": Algorithm(1.0, 8_000, 4_500),
    "lz4": Algorithm(1.05, 7_500, 2_500),
    "lz4hc": Algorithm(0.92, 60_000, 2_500),
    "842": Algorithm(1.10, 30_000, 25_000),
    "zstd": Algorithm(0.78, 25_000, 9_000),
    "deflate": Algorithm(0.76, 70_000, 22_000),
}


class Compression:
    """Sizes of one machine's pages."""

    def __init__(self, pages: PageMap, contents: Contents) -> None:
        self._pages, self._contents = pages, contents

    def sizes(self, pfns: PFNs, algorithm: str) -> npt.NDArray[np.int64]:
        """Bytes of each page when it is compressed: ``SAME_FILLED``, or more than a page for noise."""
        drawn = _draw(self._pages.mapping[pfns].astype(np.int64), self._pages.index[pfns])
        sizes = _spread(drawn)
        for at in np.flatnonzero(self._pages.flags[pfns] & CONTENT).tolist():
            content = self._contents.take(int(pfns[at]))
            if content is not None:
                sizes[at] = _size_of(content, float(drawn[at]))
        return self.scaled(sizes, algorithm)

    @staticmethod
    def scaled(sizes: npt.NDArray[np.int64], algorithm: str) -> npt.NDArray[np.int64]:
        """What an algorithm makes of pages, of which lzo makes so much; noise stays noise."""
        share = ALGORITHMS[algorithm].share
        plain = (sizes > SAME_FILLED) & (sizes < PAGE_SIZE)
        return np.where(plain, np.clip((sizes * share).astype(np.int64), 16, WORST), sizes)

    def drawn(self, owner: int, indices: PFNs, algorithm: str) -> npt.NDArray[np.int64]:
        """Bytes of pages of which nothing is known but whose they are."""
        return self.scaled(_spread(_draw(np.full(len(indices), owner, dtype=np.int64), indices)), algorithm)

    @classmethod
    def measured(cls, content: bytes, algorithm: str) -> int:
        """Bytes of one page whose bytes are known."""
        return int(cls.scaled(np.array([_size_of(content, 0.0)], dtype=np.int64), algorithm)[0])


def _draw(owners: PFNs, indices: PFNs) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each page, from its owner and index (splitmix64)."""
    with np.errstate(over="ignore"):
        word = (owners.astype(np.uint64) << np.uint64(40)) ^ indices.astype(np.uint64)
        word = word + np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
    drawn: npt.NDArray[np.float64] = (word >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return drawn


def _spread(drawn: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Sizes by ``SHARES``."""
    sizes = np.zeros(len(drawn), dtype=np.int64)
    before = 0.0
    for share, least, most in SHARES:
        here = (drawn >= before) & (drawn < share)
        sizes[here] = least + ((drawn[here] - before) / (share - before) * (most - least)).astype(np.int64)
        before = share
    return sizes


def _size_of(content: Content, drawn: float) -> int:
    """Bytes that lzo makes of what is known."""
    if isinstance(content, Pattern):
        least, most = {"zero": (0, 0), "text": TEXT, "random": (WORST, WORST)}[content.kind]
        return least + int(drawn * (most - least))
    if content == content[:8] * (PAGE_SIZE // 8):
        return SAME_FILLED
    packed = len(zlib.compress(content, 1))
    return packed if packed < PAGE_SIZE else WORST


__all__ = ["ALGORITHMS", "SAME_FILLED", "Algorithm", "Compression"]
