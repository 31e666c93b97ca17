"""The files of the function tracers: ``current_tracer``, ``set_ftrace_filter`` and more (kernel/trace/ftrace.c)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from fnmatch import fnmatchcase

from kmemd.debug.trace_array import TraceArray
from kmemd.debug.trace_function import TRACERS, functions
from kmemd.errors import KernelError
from kmemd.kernel import Kernel
from kmemd.views.tracing import WRITE, CommandFile, device_file, number, text_file
from kmemd.views.tree import Caller


def _store_tracer(kernel: Kernel, array: TraceArray, text: str) -> None:
    kernel.tracing.functions.choose(array, text.strip())


@text_file("current_tracer", _store_tracer)
def current_tracer(kernel: Kernel, array: TraceArray) -> str:
    """The tracer in use."""
    return f"{array.tracer}\n"


@text_file("available_tracers")
def available_tracers(kernel: Kernel, array: TraceArray) -> str:
    """The tracers that can be chosen."""
    return " ".join(name for name in TRACERS if array.is_top or name != "function_graph") + "\n"


@text_file("available_filter_functions", instances=False)
def available_filter_functions(kernel: Kernel, array: TraceArray) -> Iterator[str]:
    """The functions that can be traced."""
    for name in functions():
        yield f"{name}\n"


@text_file("enabled_functions", instances=False)
def enabled_functions(kernel: Kernel, array: TraceArray) -> Iterator[str]:
    """The functions that are traced now."""
    chosen = [other for other in kernel.tracing.arrays() if other.tracer != "nop"]
    for name in functions():
        count = sum(not other.functions or _listed(name, other.functions) for other in chosen)
        if count:
            yield f"{name} ({count})\n"


def _listed(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _function_list(name: str, attribute: str, empty: str, *, instances: bool = True) -> None:
    """A file that holds names and globs of functions; ``!`` takes one away."""

    def opener(kernel: Kernel, array: TraceArray, caller: Caller) -> CommandFile:
        patterns: list[str] = getattr(array, attribute)

        def show() -> str:
            chosen = [function for function in functions() if _listed(function, patterns)]
            return "".join(f"{function}\n" for function in chosen) if patterns else empty

        def store(text: str) -> None:
            for word in text.split():
                _change(patterns, word)

        return CommandFile(show, store, patterns.clear)

    device_file(name, WRITE, opener)


def _change(patterns: list[str], word: str) -> None:
    """EINVAL for what no function is named like."""
    if word.startswith("!"):
        patterns[:] = [pattern for pattern in patterns if pattern != word[1:]]
        return
    if not any(fnmatchcase(function, word) for function in functions()):
        raise KernelError(errno.EINVAL, f"no function is named {word}")
    patterns.append(word)


_function_list("set_ftrace_filter", "functions", "#### all functions enabled ####\n")
_function_list("set_ftrace_notrace", "not_functions", "#### no functions disabled ####\n")
_function_list("set_graph_function", "graph_functions", "#### all functions enabled ####\n")


def _store_depth(kernel: Kernel, array: TraceArray, text: str) -> None:
    kernel.tracing.functions.max_depth = number(text)


@text_file("max_graph_depth", _store_depth, instances=False)
def max_graph_depth(kernel: Kernel, array: TraceArray) -> str:
    """How deep function_graph goes; 0 is as deep as it can."""
    return f"{kernel.tracing.functions.max_depth}\n"
