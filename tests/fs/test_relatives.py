"""Processes of threads and their ancestors."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from kmemd.fs.relatives import relatives


def status(proc: Path, pid: int, tgid: int, ppid: int) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "status").write_text(f"Name:\tx\nTgid:\t{tgid}\nNgid:\t0\nPid:\t{pid}\nPPid:\t{ppid}\n")


def test_a_thread_its_process_and_its_ancestors(tmp_path: Path) -> None:
    status(tmp_path, 12, 10, 5)
    status(tmp_path, 5, 5, 1)
    status(tmp_path, 1, 1, 0)
    assert list(relatives(12, str(tmp_path))) == [10, 5, 1]


def test_what_is_gone_has_none(tmp_path: Path) -> None:
    status(tmp_path, 12, 12, 7)
    assert list(relatives(12, str(tmp_path))) == [12]
    assert list(relatives(99, str(tmp_path))) == []


def test_a_real_thread() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(relatives(threading.get_native_id())))
    thread.start()
    thread.join()
    assert found[:2] == [os.getpid(), os.getppid()]
