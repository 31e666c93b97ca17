"""``/sys/kernel/tracing``: what every trace array has, and what is there once (kernel/trace/trace.c).

A directory in ``instances`` holds the same files as the top, for an array of its own; so every file is declared once
and finds its array in the path's first parameter, if there is one. Left out: kprobes, uprobes and user events, function
profiles, the stack and hwlat tracers.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

from kmemd.debug.trace_array import CLOCKS, TraceArray
from kmemd.debug.trace_errors import TraceError
from kmemd.debug.trace_options import GRAPH_OPTIONS, OPTIONS, TOP_ONLY
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.mm import kstrtox
from kmemd.steps import Steps
from kmemd.views.trace_readme import README
from kmemd.views.tree import Caller, Device, Directory, Entry, File, Pattern, debugfs, tracefs

READ, WRITE = 0o440, 0o640
TOP = tracefs.dir("")
debugfs.add("tracing", TOP)
INSTANCE = Directory(0o750)
PER_CPU, OPTION_DIR = Directory(0o750), Directory(0o750)
SIZE_MAX_KB = (1 << 44) - 1


def array_of(kernel: Kernel, *parameters: Any) -> TraceArray:
    """The array of a path; what was emitted is in its buffers."""
    kernel.tracing.sync()
    first = parameters[0] if parameters else None
    return first if isinstance(first, TraceArray) else kernel.tracing.top


def rest_of(parameters: tuple[Any, ...]) -> tuple[Any, ...]:
    """A path's parameters without the array."""
    return parameters[1:] if parameters and isinstance(parameters[0], TraceArray) else parameters


# -- declaring ---------------------------------------------------------------------------------------------


def declare(name: str, entry: Entry, *, instances: bool = True) -> None:
    """Put an entry into the top directory, and into those of the instances."""
    TOP.names[name] = entry
    if instances:
        INSTANCE.names[name] = entry


