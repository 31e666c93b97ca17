"""Samples, and their text: what ``perf script`` prints (tools/perf/builtin-script.c ``process_event``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kmemd.debug.perf_events import event_line, frame_line
from kmemd.mm.clock import NSEC_PER_SEC, NSEC_PER_USEC

_HEAD = re.compile(
    r"(?P<comm>\S.*?) +(?P<tid>\d+) \[(?P<cpu>\d+)\] +(?P<s>\d+)\.(?P<us>\d{6}): +(?P<n>\d+) (?P<event>\S+): *$"
)
_FRAME = re.compile(r"\t *(?P<at>[0-9a-f]+) (?P<name>.+?)(?:\+0x(?P<offset>[0-9a-f]+))? \((?P<where>[^()]*)\)$")


class Frame(NamedTuple):
    """One function of a stack: the address in it, its name, the offset, and whose it is (``[kernel.kallsyms]``)."""

    address: int
    name: str
    offset: int
    where: str


class Sample(NamedTuple):
    """One sample: ``period`` events of ``event`` happened up to ``when_ns``. ``frames``: innermost first."""

    comm: str
    tid: int
    cpu: int
    when_ns: int
    period: int
    event: str
    frames: tuple[Frame, ...]

    def text(self) -> str:
        """The block that ``perf script`` prints."""
        head = event_line(self.comm, self.tid, self.cpu, self.when_ns, self.period, self.event)
        frames = [frame_line(at, f"{name}+{offset:#x}", where) for at, name, offset, where in self.frames]
        return f"{head}{''.join(frames)}\n"


def parse(lines: Iterable[str]) -> Iterator[Sample]:
    """The samples of a text; its header is passed over. ValueError for a line that is none of perf script's."""
    head: re.Match[str] | None = None
    frames: list[Frame] = []
    stacks: dict[tuple[Frame, ...], tuple[Frame, ...]] = {}
    for line in (*lines, ""):
        if line.startswith("#"):
            continue
        if line.strip() and head is not None:
            frames.append(_frame(line))
        elif line.strip():
            head = _HEAD.match(line.rstrip())
            if head is None:
                raise ValueError(f"no event line of perf script: {line.rstrip()}")
        elif head is not None:
            stack = tuple(frames)
            yield _sample(head, stacks.setdefault(stack, stack))
            head, frames = None, []


def _frame(line: str) -> Frame:
    found = _FRAME.match(line.rstrip())
    if found is None:
        raise ValueError(f"no frame of perf script: {line.rstrip()}")
    return Frame(int(found["at"], 16), found["name"], int(found["offset"] or "0", 16), found["where"])


def _sample(head: re.Match[str], frames: tuple[Frame, ...]) -> Sample:
    when_ns = int(head["s"]) * NSEC_PER_SEC + int(head["us"]) * NSEC_PER_USEC
    return Sample(head["comm"], int(head["tid"]), int(head["cpu"]), when_ns, int(head["n"]), head["event"], frames)
