"""The options of a trace array (``trace_options``; TRACE_FLAGS in kernel/trace/trace.h)."""

from __future__ import annotations

OPTIONS = (
    "print-parent",
    "sym-offset",
    "sym-addr",
    "verbose",
    "raw",
    "hex",
    "bin",
    "block",
    "trace_printk",
    "annotate",
    "userstacktrace",
    "sym-userobj",
    "printk-msg-only",
    "context-info",
    "latency-format",
    "record-cmd",
    "record-tgid",
    "overwrite",
    "disable_on_free",
    "irq-info",
    "markers",
    "event-fork",
    "pause-on-trace",
    "hash-ptr",
    "function-trace",
    "function-fork",
    "display-graph",
    "stacktrace",
)
TOP_ONLY = frozenset({"trace_printk", "printk-msg-only", "record-cmd"})
"""Options of the top array alone (TOP_LEVEL_TRACE_FLAGS)."""

DEFAULT_OPTIONS = frozenset(
    {
        "print-parent",
        "trace_printk",
        "annotate",
        "context-info",
        "record-cmd",
        "overwrite",
        "irq-info",
        "markers",
        "hash-ptr",
        "function-trace",
    }
)

GRAPH_OPTIONS = (
    "funcgraph-overrun",
    "funcgraph-cpu",
    "funcgraph-overhead",
    "funcgraph-proc",
    "funcgraph-duration",
    "funcgraph-abstime",
    "funcgraph-irqs",
    "funcgraph-tail",
    "sleep-time",
    "graph-time",
)
GRAPH_DEFAULTS = frozenset(
    {"funcgraph-cpu", "funcgraph-overhead", "funcgraph-duration", "funcgraph-irqs", "sleep-time", "graph-time"}
)
"""Options of function_graph, listed while it is the current tracer."""
