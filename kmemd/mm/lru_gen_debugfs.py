"""Generations as debugfs shows them, and the commands it takes (mm/vmscan.c ``lru_gen_seq_show``, ``run_cmd``)."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator

from kmemd.core.lru_gen_lists import AVG_REFAULTED, AVG_TOTAL, EVICTED, PROTECTED, REFAULTED
from kmemd.core.lru_lists import MAX_NR_GENS, MAX_NR_TIERS, MIN_NR_GENS
from kmemd.errors import KernelError
from kmemd.mm import gfp as g
from kmemd.mm.lru_gen import NR_MM_STATS, Generations
from kmemd.mm.lru_gen_evict import GenEviction
from kmemd.mm.mmzone import Node
from kmemd.mm.vmscan_balance import DEF_PRIORITY, ScanControl
from kmemd.steps import Steps

ULONG_MASK, UINT_MASK = (1 << 64) - 1, (1 << 32) - 1
MOST_SWAPPINESS = 200
WIDTH = 10
# %c %u %u %lu %n %u %n %lu %n: what is not a number ends the conversion, and may be followed by blanks alone
_COMMAND = re.compile(r"(.)\s*([+-]?\d+)\s*([+-]?\d+)\s*([+-]?\d+)\s*(?:([+-]?\d+)\s*(?:([+-]?\d+)\s*)?)?", re.DOTALL)


class LruGenFiles:
    """``lru_gen`` and ``lru_gen_full``. ``groups()`` gives the cgroups' numbers and paths, the root first."""

    def __init__(
        self,
        generations: Generations,
        eviction: GenEviction,
        nodes: list[Node],
        groups: Callable[[], list[tuple[int, str]]],
    ) -> None:
        self._gens, self._eviction, self._groups = generations, eviction, groups
        self._nodes = [node.nid for node in nodes if node.has_memory]

    # -- reading -----------------------------------------------------------------------------------------

    def show(self, *, full: bool) -> Iterator[str]:
        """All lruvecs, a line for each generation, with ``full`` also what the controller and the walks know."""
        for memcg, path in self._groups():
            for nid in self._nodes:
                if nid == self._nodes[0]:
                    yield f"memcg {memcg + 1:5d} {path}\n"
                yield f" node {nid:5d}\n"
                yield from self._lruvec(self._gens.lruvecs.number(memcg, nid), full=full)

    def _lruvec(self, lruvec: int, *, full: bool) -> Iterator[str]:
        newest, oldest = self._gens.max_seq(lruvec), self._gens.min_seq(lruvec)
        for seq in range(max(newest - MAX_NR_GENS + 1, 0) if full else oldest[0], newest + 1):
            line = f" {seq:10d} {self._gens.age_ms(lruvec, seq) & UINT_MASK:10d}"
            for file in range(2):
                mark = "x" if full and seq < oldest[file] else " "
                line += f" {self._gens.core.pages(lruvec, seq, file):10d}{mark}"
            yield line + "\n"
            if full:
                yield from self._details(lruvec, seq, newest, oldest)

    def _details(self, lruvec: int, seq: int, newest: int, oldest: tuple[int, int]) -> Iterator[str]:
        """The tiers of a generation: averages in the youngest, what was counted in the oldest."""
        ctrl = self._gens.ctrl
        for tier in range(MAX_NR_TIERS):
            line = f"            {tier:10d}"
            for file in range(2):
                names, numbers = "   ", [0, 0, 0]
                if seq == newest:
                    names = "RT "
                    numbers = [ctrl(lruvec, kind, file, tier) for kind in (AVG_REFAULTED, AVG_TOTAL)] + [0]
                elif seq == oldest[file]:
                    names = "rep"
                    numbers = [ctrl(lruvec, kind, file, tier) for kind in (REFAULTED, EVICTED, PROTECTED)]
                line += "".join(f" {number:10d}{name}" for number, name in zip(numbers, names, strict=True))
            yield line + "\n"
        numbers, names = [0] * NR_MM_STATS, " " * NR_MM_STATS
        if seq == newest:
            numbers, names = self._gens.state(lruvec).stats.tolist(), "LOYNFA"
        yield " " * 22 + "".join(f" {number:10d}{name}" for number, name in zip(numbers, names, strict=True)) + "\n"

    # -- writing -----------------------------------------------------------------------------------------

    def write(self, text: str) -> Steps[None]:
        """Commands, split by commas, semicolons or lines: ``+ memcg node seq [can_swap [force_scan]]`` begins a
        generation, ``- memcg node seq [swappiness [nr_to_reclaim]]`` evicts those up to ``seq``. EINVAL, ERANGE."""
        for line in re.split(r"[,;\n]", text):
            command = line.lstrip(" \t\v\f\r")
            if not command:
                continue
            found = _COMMAND.fullmatch(command)
            if found is None:
                raise KernelError(errno.EINVAL, f"{command!r} is not + or - with a cgroup, a node and a generation")
            memcg, nid, seq = (int(found[k]) for k in (2, 3, 4))
            swappiness = -1 if found[5] is None else _int(int(found[5]))
            most = ULONG_MASK if found[6] is None else int(found[6]) & ULONG_MASK
            yield from self._run(found[1], memcg & UINT_MASK, nid & UINT_MASK, seq & ULONG_MASK, swappiness, most)

    def _run(self, verb: str, number: int, nid: int, seq: int, swappiness: int, most: int) -> Steps[None]:
        """One command (``run_cmd``)."""
        memcg = number - 1
        if nid not in self._nodes or memcg not in {memcg for memcg, _ in self._groups()}:
            raise KernelError(errno.EINVAL, f"there is no cgroup {number} or no node {nid}")
        if swappiness < 0:
            swappiness = self._gens.swappiness(memcg)
        if swappiness > MOST_SWAPPINESS or verb not in "+-":
            raise KernelError(errno.EINVAL, "a command is + or -, swappiness at most 200")
        if verb == "+":
            yield from self._age(memcg, nid, seq, can_swap=bool(swappiness), force_scan=bool(most))
        else:
            yield from self._evict(memcg, nid, seq, swappiness, most)

    def _age(self, memcg: int, nid: int, seq: int, *, can_swap: bool, force_scan: bool) -> Steps[None]:
        lruvec = self._gens.lruvecs.number(memcg, nid)
        newest = self._gens.max_seq(lruvec)
        if seq < newest:
            return
        if seq > newest:
            raise KernelError(errno.EINVAL, f"the youngest generation is {newest}")
        if not force_scan and self._gens.min_seq(lruvec)[not can_swap] + MAX_NR_GENS - 1 <= newest:
            raise KernelError(errno.ERANGE, "there are as many generations as there may be")
        for _ in self._gens.try_to_inc_max_seq(memcg, nid, newest, can_swap=can_swap, force_scan=force_scan):
            yield

    def _evict(self, memcg: int, nid: int, seq: int, swappiness: int, most: int) -> Steps[None]:
        lruvec = self._gens.lruvecs.number(memcg, nid)
        if seq + MIN_NR_GENS > self._gens.max_seq(lruvec):
            raise KernelError(errno.EINVAL, f"generation {seq} is too young to be evicted")
        sc = ScanControl(0, g.GFP_KERNEL, priority=DEF_PRIORITY)
        while seq >= self._gens.min_seq(lruvec)[not swappiness] and sc.nr_reclaimed < most:
            if not self._eviction.evict(memcg, nid, sc, swappiness)[0]:
                return
            yield


def _int(value: int) -> int:
    """A number as the kernel's int has it."""
    value &= UINT_MASK
    return value - (1 << 32) if value >> 31 else value
