"""Values as people write them: JSON, Python's literals, or a mixture of both; errors carry their position.

Pure, and bounded: what it returns is no larger than what it was given, and it recurses no deeper than `MAX_DEPTH`.
"""

import math
import re
from typing import Any, Final

from drover.errors import DroverError

# QEMU's own parser goes to 1024; nothing in its schema is a tenth as deep as this.
MAX_DEPTH: Final = 64
# What QEMU's JSON numbers hold as integers: int64 and uint64.
MIN_INT: Final = -(1 << 63)
MAX_INT: Final = (1 << 64) - 1

CONSTANTS: Final = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}

_BLANKS: Final = re.compile(r"\s*")
_ATOM: Final = re.compile(r"[^\s,:\[\]{}\"']+")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_HEX: Final = re.compile(r"[+-]?0[xX][0-9a-fA-F]{1,16}")
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,4})?")
_UNTIL: Final = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_HEX_DIGITS: Final = re.compile(r"[0-9a-fA-F]+")
_ESCAPES: Final = {
    '"': '"', "'": "'", "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "0": "\0",
}  # fmt: skip
_WIDTHS: Final = {"x": 2, "u": 4, "U": 8}


class LineError(DroverError):
    """What was typed means nothing, or is not what QEMU takes; nothing was sent.

    :ivar problem: what is wrong
    :ivar position: where in the text it is
    """

    def __init__(self, problem: str, position: int) -> None:
        super().__init__(problem)
        self.problem = problem
        self.position = position


class Unfinished(LineError):
    """Something that was opened is not closed: more lines may make it whole."""


def check_text(text: str) -> None:
    """Pass if `text` can be sent.

    :raises LineError: it holds half a character, as a terminal's bytes do that are not UTF-8
    """
    found = _SURROGATE.search(text)
    if found is not None:
        raise LineError("this is no UTF-8 text", found.start())


def skip_blanks(text: str, position: int) -> int:
    """The position of the next character that is not blank; the text's length if there is none."""
    found = _BLANKS.match(text, position)
    assert found is not None
    return found.end()


def read_value(text: str, position: int, depth: int = 0) -> tuple[Any, int]:
    """Read a value that starts at `position`.

    :returns: the value, and the position behind it
    :raises Unfinished: the text ends inside of it
    :raises LineError: it is neither JSON nor a literal of Python
    """
    if position >= len(text):
        raise Unfinished("a value is missing", position)
    first = text[position]
    if first in "{[":
        if depth >= MAX_DEPTH:
            raise LineError(f"nested deeper than {MAX_DEPTH} levels", position)
        return (_read_object if first == "{" else _read_list)(text, position, depth + 1)
    if first in "\"'":
        return read_string(text, position)
    return _read_atom(text, position)


def read_string(text: str, position: int) -> tuple[str, int]:
    """Read a string in quotes of either kind, with the escapes of JSON and Python.

    :returns: the string, and the position behind its closing quote
    :raises Unfinished: there is no closing quote
    :raises LineError: an escape is none
    """
    quote, start, parts = text[position], position + 1, []
    while True:
        found = _UNTIL[quote].match(text, start)
        assert found is not None
        parts.append(found[0])
        end = found.end()
        if end >= len(text):
            raise Unfinished(f"the quote {quote} is not closed", position)
        if text[end] == quote:
            return _whole("".join(parts), position), end + 1
        character, start = _read_escape(text, end, position)
        parts.append(character)


def _whole(string: str, position: int) -> str:
    """`string`, whose pairs of surrogates, as JSON writes what is beyond \\uffff, are one character each."""
    if _SURROGATE.search(string) is None:
        return string
    try:
        return string.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise LineError("\\u… stands for half a character", position) from None


def _read_escape(text: str, slash: int, opened: int) -> tuple[str, int]:
    kind = text[slash + 1 : slash + 2]
    if not kind:
        raise Unfinished("the quote is not closed", opened)
    if kind in _ESCAPES:
        return _ESCAPES[kind], slash + 2
    if kind == "\n":  # the line goes on
        return "", slash + 2
    width = _WIDTHS.get(kind)
    if width is None:
        raise LineError(f"\\{kind} is no escape; a backslash itself is \\\\", slash)
    digits = text[slash + 2 : slash + 2 + width]
    if len(digits) < width or _HEX_DIGITS.fullmatch(digits) is None or int(digits, 16) > 0x10FFFF:
        raise LineError(f"\\{kind} needs {width} hexadecimal digits behind it", slash)
    return chr(int(digits, 16)), slash + 2 + width


def _read_atom(text: str, position: int) -> tuple[Any, int]:
    found = _ATOM.match(text, position)
    if found is None:
        raise LineError(f"a value is missing before {text[position]!r}", position)
    word = found[0]
    if word in CONSTANTS:
        return CONSTANTS[word], found.end()
    number = read_number(word)
    if number is None:
        raise LineError(f"{_short(word)} is no value; text needs quotes here", position)
    return number, found.end()


def read_integer(word: str) -> int | None:
    """`word` as a decimal integer of 64 bits; None if it is none."""
    if _INTEGER.fullmatch(word) is None:
        return None
    value = int(word)
    return value if MIN_INT <= value <= MAX_INT else None


def read_number(word: str) -> int | float | None:
    """`word` as a number, as JSON or Python write it; None if it is none, or none that can be sent."""
    integer = read_integer(word)
    if integer is not None:
        return integer
    if _HEX.fullmatch(word) is not None:
        value = int(word, 16)
        return value if MIN_INT <= value <= MAX_INT else None
    if _NUMBER.fullmatch(word) is None or not any(mark in word for mark in ".eE"):
        return None
    number = float(word)
    return number if math.isfinite(number) else None


def _read_list(text: str, opened: int, depth: int) -> tuple[list[Any], int]:
    values: list[Any] = []
    position = skip_blanks(text, opened + 1)
    while True:
        if position >= len(text):
            raise Unfinished("the [ is not closed", opened)
        if text[position] == "]":
            return values, position + 1
        value, position = read_value(text, position, depth)
        values.append(value)
        position = _next_item(text, position, "]", opened)


def _read_object(text: str, opened: int, depth: int) -> tuple[dict[str, Any], int]:
    values: dict[str, Any] = {}
    position = skip_blanks(text, opened + 1)
    while True:
        if position >= len(text):
            raise Unfinished("the { is not closed", opened)
        if text[position] == "}":
            return values, position + 1
        if text[position] not in "\"'":
            raise LineError("a name in quotes is missing", position)
        start = position
        name, position = read_string(text, position)
        if name in values:
            raise LineError(f"{_short(name)} is given twice", start)
        position = skip_blanks(text, position)
        if position >= len(text):
            raise Unfinished("the { is not closed", opened)
        if text[position] != ":":
            raise LineError("a : is missing", position)
        values[name], position = read_value(text, skip_blanks(text, position + 1), depth)
        position = _next_item(text, position, "}", opened)


def _next_item(text: str, position: int, closing: str, opened: int) -> int:
    """The position of what comes behind an item: the next one's, or that of the closing bracket."""
    position = skip_blanks(text, position)
    if position >= len(text):
        raise Unfinished(f"the {text[opened]} is not closed", opened)
    if text[position] == ",":
        return skip_blanks(text, position + 1)
    if text[position] != closing:
        raise LineError(f"a , or {closing} is missing", position)
    return position


def _short(word: str) -> str:
    """`word` as a message quotes it."""
    return repr(word if len(word) <= 40 else word[:39] + "…")


def quote(value: str) -> str:
    """`value` in double quotes, as :func:`read_string` reads it back."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
