"""``kmemd perf flamegraph``: folded stacks drawn as SVG (the picture of Brendan Gregg's flamegraph.pl).

A box is a function in one place of the call tree; its width is its share of the whole, its children stand on it. Boxes
are in alphabetical order, so that equal calls merge. Nothing is interactive but the titles, which browsers show
under the pointer.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from xml.sax.saxutils import escape
from zlib import crc32

from kmemd.perf.data import MAGIC
from kmemd.perf.data_reader import unpack
from kmemd.perf.options import PerfError
from kmemd.perf.record import recorded
from kmemd.perf.samples import Sample
from kmemd.perf.samples import parse as parse_samples
from kmemd.perf.target import target

ROW = 16
PAD_X, PAD_TOP, PAD_BOTTOM = 10, 40, 30
CHAR_WIDTH = 7.1
"""Of the font, in pixels, at most."""
LEAST_WIDTH = 0.1
"""Pixels: what is narrower is not drawn."""
PARAMETERS = {"page_owner": "page_owner=on", "kmemleak": "kmemleak=on", "slab": "slub_debug=U"}
"""What must be on the command line for a source to know anything."""
UNITS = {"bytes": "bytes", "count": "allocations", "time": "ns"}

Folded = dict[tuple[str, ...], int]


def main(options: argparse.Namespace) -> int:
    """Draw, or with ``--folded`` print the stacks."""
    stacks = _from_file(options.input) if options.input else _from_machine(options)
    if options.folded:
        sys.stdout.writelines(f"{';'.join(stack)} {number}\n" for stack, number in sorted(stacks.items()))
        return 0
    what = options.input or ("time" if options.by == "time" else f"{options.by} held, by {options.source}")
    sys.stdout.writelines(svg(stacks, options.title or f"Flame graph: {what}", UNITS[options.by], options.width))
    return 0


def _from_machine(options: argparse.Namespace) -> Folded:
    timed = options.by == "time"
    with target(options, "" if timed else PARAMETERS[options.source]) as machine:
        if timed:
            if options.target:
                with _standard_output_is_the_picture():
                    recorded(machine, "cpu-clock", period=1)
            return collapse(parse_samples(machine.read("kmemd/perf/script").splitlines()))
        with _standard_output_is_the_picture():
            machine.run()
        return parse(machine.read(f"kmemd/perf/folded/{options.source}-{options.by}").splitlines())


@contextmanager
def _standard_output_is_the_picture() -> Iterator[None]:
    """What a script or a program prints meanwhile goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _from_file(name: str) -> Folded:
    """The stacks of a perf.data file, of what ``perf script`` printed, or folded ones. PerfError."""
    try:
        if name == "-":
            content = sys.stdin.buffer.read()
        else:
            with open(name, "rb") as file:
                content = file.read()
        if content.startswith(MAGIC):
            return collapse(unpack(content).samples)
        lines = content.decode("utf-8", "replace").splitlines()
        if any(line.startswith(("#", "\t")) for line in lines):
            return collapse(parse_samples(lines))
    except OSError as error:
        raise PerfError(f"{name}: {error.strerror}") from None
    except ValueError as error:
        raise PerfError(f"{name}: {error}") from None
    return parse(lines)


def parse(lines: Iterable[str]) -> Folded:
    """Folded stacks: ``a;b;c NUMBER``. PerfError."""
    found: Folded = {}
    for line in lines:
        stack, _, number = line.rstrip().rpartition(" ")
        if not stack or not number.isdigit():
            raise PerfError(f"not a folded stack: {line[:60]!r}")
        frames = tuple(stack.split(";"))
        found[frames] = found.get(frames, 0) + int(number)
    return found


def collapse(samples: Iterable[Sample]) -> Folded:
    """Samples as stacks with the name of the task outermost, and their periods added up.

    Of several events the first one's samples, as stackcollapse-perf.pl has it.
    """
    found: Folded = {}
    event = ""
    for sample in samples:
        event = event or sample.event
        if sample.event == event:
            stack = (sample.comm.replace(" ", "_"), *(frame.name for frame in reversed(sample.frames)))
            found[stack] = found.get(stack, 0) + sample.period
    return found


# -- drawing -------------------------------------------------------------------------------------------------


@dataclass
class Box:
    """A function at one place of the call tree."""

    name: str
    value: int = 0
    inner: dict[str, Box] = field(default_factory=dict)


def tree(stacks: Folded) -> Box:
    """The call tree: its root is everything."""
    root = Box("all")
    for stack, number in stacks.items():
        box = root
        box.value += number
        for name in stack:
            box = box.inner.setdefault(name, Box(name))
            box.value += number
    return root


def depth(stacks: Folded) -> int:
    """Rows of boxes that the stacks need, with the root's."""
    return 1 + max(map(len, stacks), default=0)


def svg(stacks: Folded, title: str, unit: str, width: int) -> Iterator[str]:
    """The picture, in pieces. ``unit`` is what the numbers count."""
    rows = depth(stacks)
    height = PAD_TOP + ROW * rows + PAD_BOTTOM
    yield '<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" version="1.1" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="monospace" font-size="12">\n'
    )
    yield f'<rect x="0" y="0" width="{width}" height="{height}" fill="#f8f8f0"/>\n'
    yield f'<text x="{width / 2:g}" y="24" text-anchor="middle" font-size="17">{escape(title)}</text>\n'
    root = tree(stacks)
    if root.value:
        scale = (width - 2 * PAD_X) / root.value
        yield from _boxes(root, scale, unit, height - PAD_BOTTOM - ROW)
    else:
        yield f'<text x="{width / 2:g}" y="{PAD_TOP + 12}" text-anchor="middle">nothing to show</text>\n'
    yield "</svg>\n"


def _boxes(root: Box, scale: float, unit: str, bottom: int) -> Iterator[str]:
    """All boxes, from the root up; each row above its callers'."""
    waiting = [(root, 0, 0)]
    while waiting:
        box, start, row = waiting.pop()
        if box.value * scale < LEAST_WIDTH:
            continue
        yield _box(box, PAD_X + start * scale, bottom - row * ROW, scale, unit, root.value)
        for name in sorted(box.inner):
            waiting.append((box.inner[name], start, row + 1))
            start += box.inner[name].value


def _box(box: Box, x: float, y: int, scale: float, unit: str, whole: int) -> str:
    width = box.value * scale
    room = int((width - 6) / CHAR_WIDTH)
    shown = box.name if len(box.name) <= room else f"{box.name[: room - 2]}.." if room >= 3 else ""
    label = f'<text x="{x + 3:.2f}" y="{y + 12}">{escape(shown)}</text>' if shown else ""
    title = f"{escape(box.name)} ({box.value:,} {unit}, {100 * box.value / whole:.2f}%)"
    return (
        f'<g><title>{title}</title><rect x="{x:.3f}" y="{y}" width="{width:.3f}" height="{ROW - 1}" rx="2" '
        f'fill="{_colour(box.name)}"/>{label}</g>\n'
    )


def _colour(name: str) -> str:
    """A warm colour that a function has in every graph."""
    crc = crc32(name.encode())
    return f"rgb({205 + crc % 50},{crc // 50 % 230},{crc // 11500 % 55})"
