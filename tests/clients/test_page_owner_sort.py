"""The kernel's page_owner_sort on the model's report, in all its modes: the figures are those of the records."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmemd import System
from tests.clients.conftest import run_clean

RECORD = re.compile(
    r"Page allocated via order (?P<order>\d+), mask \S+, pid (?P<pid>\d+), tgid (?P<tgid>\d+) \((?P<comm>.*)\), "
    r"ts (?P<ts>\d+) ns, free_ts (?P<free_ts>\d+) ns\n(?P<pfn>PFN .*\n)(?P<stack>(?:.*\n)*)"
)
BLOCK = re.compile(r"^(\d+) times, (\d+) pages")

SCRIPT = """\
a = alloc_pages order=0 n=40 by=reader_thread comm=reader
b = alloc_pages order=2 n=30 by=writer_thread comm=writer
c = alloc_pages order=0 n=20 by=reader_thread comm=reader
free_pages a
t = spawn comm=child
d = alloc_pages order=1 n=10 by=reader_thread pid=t
v = vmalloc 256K by=loader_init
o = kmalloc 500 n=200 by=cacher_init
e = alloc_pages order=0 n=30 by=third_thread comm=writer
"""


@dataclass(frozen=True)
class Record:
    """One block of the report. ``text`` is what page_owner_sort compares: all but the line with the PFN."""

    order: int
    pid: int
    tgid: int
    comm: str
    ts: int
    free_ts: int
    stack: str
    text: str
    slab: bool

    @property
    def allocator(self) -> str:
        """Who allocated the page, as page_owner_sort finds out."""
        lines = self.stack.splitlines()
        places = [place for place, line in enumerate(lines) if "__vmalloc_node_range" in line]
        vmalloc = bool(places) and places[0] > 0 and "alloc_pages" in lines[places[0] - 1]
        names = ["SLAB"] * self.slab + ["VMALLOC"] * vmalloc
        return " ".join(names or ["OTHERS"])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """The report of a machine on which several tasks allocated, and its records."""
    system = System.boot(cmdline="page_owner=on")
    system.run(SCRIPT)
    text = system.read("/sys/kernel/debug/page_owner").decode()
    path = tmp_path_factory.mktemp("page_owner") / "report"
    path.write_text(text)
    records = []
    for block in text.split("\n\n")[:-1]:
        found = RECORD.fullmatch(block + "\n")
        assert found is not None, block
        numbers = [int(found[name]) for name in ("order", "pid", "tgid")]
        times = int(found["ts"]), int(found["free_ts"])
        whole = found[0].replace(found["pfn"], "")
        records.append(Record(*numbers, found["comm"], *times, found["stack"], whole, "slab" in found["pfn"]))
    return path, records


def sort(tool: str, report: Path, *options: str) -> list[str]:
    """The blocks that the program writes."""
    result = report.with_name("result")
    said = run_clean([tool, *options, str(report), str(result)])
    assert "culling" in said
    return re.split(r"\n(?=\d+ times, )", result.read_text())


def sums(blocks: list[str]) -> Counter[tuple[int, int]]:
    """How often which pair of times and pages stands before a block."""
    heads = [BLOCK.match(block) for block in blocks]
    return Counter((int(head[1]), int(head[2])) for head in heads if head is not None)


def expected(records: list[Record], *keys: Callable[[Record], object]) -> Counter[tuple[int, int]]:
    """The same of records that are one when they agree in keys."""
    times: Counter[object] = Counter()
    pages: Counter[object] = Counter()
    for record in records:
        group = tuple(key(record) for key in keys)
        times[group] += 1
        pages[group] += 1 << record.order
    return Counter((count, pages[group]) for group, count in times.items())


KEYS: dict[str, Callable[[Record], object]] = {
    "pid": lambda record: record.pid,
    "tgid": lambda record: record.tgid,
    "name": lambda record: record.comm,
    "stacktrace": lambda record: record.stack,
    "free": lambda record: record.free_ts != 0,
    "allocator": lambda record: record.allocator,
}


def text(record: Record) -> object:
    return record.text


def number(pattern: str, block: str) -> int:
    """A number of a block."""
    found = re.search(pattern, block)
    assert found is not None, block
    return int(found[1])


ORDER: dict[str, tuple[Callable[[str], object], bool]] = {
    "-m": (lambda block: number(r"(\d+) pages", block), True),
    "-t": (lambda block: number(r"(\d+) times", block), True),
    "-p": (lambda block: number(r"pid (\d+),", block), False),
    "-P": (lambda block: number(r"tgid (\d+) ", block), False),
    "-n": (lambda block: re.findall(r"tgid \d+ \((.*)\), ts", block)[0].encode(), False),
    "-a": (lambda block: number(r"ts (\d+) ns,", block), False),
    "-r": (lambda block: number(r"free_ts (\d+) ns", block), False),
    "-s": (lambda block: block.split("\n", 2)[2].encode(), False),
}


@pytest.mark.parametrize("mode", ORDER)
def test_sort_modes(mode: str, report: tuple[Path, list[Record]], page_owner_sort: str) -> None:
    path, records = report
    blocks = sort(page_owner_sort, path, mode)
    assert sums(blocks) == expected(records, text)
    key, descending = ORDER[mode]
    values = [key(block) for block in blocks]
    assert values == sorted(values, reverse=descending)
    assert len(set(values)) > 1 or mode == "-t", "no two blocks are alike: each has its time"


@pytest.mark.parametrize(
    "words", ["pid,-tgid", "-name,alloc_ts", "free_ts", "txt", "+stacktrace", "ator,-at", "ft,p,n"]
)
def test_sort_orders(words: str, report: tuple[Path, list[Record]], page_owner_sort: str) -> None:
    path, records = report
    assert sums(sort(page_owner_sort, path, f"--sort={words}")) == expected(records, text)


@pytest.mark.parametrize("rules", [*KEYS, "pid,name", "stacktrace,tgid", "name,free,allocator"])
def test_cull(rules: str, report: tuple[Path, list[Record]], page_owner_sort: str) -> None:
    path, records = report
    blocks = sort(page_owner_sort, path, f"--cull={rules}")
    assert sums(blocks) == expected(records, *(KEYS[rule] for rule in rules.split(",")))
    times = [number(r"(\d+) times", block) for block in blocks]
    assert times == sorted(times, reverse=True)


def test_cull_by_stack_names_the_caller(report: tuple[Path, list[Record]], page_owner_sort: str) -> None:
    blocks = sort(page_owner_sort, report[0], "--cull=stacktrace", "--sort=-pid")
    written = next(block for block in blocks if "writer_thread" in block)
    assert written.startswith("30 times, 120 pages:\n")


@pytest.mark.parametrize("field", ["pid", "tgid", "name"])
def test_select(field: str, report: tuple[Path, list[Record]], page_owner_sort: str) -> None:
    path, records = report
    child = next(record for record in records if record.comm == "child")
    reader = next(record for record in records if record.comm == "reader")
    wanted = {KEYS[field](child), KEYS[field](reader)}
    words = ",".join(map(str, wanted))
    chosen = [record for record in records if KEYS[field](record) in wanted]
    assert 0 < len(chosen) < len(records)
    assert sums(sort(page_owner_sort, path, f"--{field}={words}")) == expected(chosen, text)


def test_filter_of_what_is_released(report: tuple[Path, list[Record]], page_owner_sort: str) -> None:
    path, records = report
    kept = [record for record in records if record.free_ts == 0 or record.ts >= record.free_ts]
    assert sums(sort(page_owner_sort, path, "-f")) == expected(kept, text)
    assert any(record.free_ts for record in records), "some pages were freed before"
