"""Readiness messages."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kmemd.daemon.notify import READY, notify


def test_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify(READY)


@pytest.mark.parametrize("abstract", [False, True])
def test_states_arrive_in_one_datagram(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("" if abstract else str(tmp_path / "socket"))
        name = listener.getsockname()
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name[1:].decode() if abstract else name)
        listener.setblocking(False)
        assert notify(READY, "STATUS=serving")
        assert listener.recv(4096) == b"READY=1\nSTATUS=serving"


def test_a_listener_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nothing"))
    assert not notify(READY)
