"""Format files as captured, and the texts that their expressions make."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kmemd.debug.trace_events import EVENTS
from kmemd.debug.trace_format import Event
from kmemd.debug.trace_printfmt import Machine, compile_print_fmt

FMT = Path(__file__).parents[1] / "captures/linux-6.1/trace/fmt"
MACHINE = Machine(
    symbol=lambda address: f"sym+{address:#x}",
    pointer=lambda address: f"{address:016x}",
    constants={"vmemmap_base": 0xFFFFEA0000000000, "VMSCAN_THROTTLE_WRITEBACK": 0, "VMSCAN_THROTTLE_ISOLATED": 1}
    | {"VMSCAN_THROTTLE_NOPROGRESS": 2, "VMSCAN_THROTTLE_CONGESTED": 3},
)
BY_NAME = {event.name: event for event in EVENTS}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_the_format_file_is_linux_own_and_its_text_is_understood(event: Event) -> None:
    layout = event.layout(8)
    assert layout.format() == (FMT / f"{event.system}.{event.name}").read_text()
    assert "%" not in compile_print_fmt(layout, MACHINE)(bytes(layout.size))


def text(name: str, form: str, *values: object) -> str:
    layout = BY_NAME[name].layout(8)
    head = struct.pack("<HBBi", layout.event.id, 0, 0, 40)
    return compile_print_fmt(layout, MACHINE)(head + struct.pack("<" + form, *values))


def test_flags_pointers_and_structures() -> None:
    assert text("mm_page_alloc", "QI4xQi", 0x59B2, 0, 0xCC0 | 0x2000 | 0x10000, 0) == (
        "page=ffffea0000166c80 pfn=0x59b2 order=0 migratetype=0 gfp_flags=GFP_KERNEL|__GFP_NOWARN|__GFP_NORETRY"
    )
    failed = text("mm_page_alloc", "QI4xQi", (1 << 64) - 1, 3, 0, 1)
    assert failed == "page=0000000000000000 pfn=0x0 order=3 migratetype=1 gfp_flags=none"


def test_symbols_widths_and_signs() -> None:
    assert text("mm_compaction_finished", "iIii", 0, 0, -1, 4) == "node=0 zone=DMA      order=-1 ret=continue"
    assert text("mm_compaction_finished", "iIii", 0, 9, -1, 4) == "node=0 zone=0x9      order=-1 ret=continue"
    assert text("vm_unmapped_area", "8Q", (1 << 64) - 12, 1, 2, 3, 4, 5, 6, 7).startswith("addr=0x0 err=-12 total")


def test_texts_in_records() -> None:
    record = text("kmem_cache_free", "QQI7s", 1, 2, 28 | 7 << 16, b"widget\0")
    assert record == "call_site=sym+0x1 ptr=0000000000000002 name=widget"


def test_words_of_32_bits_move_the_fields() -> None:
    layout = BY_NAME["kmalloc"].layout(4)
    assert [(field.offset, field.size) for field in layout.own] == [(8, 4), (12, 4), (16, 4), (20, 4), (24, 4), (28, 4)]


def test_what_is_not_c_is_refused() -> None:
    with pytest.raises(ValueError, match="not known"):
        compile_print_fmt(Event("a", "b", 1, "int x", '"%d", sizeof').layout(8), MACHINE)
