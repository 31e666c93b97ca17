"""Runs every comparison that a capture tree allows, and reports per folder and class.

A capture tree holds folders named as in ``FOLDERS``; those it lacks are skipped, others are named as not compared.
What several machines have given may lie in a folder for each of them. A capture that cannot be read is a failed case.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmemd.conformance.case import Case, guarded

FOLDERS = {
    "boot": "boot",
    "watermarks": "watermarks",
    "slab": "slab",
    "buddy": "buddy",
    "limits": "limits",
    "oom": "oom",
    "writes": "writes",
    "debug": "debug",
    "process": "process",
    "reclaim": "reclaim",
    "cgroup": "cgroup",
    "compaction": "compaction",
    "kaslr": "kaslr",
    "trace": "trace",
}
"""Folder of the tree: module of this package whose ``run(folder)`` yields the cases."""


PER_MACHINE = {
    "slab": ("geometry-*cpu*.txt", "kmalloc_sizes.txt", "attributes"),
    "buddy": ("seq*.txt", "*.buddyinfo"),
    "debug": ("kmemleak.*", "page_owner"),
    "oom": ("oom.dmesg",),
    "cgroup": ("cgroup_writes", "fresh"),
}
"""Folders whose module takes one machine's files: a folder below that has such files is compared by itself."""


@dataclass
class Tally:
    """The cases of one folder and class."""

    folder: str
    kind: str
    cases: int = 0
    passed: int = 0
    failures: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """Count a case."""
        if case.absent:
            self.absent.append(case.name)
            return
        self.cases += 1
        self.passed += case.passed
        if not case.passed:
            self.failures.append(f"{case.name}: {case.detail}")

    def as_json(self) -> dict[str, Any]:
        """The shape that ``--json`` writes."""
        return {
            "folder": self.folder,
            "class": self.kind,
            "cases": self.cases,
            "passed": self.passed,
            "failures": self.failures,
        }


def run_folder(root: Path, name: str) -> Iterator[Tally]:
    """The tallies of one folder of the tree, one per class."""
    tallies: dict[str, Tally] = {}
    run = importlib.import_module(f"kmemd.conformance.{FOLDERS[name]}").run
    for place in places(root / name):
        for case in guarded(str(place.relative_to(root)), run(place)):
            tallies.setdefault(case.kind, Tally(name, case.kind)).add(case)
    yield from tallies.values()


def places(folder: Path) -> Iterator[Path]:
    """The folders that a module is to compare: this one, or those below it that hold one machine's files each."""
    marks = PER_MACHINE.get(folder.name, ())
    if not marks or _holds(folder, marks):
        yield folder
    yield from sorted(path for path in folder.iterdir() if path.is_dir() and _holds(path, marks))


def _holds(folder: Path, marks: tuple[str, ...]) -> bool:
    return any(True for mark in marks for _ in folder.glob(mark))


def run_tree(root: Path, chosen: Sequence[str] = ()) -> Iterator[Tally]:
    """The tallies of every folder that is there, or of the chosen ones. FileNotFoundError where one or all lack."""
    found = [name for name in FOLDERS if (root / name).is_dir() and (not chosen or name in chosen)]
    for name in chosen:
        if name not in FOLDERS:
            raise FileNotFoundError(f"{name}: nothing compares such a folder: they are {', '.join(FOLDERS)}")
        if name not in found:
            raise FileNotFoundError(f"{root / name}: no such folder")
    if not found:
        raise FileNotFoundError(f"{root}: none of the folders {', '.join(FOLDERS)} is there")
    for name in found:
        yield from run_folder(root, name)


def not_compared(root: Path) -> list[str]:
    """Folders of the tree that no module here compares."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and path.name not in FOLDERS)


def report(tally: Tally, most: int = 20) -> Iterator[str]:
    """Lines that say how a folder went."""
    yield f"{tally.folder:<12} {tally.kind:<7} {tally.passed:6d} of {tally.cases:6d}"
    for failure in tally.failures[:most]:
        yield f"    {failure}"
    if len(tally.failures) > most:
        yield f"    and {len(tally.failures) - most} more"
    if tally.absent:
        yield f"    paths that do not exist: {', '.join(sorted(set(tally.absent)))}"


def main(root: Path, json_file: Path | None = None, chosen: Sequence[str] = ()) -> int:
    """Compare every folder or the chosen ones, print, write ``json_file``; 0 when every case passed."""
    tallies = []
    for tally in run_tree(root, chosen):
        tallies.append(tally)
        print("\n".join(report(tally)), flush=True)
    for name in not_compared(root) if not chosen else ():
        print(f"{name:<12} not compared")
    if json_file is not None:
        json_file.write_text(json.dumps([tally.as_json() for tally in tallies], indent=1) + "\n")
    return 0 if all(tally.passed == tally.cases for tally in tallies) else 1
