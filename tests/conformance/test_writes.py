"""The captured writes, and the runner's own rules."""

from __future__ import annotations

from pathlib import Path

from kmemd.conformance import writes

CAPTURE = Path(__file__).parent.parent / "captures/linux-6.1/writes"


def test_captured_writes() -> None:
    cases = list(writes.run(CAPTURE))
    assert [case for case in cases if not case.passed and not case.absent] == []
    assert sum(case.passed for case in cases) > 900
    assert any("/sys/kernel/tracing/trace_clock" in case.name for case in cases)


def test_unescape() -> None:
    assert writes.unescape(r"10\n") == "10\n"
    assert writes.unescape(r"10\\n") == "10\\n"
    assert writes.unescape(r"a\tb") == "a\tb"


def test_machine_is_named_by_the_folder(tmp_path: Path) -> None:
    machine = writes.machine_for(tmp_path / "i386-512M-1cpu" / "writes.tsv")
    assert (machine.arch, machine.cpus) == ("i386", 1)
    assert 500 << 20 < machine.memory_bytes < 513 << 20
    assert writes.machine_for(tmp_path / "writes" / "writes.tsv").cpus == 2
