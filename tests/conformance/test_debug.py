"""The debug comparison passes on the capture, and fails where the capture differs."""

import shutil
from pathlib import Path

import pytest

from kmemd.conformance.debug import form, leaks, run

CAPTURE = Path(__file__).parents[1] / "captures" / "linux-6.1" / "debug"


def failures(folder):
    return [case for case in run(folder) if not case.passed]


def test_the_captured_scenario():
    cases = list(run(CAPTURE))
    assert [case for case in cases if not case.passed] == []
    assert {case.kind for case in cases} == {"exact", "format"}
    assert sum(case.kind == "exact" for case in cases) == 6


@pytest.mark.parametrize(
    ("file", "old", "new", "name"),
    [
        ("kmemleak.2", "(size 192)", "(size 96)", "kmemleak.2"),
        ("kmemleak.2", ", jiffies ", " @ ", "kmemleak.2:2"),
        ("kmemleak.2", "    [<ffffffff8", "    [<8", "kmemleak.2:7"),
        ("kmemleak.dmesg", "13 new", "12 new", "kmemleak.dmesg"),
        ("page_owner", " ns, free_ts", " ns, freed", "page_owner PFN"),
        ("oops.guard", "error_code(0x0002)", "error_code(0x0000)", "oops.guard"),
        ("oops.wtext", "permissions violation", "not-present page", "oops.wtext"),
        ("oops.xdata", "PMD 8000000004c001e3", "PMD 4c001e3", "oops.xdata"),
    ],
)
def test_differences_are_found(tmp_path, file, old, new, name):
    folder = tmp_path / "debug"
    shutil.copytree(CAPTURE, folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    assert any(case.name.startswith(name) for case in failures(folder))


def test_counting_and_forms():
    assert leaks("unreferenced object 0xffff888004425110 (size 8):\n" * 2) == {8: 2}
    short = "    6b 6b 6b 6b 6b 6b 6b 6b                          kkkkkkkk"
    assert form(short) == form("    00 " + "11 " * 15 + " ................")
    assert form("  backtrace:") == "  backtrace:"
    assert form('  comm "sh", pid 40, jiffies 1') == '  comm "<name>", pid <n>, jiffies <n>'
