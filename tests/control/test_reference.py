"""docs/commands.md is what the verbs say, and every verb says enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmemd.control.language import VERBS, Verb
from kmemd.control.reference import text
from kmemd.control.verbs import MODULES, listing
from kmemd.control.verbs_general import SECTIONS

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def test_the_page_is_what_the_verbs_say() -> None:
    assert PAGE.read_text() == text(), "run: python -m kmemd.control.reference > docs/commands.md"


@pytest.mark.parametrize("verb", list(VERBS), ids=lambda verb: verb.name)
def test_every_verb_has_help_that_ends_its_sentences(verb: Verb) -> None:
    assert verb.summary.endswith((".", ":", "``."))
    assert verb.help.rstrip().endswith((".", '"'))


def test_the_listing_has_a_line_for_each_verb() -> None:
    lines = listing().splitlines()
    assert sorted(line.split()[0] for line in lines if line and not line.startswith("#")) == sorted(VERBS.names())
    assert [line[2:] for line in lines if line.startswith("#")] == list(SECTIONS.values())
    assert {"alloc_pages", "kmalloc", "vmalloc", "WRITE_ONCE", "spawn", "help"} <= set(VERBS.names())
    assert len(set(MODULES)) == len(MODULES) >= 13
