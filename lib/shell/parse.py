"""A line as it is typed, to a command and its arguments. Pure: text in, a command or an error with its position out.

========================================== =========================================================
``query-status``                           a command
``device_add driver=e1000 id=net1``        its arguments; a word is what the schema makes of it
``blockdev-add file.filename='/a b'``      nested by dots; quotes of either kind hold blanks
``x list[0]=1 list[1]=2``                  a list by numbers
``x list=[1, 2] map={'a': None}``          JSON, or Python's literals
``blockdev-add {"driver": "null-co"}``     all arguments as one object
``{"execute": "stop"}``                    a whole message
``transaction( abort ; abort )``           each ``;``, or each line, one action
``/oob yank instances=[]``                 out of band
``/help``, ``# a note``                    the shell's own commands, and what is passed over
========================================== =========================================================

What is open at the end of a line (a quote, a bracket, ``transaction(``) raises :class:`Unfinished`: the same text
with more lines may be whole.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

from msgspec import Struct

from .literal import LineError, Unfinished, check_text, read_string, read_value, skip_blanks

# Characters; QEMU itself takes 64 MiB, but nobody types more than this, nor pastes it.
MAX_LINE: Final = 1 << 20
# As deep as a value may be: names of a dotted path.
MAX_PATH: Final = 64

Path = tuple[str | int, ...]

_NAME: Final = re.compile(r"[^\s=\"'{}\[\]()]+")
_KEY_PART: Final = re.compile(r"[^\s.\[\]=\"'{}]+")
_INDEX: Final = re.compile(r"\[([0-9]{1,6})\]")
_BARE: Final = re.compile(r"[^\s\"'{]+")
TRANSACTION: Final = re.compile(r"transaction\s*\(")
_MESSAGE: Final = frozenset({"execute", "exec-oob", "arguments", "id"})
OOB: Final = re.compile(r"/oob(?=\s|$)")


class Word(str):
    """A value that was typed without quotes: its type is what the schema says, else what it looks like."""

    __slots__ = ()


class Command(Struct, frozen=True):
    """A command for QEMU as it was typed.

    :ivar name: of the command
    :ivar arguments: JSON values, and :class:`Word` where no type was said
    :ivar oob: run out of band
    :ivar places: where in the text each argument stands: its path to the position of its name
    """

    name: str
    arguments: dict[str, Any]
    oob: bool = False
    places: dict[Path, int] = {}


class Own(Struct, frozen=True):
    """A command of the shell itself: what follows the slash, and the rest of the line."""

    name: str
    rest: str


def parse(text: str) -> Command | Own | None:
    """Parse what was typed; None if that is nothing, or a note behind ``#``.

    :raises Unfinished: something that was opened is not closed
    :raises LineError: it means nothing
    """
    check_text(text)
    if len(text) > MAX_LINE:
        raise LineError(f"longer than {MAX_LINE} characters", MAX_LINE)
    start = skip_blanks(text, 0)
    if start >= len(text) or text[start] == "#":
        return None
    if text[start] == "{":
        return _parse_message(text, start)
    oob = OOB.match(text, start)
    if oob is not None:
        start = skip_blanks(text, oob.end())
    elif text[start] == "/":
        name, _, rest = text[start + 1 :].strip().partition(" ")
        return Own(name, rest.strip())
    opened = TRANSACTION.match(text, start)
    if opened is not None:
        return _parse_transaction(text, opened.start(), opened.end(), oob is not None)
    name, position = read_name(text, start)
    arguments = _Arguments({(): start})
    for item in items(text, position):
        arguments.add(item)
    return Command(name, arguments.values, oob is not None, arguments.places)


def read_name(text: str, position: int) -> tuple[str, int]:
    """Read a command's name, and return it with the position behind it."""
    found = _NAME.match(text, position)
    if found is None:
        raise LineError("a command's name is missing", position)
    if text[found.end() : found.end() + 1] != ")":
        _check_blank(text, found.end())
    return found[0], found.end()


# -- key=value -------------------------------------------------------------


class Item(Struct, frozen=True):
    """One ``key=value``, or an object that stands alone (an empty path).

    :ivar path: names and list positions, outermost first
    :ivar value: what was given
    :ivar start: where it begins
    :ivar value_start: where its value begins
    :ivar end: the position behind it
    """

    path: Path
    value: Any
    start: int
    value_start: int
    end: int


def items(text: str, position: int) -> Iterator[Item]:
    """The arguments from `position` to the end of the text.

    :raises LineError: what stands there is none; those before it came already
    """
    while (position := skip_blanks(text, position)) < len(text):
        item = read_item(text, position)
        yield item
        position = item.end


def read_item(text: str, position: int) -> Item:
    """Read one argument that starts at `position`."""
    if text[position] == "{":
        value, end = read_value(text, position)
        _check_blank(text, end)
        return Item((), value, position, position, end)
    path, end = read_path(text, position)
    if end >= len(text) or text[end] != "=":
        raise LineError("an argument is NAME=VALUE, and here is no =", end)
    value, after = _read_argument(text, end + 1)
    return Item(path, value, position, end + 1, after)


