"""The command line.

Each subcommand imports what it needs when it runs, so that none waits for what others need.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kmemd import __version__
from kmemd.daemon.mountpoint import DEFAULT, ENVIRONMENT, MountError
from kmemd.perf import options as perf_options

if TYPE_CHECKING:
    from kmemd.system import System
    from kmemd.views.tree import Directory, Entry

EPILOG = f"""\
Machines: the name of a built-in machine (kmemd machines), a TOML file, or a folder with the proc/ and sys/ of
a real machine, which makes its twin ("/" is the machine this runs on).
A command that works on a mounted machine takes, in this order: --at, ${ENVIRONMENT} (which kmemd run sets),
{DEFAULT} if it is live, the only live mount.
"""


class CommandError(Exception):
    """A subcommand failed: the text for stderr. The exit status is 1."""


class _Program(argparse.Action):
    """A program and its arguments, from the first word that is no option of kmemd's on."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        words = values[1:] if values[:1] == ["--"] else values
        if not words:
            parser.error("the following arguments are required: CMD")
        setattr(namespace, self.dest, words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    options = build_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.function
    try:
        status = command(options)
        sys.stdout.flush()  # here, where a reader that went away is no traceback
        return status
    except (CommandError, MountError, perf_options.PerfError) as failure:
        print(f"kmemd {options.command}: {failure}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    parser = argparse.ArgumentParser(
        prog="kmemd",
        description="A deterministic model of the Linux 6.1 memory manager, mounted as /proc and /sys.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kmemd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_mounting(commands)
    _add_talking(commands)
    _add_showing(commands)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: Callable[[argparse.Namespace], int],
    text: str,
    more: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip(), epilog=None
    )
    parser.set_defaults(function=function)
    return parser


def _add_machine_options(parser: argparse.ArgumentParser, *, served: bool) -> None:
    group = parser.add_argument_group("machine options")
    group.add_argument("--machine", metavar="NAME|FILE", default="default", help="what to boot (default: %(default)s)")
    group.add_argument(
        "--cmdline", metavar="STR", default="", help="kernel parameters, e.g. 'page_owner=on kmemleak=on'"
    )
    group.add_argument("--seed", metavar="N", type=int, default=0, help="where all randomness comes from (default: 0)")
    if served:
        group.add_argument(
            "--clock",
            choices=("real", "manual"),
            default="real",
            help="real: idle model time follows the wall clock; manual: only work and sleep move it "
            "(default: %(default)s)",
        )


def _add_mounting(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    mount = _command(
        commands, "mount", _mount, "boot a machine and serve it at a mountpoint",
        "Runs in the foreground; SIGINT and SIGTERM unmount. The mount of a killed daemon is taken over.",
    )  # fmt: skip
    _add_machine_options(mount, served=True)
    mount.add_argument(
        "--allow-other", action="store_true", help="let other users in, as far as the files' modes allow"
    )
    mount.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")

    umount = _command(commands, "umount", _umount, "unmount a machine and end its daemon")
    umount.add_argument("--lazy", action="store_true", help="even if a program uses it")
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")

    run = _command(
        commands, "run", _run, "run a program that sees a machine as its /proc and /sys",
        "The machine is booted for the program and goes with it, or it is one that is mounted (--at). "
        "The exit status is the program's.",
    )  # fmt: skip
    _add_machine_options(run, served=True)
    run.add_argument("--at", metavar="MOUNTPOINT", help="use the machine mounted there")
    run.add_argument(
        "program", metavar="CMD", nargs=argparse.REMAINDER, action=_Program, help="the program and its arguments"
    )


def _add_talking(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ctl = _command(
        commands, "ctl", _ctl, "give a command to a mounted machine",
        "Prints the reply, or the reason for the error on stderr with exit status 1. "
        "Without COMMAND: lists the verbs.",
    )  # fmt: skip
    ctl.add_argument("--at", metavar="MOUNTPOINT", help="the machine's mountpoint")
    ctl.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER, help="one command, e.g. vmalloc 1M")

    execute = _command(
        commands, "exec", _exec, "boot a machine and run a script of commands, without a mount",
        "Prints the replies. Ends at the first error with exit status 1.",
    )  # fmt: skip
    _add_machine_options(execute, served=False)
    execute.add_argument("script", metavar="SCRIPT", help="a file of commands; - is standard input")

    cat = _command(commands, "cat", _cat, "boot a machine and print files of it, without a mount")
    _add_machine_options(cat, served=False)
    cat.add_argument("paths", metavar="PATH", nargs="+", help="e.g. /proc/buddyinfo")


def _add_showing(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _command(commands, "machines", _machines, "list the built-in machines")
    tree = _command(
        commands, "tree", _tree, "list the files that a mount has, with their modes",
        "Names in braces stand for one entry per process, cache, node and so on.",
    )  # fmt: skip
    tree.add_argument("path", metavar="PATH", nargs="?", default="/", help="only what is below")
    conformance = _command(commands, "conformance", _conformance, "compare the model with captures of a real kernel")
    conformance.add_argument("directory", metavar="DIR", help="a folder laid out like the captures")
    conformance.add_argument(
        "folders", metavar="FOLDER", nargs="*", help="compare these of its folders, e.g. reclaim compaction"
    )
    conformance.add_argument("--json", metavar="FILE", help="write the results there as well")
    perf = _command(commands, "perf", _perf, "count and sample events, draw flame graphs", "See kmemd-perf(1).")
    perf_options.add(perf, _add_machine_options)


def _boot(options: argparse.Namespace, clock: str = "manual") -> System:
    from kmemd.errors import KernelError
    from kmemd.machine import MachineError
    from kmemd.system import System

    try:
        return System.boot(machine=options.machine, seed=options.seed, cmdline=options.cmdline, clock=clock)
    except MachineError as error:
        raise CommandError(str(error)) from None
    except KernelError as error:
        raise CommandError(f"the machine does not boot: {error}") from None


def _mount(options: argparse.Namespace) -> int:
    from kmemd.daemon import mountpoint

    path = mountpoint.prepare(options.mountpoint)
    system = _boot(options, options.clock)
    from kmemd.daemon.serve import Options, serve

    if sys.stderr.isatty() and "NOTIFY_SOCKET" not in os.environ:
        print(f"kmemd mount: {system.kernel.machine.name} at {path}, until Ctrl-C or kmemd umount", file=sys.stderr)
    system.warm_up()
    serve(system, path, Options(options.allow_other, options.clock == "real"))
    return 0


def _umount(options: argparse.Namespace) -> int:
    from kmemd.daemon import mountpoint

    path = os.path.abspath(options.mountpoint)
    if not mountpoint.is_kmemd(path):
        raise CommandError(f"{path} is not a mounted machine")
    mountpoint.unmount(path, lazy=options.lazy or mountpoint.is_stale(path))
    return 0


def _run(options: argparse.Namespace) -> int:
    from kmemd.daemon import mountpoint, run

    if options.at is not None:
        at = os.path.abspath(options.at)
        if not mountpoint.is_kmemd(at) or mountpoint.is_stale(at):
            raise CommandError(f"{at} is not a live machine")
        return run.run(options.program, at)
    words = [f"--machine={options.machine}", f"--cmdline={options.cmdline}", f"--seed={options.seed}"]
    with run.temporary_machine([*words, f"--clock={options.clock}"]) as at:
        return run.run(options.program, at)


def _ctl(options: argparse.Namespace) -> int:
    from kmemd.daemon import mountpoint

    path = os.path.join(mountpoint.find(options.at), "kmemd/ctl")
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
    try:
        line = " ".join(options.words)
        failed = bool(line) and not _give(descriptor, line)
        reply = _replies(descriptor)
    finally:
        os.close(descriptor)
    if failed:
        raise CommandError(_explained(reply, line))
    sys.stdout.write(reply)
    return 0


def _give(descriptor: int, line: str) -> bool:
    """Write a command; False when the machine refused it, with the reason to be read as the reply."""
    from kmemd.daemon.syscalls import write_once

    try:
        write_once(descriptor, f"{line}\n".encode())
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise CommandError(f"the machine is gone: {error.strerror}") from None
        return False
    return True


def _replies(descriptor: int) -> str:
    parts = []
    while part := os.read(descriptor, 1 << 16):
        parts.append(part)
    return b"".join(parts).decode("utf-8", "replace")


def _explained(reply: str, line: str) -> str:
    """The reply to a command that failed, ``error=NAME column=N reason=TEXT``, for a person."""
    found = re.match(r"error=(\w+)(?: column=(\d+))? reason=(.*)", reply)
    if found is None:
        return reply.strip() or _pointed("the model failed; what it says is where its output goes", line, None)
    name, column, reason = found.groups()
    return _pointed(f"{name}: {reason}", line, None if column is None else int(column))


def _pointed(reason: str, line: str, column: int | None) -> str:
    """A reason, the line it is about, and a caret under the word that is wrong."""
    caret = "" if column is None else f"\n    {' ' * column}^"
    return f"{reason}\n    {line}{caret}"


def _exec(options: argparse.Namespace) -> int:
    name = "standard input" if options.script == "-" else options.script
    try:
        lines = _lines(options.script)
    except OSError as error:
        raise CommandError(f"{name}: {error.strerror}") from None
    system = _boot(options)
    for number, line in enumerate(lines, 1):
        try:
            reply = system.command(line)
        except OSError as error:
            sys.stdout.flush()
            reason = f"{name}:{number}: {error}"
            raise CommandError(_pointed(reason, line, getattr(error, "column", None))) from None
        if reply:
            print(reply)
    return 0


def _lines(script: str) -> list[str]:
    if script == "-":
        return sys.stdin.read().splitlines()
    with open(script, encoding="utf-8") as file:
        return file.read().splitlines()


def _cat(options: argparse.Namespace) -> int:
    system = _boot(options)
    status = 0
    for path in options.paths:
        try:
            data = system.read(path)
        except OSError as error:
            sys.stdout.flush()
            print(f"kmemd cat: {error}", file=sys.stderr)
            status = 1
            continue
        sys.stdout.buffer.write(data)
    sys.stdout.flush()
    return status


def _machines(options: argparse.Namespace) -> int:
    from kmemd.machine import Machine

    for name in Machine.builtin_names():
        machine = Machine.load(name)
        size = f"{machine.memory_bytes / 2**30:g} GiB"
        shape = f"{machine.arch}, {len(machine.nodes)} nodes, {machine.cpus} CPUs, {size}"
        print(f"{name:<14} {shape:<44} {machine.description}".rstrip())
    return 0


def _tree(options: argparse.Namespace) -> int:
    from kmemd.system import System
    from kmemd.views.tree import TREE

    assert System.__doc__  # importing it is what declares the files
    wanted = "/" + options.path.strip("/")
    found = False
    for path, entry in _declared(TREE, ""):
        if path == wanted or path.startswith(wanted.rstrip("/") + "/"):
            print(f"{entry.mode:04o} {path}")
            found = True
    if not found:
        raise CommandError(f"{wanted}: no such file")
    return 0


def _declared(directory: Directory, above: str) -> Iterator[tuple[str, Entry]]:
    """All entries below a directory, with parameters in braces."""
    from kmemd.views.tree import Directory

    names = [
        *directory.names.items(),
        *((p.name(f"{{{p.parameter}}}"), p.entry) for p in directory.patterns if p.entry is not directory),
    ]
    for name, entry in names:
        yield f"{above}/{name}", entry
        if isinstance(entry, Directory):
            yield from _declared(entry, f"{above}/{name}")


def _conformance(options: argparse.Namespace) -> int:
    directory = Path(options.directory)
    if not directory.is_dir():
        raise CommandError(f"{directory} is not a folder")
    from kmemd.conformance import runner

    try:
        return runner.main(directory, Path(options.json) if options.json else None, options.folders)
    except FileNotFoundError as error:
        raise CommandError(str(error)) from None


def _perf(options: argparse.Namespace) -> int:
    from kmemd.perf import command

    options.boot = _boot
    return command.main(options)
