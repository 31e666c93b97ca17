"""The systemd unit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parent.parent.parent / "systemd" / "kmemd@.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_to_complain_about() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_gives_the_service_a_mount_namespace_of_its_own() -> None:
    settings = {line.partition("=")[0] for line in UNIT.read_text().splitlines() if line and line[0] not in "#["}
    hiding = {"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectKernelTunables", "PrivateMounts"}
    assert settings & hiding == set()
    assert {"ExecStart", "ExecStop", "Restart", "NoNewPrivileges", "CapabilityBoundingSet"} <= settings
