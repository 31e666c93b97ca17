"""The layers of docs/design.md, read from the imports: one way only, trio and pyfuse3 at the top alone."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kmemd"

RANKS = {
    "errors": 0,
    "steps": 0,
    "tunable": 1,
    "command_state": 1,
    "core": 2,
    "mm": 3,
    "debug": 4,
    "machine": 5,
    "machine_file": 5,
    "capture": 5,
    "machines": 5,
    "boot": 6,
    "kernel": 6,
    "user_memory": 6,
    "block_storage": 6,
    "swap_storage": 6,
    "kernel_check": 6,
    "kernel_memory": 6,
    "kernel_oom": 6,
    "kernel_settings": 6,
    "kernel_guards": 6,
    "huge_pages": 6,
    "memory_pressure": 6,
    "page_replacement": 6,
    "views": 7,
    "control": 7,
    "system": 8,
    "conformance": 9,
    "fs": 9,
    "daemon": 10,
    "perf": 11,
    "cli": 11,
}
"""A module may import what has the same or a lower rank."""

PACKAGE_ROOT = {"__init__", "__main__"}
ASYNC_LIBRARIES = {"trio", "pyfuse3", "pyfuse3_asyncio", "outcome"}
ASYNC_LAYERS = {"fs", "daemon"}
RUN_TIME = {"numpy", "cython", *ASYNC_LIBRARIES}


def modules() -> list[Path]:
    """Every source file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    """The layer that a file belongs to: the first component below the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of all modules that a file imports, anywhere in it, with the line."""
    package = ("kmemd", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield stem, node.lineno
            if stem == "kmemd":
                yield from ((f"kmemd.{alias.name}", node.lineno) for alias in node.names)


def layer_of_import(name: str) -> str | None:
    """The layer a module name belongs to; None for what is not ours or is the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "kmemd" and len(parts) > 1 and parts[1] in RANKS else None


def test_every_file_belongs_to_a_layer() -> None:
    assert {layer(path) for path in modules()} <= set(RANKS) | PACKAGE_ROOT


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = layer(path)
    if own in PACKAGE_ROOT:
        return
    wrong = [
        f"line {line}: {name}"
        for name, line in imports(path)
        if (other := layer_of_import(name)) is not None and RANKS[other] > RANKS[own]
    ]
    assert wrong == [], f"{own} imports a higher layer"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.pxd")), ids=lambda path: path.name)
def test_declarations_come_from_what_the_module_imports(path: Path) -> None:
    cimported = set(re.findall(r"^from (\S+) cimport", path.read_text(), re.MULTILINE))
    assert cimported <= {name for name, _ in imports(path.with_suffix(".py"))}
    assert cimported == set(re.findall(r"(\S+) cimport", path.read_text())), "cimport has one spelling"


def test_async_libraries_stay_in_fs_and_daemon() -> None:
    users = {layer(path) for path in modules() for name, _ in imports(path) if name.split(".")[0] in ASYNC_LIBRARIES}
    assert users <= ASYNC_LAYERS


def test_no_other_package_is_needed_at_run_time() -> None:
    foreign = {
        top
        for path in modules()
        for name, _ in imports(path)
        if (top := name.split(".")[0]) not in sys.stdlib_module_names and top != "kmemd"
    }
    assert foreign <= RUN_TIME


def test_relative_imports_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    source = tmp_path / "mm" / "example.py"
    source.parent.mkdir()
    source.write_text("from ..fs import inodes\nfrom . import gfp\nfrom kmemd import system\nimport trio\n")
    assert [name for name, _ in imports(source)] == ["kmemd.fs", "kmemd.mm", "kmemd", "kmemd.system", "trio"]
    assert layer_of_import("kmemd.fs") == "fs"
    assert layer_of_import("kmemd") is None
