"""What a histogram reads of an event: fields, constants, times, variables, and expressions (``struct hist_field``).

Numbers are u64, as the kernel computes with them; a text is a ``str``, a call stack a tuple of addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kmemd.debug.trace_filter import Sample
from kmemd.debug.trace_format import Field

if TYPE_CHECKING:
    from kmemd.debug.trace_hist import Histogram

WORD = 0xFFFFFFFFFFFFFFFF
STRING_SIZE = 256
"""MAX_FILTER_STR_VAL: the longest text of a variable."""
DIV_SHIFT = 20
"""HIST_DIV_SHIFT: below 2 to this power, division by a constant multiplies and shifts."""
FIELD, CONST, TIMESTAMP, CPU, STACKTRACE, EXPR, REF, ALIAS = (
    "field", "const", "timestamp", "cpu", "stacktrace", "expr", "ref", "alias",
)  # fmt: skip


class Hit:
    """An event on its way through a histogram: its time by the array's clock, and the variables that it refers to."""

    __slots__ = ("comm", "refs", "sample", "time")

    def __init__(self, sample: Sample, time: int, references: int = 0) -> None:
        self.sample = sample
        self.time = time
        self.comm = ""
        self.refs: list[Any] = [0] * references


@dataclass(eq=False)
class HistField:
    """A key, a value or a variable. ``name`` as the kernel's ``hist_field_name``; ``var`` is the variable that it sets.

    ``usecs``: a time in microseconds is in it. A reference has ``owner``, whose variable ``name`` it reads, and
    ``place`` among the references; ``qualified`` is "system.event." where it was written so.
    ``once``: reading the variable uses it up.
    """

    kind: str
    name: str
    get: Callable[[Hit], Any]
    modifier: str = ""
    type: str = "u64"
    size: int = 8
    signed: bool = False
    text: bool = False
    usecs: bool = False
    buckets: int = 0
    var: str = ""
    constant: int = 0
    field: Field | None = None
    owner: Histogram | None = None
    qualified: str = ""
    place: int = 0
    once: bool = False

    @property
    def full_name(self) -> str:
        """Its name, with the event whose variable it is where that was given."""
        return self.qualified + self.name

    @property
    def spec(self) -> str:
        """As the trigger file shows it (``hist_field_print``)."""
        start = f"{self.var}=" if self.var else ""
        if self.kind == CONST:
            return f"{start}{self.constant}"
        if self.kind == STACKTRACE:
            return "stacktrace"
        sign = "$" if self.kind in (REF, ALIAS) else ""
        size = f"={self.buckets}" if self.buckets else ""
        modifier = f".{self.modifier}" if self.modifier and self.kind not in (REF, EXPR) else ""
        return f"{start}{sign}{self.full_name}{modifier}{size}"

    @property
    def operand(self) -> str:
        """As it stands in the name of an expression (``expr_field_str``)."""
        if self.kind == CONST:
            return str(self.constant)
        if self.kind == REF:
            return f"${self.full_name}"
        modifier = "usecs" if self.kind == EXPR and self.usecs else self.modifier
        return f"{self.full_name}.{modifier}" if modifier else self.full_name

    @property
    def identity(self) -> tuple[object, ...]:
        """What two fields have in common that the kernel takes for the same (``hist_trigger_match``)."""
        declared = self.field.declaration if self.field is not None else None
        return self.kind, self.modifier, declared, self.size, self.signed, self.var

    def order(self, value: Any) -> Any:
        """A key's value as it is sorted."""
        if self.kind == STACKTRACE:
            return 0
        if self.signed and isinstance(value, int) and value >> 63:
            return value - WORD - 1
        return value


def type_of(declared: Field) -> str:
    """The C type of an event's field."""
    before, _, name = declared.declaration.rpartition(" ")
    length = name.partition("[")
    return before + length[1] + length[2]


def event_field(declared: Field, modifier: str, buckets: int) -> HistField:
    """A field of the event's record."""
    made = HistField(
        FIELD, declared.name, _reader(declared), modifier, type_of(declared), declared.size, field=declared
    )
    made.signed, made.text, made.buckets = declared.signed, declared.is_text, buckets
    if made.text:
        made.signed = False
        made.size = STRING_SIZE if declared.kind == "dynamic" else declared.size
    elif modifier in _SHAPES:
        made.get = _SHAPES[modifier](made.get, buckets)
    return made


def _reader(declared: Field) -> Callable[[Hit], Any]:
    if declared.is_text:
        return lambda hit: declared.text(hit.sample.record)
    place, signed, number = slice(declared.offset, declared.offset + declared.size), declared.signed, int.from_bytes
    return lambda hit: number(hit.sample.record[place], "little", signed=signed) & WORD


