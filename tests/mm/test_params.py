"""The kernel command line."""

import pytest

from kmemd.mm.params import CommandLine, memparse


def test_words_values_and_quotes():
    line = CommandLine('quiet page_owner=on slub_debug=FZ,"kmalloc-64" movable-node mem="512M"')
    assert line.has("quiet")
    assert not line.has("loud")
    assert line.get("page_owner") == "on"
    assert line.get("quiet") == ""
    assert line.get("absent") is None
    assert line.get("absent", "x") == "x"
    assert line.has("movable_node")
    assert line.size("mem") == 512 << 20


def test_the_last_value_counts_and_order_is_kept():
    line = CommandLine("hugepagesz=2M hugepages=4 hugepagesz=1G hugepages=1")
    assert line.get("hugepages") == "1"
    assert line.all("hugepages") == ["4", "1"]
    assert line.pairs()[2] == ("hugepagesz", "1G")


def test_init_arguments_behind_two_dashes_are_not_parameters():
    line = CommandLine("quiet -- page_owner=on")
    assert not line.has("page_owner")
    assert line.text == "quiet -- page_owner=on"


@pytest.mark.parametrize(
    ("text", "value"), [("kmemleak=off", False), ("kmemleak=on", True), ("kmemleak", True), ("kmemleak=x", True)]
)
def test_flags(text, value):
    assert CommandLine(text).flag("kmemleak", default=True) is value


@pytest.mark.parametrize(
    ("text", "size", "rest"),
    [
        ("512M", 512 << 20, ""),
        ("0x10k", 16 << 10, ""),
        ("010", 8, ""),
        ("2G@1G", 2 << 30, "@1G"),
        ("50%", 50, "%"),
        ("M", 0, "M"),
        ("1T", 1 << 40, ""),
    ],
)
def test_memparse(text, size, rest):
    assert memparse(text) == (size, rest)


def test_of_parameters_that_exclude_one_another_the_last_counts():
    line = CommandLine("nokaslr slub_debug kaslr=1 quiet")
    assert line.last("kaslr", "nokaslr") == "kaslr"
    assert line.last("quiet") == "quiet"
    assert line.last("loud", "no-such") is None
