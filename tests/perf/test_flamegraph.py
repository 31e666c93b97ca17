"""Flame graphs: the boxes of a picture are the stacks, to the pixel."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from kmemd.cli import main
from kmemd.perf.flamegraph import PAD_X, ROW, collapse, parse, svg
from kmemd.perf.options import PerfError
from kmemd.perf.samples import parse as parse_samples

SVG = "{http://www.w3.org/2000/svg}"
STACKS = parse(["a;b;c 60", "a;b 20", "a;d<x> 20", "e 100"])


def boxes(text: str) -> list[tuple[str, int, float, float]]:
    """Title, row's y, left edge and width of every box."""
    found = []
    for group in ET.fromstring(text.encode()).iter(f"{SVG}g"):
        title, rect = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        assert title is not None
        assert rect is not None
        found.append((title.text or "", int(rect.attrib["y"]), float(rect.attrib["x"]), float(rect.attrib["width"])))
    return found


def test_widths_are_shares() -> None:
    found = {title: (y, x, width) for title, y, x, width in boxes("".join(svg(STACKS, "t & u", "bytes", 1220)))}
    assert {title: width for title, (_, _, width) in found.items()} == {
        "all (200 bytes, 100.00%)": 1200,
        "a (100 bytes, 50.00%)": 600,
        "b (80 bytes, 40.00%)": 480,
        "c (60 bytes, 30.00%)": 360,
        "d<x> (20 bytes, 10.00%)": 120,
        "e (100 bytes, 50.00%)": 600,
    }
    assert found["c (60 bytes, 30.00%)"][1] == found["b (80 bytes, 40.00%)"][1] == PAD_X
    assert found["a (100 bytes, 50.00%)"][0] == found["all (200 bytes, 100.00%)"][0] - ROW
    assert found["d<x> (20 bytes, 10.00%)"][1] == PAD_X + 480


def test_boxes_lie_side_by_side_on_their_callers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script"
    script.write_text("p = alloc_pages order=3 n=100 by=a_probe\nq = alloc_pages order=0 n=300 by=b_probe\n")
    assert main(["perf", "flamegraph", "--by", "bytes", str(script)]) == 0
    found = boxes(capsys.readouterr().out)
    rows = defaultdict(list)
    for title, y, x, width in found:
        rows[y].append((x, x + width, title))
    for y, row in rows.items():
        row.sort()
        assert all(left[1] <= right[0] + 0.01 for left, right in pairwise(row)), y
    for y in list(rows)[1:]:
        below = rows[y + ROW]
        assert all(any(low - 0.01 <= x and end <= high + 0.01 for low, high, _ in below) for x, end, _ in rows[y])
    sizes = {title.partition(" ")[0]: title for title, *_ in found}
    assert sizes["a_probe"].startswith(f"a_probe ({100 * 8 * 4096:,} bytes, ")
    assert sizes["b_probe"].startswith(f"b_probe ({300 * 4096:,} bytes, ")


def test_by_count_and_by_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script"
    script.write_text("p = alloc_pages order=3 n=100 by=a_probe\n")
    assert main(["perf", "flamegraph", "--by", "count", "--folded", str(script)]) == 0
    stacks = parse(capsys.readouterr().out.splitlines())
    assert sum(number for stack, number in stacks.items() if "a_probe" in stack) == 100
    assert main(["perf", "flamegraph", "--by", "time", "--folded", str(script)]) == 0
    out, err = capsys.readouterr()
    taken = re.search(r" ns=(\d+)$", err, re.M)
    assert taken is not None
    assert sum(number for stack, number in parse(out.splitlines()).items() if "a_probe" in stack) == int(taken[1])


@pytest.mark.parametrize("source", ["kmemleak", "slab"])
def test_objects(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script"
    script.write_text("o = kmalloc 128 n=50 by=leaky_init\n")
    assert main(["perf", "flamegraph", "--by", "bytes", "--source", source, "--folded", str(script)]) == 0
    stacks = parse(capsys.readouterr().out.splitlines())
    assert sum(number for stack, number in stacks.items() if "leaky_init" in stack) == 50 * 128


def test_what_is_read_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folded = tmp_path / "folded"
    folded.write_text("x;y 3\nx 1\n")
    assert main(["perf", "flamegraph", "-i", str(folded)]) == 0
    assert "y (3 bytes, 75.00%)" in {title for title, *_ in boxes(capsys.readouterr().out)}
    folded.write_text("x;y\n")
    assert main(["perf", "flamegraph", "-i", str(folded)]) == 1
    assert "not a folded stack" in capsys.readouterr().err
    assert main(["perf", "flamegraph", "-i", str(tmp_path / "none")]) == 1
    with pytest.raises(PerfError):
        parse(["nothing"])


def test_nothing_is_a_picture_too() -> None:
    assert boxes("".join(svg({}, "none", "bytes", 300))) == []


def test_of_several_events_the_first() -> None:
    text = "a b    7 [000]     1.000000:         10 cpu-clock: \n\t  1 f+0x1 ([k])\n\n"
    other = "a b    7 [000]     1.000000:          5 page-faults: \n\t  1 f+0x1 ([k])\n\n"
    assert collapse(parse_samples((text + other + text).splitlines())) == {("a_b", "f"): 20}
