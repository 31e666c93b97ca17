"""Generations (``/sys/kernel/debug/lru_gen``) and the choice of a replacement policy (``kmemd/replacement``).

Linux has no such choice; what it would show there is like its own files with one value of several in brackets.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm.replacement import NAMES
from kmemd.steps import Steps
from kmemd.views.tree import debugfs, kmemd


def _built(kernel: Kernel) -> bool:
    """Whether the kernel was built with generations."""
    return kernel.vmscan.lru_gen


@debugfs.file("lru_gen", mode=0o644, exists=_built)
def lru_gen(kernel: Kernel) -> Iterator[str]:
    """The generations of each lruvec: number, age in ms, anonymous and file pages; a write ages or evicts."""
    return kernel.user.page_reclaim.replacement.files.show(full=False)


@lru_gen.store
def lru_gen_store(kernel: Kernel, text: str) -> Steps[None]:
    """Commands: ``+ memcg node seq [can_swap [force_scan]]``, ``- memcg node seq [swappiness [nr_to_reclaim]]``."""
    yield from kernel.user.page_reclaim.replacement.files.write(text)


@debugfs.file("lru_gen_full", mode=0o444, exists=_built)
def lru_gen_full(kernel: Kernel) -> Iterator[str]:
    """The same with the tiers of each generation and what walks of page tables found."""
    return kernel.user.page_reclaim.replacement.files.show(full=True)


@kmemd.file("replacement", mode=0o644)
def replacement(kernel: Kernel) -> str:
    """The replacement policies, the one in force in brackets; writing a name selects it."""
    current = kernel.user.page_reclaim.replacement.policy.name
    return " ".join(f"[{name}]" if name == current else name for name in NAMES) + "\n"


@replacement.store
def replacement_store(kernel: Kernel, text: str) -> Steps[None]:
    """Another policy from now on; all pages move to its lists."""
    name = text.strip()
    if name not in NAMES or (name == "mglru" and not kernel.vmscan.lru_gen):
        raise KernelError(errno.EINVAL, f"{name!r} is none of {', '.join(NAMES)}")
    yield from kernel.user.page_reclaim.replacement.policy.select(name)


@kmemd.file("hit_ratio", mode=0o444)
def hit_ratio(kernel: Kernel) -> str:
    """How well the policy did since it was selected: pages that read(2) found in memory and did not find, their ratio,
    pages that came back after they had been evicted, major faults, pages swapped in, file pages reclaimed."""
    policy = kernel.user.page_reclaim.replacement.policy
    counts = policy.counts()
    reads = counts["hits"] + counts["misses"]
    ratio = f"{counts['hits'] / reads:.6f}" if reads else "-"
    words = {"policy": policy.name, "hits": counts.pop("hits"), "misses": counts.pop("misses"), "ratio": ratio} | counts
    return " ".join(f"{name}={value}" for name, value in words.items()) + "\n"
