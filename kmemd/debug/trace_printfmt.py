"""The ``print fmt`` of a format file as a function: a record in, its text out (``trace_raw_output_*``).

The text is C: a format string and expressions over the record. They are parsed once, into the source of one Python
function. Whoever reads format files does the same (libtraceevent), so that this also reads captured ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kmemd.debug.trace_format import Layout

WORD = 0xFFFFFFFFFFFFFFFF
_TOKEN = re.compile(
    r'\s*(?:(?P<string>"(?:[^"\\]|\\.|\n)*")|(?P<number>0[xX][0-9a-fA-F]+[uUlL]*|\d+[uUlL]*)|(?P<name>[A-Za-z_]\w*)'
    r"|(?P<operator>->|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^~!<>?:(){},]))"
)
_CONVERSION = re.compile(r"%(?P<flags>[-+ 0#]*)(?P<width>\d*)(?P<size>hh|h|ll|l|z|j|)(?P<kind>p[Ss]?|[diuxXoscp%])")
_PRECEDENCE = {
    "||": 1, "&&": 2, "|": 3, "^": 4, "&": 5, "==": 6, "!=": 6, "<": 7, ">": 7, "<=": 7, ">=": 7,
    "<<": 8, ">>": 8, "+": 9, "-": 9, "*": 10, "/": 10, "%": 10,
}  # fmt: skip
_PYTHON = {"||": "or", "&&": "and", "/": "//"}
_CASTS = {"unsigned long": WORD, "unsigned int": 0xFFFFFFFF, "gfp_t": None, "void *": None, "int": None, "long": None}
_TYPE_WORDS = {"unsigned", "signed", "long", "int", "short", "char", "void", "struct", "gfp_t", "const", "enum", "bool"}


@dataclass
class Machine:
    """What the texts need of the machine: names of addresses, pointers as ``%p``, constants, sizes of structures."""

    symbol: Callable[[int], str] = hex
    function: Callable[[int], str] = hex
    pointer: Callable[[int], str] = hex
    constants: dict[str, int] = field(default_factory=dict)
    jiffies: Callable[[], int] = lambda: 0
    sizes: dict[str, int] = field(default_factory=lambda: {"page": 64})


class Value(NamedTuple):
    """Python source of a C expression; ``pointee`` is the size of what a pointer points to, ``signed`` if known."""

    source: str
    pointee: int = 0
    signed: bool | None = None


class Parser:
    """One print fmt: recursive descent over its tokens."""

    def __init__(self, layout: Layout, machine: Machine) -> None:
        self._layout = layout
        self._machine = machine
        self._tokens = [(match.lastgroup, match[match.lastgroup or 0]) for match in _TOKEN.finditer(_text_of(layout))]
        self._at = 0
        self.tables: dict[str, Any] = {}

    def arguments(self) -> tuple[str, list[Value]]:
        """The format string and its arguments."""
        form = ""
        while self._kind() == "string":
            form += _unquote(self._take())
        values = []
        while self._at < len(self._tokens):
            self._expect(",")
            values.append(self._conditional())
        return form, values

    def _kind(self, ahead: int = 0) -> str | None:
        at = self._at + ahead
        return self._tokens[at][0] if at < len(self._tokens) else None

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at][1] if at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _expect(self, wanted: str) -> None:
        found = self._take()
        if found != wanted:
            raise ValueError(f"{self._layout.event.name}: {found!r} where {wanted!r} must stand")

    def _conditional(self) -> Value:
        condition = self._binary(1)
        if self._peek() != "?":
            return condition
        self._take()
        then = self._conditional()
        self._expect(":")
        other = self._conditional()
        pointee = then.pointee or other.pointee
        return Value(f"({then.source} if {condition.source} else {other.source})", pointee, then.signed)

    def _binary(self, lowest: int) -> Value:
        left = self._unary()
        while self._kind() == "operator" and _PRECEDENCE.get(self._peek(), 0) >= lowest:
            operator = self._take()
            right = self._binary(_PRECEDENCE[operator] + 1)
            if operator == "+" and left.pointee:
                right = Value(f"({right.source}) * {left.pointee}")
            source = f"({left.source} {_PYTHON.get(operator, operator)} {right.source})"
            left = Value(source, left.pointee, None)
        return left

    def _unary(self) -> Value:
        token = self._peek()
        if token in ("-", "~", "!"):
            self._take()
            unsigned = self._kind() == "number" and "u" in self._peek().lower()
            value = self._unary()
            if token == "!":
                return Value(f"(not {value.source})")
            source = f"({token}{value.source})"
            return Value(f"({source} & {WORD})" if unsigned else source)
        if token == "(" and self._is_type(1):
            return self._cast()
        return self._primary()

    def _is_type(self, ahead: int) -> bool:
        return self._kind(ahead) == "name" and self._peek(ahead) in _TYPE_WORDS

    def _cast(self) -> Value:
        self._expect("(")
        words = []
        while self._peek() != ")":
            words.append(self._take())
        self._expect(")")
        value = self._unary()
        if words[0] == "struct" and words[-1] == "*":
            return Value(value.source, self._machine.sizes.get(words[1], 1))
        mask = _CASTS.get(" ".join(words))
        return Value(f"({value.source} & {mask})" if mask is not None else value.source, 0, False)

    def _primary(self) -> Value:
        kind, token = self._kind(), self._take()
        if token == "(":
            value = self._conditional()
            self._expect(")")
            return value
        if kind == "number":
            return Value(str(int(token.rstrip("uUlL"), 0)))
        if kind == "string":
            return Value(repr(_unquote(token)))
        if token == "REC":
            self._expect("->")
            return self._field(self._take())
        if token in ("__print_flags", "__print_symbolic"):
            return self._print_table(token)
        if token == "__get_str":
            return self._get_str()
        if token == "__builtin_expect":
            return self._expected()
        if token == "jiffies":
            return Value("jiffies()")
        if token in self._machine.constants:
            return Value(str(self._machine.constants[token]))
        raise ValueError(f"{self._layout.event.name}: {token!r} is not known")

    def _field(self, name: str) -> Value:
        found = self._layout.fields[name]
        if found.is_text:
            return Value(f"text(record, {name!r})")
        return Value(f"f_{name}", 0, found.signed)

    def _get_str(self) -> Value:
        self._expect("(")
        name = self._take()
        self._expect(")")
        return Value(f"text(record, {name!r})")

    def _expected(self) -> Value:
        self._expect("(")
        value = self._conditional()
        self._expect(",")
        self._conditional()
        self._expect(")")
        return value

    def _print_table(self, token: str) -> Value:
        """``__print_flags(v, "|", {..})`` or ``__print_symbolic(v, {..})``: a function with a table of its own."""
        self._expect("(")
        value = self._conditional()
        self._expect(",")
        separator = ""
        if token == "__print_flags":
            separator = _unquote(self._take())
            self._expect(",")
        table = []
        while self._peek() == "{":
            self._take()
            number = eval(self._conditional().source, {})
            self._expect(",")
            table.append((number & WORD, _unquote(self._take())))
            self._expect("}")
            if self._peek() == ",":
                self._take()
        self._expect(")")
        name = f"table{len(self.tables)}"
        self.tables[name] = Flags(table, separator) if token == "__print_flags" else Symbols(table)
        return Value(f"{name}[{value.source}]")


def _text_of(layout: Layout) -> str:
    return layout.event.print_fmt


def _unquote(token: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), token[1:-1])


class Flags(dict[int, str]):
    """``trace_print_flags_seq``: names of the bits that are set, the rest in hexadecimal. Kept by value."""

    def __init__(self, table: list[tuple[int, str]], separator: str) -> None:
        super().__init__()
        self._table = table
        self._separator = separator

    def __missing__(self, flags: int) -> str:
        names, left = [], flags
        for mask, name in self._table:
            if left & mask == mask and left:
                names.append(name)
                left &= ~mask
        if left:
            names.append(f"{left & WORD:#x}")
        self[flags] = text = self._separator.join(names)
        return text


class Symbols(dict[int, str]):
    """``trace_print_symbols_seq``: the name of a value, or the value in hexadecimal."""

    def __init__(self, table: list[tuple[int, str]]) -> None:
        super().__init__(reversed(table))

    def __missing__(self, value: int) -> str:
        return f"{value & WORD:#x}"


def _convert(found: re.Match[str], value: Value) -> tuple[str, str]:
    """Python's conversion and argument for one of C's."""
    kind, flags = found["kind"], found["flags"] + found["width"]
    source = value.source
    if kind in ("pS", "ps", "p"):
        name = {"pS": "symbol", "ps": "function", "p": "pointer"}[kind]
        return f"%{flags}s", f"{name}({source})"
    if kind in ("s", "c"):
        return f"%{flags}{kind}", source
    bits = 64 if found["size"] in ("l", "ll", "z", "j") else 16 if found["size"] == "h" else 32
    if kind in "di":
        if value.signed is not True:
            source = f"signed{bits}({source})"
        return f"%{flags}d", source
    if value.signed is not False:
        source = f"({source}) & {(1 << bits) - 1}"
    return f"%{flags}{'d' if kind == 'u' else kind}", source


def _signed(bits: int) -> Callable[[int], int]:
    half, whole = 1 << (bits - 1), 1 << bits
    return lambda value: ((int(value) + half) % whole) - half


SIGNED = {f"signed{bits}": _signed(bits) for bits in (16, 32, 64)}


def compile_print_fmt(layout: Layout, machine: Machine) -> Callable[[bytes], str]:
    """The function that makes a record's text. ValueError for a text that is not understood."""
    parser = Parser(layout, machine)
    form, values = parser.arguments()
    arguments: list[str] = []
    remaining = iter(values)

    def convert(found: re.Match[str]) -> str:
        if found["kind"] == "%":
            return "%%"
        conversion, argument = _convert(found, next(remaining))
        arguments.append(argument)
        return conversion

    python = _CONVERSION.sub(convert, form)
    names = [f"f_{name}" for name, field in layout.fields.items() if field.kind != "rest"]
    source = (
        "def text_of(record):\n"
        f"    {', '.join(names)}, = unpack(record, 0)\n"
        f"    return {python!r} % ({''.join(argument + ', ' for argument in arguments)})\n"
    )
    scope: dict[str, Any] = {
        "unpack": layout.unpacker().unpack_from,
        "text": lambda record, name: layout.fields[name].text(record),
        "symbol": machine.symbol,
        "function": machine.function,
        "pointer": machine.pointer,
        "jiffies": machine.jiffies,
        **SIGNED,
        **parser.tables,
    }
    exec(source, scope)
    made: Callable[[bytes], str] = scope["text_of"]
    return made
