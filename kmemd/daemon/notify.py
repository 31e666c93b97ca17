"""The readiness protocol of systemd, sd_notify(3): datagrams to the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import os
import socket

READY = "READY=1"
STOPPING = "STOPPING=1"


def notify(*states: str) -> bool:
    """Send states such as ``READY=1``. False when nobody asked for them or nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto("\n".join(states).encode(), address)
        except OSError:
            return False
    return True
