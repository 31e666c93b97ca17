"""A real mount, used by real programs."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmemd.daemon.syscalls import write_once
from tests.fs.mounting import ROOT, Daemon, served

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="/dev/fuse is missing"),
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes the user")
NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with served(tmp_path_factory.mktemp("mount") / "m") as daemon:
        yield daemon


@contextlib.contextmanager
def blocked_readers(mount: Daemon, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that wait in a read of the kernel log."""
    readers = [
        subprocess.Popen(
            ["cat", mount.path / "dev/kmsg"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # a shell that runs the tests in the background made everything ignore it
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        for _ in range(count)
    ]
    try:
        for reader in readers:
            wait_until_reading(reader.pid)
        yield readers
    finally:
        for reader in readers:
            reader.kill()
        for reader in readers:
            reader.wait(10)


def wait_until_reading(pid: int) -> None:
    """Return when a program is in a read(2) of the kernel log."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            number, descriptor, *_ = [*Path(f"/proc/{pid}/syscall").read_text().split(), ""]
            if number == "0" and os.readlink(f"/proc/{pid}/fd/{int(descriptor, 16)}").endswith("dev/kmsg"):
                return
        select.select([], [], [], 0.005)
    raise AssertionError(f"{pid} does not read")


def test_cat_reads_all(mount: Daemon) -> None:
    done = mount.sh("cat $M/proc/version; cat $M/proc/numbers | tail -1")
    assert done.stdout == "Linux version 6.1\n19999\n"
    assert done.stderr == ""


def test_copying_a_file_of_size_zero(mount: Daemon, tmp_path: Path) -> None:
    done = mount.sh(f"cp $M/proc/numbers {tmp_path}/copy && wc -l < {tmp_path}/copy")
    assert done.stdout.strip() == "20000"


def test_dd_with_any_block_size_reads_the_same(mount: Daemon) -> None:
    sums = mount.sh("for bs in 7 512 4096 1M; do dd if=$M/proc/numbers bs=$bs status=none | cksum; done")
    assert len(set(sums.stdout.splitlines())) == 1
    assert len(sums.stdout.splitlines()) == 4


def test_a_file_with_a_true_size_can_be_mapped(mount: Daemon) -> None:
    for text in ("one", "two"):
        mount.sh(f"echo log mapped {text} > $M/kmemd/ctl")
        with (
            open(mount.path / "kmemd/dmesg", "rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
        ):
            assert mapped[:].endswith(f"mapped {text}\n".encode())


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_the_errno_of_a_write_reaches_the_shell(mount: Daemon, shell: str) -> None:
    done = mount.sh(
        "echo x >> $M/sys/kernel/run; echo status=$?; echo 7 > $M/sys/kernel/run && cat $M/sys/kernel/run",
        shell,
    )
    assert done.stdout == "status=1\n7\n"
    assert "Invalid argument" in done.stderr or "I/O error" in done.stderr


def test_errors_of_commands_are_the_kernels(mount: Daemon) -> None:
    for number in (errno.ENOENT, errno.ENOMEM, errno.EBUSY, errno.ESRCH):
        done = mount.sh(f"echo fail {number} > $M/kmemd/ctl")
        assert os.strerror(number) in done.stderr


def test_a_reply_comes_on_the_same_descriptor(mount: Daemon) -> None:
    done = mount.sh(
        "exec 3<>$M/kmemd/ctl; echo 'log one' >&3; read -r r <&3; echo $r; echo note >&3; read -r r <&3; echo $r"
    )
    assert done.stdout == "done=log one\ndone=note\n"


def test_truncation_and_append_are_ordinary_writes(mount: Daemon) -> None:
    done = mount.sh("cd $M/sys/kernel; echo 3 > run; cat run; echo 4 >> run; cat run; truncate -s 0 run; cat run")
    assert (done.stdout, done.stderr) == ("3\n4\n4\n", "")


def test_long_output_that_bash_splits_in_mid_line_runs_line_by_line(mount: Daemon) -> None:
    done = mount.sh(
        'for i in $(seq 2000); do lines+="note number $i"$\'\\n\'; done; printf %s "$lines" > $M/kmemd/ctl; echo $?'
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_what_nobody_can_make_or_remove(mount: Daemon) -> None:
    done = mount.sh("echo > $M/proc/x; mkdir $M/sys/kernel/x; rm -f $M/proc/version; echo > $M/sys/kernel/x")
    assert done.stderr.count("No such file or directory") == 1
    assert done.stderr.count("Operation not permitted") == 2
    assert done.stderr.count("Permission denied") == 1


def test_self_is_the_program_that_asks(mount: Daemon) -> None:
    done = mount.sh("echo $$; exec readlink $M/proc/self")
    own, target = done.stdout.split()
    assert own == target


def test_a_process_that_exits_is_gone_at_once(mount: Daemon) -> None:
    done = mount.sh(
        "echo spawn 77 > $M/kmemd/ctl; cat $M/proc/77/status; echo exit 77 > $M/kmemd/ctl; "
        "cat $M/proc/77/status; ls $M/proc | grep -c 77"
    )
    assert done.stdout == "Name:\tnew\n0\n"
    assert "No such file or directory" in done.stderr


def test_standing_in_the_directory_of_a_process_that_exits(mount: Daemon) -> None:
    done = mount.sh(
        "echo spawn 78 > $M/kmemd/ctl; cd $M/proc/78; cat status; echo exit 78 > $M/kmemd/ctl; cat status; ls"
    )
    assert done.stdout == "Name:\tnew\n"
    assert done.stderr.count("No such file or directory") == 2


def test_cgroup_directories_can_be_made(mount: Daemon) -> None:
    done = mount.sh("mkdir $M/sys/cgroup/a && cat $M/sys/cgroup/a/stat && rmdir $M/sys/cgroup/a && ls $M/sys/cgroup")
    assert (done.stdout, done.stderr) == ("asystem\n", "")


def test_a_bug_of_the_model_does_not_end_the_daemon(mount: Daemon) -> None:
    done = mount.sh("cat $M/proc/crash; echo crash > $M/kmemd/ctl; cat $M/proc/version")
    assert done.stdout == "Linux version 6.1\n"
    assert done.stderr.count("Input/output error") == 2


def test_a_nonblocking_reader_gets_eagain_and_poll_works(mount: Daemon) -> None:
    descriptor = os.open(mount.path / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while os.read(descriptor, 4096):
                pass
        watch = select.poll()
        watch.register(descriptor, select.POLLIN)
        assert watch.poll(0) == []
        mount.sh("echo log polled > $M/kmemd/ctl")
        assert watch.poll(5000) == [(descriptor, select.POLLIN)]
        assert os.read(descriptor, 4096) == b"polled\n"
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_waiting_reader_dies_of_a_signal(mount: Daemon, number: int) -> None:
    with blocked_readers(mount, 1) as (reader,):
        reader.send_signal(number)
        assert reader.wait(1) == -number


@pytest.mark.parametrize(
    "command", [["dd", "if={}"], ["awk", "1", "{}"], ["python3", "-c", "for l in open('{}'): pass"]]
)
def test_programs_that_wait_can_be_killed(mount: Daemon, command: list[str]) -> None:
    words = [word.format(mount.path / "dev/kmsg") for word in command]
    program = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_reading(program.pid)
        program.terminate()
        assert program.wait(1) == -signal.SIGTERM
    finally:
        program.kill()
        program.wait(10)


def test_a_child_that_reads_what_its_parent_opened_can_be_killed(mount: Daemon) -> None:
    shell = subprocess.Popen(
        ["bash", "-c", "exec 3< $0; cat <&3 >/dev/null & echo $!; wait $!; echo $?", mount.path / "dev/kmsg"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert shell.stdout is not None
        child = int(shell.stdout.readline())
        wait_until_reading(child)
        os.kill(child, signal.SIGTERM)
        assert shell.stdout.readline() == f"{128 + signal.SIGTERM}\n"
    finally:
        shell.kill()
        shell.communicate(timeout=10)


def test_a_waiting_reader_gets_what_comes(mount: Daemon) -> None:
    program = subprocess.Popen(["grep", "-m1", "awaited", mount.path / "dev/kmsg"], stdout=subprocess.PIPE)
    try:
        wait_until_reading(program.pid)
        mount.sh("echo log awaited > $M/kmemd/ctl")
        assert program.communicate(timeout=5)[0] == b"awaited\n"
    finally:
        program.kill()
        program.wait(10)


def test_many_waiting_readers_do_not_freeze_the_mount(mount: Daemon) -> None:
    with blocked_readers(mount, 110):
        assert mount.sh("cat $M/proc/version").stdout == "Linux version 6.1\n"
        assert mount.sh("echo 9 > $M/sys/kernel/run; cat $M/sys/kernel/run").stdout == "9\n"


def test_readers_get_in_while_a_command_runs(mount: Daemon) -> None:
    writer = subprocess.Popen(["bash", "-c", f"echo work 200000 > {mount.path}/kmemd/ctl"])
    seen = set()
    while writer.poll() is None:
        seen.add((mount.path / "proc/pair").read_text())
    assert any(0 < int(pair.split()[0]) < 200_000 for pair in seen), "nobody looked while the command ran"
    assert all(len(set(pair.split())) == 1 for pair in seen)


@needs_root
def test_other_users_stay_out(mount: Daemon) -> None:
    os.chmod(mount.path.parent, 0o755)
    os.chmod(mount.path.parent.parent, 0o755)
    done = mount.sh("cat $M/proc/version", **NOBODY)
    assert done.stdout == ""
    assert "Permission denied" in done.stderr


@needs_root
def test_with_allow_other_the_modes_decide() -> None:
    path = Path(f"/tmp/kmemd-test-{os.getpid()}")
    try:
        with served(path, "--allow-other") as mount:
            done = mount.sh("cat $M/proc/version $M/proc/whoami", **NOBODY)
            assert (done.stdout, done.stderr) == ("Linux version 6.1\n65534\n", "")
            done = mount.sh(
                "cat $M/proc/secret; echo x > $M/sys/kernel/run; ls $M/sys/kernel/debug; cat $M/kmemd/ctl; "
                "echo exit 1 > $M/kmemd/ctl",
                **NOBODY,
            )
            assert done.stdout == ""
            assert done.stderr.count("Permission denied") == 5
    finally:
        path.rmdir()


def test_a_command_that_a_signal_ended_runs_once(mount: Daemon) -> None:
    """os.write would give it again."""
    run = mount.path / "sys/kernel/run"
    before = int(run.read_text())
    with open(mount.path / "kmemd/ctl", "r+b", 0) as ctl, pytest.raises(InterruptedError):
        write_once(ctl.fileno(), b"interrupt\n")
    assert int(run.read_text()) == before + 1
    done = mount.sh(f"{sys.executable} -m kmemd ctl --at $M interrupt", cwd=ROOT)
    assert done.returncode == 1
    assert int(run.read_text()) == before + 2
