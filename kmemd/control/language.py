"""The grammar of the command language: words with columns, and verbs declared by one function each.

A line is ``[NAME =] VERB ARGUMENT... [key=value ...]``. A verb is a function whose signature is its grammar
and whose docstring is its help::

    @verb
    def alloc_pages(kernel: Kernel, *, order: Order = 0, gfp: Gfp = GFP_KERNEL) -> Reply:
        \"\"\"Allocate ...\"\"\"

Positional parameters are bare words, in order (``key=value`` works for them as well); keyword-only parameters are
``key=value`` words; ``*words`` takes the bare words that are left. Every annotation is a ``WordType``
(``control/words.py``), which reads one word. There is no Linux counterpart.
"""

from __future__ import annotations

import difflib
import errno
import inspect
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn, get_args, get_origin

from kmemd.errors import KernelError
from kmemd.mm.handles import Handle

LINE_MAX = 65536
"""Longest line in bytes. Longer ones are EINVAL, so that a writer cannot make the daemon keep them."""

_HEAD = re.compile(r"\s*(?:(?P<name>[A-Za-z_][A-Za-z0-9_.]*)\s*=(?!=)\s*)?")
_WORD = re.compile(r"\S+")
_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*", re.DOTALL)


def invalid(reason: str, column: int | None = None) -> NoReturn:
    """Raise EINVAL."""
    raise KernelError(errno.EINVAL, reason, column)


def suggestion(word: str, candidates: Iterable[str]) -> str:
    """`` (did you mean X?)`` for the candidate most like ``word``, or nothing."""
    folded: dict[str, str] = {}
    for candidate in candidates:
        folded.setdefault(candidate.lower(), candidate)
    close = difflib.get_close_matches(word[:64].lower(), folded, n=1)
    return f" (did you mean {folded[close[0]]}?)" if close else ""


def quoted(word: str) -> str:
    """A word as a message shows it: printable, and not longer than 40 characters."""
    text = "".join(char if char.isprintable() else "?" for char in word[:41])
    return text if len(word) <= 40 else text[:40] + "..."


@dataclass(frozen=True)
class Word:
    """A word of a line and the column it begins in, counted from 0."""

    text: str
    column: int


@dataclass(frozen=True)
class WordType:
    """How a kind of word is read: ``read(text, kernel)`` gives the value or raises ``KernelError``.

    The column of an error counts from the beginning of the word. ``show`` writes a value as help shows a default.
    """

    metavar: str
    meaning: str
    read: Callable[[str, Any], Any]
    show: Callable[[Any], str] = str


@dataclass(frozen=True)
class Parameter:
    """One parameter of a verb."""

    name: str
    type: WordType
    required: bool
    default: Any = None

    def read(self, word: Word, kernel: Any) -> Any:
        """The value a word gives this parameter."""
        try:
            return self.type.read(word.text, kernel)
        except KernelError as error:
            reason = f"{self.name}: {error.reason}"
            raise KernelError(error.errno, reason, word.column + (error.column or 0)) from None


@dataclass
class Reply:
    """What a verb answers. ``handle`` is bound to the line's NAME.

    ``partial`` says how much of an ``n=`` was done when memory ran out; the handle is kept and the line fails
    with EAGAIN. ``lines`` are whole lines of text (help), instead of ``words``. ``cpu`` is the CPU that later
    lines run on.
    """

    words: dict[str, int | str] = field(default_factory=dict)
    handle: Handle | None = None
    partial: str = ""
    lines: list[str] = field(default_factory=list)
    cpu: int | None = None

    def text(self, ns: int) -> str:
        """The reply as it is read: ``key=value`` words, the model time it took last."""
        if self.lines:
            return "\n".join(self.lines)
        return " ".join(f"{key}={value}" for key, value in {**self.words, "ns": ns}.items())


Slices = Generator[None, None, Reply]
"""A long verb: each ``yield`` is a point where others may run."""


@dataclass(frozen=True)
class Verb:
    """A declared verb."""

    name: str
    function: Callable[..., Reply | Slices]
    positional: tuple[Parameter, ...]
    rest: Parameter | None
    keyword: Mapping[str, Parameter]
    makes_handle: bool

    @property
    def summary(self) -> str:
        """The first line of the help."""
        return inspect.getdoc(self.function).split("\n")[0]  # type: ignore[union-attr]

    @property
    def help(self) -> str:
        """The whole help."""
        return inspect.getdoc(self.function) or ""

    @property
    def usage(self) -> str:
        """The grammar: ``[NAME =] VERB ARGUMENT [key=VALUE]``."""
        parts = ["[NAME =]"] if self.makes_handle else []
        parts.append(self.name)
        for parameter in self.positional:
            word = parameter.name.upper()
            parts.append(word if parameter.required else f"[{word}]")
        if self.rest:
            parts.append(f"{self.rest.name.upper()}...")
        for parameter in self.keyword.values():
            word = f"{parameter.name}={parameter.type.metavar}"
            parts.append(word if parameter.required else f"[{word}]")
        return " ".join(parts)

    def parameters(self) -> list[Parameter]:
        """All parameters, in the order of the usage line."""
        return [*self.positional, *([self.rest] if self.rest else []), *self.keyword.values()]


class Verbs:
    """The verbs by name. Filled by importing the modules of ``control``; read-only afterwards."""

    def __init__(self) -> None:
        self._verbs: dict[str, Verb] = {}

    def __iter__(self) -> Generator[Verb, None, None]:
        yield from self._verbs.values()

    def names(self) -> list[str]:
        """The names, in the order of declaration."""
        return list(self._verbs)

    def find(self, word: Word) -> Verb:
        """The verb a word names. EINVAL with a suggestion."""
        verb = self._verbs.get(word.text)
        if verb is None:
            invalid(f"no verb {quoted(word.text)}{suggestion(word.text, self._verbs)}", word.column)
        return verb

    def declare(self, function: Callable[..., Reply | Slices], makes_handle: bool) -> None:
        """Add the verb that ``function`` is."""
        verb = _declared(function, makes_handle)
        assert verb.name not in self._verbs, f"{verb.name} is declared twice"
        self._verbs[verb.name] = verb


