"""Reports of slub_debug: what is read from a capture, and that a difference is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmemd import System
from kmemd.conformance import slub_debug
from kmemd.conformance.slub_debug import Misdeed

CAPTURES = Path(__file__).parents[1] / "captures" / "linux-6.1" / "debug"
FRAMES = ("one", "cmd_write", "vfs_write")


def boot(seed: int = 1) -> System:
    return System.boot(machine="default", seed=seed, cmdline="nokaslr slub_debug=FZPU,kmalloc-128,kmalloc-96")


def outcome(folder: Path, system: System) -> dict[str, bool]:
    return {case.name: case.passed for case in slub_debug.run(folder, system.kernel, FRAMES)}


def test_what_a_report_tells() -> None:
    uaf = Misdeed.of((CAPTURES / "slub_debug.uaf").read_text())
    assert uaf == Misdeed(128, "Poison overwritten", 8, 1, 0x42)
    assert uaf.after_free
    assert Misdeed.of((CAPTURES / "slub_debug.doublefree").read_text()) == Misdeed(128, "Object already free")
    assert Misdeed.of("nothing of it") is None


def test_the_captures_are_met() -> None:
    assert outcome(CAPTURES, boot()) == {
        "slub_debug.uaf": True,
        "slub_debug.uaf trace": True,
        "slub_debug.doublefree": True,
        "slub_debug.doublefree trace": True,
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Poison overwritten", "Red zone overwritten"),
        ("Redzone  ffff8880025d9780: bb", "Redzone  ffff8880025d9780: cc"),
        ("FIX kmalloc-128: Marking all objects used", "FIX kmalloc-128: Nothing"),
        (" check_object+", " check_something+"),
        ("objects=21", "objects=22"),
    ],
)
def test_a_difference_is_seen(tmp_path: Path, before: str, after: str) -> None:
    text = (CAPTURES / "slub_debug.uaf").read_text()
    assert before in text
    (tmp_path / "slub_debug.uaf").write_text(text.replace(before, after))
    assert not all(outcome(tmp_path, boot()).values())


@pytest.mark.parametrize(("size", "offset", "count"), [(128, 128, 4), (96, 96, 8), (128, -3, 2)])
def test_a_write_past_an_object_is_played_from_its_report(tmp_path: Path, size: int, offset: int, count: int) -> None:
    what = "Right Redzone overwritten" if offset > 0 else "Left Redzone overwritten"
    system = boot(seed=4)
    said = slub_debug._play(system.kernel, Misdeed(size, what, offset, count, 0x11), FRAMES)
    assert Misdeed.of(said) == Misdeed(size, what, offset, count, 0x11)
    (tmp_path / "slub_debug.redzone").write_text(said)
    assert outcome(tmp_path, boot()) == {"slub_debug.redzone": True, "slub_debug.redzone trace": True}