def read_path(text: str, position: int) -> tuple[Path, int]:
    """Read ``name.name[0].name``, and return it with the position behind it."""
    path: list[str | int] = []
    while True:
        if text[position : position + 1] in ("'", '"'):
            part, position = read_string(text, position)
            path.append(part)
        else:
            found = _KEY_PART.match(text, position)
            if found is None:
                raise LineError("an argument's name is missing", position)
            path.append(found[0])
            position = found.end()
        while (index := _INDEX.match(text, position)) is not None:
            path.append(int(index[1]))
            position = index.end()
        if len(path) > MAX_PATH:
            raise LineError(f"nested deeper than {MAX_PATH} levels", position)
        if text[position : position + 1] != ".":
            return tuple(path), position
        position += 1


def _read_argument(text: str, position: int) -> tuple[Any, int]:
    if text[position : position + 1] in ("{", "["):
        value, end = read_value(text, position)
        _check_blank(text, end)
        return value, end
    parts, quoted = [], False
    while position < len(text) and not text[position].isspace():
        if text[position] in "\"'":
            part, position = read_string(text, position)
            quoted = True
        elif text[position] == "{":  # json:{"driver": …} is a file's name for QEMU
            start = position
            _, position = read_value(text, start)
            part = text[start:position]
        else:
            found = _BARE.match(text, position)
            assert found is not None
            part, position = found[0], found.end()
        parts.append(part)
    whole = "".join(parts)
    return (whole if quoted else Word(whole)), position


def _check_blank(text: str, position: int) -> None:
    if position < len(text) and not text[position].isspace():
        raise LineError("a blank is missing", position)


class _Arguments:
    """Arguments as they come together: what one adds, no other takes away."""

    def __init__(self, places: dict[Path, int]) -> None:
        self.values: dict[str, Any] = {}
        self.places = places

    def add(self, item: Item, base: Path = ()) -> None:
        """Put `item` where its path says."""
        if not item.path:
            for name, value in item.value.items():
                self._put((name,), value, item.start, base)
        else:
            self._put(item.path, item.value, item.start, base)

    def _put(self, path: Path, value: Any, start: int, base: Path) -> None:
        target: Any = self.values
        for depth, (step, following) in enumerate(pairwise(path), 1):
            target = _enter(target, step, [] if isinstance(following, int) else {}, path[:depth], start)
            self.places.setdefault(base + path[:depth], start)
        _set(target, path[-1], value, path, start)
        self.places[base + path] = start


def _enter(target: Any, step: str | int, empty: Any, path: Path, start: int) -> Any:
    if isinstance(step, int):
        if step == len(target):
            target.append(empty)
        elif step > len(target):
            raise LineError(f"{show(path[:-1])}[{len(target)}] is missing before {show(path)}", start)
        inner = target[step]
    else:
        inner = target.setdefault(step, empty)
    if type(inner) is not type(empty):
        raise LineError(f"{show(path)} is given as two different things", start)
    return inner


def _set(target: Any, step: str | int, value: Any, path: Path, start: int) -> None:
    if isinstance(step, int):
        if step > len(target):
            raise LineError(f"{show(path[:-1])}[{len(target)}] is missing before {show(path)}", start)
        if step == len(target):
            target.append(value)
            return
    elif step not in target:
        target[step] = value
        return
    raise LineError(f"{show(path)} is given twice", start)


def show(path: Path) -> str:
    """A path as it is typed."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


# -- transaction( … ) and whole messages -------------------------------------


def _parse_transaction(text: str, start: int, position: int, oob: bool) -> Command:
    actions: list[dict[str, Any]] = []
    places: dict[Path, int] = {(): start, ("actions",): start}
    while True:
        position = skip_blanks(text, position)
        if position >= len(text):
            raise Unfinished("transaction( is not closed by a )", start)
        if text[position] == ";":
            position += 1
        elif text[position] == ")":
            break
        else:
            base: Path = ("actions", len(actions))
            places |= {base: position, (*base, "type"): position, (*base, "data"): position}
            name, position = read_name(text, position)
            data = _Arguments(places)
            for item in _action_items(text, position):
                data.add(item, (*base, "data"))
                position = item.end
            actions.append({"type": name, "data": data.values})
    _check_blank(text, position + 1)
    arguments = _Arguments(places)
    arguments.values["actions"] = actions
    for item in items(text, position + 1):
        arguments.add(item)
    return Command("transaction", arguments.values, oob, places)


def _action_items(text: str, position: int) -> Iterator[Item]:
    """The arguments up to the end of the line, a ``;`` or the closing bracket."""
    while True:
        following = skip_blanks(text, position)
        if following >= len(text) or text[following] in ";)" or "\n" in text[position:following]:
            return
        item = read_item(text, following)
        yield item
        position = item.end


def _parse_message(text: str, start: int) -> Command:
    message, end = read_value(text, start)
    rest = skip_blanks(text, end)
    if rest < len(text):
        raise LineError("something stands behind the message", rest)
    unknown = sorted(message.keys() - _MESSAGE)
    if unknown:
        raise LineError(f"a message has no member {unknown[0]!r}", start)
    names = [message[word] for word in ("execute", "exec-oob") if word in message]
    if len(names) != 1 or not isinstance(names[0], str):
        raise LineError("a message names one command, in 'execute' or 'exec-oob'", start)
    arguments = message.get("arguments", {})
    if not isinstance(arguments, dict):
        raise LineError("'arguments' is an object", start)
    return Command(names[0], arguments, "exec-oob" in message, {(): start})
