"""Filters on trace events: ``order > 2 && comm ~ "hog*"`` (kernel/trace/trace_events_filter.c).

``&&`` binds tighter than ``||``, ``!`` before a parenthesis or a term negates. A number is compared with the operators
``== != < <= > >= &``, a text in quotes with ``== != ~``. Messages and the place where they point are the kernel's.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import translate

from kmemd.debug.trace_format import Field, Layout
from kmemd.errors import KernelError

OPERATORS = ("~", "!=", "==", "<=", "<", ">=", ">", "&")
MAX_STRING = 256
MAX_NUMBER = 24
UNEXPLAINED = "Error"
"""What the error log says where the kernel's parser gives up without a reason (``FILT_ERR_ERRNO``)."""
COMPARE: dict[str, Callable[[int, int], bool]] = {
    "!=": lambda a, b: a != b,
    "==": lambda a, b: a == b,
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    ">": lambda a, b: a > b,
    "&": lambda a, b: bool(a & b),
}


@dataclass(frozen=True)
class Sample:
    """What a filter, a trigger or a histogram looks at: a record and where it was made."""

    record: bytes
    cpu: int
    pid: int
    comm: str
    ns: int
    stack: int = 0


Predicate = Callable[[Sample], bool]


class FilterError(KernelError):
    """A filter that cannot be: ``message`` is the kernel's, ``position`` where it points in the text.

    EINVAL, or what the parser's own codes -1, -2 and -3 mean to user space: EPERM, ENOENT, ESRCH.
    """

    def __init__(self, message: str, position: int, number: int = errno.EINVAL) -> None:
        super().__init__(number, message)
        self.message = message
        self.position = position


@dataclass
class Filter:
    """A filter of an event; one that could not be understood keeps its text and lets everything pass."""

    text: str
    predicate: Predicate | None = None

    def matches(self, sample: Sample) -> bool:
        """Whether a record is kept."""
        return self.predicate is None or self.predicate(sample)


def make_filter(text: str, layout: Layout) -> Filter:
    """The filter that a text stands for. FilterError."""
    return Filter(text, Parser(text, layout).parse())


def glob(pattern: str) -> Callable[[str], bool]:
    """``filter_build_regex``: ``*`` alone, at the ends, or a full glob with ``?`` and classes."""
    compiled = re.compile(translate(pattern.replace("[!", "[^") if "[^" not in pattern else pattern))
    return lambda text: compiled.match(text) is not None


def check_balance(text: str) -> None:
    """Quotes and parentheses have their partners (``calc_stack``). FilterError: ESRCH, EPERM, ENOENT."""
    open_at: list[int] = []
    quote, quote_at = "", 0
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote, quote_at = char, at
        elif char == "(":
            open_at.append(at)
        elif char == ")":
            if not open_at:
                raise FilterError("Too few '('", at, errno.EPERM)
            open_at.pop()
    if quote:
        raise FilterError("Missing matching quote", quote_at, errno.ESRCH)
    if open_at:
        raise FilterError("Too many '('", open_at[-1], errno.ENOENT)


