"""``events``, ``available_events``, ``set_event`` and their like (kernel/trace/trace_events.c)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from kmemd.debug.trace_array import MARKER, EventFile, TraceArray
from kmemd.debug.trace_filter import Filter, FilterError, make_filter, with_error
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.views.tracing import (
    WRITE,
    CommandFile,
    array_of,
    declare,
    device_file,
    log_error,
    made_device,
    made_file,
    number,
    text_file,
)
from kmemd.views.tree import Caller, Directory, Pattern

ROOT, SYSTEM, EVENT = Directory(0o750), Directory(0o750), Directory(0o750)
FTRACE_EVENT = Directory(0o750)
FILTER_HELP = (
    "### global filter ###\n# Use this to set filters for multiple events.\n"
    "# Only events with the given fields will be affected.\n"
    "# If no events are modified, an error message will be displayed here.\n"
)


def zero_or_one(text: str) -> bool:
    """What an ``enable`` file takes. EINVAL."""
    value = number(text)
    if value not in (0, 1):
        raise KernelError(errno.EINVAL, f"{value} is neither 0 nor 1")
    return value == 1


# -- all events --------------------------------------------------------------------------------------------


@text_file("available_events", instances=False)
def available_events(kernel: Kernel, array: TraceArray) -> Iterator[str]:
    """Every event, in the order of the numbers."""
    for system, name in array.files:
        yield f"{system}:{name}\n"


def _open_set_event(kernel: Kernel, array: TraceArray, caller: Caller) -> CommandFile:
    def show() -> str:
        return "".join(f"{file.event.system}:{file.event.name}\n" for file in array.enabled_events())

    def store(text: str) -> None:
        for word in text.split():
            array.set_event(word)

    return CommandFile(show, store, lambda: array.enable(list(array.files.values()), False))


device_file("set_event", WRITE, _open_set_event)


def _pid_file(name: str, attribute: str) -> None:
    def opener(kernel: Kernel, array: TraceArray, caller: Caller) -> CommandFile:
        def show() -> str:
            pids: set[int] | None = getattr(array, attribute)
            return "".join(f"{pid}\n" for pid in sorted(pids or ()))

        def store(text: str) -> None:
            pids = {number(word) for word in text.split()}
            if pids:
                setattr(array, attribute, (getattr(array, attribute) or set()) | pids)
            kernel.tracing.update()

        def clear() -> None:
            setattr(array, attribute, None)
            kernel.tracing.update()

        return CommandFile(show, store, clear)

    device_file(name, WRITE, opener)


_pid_file("set_event_pid", "pids")
_pid_file("set_event_notrace_pid", "no_pids")

# -- the tree ----------------------------------------------------------------------------------------------


def _store_all(kernel: Kernel, array: TraceArray, text: str) -> None:
    array.enable(list(array.files.values()), zero_or_one(text))


ROOT.names["enable"] = made_file(lambda kernel, array: array.state_of(list(array.files.values())) + "\n", _store_all)


def _header_page(kernel: Kernel, array: TraceArray) -> str:
    word = kernel.layout.pointer_size
    return (
        "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
        f"\tfield: local_t commit;\toffset:8;\tsize:{word};\tsigned:1;\n"
        "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
        f"\tfield: char data;\toffset:{8 + word};\tsize:{4096 - 8 - word};\tsigned:1;\n"
    )


HEADER_EVENT = (
    "# compressed entry header\n\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n\tarray       :   32 bits\n\n"
    "\tpadding     : type == 29\n\ttime_extend : type == 30\n\ttime_stamp : type == 31\n"
    "\tdata max type_len  == 28\n"
)
ROOT.names["header_page"] = made_file(_header_page, None)
ROOT.names["header_event"] = made_file(lambda kernel, array: HEADER_EVENT, None)


def _systems(kernel: Kernel, *parameters: Any) -> list[str]:
    return array_of(kernel, *parameters).systems()


def _events(kernel: Kernel, *parameters: Any) -> list[str]:
    array, system = array_of(kernel, *parameters), parameters[-1]
    return [file.event.name for file in array.of_system(system)]


ROOT.patterns.append(Pattern("", "", "system", SYSTEM, _systems))
SYSTEM.patterns.append(Pattern("", "", "event", EVENT, _events))


def _store_system(kernel: Kernel, array: TraceArray, system: str, text: str) -> None:
    array.enable(array.of_system(system), zero_or_one(text))


SYSTEM.names["enable"] = made_file(
    lambda kernel, array, system: array.state_of(array.of_system(system)) + "\n", _store_system
)


def _store_event(kernel: Kernel, array: TraceArray, system: str, name: str, text: str) -> None:
    array.enable([array.file(system, name)], zero_or_one(text))


EVENT.names["enable"] = made_file(
    lambda kernel, array, system, name: array.file(system, name).state() + "\n", _store_event
)
EVENT.names["id"] = made_file(lambda kernel, array, system, name: f"{array.file(system, name).event.id}\n", None)
EVENT.names["format"] = made_file(lambda kernel, array, system, name: array.file(system, name).layout.format(), None)

FTRACE = Directory(0o750)
FTRACE.patterns.append(
    Pattern(
        "",
        "",
        "event",
        FTRACE_EVENT,
        lambda kernel, *parameters: [
            layout.event.name for layout in kernel.tracing.ftrace if layout.event is not MARKER
        ],
    )
)
ROOT.names["ftrace"] = FTRACE
FTRACE_EVENT.names["id"] = made_file(
    lambda kernel, array, name: f"{kernel.tracing.ftrace_layout(name).event.id}\n", None
)
FTRACE_EVENT.names["format"] = made_file(lambda kernel, array, name: kernel.tracing.ftrace_layout(name).format(), None)
declare("events", ROOT)

# -- filters -----------------------------------------------------------------------------------------------


def _store_filter(kernel: Kernel, array: TraceArray, system: str, name: str, text: str) -> None:
    """Set an event's filter; "0" takes it away (``apply_event_filter``). EINVAL; the file then says what was wrong."""
    file, text = array.file(system, name), text.strip()
    if text == "0":
        file.filter = None
        kernel.tracing.update()
        return
    try:
        file.filter = make_filter(text, file.layout)
    except FilterError as error:
        file.filter = Filter(with_error(text, error))
        log_error(kernel, array, "event filter parse error", error.message, text, error.position)
        raise
    finally:
        kernel.tracing.update()


