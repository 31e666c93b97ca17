"""Real mounts for tests: a daemon in a process of its own, which is ended and unmounted whatever happens."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kmemd.daemon import mountpoint

ROOT = Path(__file__).parent.parent.parent
TIMEOUT_S = 30


class Daemon:
    """A daemon that serves ``path``."""

    def __init__(self, path: Path, process: subprocess.Popen[str]) -> None:
        self.path = path
        self.process = process

    def sh(self, script: str, shell: str = "bash", **options: object) -> subprocess.CompletedProcess[str]:
        """Run a shell script in the mountpoint's parent, with ``$M`` naming the mount."""
        return subprocess.run(
            [shell, "-c", script],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            **{"env": {**os.environ, "M": str(self.path), "LC_ALL": "C"}, **options},
        )


def start(path: Path, command: Sequence[str]) -> subprocess.Popen[str]:
    """Start a daemon and return when it says that it is ready, or is gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("")
        address = "@" + listener.getsockname()[1:].decode()
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, "NOTIFY_SOCKET": address},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        listener.settimeout(0.05)
        for _ in range(TIMEOUT_S * 20):
            try:
                if "READY=1" in listener.recv(4096).decode().splitlines():
                    break
            except TimeoutError:
                if process.poll() is not None:
                    break
    return process


def end(path: Path, process: subprocess.Popen[str]) -> None:
    """End a daemon and remove what it may have left."""
    if process.poll() is None:
        process.terminate()
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    while mountpoint.is_kmemd(str(path)):
        mountpoint.unmount(str(path), lazy=True)


@contextmanager
def served(path: Path, *options: str) -> Iterator[Daemon]:
    """The machine of fake.py, mounted at ``path``."""
    if not os.path.lexists(path) and not mountpoint.is_stale(str(path)):
        path.mkdir()
    process = start(path, ["tests.fs.served", str(path), *options])
    try:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        yield Daemon(path, process)
    finally:
        end(path, process)