class Parser:
    """One text: recursive descent; ``_at`` is the place of the next character."""

    def __init__(self, text: str, layout: Layout) -> None:
        self._text = text
        self._layout = layout
        self._at = 0
        self._terms = 0

    def parse(self) -> Predicate:
        """The predicate. FilterError."""
        check_balance(self._text)
        if not re.sub(r"&&|\|\||[()\s]", "", self._text):
            raise FilterError(UNEXPLAINED, 0)
        return self._either()

    def _next(self) -> str:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _either(self) -> Predicate:
        terms = [self._both()]
        while self._operator("||"):
            terms.append(self._both())
        return terms[0] if len(terms) == 1 else lambda sample: any(term(sample) for term in terms)

    def _both(self) -> Predicate:
        terms = [self._term()]
        while self._operator("&&"):
            terms.append(self._term())
        return terms[0] if len(terms) == 1 else lambda sample: all(term(sample) for term in terms)

    def _operator(self, wanted: str) -> bool:
        found = self._next()
        if found in ("", ")"):
            return False
        if self._text[self._at : self._at + 2] not in ("&&", "||"):
            raise FilterError("Too many terms in predicate expression", self._at, errno.EPERM)
        if not self._text.startswith(wanted, self._at):
            return False
        self._at += 2
        return True

    def _term(self) -> Predicate:
        found = self._next()
        if not found:
            message = "Meaningless filter expression" if self._terms else "No filter found"
            raise FilterError(message, len(self._text))
        if found == "!" and self._text[self._at + 1 : self._at + 2] not in ("=", "~"):
            self._at += 1
            inner = self._term()
            return lambda sample: not inner(sample)
        if found == "(":
            self._at += 1
            inner = self._either()
            self._next()
            self._at += 1
            return inner
        return self._comparison()

    def _comparison(self) -> Predicate:
        start = self._at
        found = re.compile(r"\w*").match(self._text, start)
        assert found is not None
        name = found[0]
        self._at = found.end()
        if not name:
            raise FilterError(UNEXPLAINED, 0, errno.EPERM)
        operand = self._field(name)
        if operand is None:
            raise FilterError("Field not found", self._at + 1)
        if self._text.startswith(".ustring", self._at):
            self._at += len(".ustring")
        self._next()
        operator = next((op for op in OPERATORS if self._text.startswith(op, self._at)), None)
        if operator is None:
            raise FilterError("Invalid operator", self._at + 1)
        self._at += len(operator)
        self._terms += 1
        first = self._next()
        if first in ("'", '"') and first:
            return self._string(operand, operator, first)
        if first.isdigit() or first == "-":
            return self._number(operand, operator)
        raise FilterError("Invalid value (did you forget quotes)?", self._at + 1)

    def _field(self, name: str) -> Field | str | None:
        found = self._layout.fields.get(name)
        if found is not None:
            return found
        return name.lower() if name in ("CPU", "cpu", "COMM", "comm") else None

    def _string(self, operand: Field | str, operator: str, quote: str) -> Predicate:
        if operator not in ("~", "==", "!="):
            raise FilterError("Illegal operation for field type", self._at + 1)
        if operand == "cpu" or (isinstance(operand, Field) and not operand.is_text):
            raise FilterError("Expecting numeric field", self._at + 1)
        end = self._text.index(quote, self._at + 1)
        wanted = self._text[self._at + 1 : end]
        if len(wanted) >= MAX_STRING:
            raise FilterError("Operand too long", end + 1)
        self._at = end + 1
        get = text_of(operand)
        if operator == "~":
            matches = glob(wanted)
            return lambda sample: matches(get(sample))
        return lambda sample: (get(sample) == wanted) is (operator == "==")

    def _number(self, operand: Field | str, operator: str) -> Predicate:
        if operand == "comm" or (isinstance(operand, Field) and operand.is_text):
            raise FilterError("Expecting string field", self._at + 1)
        if operator == "~":
            raise FilterError("Illegal operation for field type", self._at + 1)
        start = self._at
        found = re.compile(r"-?[0-9A-Za-z]*").match(self._text, start)
        assert found is not None
        self._at = found.end()
        if len(found[0]) >= MAX_NUMBER:
            raise FilterError("Operand too long", self._at + 1)
        signed = isinstance(operand, Field) and operand.signed
        value = _integer(found[0], signed)
        if value is None:
            raise FilterError("Illegal integer value", start + 1)
        compare = COMPARE[operator]
        get = number_of(operand)
        return lambda sample: compare(get(sample), value)


def _integer(text: str, signed: bool) -> int | None:
    try:
        value = int(text, 8 if re.fullmatch(r"-?0\d+", text) else 0)
    except ValueError:
        return None
    low, high = (-(1 << 63), (1 << 63) - 1) if signed else (0, (1 << 64) - 1)
    return value if low <= value <= high else None


def text_of(operand: Field | str) -> Callable[[Sample], str]:
    """What reads a text."""
    if isinstance(operand, Field):
        field = operand
        return lambda sample: field.text(sample.record)
    return lambda sample: sample.comm


def number_of(operand: Field | str) -> Callable[[Sample], int]:
    """What reads a number."""
    if isinstance(operand, Field):
        field = operand
        return lambda sample: field.value(sample.record)
    return lambda sample: sample.cpu


def with_error(text: str, error: FilterError) -> str:
    """A text with what was wrong in it, as the ``filter`` file shows it (``append_filter_err``)."""
    if error.message == UNEXPLAINED:
        return f"{text}\nError: (0)\n"
    place = min(error.position, len(text))
    return f"{text}\n{'^':>{place + 1 if place else 0}}\nparse_error: {error.message}\n"