def _filter_text(kernel: Kernel, array: TraceArray, system: str, name: str) -> str:
    found = array.file(system, name).filter
    return f"{found.text}\n" if found is not None else "none\n"


EVENT.names["filter"] = made_file(_filter_text, _store_filter)


def _store_system_filter(kernel: Kernel, array: TraceArray, system: str, text: str) -> None:
    """Set the filter of every event that has the fields (``apply_subsystem_event_filter``). EINVAL when none has."""
    text = text.strip()
    files = array.of_system(system)
    array.system_filters.pop(system, None)
    made: list[tuple[EventFile, Filter | None]] = []
    failed: FilterError | None = None
    for file in files:
        try:
            made.append((file, None if text == "0" else make_filter(text, file.layout)))
        except FilterError as error:
            failed = error
            made.append((file, None))
    for file, found in made:
        file.filter = found
    kernel.tracing.update()
    if text != "0" and failed is not None and all(found is None for _, found in made):
        worst = FilterError("Couldn't find or set field in one of a subsystem's events", 0)
        array.system_filters[system] = with_error(text, worst)
        log_error(kernel, array, "event filter parse error", worst.message, text, 0)
        raise worst
    if text != "0":
        array.system_filters[system] = text


SYSTEM.names["filter"] = made_file(
    lambda kernel, array, system: (
        f"{array.system_filters[system]}\n" if system in array.system_filters else FILTER_HELP
    ),
    _store_system_filter,
)

# -- triggers ----------------------------------------------------------------------------------------------


def _open_trigger(kernel: Kernel, array: TraceArray, file: EventFile) -> CommandFile:
    triggers = kernel.tracing.triggers
    return CommandFile(
        lambda: triggers.text(file),
        lambda text: triggers.write(array, file, text),
        lambda: triggers.clear_hists(array, file),
    )


def _hist(file: EventFile) -> Iterator[str]:
    """The histograms of an event."""
    first = True
    for trigger in file.triggers:
        if trigger.histogram is None:
            continue
        if not first:
            yield "\n\n"
        first = False
        yield from trigger.histogram.text(trigger.state)


EVENT.names["trigger"] = made_device(
    WRITE, lambda kernel, array, system, name, caller: _open_trigger(kernel, array, array.file(system, name))
)
EVENT.names["hist"] = made_file(lambda kernel, array, system, name: _hist(array.file(system, name)), None)

PRINT_EVENT = Directory(0o750)
PRINT_EVENT.names["format"] = made_file(lambda kernel, array: array.marker.layout.format(), None)
PRINT_EVENT.names["hist"] = made_file(lambda kernel, array: _hist(array.marker), None)
PRINT_EVENT.names["id"] = made_file(lambda kernel, array: f"{MARKER.id}\n", None)
PRINT_EVENT.names["trigger"] = made_device(
    WRITE, lambda kernel, array, caller: _open_trigger(kernel, array, array.marker)
)
FTRACE.names[MARKER.name] = PRINT_EVENT
