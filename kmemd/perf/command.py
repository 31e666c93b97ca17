"""``kmemd perf COMMAND``: which function does it."""

from __future__ import annotations

import argparse

from kmemd.perf import flamegraph, record, stat

COMMANDS = {
    "stat": stat.main,
    "record": record.record,
    "script": record.script,
    "list": record.listing,
    "flamegraph": flamegraph.main,
}


def main(options: argparse.Namespace) -> int:
    """Do what the command line says; the exit status."""
    return COMMANDS[options.perf](options)
