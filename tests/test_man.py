"""The man pages: they format without a warning, and tell of every command, option and key that there is."""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmemd import machine_file
from kmemd.cli import build_parser
from kmemd.machine import Latency
from tests.clients.conftest import program

MAN = Path(__file__).parent.parent / "docs" / "man"
PAGES = sorted(MAN.iterdir())


def words(page: Path, macro: str) -> set[str]:
    """The words behind a macro, wherever it stands in a line: ``Cm`` commands and keys, ``Fl`` options."""
    found: set[str] = set()
    for line in page.read_text().splitlines():
        for match in re.finditer(rf"\b{macro} ((?:[\w-]+(?: , )?)+)", line):
            found.update(match[1].split(" , "))
    return found


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Everything that the command line takes, subcommands with their own."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from actions(sub)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_it_formats_without_a_warning(page: Path) -> None:
    argv = [program("groff"), "-mdoc", "-ww", "-rLL=100n", "-Tutf8", str(page)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "NAME" in re.sub(".\b", "", done.stdout)


def test_every_subcommand_is_told_of() -> None:
    choices = next(action.choices for action in actions(build_parser()) if action.dest == "command")
    assert choices is not None
    assert set(choices) - words(MAN / "kmemd.1", "Cm") == set()


def test_every_option_is_told_of() -> None:
    options = {option[2:] for action in actions(build_parser()) for option in action.option_strings}
    assert {option for option in options if len(option) > 1} - {"help", "version"} == {
        option.lstrip("-") for page in MAN.glob("kmemd*.1") for option in words(page, "Fl") if len(option) > 1
    }


def test_every_key_of_a_machine_is_told_of() -> None:
    keys = {*machine_file._KEYS, *machine_file._NODE_KEYS, *machine_file._SWAP_KEYS, *machine_file._DISK_KEYS}
    keys |= {field.name for field in dataclasses.fields(Latency)}
    assert words(MAN / "kmemd-machine.5", "Cm") | {"node", "swap", "disk", "latency"} == keys
