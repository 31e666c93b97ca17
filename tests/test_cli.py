"""The command line, mostly without a mount (tests/daemon has the rest)."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from kmemd.cli import build_parser, main

COMMANDS = ["mount", "umount", "run", "ctl", "exec", "cat", "machines", "tree", "conformance"]
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: kmemd {command}" in capsys.readouterr().out


def test_the_help_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n    {command}" in text for command in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nothing"],
        ["mount"],
        ["cat"],
        ["run"],
        ["run", "--"],
        ["mount", "--clock", "fast", "/x"],
        ["exec", "--clock", "real", "x"],
    ],
)
def test_wrong_usage_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: kmemd" in capsys.readouterr().err


@pytest.mark.parametrize("dashes", [["--"], []])
def test_the_words_of_a_program_stay_its_own(dashes: list[str]) -> None:
    options = build_parser().parse_args(["run", "--seed", "3", *dashes, "ls", "-l", "--seed", "4", "--"])
    assert options.program == ["ls", "-l", "--seed", "4", "--"]
    assert options.seed == 3


def test_the_words_of_a_command_stay_its_own() -> None:
    options = build_parser().parse_args(["ctl", "--at", "/m", "p", "=", "kmalloc", "64", "by=f+0x1"])
    assert options.words == ["p", "=", "kmalloc", "64", "by=f+0x1"]
    assert options.at == "/m"


def test_cat_prints_files(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["cat", "/proc/buddyinfo", "/proc/sys/vm/swappiness"]) == 0
    out = capfdbinary.readouterr().out
    assert out.startswith(b"Node 0, zone      DMA ")
    assert out.endswith(b"\n60\n")


def test_cat_goes_on_after_a_file_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["cat", "/proc/nothing", "/proc/sys/vm/swappiness"]) == 1
    out, err = capfd.readouterr()
    assert out == "60\n"
    assert err == "kmemd cat: ENOENT: /proc/nothing does not exist\n"


def test_an_unknown_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cat", "--machine", "toaster", "/proc/buddyinfo"]) == 1
    assert capsys.readouterr().err.startswith("kmemd cat: toaster: no such machine; built in are default")


def test_exec_prints_replies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script"
    script.write_text("# a comment\n\np = alloc_pages order=3 gfp=GFP_KERNEL\nfree_pages p\n")
    assert main(["exec", str(script)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert "pfn=" in out[0]


def test_exec_ends_at_the_first_error_and_says_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a = kmalloc 64\nkfree nothing\nkfree a\n"))
    assert main(["exec", "-"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    first, line, caret = err.splitlines()
    assert first.startswith("kmemd exec: standard input:2: ENOENT: ")
    assert line == "    kfree nothing"
    assert caret.strip() == "^"


def test_exec_without_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exec", str(tmp_path / "nothing")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_machines_lists_the_built_in_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["machines"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert names[0] == "default"
    assert {"laptop", "two-node", "four-node", "highmem", "cpuless-node", "server-1t"} <= set(names)
    assert "2 GiB" in lines[0]


def test_tree_lists_paths_with_modes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tree"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "0444 /proc/buddyinfo" in lines
    assert "0644 /proc/sys/vm/swappiness" in lines
    assert "0600 /kmemd/ctl" in lines


def test_tree_of_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tree", "/proc/sys/vm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line.split()[1].startswith("/proc/sys/vm") for line in lines)
    assert main(["tree", "/nothing"]) == 1
    assert capsys.readouterr().err == "kmemd tree: /nothing: no such file\n"


def test_ctl_without_a_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ctl", "--at", str(tmp_path), "drop"]) == 1
    assert capsys.readouterr().err == f"kmemd ctl: {tmp_path}/kmemd/ctl: No such file or directory\n"


def test_ctl_says_so_when_the_model_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kmemd").mkdir()
    (tmp_path / "kmemd/ctl").touch()
    monkeypatch.setattr("kmemd.daemon.mountpoint.find", lambda at: at)
    monkeypatch.setattr("kmemd.cli._give", lambda descriptor, line: False)
    assert main(["ctl", "--at", str(tmp_path), "sync"]) == 1
    assert "the model failed" in capsys.readouterr().err


def test_umount_of_what_is_not_mounted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["umount", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"kmemd umount: {tmp_path} is not a mounted machine\n"


def test_mount_fails_before_it_boots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mount", "--machine", "toaster", str(tmp_path / "nothing")]) == 1
    assert "does not exist" in capsys.readouterr().err or not Path("/dev/fuse").exists()


def test_a_reader_that_stops_is_no_traceback() -> None:
    done = subprocess.run(
        f"{sys.executable} -m kmemd tree | head -1",
        shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("words", [["--version"], ["ctl", "--help"], ["umount", "--help"]])
def test_light_commands_do_not_load_the_model(words: list[str]) -> None:
    script = (
        "import sys\nfrom kmemd.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        "sys.exit(bool({'numpy', 'trio', 'pyfuse3', 'kmemd.system'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