def _declared(function: Callable[..., Reply | Slices], makes_handle: bool) -> Verb:
    assert function.__doc__, f"{function.__name__} needs help"
    positional: list[Parameter] = []
    keyword: dict[str, Parameter] = {}
    rest: Parameter | None = None
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        declared = _parameter(parameter, function.__globals__)
        if parameter.kind is parameter.VAR_POSITIONAL:
            rest = declared
        elif parameter.kind is parameter.KEYWORD_ONLY:
            keyword[declared.name] = declared
        else:
            positional.append(declared)
    return Verb(function.__name__, function, tuple(positional), rest, keyword, makes_handle)


def word_type(annotation: Any) -> WordType:
    """The ``WordType`` in an annotation such as ``Order`` or ``Order | None``."""
    if get_origin(annotation) is Annotated:
        return next(arg for arg in annotation.__metadata__ if isinstance(arg, WordType))
    return word_type(get_args(annotation)[0])


def _parameter(parameter: inspect.Parameter, names: dict[str, Any]) -> Parameter:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = eval(annotation, names)
    required = parameter.default is parameter.empty
    return Parameter(parameter.name, word_type(annotation), required, None if required else parameter.default)


VERBS = Verbs()


def verb(function: Callable[..., Reply | Slices]) -> Callable[..., Reply | Slices]:
    """Decorator: the function is a verb that gives no handle."""
    VERBS.declare(function, makes_handle=False)
    return function


def allocator(function: Callable[..., Reply | Slices]) -> Callable[..., Reply | Slices]:
    """Decorator: the function is a verb whose reply has a handle."""
    VERBS.declare(function, makes_handle=True)
    return function


@dataclass(frozen=True)
class Command:
    """A parsed line: the verb, its arguments, the generic keys, and the name for the handle."""

    verb: Verb
    words: tuple[Word, ...]
    name: Word | None
    positional: tuple[Any, ...]
    keyword: Mapping[str, Any]
    generic: Mapping[str, Any]


def split(line: str) -> tuple[Word | None, list[Word]]:
    """The NAME of a line and its words; comments are gone. EINVAL for NUL and for a NAME alone."""
    nul = line.find("\0")
    if nul >= 0:
        invalid("a NUL byte in the line", nul)
    text = _COMMENT.sub("", line)
    head = _HEAD.match(text)
    assert head is not None
    words = [Word(found.group(), found.start()) for found in _WORD.finditer(text, head.end())]
    if head["name"] is None:
        return None, words
    name = Word(head["name"], head.start("name"))
    if not words:
        invalid(f"{quoted(name.text)} = needs a verb", len(text.rstrip()))
    return name, words


def parse(line: str, verbs: Verbs, generic: Mapping[str, Parameter], kernel: Any) -> Command | None:
    """The command a line says, None for a blank one. EINVAL, or what reading a word raises."""
    name, words = split(line)
    if not words:
        return None
    verb_word, *rest = words
    found = verbs.find(verb_word)
    if name is not None and not found.makes_handle:
        invalid(f"{found.name} gives nothing to name", name.column)
    bare, keys = _sort(found, rest, generic)
    positional = _positional(found, bare, keys, line, kernel)
    keyword, common = {}, {}
    for key, word in keys.items():
        if key in found.keyword:
            keyword[key] = found.keyword[key].read(word, kernel)
        elif key in generic:
            common[key] = generic[key].read(word, kernel)
    for key, parameter in found.keyword.items():
        if parameter.required and key not in keyword:
            invalid(f"{found.name} needs {key}={parameter.type.metavar}", len(line.rstrip()))
    return Command(found, tuple(words), name, positional, keyword, common)


def _sort(found: Verb, words: list[Word], generic: Mapping[str, Parameter]) -> tuple[list[Word], dict[str, Word]]:
    """Bare words, and the value words by key."""
    known = {parameter.name for parameter in found.positional} | set(found.keyword) | set(generic)
    bare: list[Word] = []
    keys: dict[str, Word] = {}
    for word in words:
        match = _KEY.fullmatch(word.text)
        if match is None or (found.rest and match[1] not in known):
            bare.append(word)
            continue
        if match[1] not in known:
            reason = f"{found.name} has no key {quoted(match[1])}{suggestion(match[1], known)}"
            invalid(reason, word.column)
        if match[1] in keys:
            invalid(f"{match[1]}= is given twice", word.column)
        keys[match[1]] = Word(match[2], word.column + match.start(2))
    return bare, keys


def _positional(found: Verb, bare: list[Word], keys: dict[str, Word], line: str, kernel: Any) -> tuple[Any, ...]:
    """The values of the positional parameters; ``keys`` may hold some of them."""
    values: list[Any] = []
    left = iter(bare)
    for parameter in found.positional:
        word = keys.get(parameter.name) or next(left, None)
        if word is not None:
            values.append(parameter.read(word, kernel))
        elif parameter.required:
            invalid(f"{found.name} needs {parameter.name.upper()}: {found.usage}", len(line.rstrip()))
        else:
            values.append(parameter.default)
    if found.rest:
        return (*values, *(found.rest.read(word, kernel) for word in left))
    surplus = next(left, None)
    if surplus is not None:
        invalid(f"{found.name} takes no word {quoted(surplus.text)}: {found.usage}", surplus.column)
    return tuple(values)
