"""Compile the hot core: every module of kmemd/core is pure-Python-mode Cython."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

SOURCES = sorted(name for name in os.listdir("kmemd/core") if name.endswith(".py") and name != "__init__.py")
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": bool(int(os.environ.get("KMEMD_BOUNDSCHECK", "0"))),
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "infer_types": True,
    "embedsignature": True,
}

setup(
    ext_modules=cythonize(
        [Extension(f"kmemd.core.{name[:-3]}", [f"kmemd/core/{name}"], extra_compile_args=["-O3"]) for name in SOURCES],
        compiler_directives=DIRECTIVES,
        nthreads=2 if len(SOURCES) > 1 else 0,
    )
)
