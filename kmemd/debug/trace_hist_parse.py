"""The text of a hist trigger: what it is made of, and the fields and expressions in it (trace_events_hist.c).

Errors go to the array's ``error_log`` in the kernel's words; the caret stands where the words at fault first occur.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from kmemd.debug import trace_hist_fields as fields
from kmemd.debug.trace_array import EventFile
from kmemd.debug.trace_filter import Sample
from kmemd.debug.trace_hist_fields import HistField
from kmemd.errors import KernelError

DEFAULT_BITS = 11
MIN_BITS, MAX_BITS = 7, 17
MAX_KEYS = 3
MAX_VALUES = 2
"""Besides the hit count."""
MAX_VARS = 16
MAX_ACTIONS = 8
MAX_SUBEXPRESSIONS = 3
ACTIONS = ("onmatch(", "onmax(", "onchange(")
PREFIXES = (
    ("key=", "keys"),
    ("keys=", "keys"),
    ("val=", "vals"),
    ("vals=", "vals"),
    ("values=", "vals"),
    ("sort=", "sort"),
)
MODIFIERS = {name: name for name in ("hex", "sym", "execname", "syscall", "log2", "usecs")} | {
    "symXoffset": "sym-offset"
}
"""``.sym-offset`` is written with an X while expressions are taken apart at their minus."""
NOT_OF_VARIABLES = frozenset({"graph", "percent", "buckets", "log2"})
NOT_OF_VALUES = frozenset({"buckets", "log2", "sym", "sym-offset", "syscall"})


class HistError(KernelError):
    """A refused hist trigger; what was wrong is in the error log."""

    def __init__(self, message: str, number: int = errno.EINVAL) -> None:
        super().__init__(number, message)
        self.message = message


@dataclass
class HistAttributes:
    """The parts of a command (``struct hist_trigger_attrs``)."""

    keys: str = ""
    vals: str = ""
    sort: str = ""
    name: str = ""
    clock: str = "global"
    bits: int = DEFAULT_BITS
    command: str = ""
    assignments: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)


class Complaints:
    """Notes errors with the place of what was wrong in ``text``, the whole command."""

    def __init__(self, text: str, log: Callable[[str, int], None]) -> None:
        self._text = text
        self._log = log

    def note(self, message: str, at: str | None = None) -> None:
        """Write to the error log; ``at`` is looked for in the command (``errpos``)."""
        self._log(message, max(self._text.find(at), 0) if at else 0)

    def error(self, message: str, at: str | None = None, number: int = errno.EINVAL) -> HistError:
        """Write to the error log; what to raise."""
        self.note(message, at)
        return HistError(message, number)


def parse_attributes(text: str, wrong: Complaints) -> HistAttributes:
    """``parse_hist_trigger_attrs``. HistError."""
    made = HistAttributes()
    for part in text.split(":"):
        name, equals, value = part.partition("=")
        if equals and not value:
            raise wrong.error("Empty assignment", part)
        if equals:
            _assign(made, part, name, value, wrong)
        elif part in ("pause", "clear"):
            made.command = part
        elif part in ("cont", "continue"):
            made.command = "cont"
        elif part.startswith(ACTIONS) and len(made.actions) < MAX_ACTIONS:
            made.actions.append(part)
        else:
            raise HistError(f"neither an assignment nor an action: {part}")
    if not made.keys:
        raise HistError("a histogram has keys")
    return made


def _assign(made: HistAttributes, part: str, name: str, value: str, wrong: Complaints) -> None:
    for prefix, attribute in PREFIXES:
        if part.startswith(prefix):
            setattr(made, attribute, part[len(prefix) :])
            return
    if name == "name":
        made.name = part
    elif name == "clock":
        made.clock = value.strip()
    elif name == "size":
        made.bits = _bits(value)
    elif part.startswith(ACTIONS) and "=" in part.partition("(")[0]:
        raise HistError(f"not an action: {part}")
    elif len(made.assignments) == MAX_VARS:
        raise wrong.error("Too many variables defined", part)
    else:
        made.assignments.append(part)


def _bits(text: str) -> int:
    try:
        size = int(text, 0)
    except ValueError:
        raise HistError(f"not a size: {text}") from None
    bits = max(size - 1, 0).bit_length()
    if not MIN_BITS <= bits <= MAX_BITS:
        raise HistError(f"a table has {1 << MIN_BITS} to {1 << MAX_BITS} entries")
    return bits


def variables_of(assignments: list[str], wrong: Complaints) -> list[tuple[str, str]]:
    """Names of variables and what they are to hold (``parse_var_defs``). HistError."""
    found: list[tuple[str, str]] = []
    for assignment in assignments:
        for part in assignment.split(","):
            name, equals, value = part.partition("=")
            if not equals:
                raise wrong.error("Malformed assignment", name)
            if len(found) == MAX_VARS:
                raise wrong.error("Too many variables defined", name)
            found.append((name, value))
    return found


def root_operator(text: str) -> int:
    """Where the operator stands at which an expression is taken apart, -1 without one (``contains_operator``)."""
    minus, plus = text.rfind("-"), text.rfind("+")
    if minus == 0:
        return 0
    if minus > 0 or plus >= 0:
        return max(minus, plus)
    return max(text.rfind("/"), text.rfind("*"))


class FieldParser:
    """Parses the fields of one histogram of ``file``.

    ``variables`` are those that the command defines; ``find(system, event, name)`` looks for others and gives the
    reference to it, which is in ``references`` then.
    """

    def __init__(
        self,
        file: EventFile,
        variables: list[tuple[str, str]],
        wrong: Complaints,
        find: Callable[[str | None, str | None, str], HistField | None],
        references: list[HistField],
    ) -> None:
        self._file = file
        self._references = references
        self._variables = variables
        self._wrong = wrong
        self._find = find
        self._depth = 0
        self.timestamps = False
        self.usecs = False

    def expression(self, text: str, *, role: str, var: str = "") -> HistField:
        """``parse_expr`` of a "key", a "value" or a "variable". HistError."""
        self._depth = 0
        return self._named(self._expression(text, role, var), var)

    @staticmethod
    def _named(made: HistField, var: str) -> HistField:
        made.var = var
        return made

    def _expression(self, text: str, role: str, var: str = "") -> HistField:
        if self._depth > MAX_SUBEXPRESSIONS:
            raise self._wrong.error("Too many subexpressions (3 max)", text)
        at = root_operator(text)
        if at < 0:
            return self.atom(text, role=role, var=var)
        self._depth += 1
        if at == 0 and text[0] == "-":
            return self._negated(text)
        left_text, right_text = text[:at], text[at + 1 :]
        if not left_text or not right_text:
            raise HistError(f"an operand is missing: {text}")
        left = self._operand(left_text)
        right = self._operand(right_text)
        return self._calculated(text[at], left, right, right_text)

    def _operand(self, text: str) -> HistField:
        made = self._expression(text, "operand")
        if made.text:
            raise self._wrong.error("String type can not be an operand in expression", text)
        return made

    def _negated(self, text: str) -> HistField:
        if self._depth > MAX_SUBEXPRESSIONS:
            raise self._wrong.error("Too many subexpressions (3 max)", text)
        inner = text[1:]
        if "(" not in inner or ")" not in inner:
            raise HistError(f"a minus sign needs parentheses: {text}")
        inner = inner[1:]
        if not inner.endswith(")"):
            raise self._wrong.error("Unary minus not supported in sub-expressions", inner)
        return fields.negated(self._operand(inner[:-1]))

    def _calculated(self, operator: str, left: HistField, right: HistField, right_text: str) -> HistField:
        sources = [self._variable_behind(operand) for operand in (left, right)]
        if sources[0].usecs != sources[1].usecs:
            raise self._wrong.error("Timestamp units in expression don't match")
        constants = [source.constant if source.kind == fields.CONST else None for source in sources]
        if operator == "/" and constants[1] == 0:
            raise self._wrong.error("Division by zero", right_text, errno.EDOM)
        left.once = right.once = True
        made = fields.calculated(operator, left, right, constants[1])
        if constants[0] is not None and constants[1] is not None:
            both = fields.constant(constants[0]), fields.constant(constants[1])
            return fields.constant(fields.calculated(operator, *both, constants[1]).get(NO_HIT))
        return made

    @staticmethod
    def _variable_behind(operand: HistField) -> HistField:
        if operand.kind not in (fields.REF, fields.ALIAS):
            return operand
        assert operand.owner is not None
        found = operand.owner.variable(operand.name)
        if found is None:
            raise HistError(f"there is no variable {operand.name}")
        return found

    # -- what stands alone -------------------------------------------------------------------------------

    def atom(self, text: str, *, role: str, var: str = "") -> HistField:
        """``parse_atom``: a number, a variable or a field. HistError."""
        if text[:1].isdigit():
            return self._constant(text)
        system: str | None = None
        event: str | None = None
        if text.count(".") >= 2:
            system, event, text = text.split(".", 2)
        local = self._local(system, event, text)
        if local is None:
            found = self._reference(system, event, text)
            if found is not None:
                return fields.alias(found, var) if var else found
        return self._field(text if local is None else local, role)

    def _constant(self, text: str) -> HistField:
        digits = r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9]\d*"
        if not re.fullmatch(digits, text) or (value := _number(text)) > fields.WORD:
            raise self._wrong.error("Expecting numeric literal", text)
        return fields.constant(value)

    def _local(self, system: str | None, event: str | None, text: str) -> str | None:
        """The field that a variable of this same command stands for (``local_field_var_ref``)."""
        if system is not None and (system, event) != (self._file.event.system, self._file.event.name):
            return None
        if len(text) < 2 or text[0] != "$":
            return None
        for name, value in self._variables:
            if name == text[1:] and root_operator(value) < 0 and not (len(value) >= 2 and value[0] == "$"):
                return value
        return None

    def _reference(self, system: str | None, event: str | None, text: str) -> HistField | None:
        if len(text) < 2 or text[0] != "$":
            return None
        found = self._find(system, event, text[1:])
        if found is None:
            self._wrong.note("Couldn't find variable", text[1:])
        return found

    def _field(self, text: str, role: str) -> HistField:
        """``parse_field``: a field of the event with its modifier. HistError."""
        name, dot, modifier = text.partition(".")
        shown, buckets = self._modifier(name, modifier, role) if dot else ("", 0)
        if name == "common_timestamp":
            self.timestamps = True
            self.usecs = self.usecs or shown == "usecs"
            return fields.timestamp(shown, buckets)
        declared = self._file.layout.fields.get(name)
        if declared is None and name in ("common_cpu", "cpu", "CPU"):
            return fields.cpu(shown, buckets)
        if declared is None or not declared.size:
            raise self._wrong.error("Couldn't find field", name)
        return fields.event_field(declared, shown, buckets)

    def _modifier(self, name: str, modifier: str, role: str) -> tuple[str, int]:
        if modifier in MODIFIERS and (modifier != "execname" or name == "common_pid"):
            return MODIFIERS[modifier], 0
        if modifier.startswith("bucket"):
            rest = modifier[6:].removeprefix("s")
            if rest.startswith("=") and (size := _size(rest[1:])):
                return "buckets", size
            raise self._wrong.error("Invalid field modifier", rest.removeprefix("="))
        for word in ("percent", "graph"):
            if modifier.startswith(word) and role not in ("key", "variable"):
                return word, 0
        raise self._wrong.error("Invalid field modifier", modifier)

    # -- keys, values, variables -------------------------------------------------------------------------

    def key(self, text: str, frames: Callable[[Sample], tuple[int, ...]]) -> HistField:
        """``create_key_field``. HistError."""
        if text == "stacktrace":
            return fields.stacktrace(frames)
        before = len(self._references)
        made = self.expression(text, role="key")
        if len(self._references) > before or made.kind == fields.REF:
            raise self._wrong.error("Using variable references in keys not supported", text)
        return made

    def value(self, text: str) -> HistField:
        """``create_val_field``. HistError."""
        made = self.expression(text, role="value")
        if made.modifier in NOT_OF_VALUES:
            raise self._wrong.error("Invalid field modifier", text)
        if made.text:
            raise self._wrong.error("String type can not be an operand in expression", text)
        return made

    def variable(self, name: str, text: str) -> HistField:
        """``create_var_field``. HistError."""
        made = self.expression(text, role="variable", var=name)
        if made.modifier in NOT_OF_VARIABLES:
            raise self._wrong.error("Invalid field modifier", text)
        if made.modifier == "execname":
            made.text, made.type, made.size, made.signed = True, "char[]", fields.STRING_SIZE, False
            made.get = lambda hit: hit.comm
        return made


NO_HIT = fields.Hit(Sample(b"", 0, 0, "", 0), 0)
"""Constants need no event."""


def _number(text: str) -> int:
    octal = len(text) > 1 and text[0] == "0" and text[1] not in "xX"
    return int(text, 8 if octal else 0)


def _size(text: str) -> int:
    return _number(text) if re.fullmatch(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9]\d*", text) else 0
