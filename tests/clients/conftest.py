"""One model, mounted once for all the programs that read it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fs.mounting import ROOT, end, start

KMEMD = [sys.executable, "-m", "kmemd"]
PROGRAM_DEADLINE_S = 60
KERNEL_SOURCE = Path("/usr/src/linux-source-6.1.tar.xz")


class Mounted:
    """A mounted model and the means to run a program that sees it as its /proc and /sys."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def text(self, name: str) -> str:
        """A file of the model."""
        return (self.path / name).read_text()

    def meminfo(self) -> dict[str, int]:
        """/proc/meminfo: field to number."""
        fields = (line.split() for line in self.text("proc/meminfo").splitlines())
        return {words[0].rstrip(":"): int(words[1]) for words in fields}

    def vmstat(self) -> dict[str, int]:
        """/proc/vmstat: counter to number."""
        return {name: int(value) for name, value in map(str.split, self.text("proc/vmstat").splitlines())}

    def command(self, line: str) -> None:
        """Run one line of the command language."""
        (self.path / "kmemd" / "ctl").write_text(line + "\n")

    def bound(self, *argv: str) -> str:
        """Output of a program that has the model as its /proc and /sys."""
        return run_clean([*KMEMD, "run", "--at", str(self.path), "--", *argv])


def run_clean(argv: list[str]) -> str:
    """Output of a program that must exit with 0 and say nothing on stderr."""
    environment = os.environ | {"LC_ALL": "C", "TERM": "dumb"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PROGRAM_DEADLINE_S, env=environment, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, ""), f"{argv}: {done.stdout}"
    return done.stdout


def program(name: str) -> str:
    """The path of a program; the test is skipped where it is missing, and fails in CI."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        message = f"{name} is not installed"
        if os.environ.get("KMEMD_CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture(scope="session")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """The two-node machine with page_owner, and some memory in use."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing")
    path = tmp_path_factory.mktemp("machine")
    options = ["--machine", "two-node", "--seed", "1", "--clock", "manual", "--cmdline", "page_owner=on"]
    daemon = start(path, ["kmemd", "mount", *options, str(path)])
    try:
        assert daemon.poll() is None, daemon.stderr.read() if daemon.stderr else ""
        model = Mounted(path)
        model.command("pages = alloc_pages order=0 n=20000 node=1 by=fill+0x10")
        model.command("objects = kmalloc 1000 n=5000 by=leak+0x20")
        yield model
        assert daemon.poll() is None, "kmemd mount ended"
    finally:
        end(path, daemon)


def kernel_tool(name: str, folder: Path) -> str:
    """A program of the kernel's tools/vm, built from Debian's source package, once for each version of it."""
    if not KERNEL_SOURCE.exists():
        return program(name)
    source = KERNEL_SOURCE.stat()
    binary = ROOT / "build" / f"{name}-{source.st_size}-{source.st_mtime_ns}"
    if not binary.exists():
        member = f"linux-source-6.1/tools/vm/{name}.c"
        extract = ["tar", "-xJf", str(KERNEL_SOURCE), "-C", str(folder), "--occurrence=1", member]
        subprocess.run(extract, check=True)
        built = folder / name
        subprocess.run(["gcc", "-O1", "-w", "-o", str(built), str(folder / member)], check=True)
        binary.parent.mkdir(exist_ok=True)
        shutil.move(built, binary)
    return str(binary)


@pytest.fixture(scope="session")
def page_owner_sort(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The kernel's own page_owner_sort."""
    return kernel_tool("page_owner_sort", tmp_path_factory.mktemp("linux"))


@pytest.fixture(scope="session")
def slabinfo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The kernel's own slabinfo."""
    return kernel_tool("slabinfo", tmp_path_factory.mktemp("linux"))
