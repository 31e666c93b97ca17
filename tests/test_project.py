"""The files around the package: links that lead somewhere, scripts that parse, the benchmark's yardstick."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.result import Figure
from bench.run import MODULES, main
from kmemd.machine import Latency

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [*sorted((ROOT / "examples").glob("*.sh")), ROOT / "scripts" / "setup.sh", ROOT / ".ci" / "run"]


def links(document: Path) -> Iterator[Path]:
    """The files that a document links to."""
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        yield document.parent / target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    assert [str(target) for target in links(document) if not target.exists()] == []


def test_the_index_lists_every_document() -> None:
    listed = {target.resolve() for target in links(ROOT / "docs" / "index.md")}
    assert [path.name for path in DOCUMENTS if path.resolve() not in listed and path.name != "index.md"] == []


def test_every_latency_is_listed_with_its_value() -> None:
    text = " ".join((ROOT / "docs" / "fidelity.md").read_text().split())
    default = Latency()
    missing = [
        field.name
        for field in dataclasses.fields(default)
        if f"{field.name} {getattr(default, field.name)}" not in text
    ]
    assert missing == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    subprocess.run(["sh", "-n", str(script)], check=True)


def test_make_has_the_promised_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "check", "bench", "conformance", "clean"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_benchmark_exists() -> None:
    assert [name for name in MODULES if not (ROOT / "bench" / f"{name}.py").exists()] == []


def test_a_missed_goal_fails_the_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("bench.run.pin", lambda: 0)
    figures = [Figure("fast", 2, "ns", 3, at_most=True), Figure("slow", 0.4, "ratio", 0.5), Figure("free", 1, "s")]
    monkeypatch.setattr("bench.run.figures", lambda name: figures)
    assert main(["one"]) == 1
    shown = capsys.readouterr().out
    assert "MISSED" in shown
    assert "1 goals missed, 0 benchmarks failed" in shown
    del figures[1]
    assert main(["one"]) == 0


def test_the_c_allocator_allocates(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    binary = tmp_path / "buddy"
    source = ROOT / "bench" / "buddy.c"
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-o", str(binary), str(source)], check=True)
    shown = subprocess.run([str(binary), "16384", "15000", "2"], check=True, capture_output=True, text=True).stdout
    assert float(shown) > 0
    assert subprocess.run([str(binary), "16384", "17000", "1"], check=False).returncode == 1