def text_file(
    name: str, store: Callable[..., Any] | None = None, *, mode: int | None = None, instances: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: ``show(kernel, array)`` is a file of every array; ``store(kernel, array, text)`` its writer."""

    def decorate(show: Callable[..., Any]) -> Callable[..., Any]:
        declare(name, made_file(show, store, mode), instances=instances)
        return show

    return decorate


def made_file(show: Callable[..., Any] | None, store: Callable[..., Any] | None, mode: int | None = None) -> File:
    """A file over ``show(kernel, array, *rest)`` and ``store(kernel, array, *rest, text)``."""
    file = File(mode if mode is not None else WRITE if store else READ)
    if show is not None:
        file.show = lambda kernel, *parameters: show(kernel, array_of(kernel, *parameters), *rest_of(parameters))
    if store is not None:
        file.write = lambda kernel, *parameters: store(
            kernel, array_of(kernel, *parameters), *rest_of(parameters[:-1]), parameters[-1]
        )
    return file


def device_file(name: str, mode: int, opener: Callable[..., Any], *, pollable: bool = False) -> None:
    """A file with state per open: ``opener(kernel, array, caller)``."""
    declare(name, made_device(mode, opener, pollable))


def made_device(mode: int, opener: Callable[..., Any], pollable: bool = False) -> Device:
    """A device over ``opener(kernel, array, *rest, caller)``."""
    return Device(
        mode,
        0,
        lambda kernel, *parameters: opener(
            kernel, array_of(kernel, *parameters), *rest_of(parameters[:-1]), parameters[-1]
        ),
        pollable,
    )


class CommandFile:
    """An open file to which ``>`` means more than writing: ``truncate`` clears what it holds."""

    def __init__(
        self,
        show: Callable[[], str],
        store: Callable[[str], int | None],
        clear: Callable[[], None] | None = None,
    ) -> None:
        self._show = show
        self._store = store
        self.truncate = clear or (lambda: None)
        self._text: bytes | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the text as it stood at the first read."""
        if offset == 0 or self._text is None:
            self._text = self._show().encode("utf-8", "surrogateescape")
        return self._text[offset : offset + size]

    def write(self, data: bytes) -> Steps[int]:
        """Take a command."""
        taken = self._store(data.decode("utf-8", "surrogateescape"))
        return len(data) if taken is None else taken
        yield

    def close(self) -> None:
        """Nothing to let go."""


def number(text: str, base: int = 10) -> int:
    """``kstrtoul_from_user``. EINVAL."""
    return kstrtox.kstrtoul(text.encode("utf-8", "surrogateescape"), base)


# -- instances ---------------------------------------------------------------------------------------------


def _instances(kernel: Kernel) -> list[str]:
    return list(kernel.tracing.instances)


class _ArrayPattern(Pattern):
    """Names of instances; the parameter below one is the array itself."""

    def parameters(self, outer: tuple[Any, ...], key: Any) -> tuple[Any, ...]:
        return (key,)

    def name(self, key: Any) -> str:
        return key if isinstance(key, str) else str(key.name)


INSTANCES = tracefs.dir("instances", 0o750)
INSTANCES.mkdir = lambda kernel, name: kernel.tracing.mkdir(name)
INSTANCES.rmdir = lambda kernel, name: kernel.tracing.rmdir(name)
INSTANCES.patterns.append(
    _ArrayPattern(
        "",
        "",
        "instance",
        INSTANCE,
        lambda kernel: list(kernel.tracing.instances.values()),
        lambda kernel, name: kernel.tracing.instances.get(name),
    )
)


# -- switches ----------------------------------------------------------------------------------------------


def _store_tracing_on(kernel: Kernel, array: TraceArray, text: str) -> None:
    array.expand()
    array.ring.on = bool(number(text))


@text_file("tracing_on", _store_tracing_on)
def tracing_on(kernel: Kernel, array: TraceArray) -> str:
    """Whether the ring takes records."""
    return f"{int(array.ring.on)}\n"


def _store_clock(kernel: Kernel, array: TraceArray, text: str) -> None:
    """EINVAL for an unknown clock; the buffers are emptied."""
    array.set_clock(text.strip())


@text_file("trace_clock", _store_clock)
def trace_clock(kernel: Kernel, array: TraceArray) -> str:
    """The clocks; the one in use in brackets."""
    return " ".join(f"[{name}]" if name == array.clock else name for name in CLOCKS) + "\n"


@text_file("timestamp_mode")
def timestamp_mode(kernel: Kernel, array: TraceArray) -> str:
    """Times in the ring are differences."""
    return "[delta] absolute\n"


def _store_percent(kernel: Kernel, array: TraceArray, text: str) -> None:
    value = number(text)
    if value > 100:
        raise KernelError(errno.EINVAL, f"{value} is more than 100 %")
    array.buffer_percent = value


@text_file("buffer_percent", _store_percent)
def buffer_percent(kernel: Kernel, array: TraceArray) -> str:
    """How full a buffer must be before who waits for it is woken."""
    return f"{array.buffer_percent}\n"


# -- sizes -------------------------------------------------------------------------------------------------


def store_size(kernel: Kernel, array: TraceArray, text: str, cpu: int | None = None) -> None:
    """Change the size of a CPU's buffer, or of all. EINVAL for 0, ENOMEM for more than there is."""
    kilobytes = number(text)
    if kilobytes == 0:
        raise KernelError(errno.EINVAL, "a buffer has a size")
    if kilobytes > SIZE_MAX_KB or kilobytes << 10 > kernel.totalram_pages() << 12:
        raise KernelError(errno.ENOMEM, f"{kilobytes} KiB a CPU is more memory than there is")
    array.resize(kilobytes << 10, cpu)
    kernel.tracing.update()


def size_text(array: TraceArray, cpu: int | None = None) -> str:
    """A buffer's size; X when the CPUs' differ."""
    sizes = {array.size_kb(number) for number in range(array.cpus)} if cpu is None else {array.size_kb(cpu)}
    if len(sizes) > 1:
        return "X\n"
    size = sizes.pop()
    return f"{size}\n" if array.expanded else f"{size} (expanded: 1408)\n"


@text_file("buffer_size_kb", store_size)
def buffer_size_kb(kernel: Kernel, array: TraceArray) -> str:
    """The size of each CPU's buffer."""
    return size_text(array)


@text_file("buffer_total_size_kb")
def buffer_total_size_kb(kernel: Kernel, array: TraceArray) -> str:
    """The size of all buffers."""
    total = sum(array.size_kb(cpu) for cpu in range(array.cpus))
    return f"{total}\n" if array.expanded else f"{total} (expanded: {1408 * array.cpus})\n"


@text_file("free_buffer", lambda kernel, array, text: array.resize(0), mode=0o200)
def free_buffer(kernel: Kernel, array: TraceArray) -> str:
    """Written to and closed, gives the memory back."""
    raise KernelError(errno.EINVAL, "free_buffer cannot be read")


# -- CPUs, options -----------------------------------------------------------------------------------------


def _store_cpumask(kernel: Kernel, array: TraceArray, text: str) -> None:
    try:
        array.cpumask = int(text.strip().replace(",", ""), 16) & (1 << array.cpus) - 1
    except ValueError:
        raise KernelError(errno.EINVAL, f"not a mask of CPUs: {text.strip()}") from None
    kernel.tracing.update()


@text_file("tracing_cpumask", _store_cpumask)
def tracing_cpumask(kernel: Kernel, array: TraceArray) -> str:
    """The CPUs that are traced, in hexadecimal."""
    return f"{array.cpumask:0{-(-array.cpus // 4)}x}\n"


def options_of(array: TraceArray) -> tuple[str, ...]:
    """The options that an array has."""
    return OPTIONS if array.is_top else tuple(name for name in OPTIONS if name not in TOP_ONLY)


def set_option(kernel: Kernel, array: TraceArray, name: str, on: bool) -> None:
    """Switch an option. EINVAL where there is none of that name."""
    chosen = array.graph_options if array.tracer == "function_graph" and name in GRAPH_OPTIONS else array.options
    if name not in options_of(array) and chosen is array.options:
        raise KernelError(errno.EINVAL, f"there is no option {name}")
    (chosen.add if on else chosen.discard)(name)
    array.ring.overwrite = "overwrite" in array.options
    kernel.tracing.update()


def _store_options(kernel: Kernel, array: TraceArray, text: str) -> None:
    name = text.strip()
    on = not name.startswith("no")
    set_option(kernel, array, name if on else name[2:], on)


@text_file("trace_options", _store_options)
def trace_options(kernel: Kernel, array: TraceArray) -> Iterator[str]:
    """Each option, with "no" before it when it is off."""
    for name in options_of(array):
        yield f"{'' if name in array.options else 'no'}{name}\n"
    if array.tracer == "function_graph":
        for name in GRAPH_OPTIONS:
            yield f"{'' if name in array.graph_options else 'no'}{name}\n"


def _store_option(kernel: Kernel, array: TraceArray, name: str, text: str) -> None:
    value = number(text)
    if value not in (0, 1):
        raise KernelError(errno.EINVAL, f"{value} is neither 0 nor 1")
    set_option(kernel, array, name, value == 1)


def _option_names(kernel: Kernel, *parameters: Any) -> Iterator[str]:
    array = array_of(kernel, *parameters)
    yield from options_of(array)
    if array.tracer == "function_graph":
        yield from GRAPH_OPTIONS


OPTION_DIR.patterns.append(
    Pattern(
        "",
        "",
        "option",
        made_file(
            lambda kernel, array, name: f"{int(name in array.options or name in array.graph_options)}\n", _store_option
        ),
        _option_names,
    )
)
declare("options", OPTION_DIR)


# -- errors, names -----------------------------------------------------------------------------------------


def log_error(kernel: Kernel, array: TraceArray, where: str, message: str, command: str, column: int) -> None:
    """Note what was wrong with a command (``tracing_log_err``)."""
    array.errors.add(TraceError(kernel.context.now, where, message, command, column))


def _open_error_log(kernel: Kernel, array: TraceArray, caller: Caller) -> CommandFile:
    return CommandFile(array.errors.text, lambda text: None, array.errors.clear)


device_file("error_log", WRITE, _open_error_log)


@text_file("saved_cmdlines", instances=False)
def saved_cmdlines(kernel: Kernel, array: TraceArray) -> Iterator[str]:
    """The names of tasks in the buffers."""
    for pid, comm in kernel.tracing.comms:
        yield f"{pid} {comm}\n"


def _store_comms_size(kernel: Kernel, array: TraceArray, text: str) -> None:
    value = number(text)
    if not 0 < value <= 32768:
        raise KernelError(errno.EINVAL, "saved_cmdlines_size is 1 to 32768")
    kernel.tracing.comms.resize(value)


@text_file("saved_cmdlines_size", _store_comms_size, instances=False)
def saved_cmdlines_size(kernel: Kernel, array: TraceArray) -> str:
    """How many names are kept."""
    return f"{kernel.tracing.comms.size}\n"


@text_file("saved_tgids", instances=False)
def saved_tgids(kernel: Kernel, array: TraceArray) -> Iterator[str]:
    """Threads and their processes, recorded with the option record-tgid."""
    for pid, tgid in kernel.tracing.comms.tgids():
        yield f"{pid} {tgid}\n"


@text_file("printk_formats", instances=False)
def printk_formats(kernel: Kernel, array: TraceArray) -> str:
    """Strings of trace_printk: nothing here calls it."""
    return ""


@text_file("README", instances=False)
def readme(kernel: Kernel, array: TraceArray) -> str:
    """A short guide."""
    return README
