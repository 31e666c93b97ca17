"""Programs that see the model as their /proc and /sys."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmemd.daemon import mountpoint, run
from tests.fs.mounting import ROOT, Daemon, served

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="/dev/fuse is missing"),
]


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with served(tmp_path_factory.mktemp("run") / "m") as daemon:
        yield daemon


def kmemd_run(mount: Daemon, *command: str, **options: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "kmemd", "run", "--at", str(mount.path), "--", *command]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False, **options)


def test_the_program_sees_the_model(mount: Daemon) -> None:
    host = Path("/proc/version").read_text()
    done = kmemd_run(mount, "cat", "/proc/version")
    assert (done.stdout, done.stderr, done.returncode) == ("Linux version 6.1\n", "", 0)
    assert Path("/proc/version").read_text() == host


def test_self_is_the_program(mount: Daemon) -> None:
    done = kmemd_run(mount, "sh", "-c", "echo $$; exec readlink /proc/self")
    assert len(set(done.stdout.split())) == 1


def test_what_the_model_does_not_have_stays_the_hosts(mount: Daemon) -> None:
    done = kmemd_run(mount, "ls", "/sys")
    assert done.stdout.split() == sorted(os.listdir("/sys"))


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 128 + signal.SIGTERM)])
def test_the_exit_status_is_the_programs(mount: Daemon, script: str, status: int) -> None:
    assert kmemd_run(mount, "sh", "-c", script).returncode == status


def test_a_program_in_a_pipe_ends_silently_when_the_reader_goes(mount: Daemon) -> None:
    done = kmemd_run(mount, "bash", "-c", "yes | head -n 1; echo ${PIPESTATUS[0]}")
    assert (done.stdout.split(), done.stderr) == (["y", str(128 + signal.SIGPIPE)], "")


def test_a_program_that_is_not_there(mount: Daemon) -> None:
    done = kmemd_run(mount, "/no/such/program")
    assert done.returncode == 127
    assert done.stderr == "kmemd run: /no/such/program: No such file or directory\n"
    done = kmemd_run(mount, "no-such-program")
    assert done.stderr == "kmemd run: no-such-program: No such file or directory\n"


def test_a_program_that_cannot_be_run(mount: Daemon, tmp_path: Path) -> None:
    done = kmemd_run(mount, str(tmp_path))
    assert done.returncode == 126


def test_commands_find_the_machine_inside(mount: Daemon) -> None:
    done = kmemd_run(mount, sys.executable, "-m", "kmemd", "ctl", "note", "inside")
    assert (done.stdout, done.stderr) == ("done=note inside\n", "")


def test_a_termination_signal_is_passed_on(mount: Daemon) -> None:
    words = [sys.executable, "-m", "kmemd", "run", "--at", str(mount.path), "--", "sh", "-c", "echo up; exec sleep 60"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "up\n"
        runner.terminate()
        assert runner.wait(10) == 128 + signal.SIGTERM


def test_at_a_place_without_a_machine(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kmemd", "run", "--at", str(tmp_path), "--", "true"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"kmemd run: {tmp_path} is not a live machine\n"


def test_nothing_is_left_when_the_machine_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        pytest.raises(mountpoint.MountError, match="did not start"),
        run.temporary_machine(["--machine=no-such-machine"]),
    ):
        pytest.fail("there is no such machine")
    assert os.listdir(tmp_path) == []
    assert "no such machine" in capfd.readouterr().err


GRAFT = """
import os, sys
from kmemd.daemon import namespace, syscalls
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
namespace._cover(sys.argv[1], sys.argv[2])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_a_directory_that_the_host_lacks_is_made(tmp_path: Path) -> None:
    host, model = tmp_path / "host", tmp_path / "model"
    (host / "kernel/mm").mkdir(parents=True)
    (host / "kernel/mm/file").write_text("host\n")
    (host / "kernel/notes").write_text("notes\n")
    (host / "kernel/link").symlink_to("notes")
    model.mkdir()
    (model / "order").write_text("3\n")
    show = f"os.chdir({str(host)!r}); os.system('cat kernel/slab/order kernel/mm/file kernel/notes kernel/link')"
    done = subprocess.run(
        [sys.executable, "-c", GRAFT + show, model, host / "kernel/slab"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("3\nhost\nnotes\nnotes\n", "")
    assert sorted(os.listdir(host / "kernel")) == ["link", "mm", "notes"]
