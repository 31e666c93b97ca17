"""The daemon's life: start, signals, unmounting, what a killed one leaves."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from kmemd.daemon import mountpoint
from tests.fs.mounting import served, start

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="/dev/fuse is missing"),
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_unmount(tmp_path: Path, number: int) -> None:
    with served(tmp_path / "m") as daemon:
        assert (daemon.path / "proc/version").read_text() == "Linux version 6.1\n"
        daemon.process.send_signal(number)
        assert daemon.process.wait(5) == 0
        assert not mountpoint.is_kmemd(str(daemon.path))
        assert os.listdir(daemon.path) == []


def test_a_signal_unmounts_while_readers_wait_and_files_are_open(tmp_path: Path) -> None:
    with served(tmp_path / "m") as daemon, open(daemon.path / "proc/version"):
        reader = subprocess.Popen(["cat", daemon.path / "dev/kmsg"], stderr=subprocess.DEVNULL)
        daemon.process.terminate()
        assert daemon.process.wait(5) == 0
        assert reader.wait(5) != 0
        assert not mountpoint.is_kmemd(str(daemon.path))


def test_an_unmount_ends_the_daemon(tmp_path: Path) -> None:
    with served(tmp_path / "m") as daemon:
        mountpoint.unmount(str(daemon.path))
        assert daemon.process.wait(5) == 0
        with pytest.raises(mountpoint.MountError, match="is not mounted any more"):
            mountpoint.unmount(str(daemon.path))


def test_a_mount_in_use_is_not_unmounted(tmp_path: Path) -> None:
    with served(tmp_path / "m") as daemon, open(daemon.path / "proc/version"):
        with pytest.raises(mountpoint.MountError, match="a program uses it"):
            mountpoint.unmount(str(daemon.path))
        assert (daemon.path / "proc/version").read_text() == "Linux version 6.1\n"


def test_the_mount_of_a_killed_daemon_is_taken_over(tmp_path: Path) -> None:
    with served(tmp_path / "m") as daemon:
        assert daemon.path.is_dir()  # the kernel keeps the attributes, and goes on answering from them
        daemon.process.kill()
        daemon.process.wait(5)
        assert mountpoint.is_stale(str(daemon.path))
        with served(tmp_path / "m") as successor:
            assert (successor.path / "proc/version").read_text() == "Linux version 6.1\n"
        assert not mountpoint.is_kmemd(str(daemon.path))


def test_a_live_mount_is_not_taken_over(tmp_path: Path) -> None:
    with served(tmp_path / "m") as daemon:
        second = start(daemon.path, ["tests.fs.served", str(daemon.path)])
        _, reason = second.communicate(timeout=10)
        assert second.returncode == 1
        assert "is already a live kmemd mount" in reason
        assert (daemon.path / "proc/version").read_text() == "Linux version 6.1\n"


def test_the_real_clock_moves_the_model(tmp_path: Path) -> None:
    with served(tmp_path / "m", "--real-clock") as daemon:
        done = daemon.sh(
            "read a < $M/proc/uptime; until read b < $M/proc/uptime && [ $b -gt $a ]; do :; done; echo moved"
        )
        assert done.stdout == "moved\n"


def test_the_manual_clock_stands_still(tmp_path: Path) -> None:
    with served(tmp_path / "m") as daemon:
        assert (daemon.path / "proc/uptime").read_text() == "0\n"
        assert daemon.sh("for i in $(seq 300); do cat $M/proc/uptime; done | sort -u").stdout == "0\n"
