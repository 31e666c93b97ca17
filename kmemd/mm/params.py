"""The kernel command line (kernel/params.c): words, quotes and memory sizes.

It holds what was written; which parameter means what is the business of the subsystem that asks.
As in Linux, ``-`` and ``_`` are the same in names, a word may be quoted, and parameters nobody knows are kept.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"(?:\"[^\"]*\"|[^\s\"])+")
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]+|\d+)([kKmMgGtTpPeE]?)")
_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_TRUE = ("y", "Y", "1", "on", "t", "T")
_FALSE = ("n", "N", "0", "off", "f", "F")


def memparse(text: str) -> tuple[int, str]:
    """Bytes of a size such as ``512M``, and what follows it (lib/cmdline.c). No digits: 0."""
    match = _SIZE.match(text)
    if match is None:
        return 0, text
    digits, suffix = match.groups()
    base = 16 if digits[:2].lower() == "0x" else 8 if digits.startswith("0") and len(digits) > 1 else 10
    try:
        number = int(digits, base)
    except ValueError:
        return 0, text
    return number << _SHIFT[suffix.lower()], text[match.end() :]


class CommandLine:
    """A parsed command line. ``text`` is what ``/proc/cmdline`` shows."""

    def __init__(self, text: str = "") -> None:
        self.text = " ".join(text.split("\n")).strip()
        self._words: list[tuple[str, str | None]] = []
        for word in _WORD.findall(self.text):
            name, equals, value = word.partition("=")
            if name == "--":
                break
            self._words.append((_canonical(name.strip('"')), value.strip('"') if equals else None))

    def __str__(self) -> str:
        return self.text

    def has(self, name: str) -> bool:
        """Whether the parameter was given, with or without a value."""
        return any(word == _canonical(name) for word, _ in self._words)

    def get(self, name: str, default: str | None = None) -> str | None:
        """The last value given; ``""`` when the parameter stands alone; ``default`` when it is absent."""
        values = self.all(name)
        return values[-1] if values else default

    def all(self, name: str) -> list[str]:
        """Every value given for a parameter, in order."""
        return [value or "" for word, value in self._words if word == _canonical(name)]

    def last(self, *names: str) -> str | None:
        """Which of some parameters that exclude one another stands last; None when none is there."""
        return next((name for word, _ in reversed(self._words) for name in names if word == _canonical(name)), None)

    def pairs(self) -> list[tuple[str, str]]:
        """All parameters in order; some, as hugepagesz= and hugepages=, mean something by their order."""
        return [(word, value or "") for word, value in self._words]

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean parameter (kstrtobool: on, off, 1, 0, y, n); alone it means yes; nonsense means default."""
        value = self.get(name)
        if value is None or (value not in _TRUE and value not in _FALSE and value != ""):
            return default
        return value not in _FALSE

    def size(self, name: str) -> int | None:
        """A parameter in bytes (``2G``), or None when it is absent or no size."""
        value = self.get(name)
        if value is None or not value[:1].isdigit():
            return None
        return memparse(value)[0]


def _canonical(name: str) -> str:
    return name.replace("-", "_")
