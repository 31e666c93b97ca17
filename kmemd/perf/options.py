"""The grammar of ``kmemd perf`` (builtin-stat.c, builtin-record.c, builtin-script.c); what runs is imported later.

Options that perf has and that mean nothing here (``-g``: every sample has its calls) are taken and ignored.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

AddMachine = Callable[..., None]

WHAT = """\
SCRIPT is a file of commands (- is standard input), which a machine booted for it runs; COMMAND is a program, which
sees that machine, or the one mounted at --at, as its /proc and /sys.
"""
STAT_EVENTS = (
    "task-clock,context-switches,page-faults,minor-faults,major-faults,dTLB-loads,dTLB-load-misses,"
    "LLC-loads,LLC-load-misses,cycles"
)


class PerfError(Exception):
    """A command of perf failed: the text for stderr."""


def add(parser: argparse.ArgumentParser, add_machine: AddMachine) -> None:
    """Declare the commands below ``kmemd perf``. ``add_machine`` declares the options of a machine."""
    commands = parser.add_subparsers(dest="perf", required=True, metavar="COMMAND")
    _add_stat(commands, add_machine)
    _add_record(commands, add_machine)
    _add_script(commands)
    _add_flamegraph(commands, add_machine)
    found = _command(commands, "list", "list the events of a machine")
    _add_machine(found, add_machine)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=WHAT)


def _add_machine(parser: argparse.ArgumentParser, add_machine: AddMachine) -> None:
    add_machine(parser, served=False)
    parser.add_argument("--at", metavar="MOUNTPOINT", help="use the machine mounted there")


def _add_target(parser: argparse.ArgumentParser, add_machine: AddMachine) -> None:
    _add_machine(parser, add_machine)
    parser.add_argument("-p", "--pid", metavar="PID", type=int, default=0, help="only this process")
    parser.add_argument("-a", "--all-cpus", action="store_true", help="the whole machine, as without -p")
    parser.add_argument("target", metavar="SCRIPT|COMMAND", nargs=argparse.REMAINDER, help="what to run meanwhile")


def _add_stat(commands: argparse._SubParsersAction[argparse.ArgumentParser], add_machine: AddMachine) -> None:
    stat = _command(commands, "stat", "count events while a script or a program runs")
    stat.add_argument("-e", "--event", metavar="EVENTS", default=STAT_EVENTS, help="joined by commas (kmemd perf list)")
    stat.add_argument("-x", "--field-separator", metavar="SEP", default="", help="print fields with SEP between them")
    stat.add_argument("-j", "--json", action="store_true", help="print an object a line")
    stat.add_argument("-o", "--output", metavar="FILE", help="where to print, instead of stderr")
    _add_target(stat, add_machine)


def _add_record(commands: argparse._SubParsersAction[argparse.ArgumentParser], add_machine: AddMachine) -> None:
    record = _command(commands, "record", "sample the calls that lead to events while a script or a program runs")
    record.add_argument("-e", "--event", metavar="EVENTS", default="cpu-clock", help="default: %(default)s")
    record.add_argument("-c", "--count", metavar="N", type=int, default=0, help="a sample every N events")
    record.add_argument("-F", "--freq", metavar="HZ", type=int, default=0, help="samples a second of a clock")
    record.add_argument("-g", "--call-graph", action="store_true", help="as always")
    record.add_argument("-o", "--output", metavar="FILE", default="perf.data", help="default: %(default)s")
    _add_target(record, add_machine)


def _add_script(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    script = _command(commands, "script", "print recorded samples with their calls")
    script.add_argument("-i", "--input", metavar="FILE", default="perf.data", help="default: %(default)s")
    script.add_argument("--at", metavar="MOUNTPOINT", help="the samples of the machine mounted there")
    script.add_argument("--header", action="store_true", help="print where and how they were taken first")
    script.add_argument("-e", "--event", metavar="EVENTS", default="", help="only these events")
    script.add_argument("-p", "--pid", metavar="PID", type=int, default=0, help="only this task")


def _add_flamegraph(commands: argparse._SubParsersAction[argparse.ArgumentParser], add_machine: AddMachine) -> None:
    flame = _command(commands, "flamegraph", "draw who holds memory, or who took time, as SVG on standard output")
    flame.add_argument(
        "--by",
        choices=("bytes", "count", "time"),
        default="bytes",
        help="what width means: bytes held, allocations held, or time (default: %(default)s)",
    )
    flame.add_argument(
        "--source",
        choices=("page_owner", "kmemleak", "slab"),
        default="page_owner",
        help="whose stacks of what is held (default: %(default)s)",
    )
    flame.add_argument("-i", "--input", metavar="FILE", help="draw samples (perf.data), or folded stacks; - is stdin")
    flame.add_argument("--folded", action="store_true", help="print folded stacks instead of drawing them")
    flame.add_argument("--title", metavar="TEXT", default="", help="above the graph")
    flame.add_argument("--width", metavar="PIXELS", type=int, default=1200, help="default: %(default)s")
    _add_machine(flame, add_machine)
    flame.add_argument("target", metavar="SCRIPT|COMMAND", nargs=argparse.REMAINDER, help="what to run before")
