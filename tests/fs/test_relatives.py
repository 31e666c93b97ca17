"""Processes of threads and their ancestors."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from kmemd.fs.relatives import Capabilities, relatives


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


def with_capabilities(proc: Path, pid: str, held: int, namespace: str = "user:[1]") -> None:
    (proc / pid / "ns").mkdir(parents=True)
    (proc / pid / "status").write_text(f"CapPrm:\t{held:016x}\nCapEff:\t{held:016x}\nCapBnd:\t0\n")
    (proc / pid / "ns/user").symlink_to(namespace)


def test_a_user_has_the_capabilities_of_its_effective_set(tmp_path: Path) -> None:
    with_capabilities(tmp_path, "self", 0xFF)
    with_capabilities(tmp_path, "10", 0x0C)
    assert Capabilities(10, root=False, proc=str(tmp_path))() == 0x0C


def test_what_the_daemon_lacks_does_not_count_against_root(tmp_path: Path) -> None:
    with_capabilities(tmp_path, "self", 0x0F)
    with_capabilities(tmp_path, "10", 0x05)
    held = Capabilities(10, root=True, proc=str(tmp_path))()
    assert held is not None
    assert held & 0x1FF == 0x1F5


def test_capabilities_of_another_user_namespace_count_for_nothing(tmp_path: Path) -> None:
    with_capabilities(tmp_path, "self", 0xFF)
    with_capabilities(tmp_path, "10", 0xFF, "user:[2]")
    assert Capabilities(10, root=False, proc=str(tmp_path))() == 0
    assert Capabilities(11, root=True, proc=str(tmp_path))() is None


def test_capabilities_are_looked_up_once(tmp_path: Path) -> None:
    with_capabilities(tmp_path, "self", 0xFF)
    with_capabilities(tmp_path, "10", 0x0C)
    capabilities = Capabilities(10, root=False, proc=str(tmp_path))
    assert capabilities() == 0x0C
    (tmp_path / "10/status").write_text("CapEff:\t0\n")
    assert capabilities() == 0x0C
