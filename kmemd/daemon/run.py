"""``kmemd run``: a program that sees the model as its ``/proc`` and ``/sys``.

A daemon of its own serves the machine at a temporary mountpoint for as long as the program runs; or a
machine that is mounted already is used. Whatever happens, daemon, mount and directory are gone at the end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kmemd.daemon import mountpoint, namespace, notify, syscalls
from kmemd.daemon.mountpoint import ENVIRONMENT, MountError

START_S = 60
STOP_S = 10
CANNOT_RUN = 126
NOT_FOUND = 127
FORWARDED = (signal.SIGTERM, signal.SIGHUP)
LEFT_TO_PROGRAM = (signal.SIGINT, signal.SIGQUIT)
"""The terminal sends these to the program too, whose end decides what happens."""

IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""What a program inherits as ignored: ``run -- cat FILE | head`` would complain of a broken pipe."""


def run(command: Sequence[str], at: str) -> int:
    """Run a program on the machine mounted at ``at``; its exit status, 128 + N when signal N ended it."""
    child = os.fork()
    if child == 0:
        _become(command, at)
    with _signals_to(child):
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _become(command: Sequence[str], at: str) -> None:
    """In the child: enter the namespace and become the program. Does not return."""
    code, what = CANNOT_RUN, "cannot cover /proc and /sys"
    try:
        namespace.enter(at)
        what = command[0]
        for number in IGNORED_BY_PYTHON:
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(what, list(command), {**os.environ, ENVIRONMENT: at})
    except OSError as error:
        if what == command[0]:
            code = NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN
        else:
            what = f"{what}: {error.filename}"
        print(f"kmemd run: {what}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


@contextmanager
def _signals_to(child: int) -> Iterator[None]:
    """Pass termination signals on to the program, and leave those of the terminal to it."""
    before = {number: signal.getsignal(number) for number in (*FORWARDED, *LEFT_TO_PROGRAM)}
    for number in FORWARDED:
        signal.signal(number, lambda received, frame: os.kill(child, received))
    for number in LEFT_TO_PROGRAM:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def temporary_machine(options: Sequence[str]) -> Iterator[str]:
    """A machine mounted at a temporary directory by a daemon of its own. MountError.

    ``options`` are those of ``kmemd mount``.
    """
    path = tempfile.mkdtemp(prefix="kmemd-")
    others = ["--allow-other"] if os.geteuid() == 0 else []  # a program that gives up root still finds /proc
    try:
        daemon, listener = _start([*others, *options, path])
        try:
            _await_ready(daemon, listener)
            yield path
        finally:
            listener.close()
            _stop(daemon)
    finally:
        while mountpoint.is_kmemd(path):
            mountpoint.unmount(path, lazy=True)
        os.rmdir(path)


def _start(arguments: Sequence[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind("")  # Linux chooses an abstract address
    address = "@" + listener.getsockname()[1:].decode()
    daemon = subprocess.Popen(
        [sys.executable, "-m", "kmemd", "mount", *arguments],
        env={**os.environ, "NOTIFY_SOCKET": address},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: syscalls.die_with_parent(signal.SIGTERM),
    )
    return daemon, listener


def _await_ready(daemon: subprocess.Popen[bytes], listener: socket.socket) -> None:
    listener.settimeout(0.05)
    for _ in range(START_S * 20):
        try:
            if notify.READY in listener.recv(4096).decode().splitlines():
                return
        except TimeoutError:
            if daemon.poll() is not None:
                raise MountError("the machine did not start") from None
    raise MountError(f"the machine did not start within {START_S} s")


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(STOP_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
