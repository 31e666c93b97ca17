"""The core's three builds: as installed, uncompiled (its own oracle), and compiled with bounds checks.

A build is a whole package ``kmemd.core`` of its own, so that its classes derive from, and are handed to, each other.
Modules without C types are the same in the last two: they are run by the interpreter.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGE = "kmemd.core"
CORE = Path(__file__).parents[2] / "kmemd" / "core"
CHECKED = Path(__file__).parents[2] / "build" / "checked"


def load(kind: str, name: str) -> ModuleType:
    """A module of the core in the build ``kind``: installed, uncompiled or checked."""
    if kind == "installed":
        return importlib.import_module(f"{PACKAGE}.{name}")
    return (uncompiled if kind == "uncompiled" else checked)(name)


@functools.cache
def uncompiled(name: str) -> ModuleType:
    """The module run by the interpreter."""
    return _UNCOMPILED.load(name)


@functools.cache
def checked(name: str) -> ModuleType:
    """The module compiled with bounds checks; built once for each state of its source."""
    return _CHECKED.load(name)


class _Build:
    """One package ``kmemd.core`` beside the installed one: it is in sys.modules only while it loads a module."""

    def __init__(self) -> None:
        self._modules: dict[str, ModuleType] = {}

    def load(self, name: str) -> ModuleType:
        with self._in_place():
            return importlib.import_module(f"{PACKAGE}.{name}")

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        others = {name: sys.modules.pop(name) for name in _of_the_core()}
        if not self._modules:
            package = ModuleType(PACKAGE)
            package.__path__ = [str(CORE)]
            self._modules[PACKAGE] = package
        sys.modules.update(self._modules)
        sys.meta_path.insert(0, self)
        try:
            yield
        finally:
            sys.meta_path.remove(self)
            self._modules = {name: sys.modules.pop(name) for name in _of_the_core()}
            sys.modules.update(others)

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        """Where the import system finds a module of this build."""
        package, _, name = fullname.rpartition(".")
        return spec_from_file_location(fullname, self.place(name)) if package == PACKAGE else None

    def place(self, name: str) -> Path:
        """The file of a module."""
        return CORE / f"{name}.py"


class _Checked(_Build):
    def place(self, name: str) -> Path:
        source = CORE / f"{name}.py"
        text = source.read_bytes()
        if b"\nimport cython\n" not in text:
            return source
        declarations = list(_declarations(name))
        state = hashlib.sha256(b"".join([text, *(path.read_bytes() for path in declarations)])).hexdigest()[:16]
        folder = CHECKED / state / "kmemd" / "core"
        if not list(folder.glob(f"{name}.*.so")):
            folder.mkdir(parents=True, exist_ok=True)
            for package in (folder, folder.parent):
                (package / "__init__.py").touch()
            for path in (source, *declarations):
                (folder / path.name).write_bytes(path.read_bytes())
            _compile(folder, name)
        return next(folder.glob(f"{name}.*.so"))


def _declarations(name: str) -> Iterator[Path]:
    """The .pxd of a module, and of those that it takes declarations from."""
    path = CORE / f"{name}.pxd"
    if path.exists():
        yield path
        for other in re.findall(r"^from kmemd\.core\.(\w+) cimport", path.read_text(), re.MULTILINE):
            yield from _declarations(other)


def _compile(folder: Path, name: str) -> None:
    directives = ("boundscheck=True", "wraparound=False", "cdivision=True", "infer_types=True")
    options = [word for directive in directives for word in ("-X", directive)]
    subprocess.run(
        [sys.executable, "-m", "Cython.Build.Cythonize", "-q", "-i", "-3", *options, f"kmemd/core/{name}.py"],
        cwd=folder.parents[1],
        check=True,
        capture_output=True,
        env=os.environ | {"CFLAGS": "-O1"},  # takes half as long to compile
    )


def _of_the_core() -> list[str]:
    return [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]


_UNCOMPILED, _CHECKED = _Build(), _Checked()
