"""Which mountpoints can be used, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmemd.cli import main
from kmemd.daemon import mountpoint
from kmemd.daemon.mountpoint import DEFAULT, ENVIRONMENT, Mount, MountError

MOUNTINFO = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime master:1 - ext4 /dev/vda rw
40 27 0:50 / /mnt/with\040blank rw,nosuid shared:7 - fuse.kmemd kmemd rw,user_id=0
41 40 0:51 / /mnt/a\134b rw - tmpfs none rw
"""


def test_mountinfo_is_read_with_its_escapes(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTINFO)
    assert list(mountpoint.mounts(str(tmp_path / "mountinfo"))) == [
        Mount("/proc", "proc"),
        Mount("/", "ext4"),
        Mount("/mnt/with blank", "fuse.kmemd"),
        Mount("/mnt/a\\b", "tmpfs"),
    ]


def test_no_mountinfo_is_no_mounts(tmp_path: Path) -> None:
    assert list(mountpoint.mounts(str(tmp_path / "nothing"))) == []


def needs(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    if name == "file":
        path.write_text("")
    if name == "full":
        (path / "entry").mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nothing", "does not exist"), ("file", "is not a directory"), ("full", "is not empty")],
)
def test_unusable_mountpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> None:
    monkeypatch.setattr(mountpoint, "DEVICE", "/dev/null")
    with pytest.raises(MountError, match=reason):
        mountpoint.prepare(str(needs(tmp_path, name)))


def test_without_the_fuse_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(MountError, match="fuse is missing: load the fuse module"):
        mountpoint.prepare(str(tmp_path))


def test_a_usable_mountpoint_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "DEVICE", "/dev/null")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    assert mountpoint.prepare("m") == str(tmp_path / "m")


def test_who_unmounts_second_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = iter([True, False])
    monkeypatch.setattr(mountpoint, "is_kmemd", lambda path: next(seen))
    assert main(["umount", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"kmemd umount: {tmp_path} is not mounted any more\n"


def live(monkeypatch: pytest.MonkeyPatch, *paths: str) -> None:
    monkeypatch.setattr(mountpoint, "mounts", lambda: iter([Mount(path, "fuse.kmemd") for path in paths]))


def test_the_machine_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    live(monkeypatch, "/a")
    assert mountpoint.find(None) == "/a"
    live(monkeypatch, "/a", DEFAULT)
    assert mountpoint.find(None) == DEFAULT
    monkeypatch.setenv(ENVIRONMENT, "/b")
    assert mountpoint.find(None) == "/b"
    assert mountpoint.find("/c") == "/c"


def test_no_machine_and_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    live(monkeypatch)
    with pytest.raises(MountError, match="no machine is mounted"):
        mountpoint.find(None)
    live(monkeypatch, "/a", "/b")
    with pytest.raises(MountError, match="several machines are mounted"):
        mountpoint.find(None)
