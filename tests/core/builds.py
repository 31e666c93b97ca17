"""The core's three builds: as installed, uncompiled (its own oracle), and compiled with bounds checks."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

CORE = Path(__file__).parents[2] / "kmemd" / "core"
CHECKED = Path(__file__).parents[2] / "build" / "checked"


def _load(name: str, path: Path) -> ModuleType:
    # the module's own last name must stay: a compiled module looks for PyInit_<name>
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def uncompiled(name: str) -> ModuleType:
    """The module run by the interpreter."""
    return _load(f"uncompiled_{name}", CORE / f"{name}.py")


def checked(name: str) -> ModuleType:
    """The module compiled with bounds checks; built once for each state of its source."""
    source = CORE / f"{name}.py"
    folder = CHECKED / hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    copy = folder / f"{name}.py"
    if not list(folder.glob(f"{name}.*.so")):
        folder.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
        directives = ("boundscheck=True", "wraparound=False", "cdivision=True", "infer_types=True")
        options = [word for directive in directives for word in ("-X", directive)]
        subprocess.run(
            [sys.executable, "-m", "Cython.Build.Cythonize", "-q", "-i", "-3", *options, copy.name],
            cwd=folder,
            check=True,
            capture_output=True,
            env=os.environ | {"CFLAGS": "-O1"},  # takes half as long to compile
        )
    return _load(name, next(folder.glob(f"{name}.*.so")))
