"""The records that ftrace itself makes: messages, stacks, functions (kernel/trace/trace_entries.h)."""

from __future__ import annotations

import struct

from kmemd.debug.trace_format import Event

FUNCTION, STACK, PRINT, GRAPH_EXIT, GRAPH_ENTRY, RAW_DATA = 1, 4, 5, 10, 11, 18

EVENTS = (
    Event(
        "ftrace",
        "function",
        FUNCTION,
        "unsigned long ip; unsigned long parent_ip",
        '" %ps <-- %ps", (void *)REC->ip, (void *)REC->parent_ip',
    ),
    Event(
        "ftrace",
        "kernel_stack",
        STACK,
        "int size; unsigned long caller[]",
        '"\\t=> %ps\\n\\t=> %ps\\n\\t=> %ps\\n" "\\t=> %ps\\n\\t=> %ps\\n\\t=> %ps\\n" "\\t=> %ps\\n\\t=> %ps\\n",'
        "(void *)REC->caller[0],(void *)REC->caller[1],(void *)REC->caller[2],(void *)REC->caller[3],"
        "(void *)REC->caller[4],(void *)REC->caller[5],(void *)REC->caller[6],(void *)REC->caller[7]",
    ),
    Event("ftrace", "print", PRINT, "unsigned long ip; char buf[]", '"%ps: %s", (void *)REC->ip, REC->buf'),
    Event(
        "ftrace",
        "funcgraph_exit",
        GRAPH_EXIT,
        "unsigned long func; int depth; unsigned int overrun; unsigned long long calltime; unsigned long long rettime",
        '"<-- %ps (%d) (start: %llx  end: %llx) over: %d", (void *)REC->func, REC->depth, REC->calltime, '
        "REC->rettime, REC->depth",
    ),
    Event(
        "ftrace",
        "funcgraph_entry",
        GRAPH_ENTRY,
        "unsigned long func; int depth",
        '"--> %ps (%d)", (void *)REC->func, REC->depth',
    ),
    Event(
        "ftrace",
        "raw_data",
        RAW_DATA,
        "unsigned int id; char buf[]",
        '"id:%04x %08x", REC->id, (int)REC->buf[0]',
    ),
)


def head(number: int, pid: int, flags: int = 0) -> bytes:
    """The fields that all records begin with."""
    return struct.pack("<HBBi", number, flags, 0, pid)


def print_record(pid: int, ip: int, text: bytes, word: int) -> bytes:
    """A message of ``trace_marker``, on a machine with words of ``word`` bytes."""
    return head(PRINT, pid) + ip.to_bytes(word, "little") + text + b"\0"


def raw_record(pid: int, data: bytes) -> bytes:
    """What ``trace_marker_raw`` took: a number and bytes."""
    return head(RAW_DATA, pid) + data


def stack_record(pid: int, addresses: tuple[int, ...]) -> bytes:
    """A call stack."""
    body = b"".join(address.to_bytes(8, "little") for address in addresses)
    return head(STACK, pid) + struct.pack("<ii", len(addresses), 0) + body