def log2(get: Callable[[Hit], int], buckets: int) -> Callable[[Hit], int]:
    """``order_base_2``: the power of two that holds a number."""
    return lambda hit: max(get(hit) - 1, 0).bit_length()


def bucket(get: Callable[[Hit], int], buckets: int) -> Callable[[Hit], int]:
    """The beginning of the group of ``buckets`` numbers that a number is in."""
    return lambda hit: get(hit) // buckets * buckets


_SHAPES = {"log2": log2, "buckets": bucket}


def constant(value: int) -> HistField:
    """A number."""
    return HistField(CONST, "", lambda hit: value, constant=value)


def timestamp(modifier: str, buckets: int) -> HistField:
    """``common_timestamp``."""
    made = HistField(TIMESTAMP, "common_timestamp", lambda hit: hit.time, modifier, usecs=modifier == "usecs")
    made.buckets = buckets
    made.get = _SHAPES[modifier](made.get, buckets) if modifier in _SHAPES else made.get
    return made


def cpu(modifier: str, buckets: int) -> HistField:
    """``common_cpu``."""
    made = HistField(CPU, "common_cpu", lambda hit: hit.sample.cpu, modifier, "unsigned int", 4, buckets=buckets)
    made.get = _SHAPES[modifier](made.get, buckets) if modifier in _SHAPES else made.get
    return made


def stacktrace(frames: Callable[[Sample], tuple[int, ...]]) -> HistField:
    """The call stack."""
    return HistField(STACKTRACE, "", lambda hit: frames(hit.sample), type="", size=128)


def reference(owner: Histogram, variable: HistField, place: int, qualified: str) -> HistField:
    """What a variable holds for the keys of the event at hand (``create_var_ref``)."""
    made = HistField(REF, variable.var, lambda hit: hit.refs[place], "", variable.type, variable.size)
    made.signed, made.text, made.usecs = variable.signed, variable.text, variable.usecs
    made.owner, made.place, made.qualified = owner, place, qualified
    return made


def alias(ref: HistField, var: str) -> HistField:
    """A variable that is another one's value (``create_alias``)."""
    made = HistField(ALIAS, ref.name, ref.get, "usecs" if ref.usecs else "", ref.type, ref.size, ref.signed, ref.text)
    made.usecs, made.var, made.owner, made.place, made.qualified = ref.usecs, var, ref.owner, ref.place, ref.qualified
    return made


# -- expressions -------------------------------------------------------------------------------------------


def negated(operand: HistField) -> HistField:
    """``-(x)``."""
    made = HistField(EXPR, f"-({operand.operand})", lambda hit: -operand.get(hit) & WORD, "", operand.type)
    made.size, made.signed, made.usecs = operand.size, operand.signed, operand.usecs
    return made


def _quotient(left: Callable[[Hit], int], right: Callable[[Hit], int]) -> Callable[[Hit], int]:
    def divide(hit: Hit) -> int:
        divisor = right(hit)
        return left(hit) // divisor if divisor else WORD

    return divide


def by_constant(left: Callable[[Hit], int], divisor: int) -> Callable[[Hit], int]:
    """Division by a constant; below 2^20 by multiplying and shifting, which may be 1 too much, as in the kernel."""
    if divisor & divisor - 1 == 0 or divisor > 1 << DIV_SHIFT:
        return lambda hit: left(hit) // divisor
    factor = (1 << DIV_SHIFT) // divisor

    def divide(hit: Hit) -> int:
        value = left(hit)
        if value < 1 << DIV_SHIFT:
            return value * factor + (1 << DIV_SHIFT) - 1 >> DIV_SHIFT
        return value // divisor

    return divide


def calculated(operator: str, left: HistField, right: HistField, divisor: int | None) -> HistField:
    """``left operator right``; ``divisor`` is what a constant divides by."""
    a, b = left.get, right.get
    if operator == "+":
        get: Callable[[Hit], int] = lambda hit: a(hit) + b(hit) & WORD  # noqa: E731
    elif operator == "-":
        get = lambda hit: a(hit) - b(hit) & WORD  # noqa: E731
    elif operator == "*":
        get = lambda hit: a(hit) * b(hit) & WORD  # noqa: E731
    else:
        get = _quotient(a, b) if divisor is None else by_constant(a, divisor)
    made = HistField(EXPR, left.operand + operator + right.operand, get, "", left.type, left.size, left.signed)
    made.usecs = left.usecs
    return made
