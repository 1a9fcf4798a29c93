"""Keyboard and mouse, as the guest has them (``send-key``, ``input-send-event``)."""

from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct, convert

from ..errors import ArgumentError
from ..qmp.ready import ready
from .image import check_choice
from .port import Port

BUTTONS: Final = ("left", "middle", "right", "side", "extra")
# Milliseconds that a key of a text is down; a guest that polls misses shorter ones.
TYPE_HOLD: Final = 20
# QEMU queues what is to be sent later, 1024 events at most, and drops the rest without a word: we wait for each key.
_KEY_SECONDS: Final = 2 * TYPE_HOLD / 1000
MAX_TEXT: Final = 10_000
# The range of an absolute pointer (INPUT_EVENT_ABS_MAX).
ABS_MAX: Final = 0x7FFF

# Key of a keyboard with the American layout, by what it types; behind it, with Shift.
_US_LAYOUT: Final = {
    "1!": "1", "2@": "2", "3#": "3", "4$": "4", "5%": "5", "6^": "6", "7&": "7", "8*": "8", "9(": "9", "0)": "0",
    "-_": "minus", "=+": "equal", "[{": "bracket_left", "]}": "bracket_right", ";:": "semicolon", "'\"": "apostrophe",
    "`~": "grave_accent", "\\|": "backslash", ",<": "comma", ".>": "dot", "/?": "slash",
    " ": "spc", "\n": "ret", "\t": "tab",
}  # fmt: skip
_KEYS: Final = {
    **{letter: (letter, False) for letter in "abcdefghijklmnopqrstuvwxyz"},
    **{letter.upper(): (letter, True) for letter in "abcdefghijklmnopqrstuvwxyz"},
    **{text[0]: (key, False) for text, key in _US_LAYOUT.items()},
    **{text[1]: (key, True) for text, key in _US_LAYOUT.items() if len(text) > 1},
}
# What people call keys, and QEMU does not.
_ALIASES: Final = {
    "enter": "ret", "return": "ret", "space": "spc", "escape": "esc", "del": "delete", "ins": "insert",
    "pageup": "pgup", "pagedown": "pgdn", "win": "meta_l", "super": "meta_l", "control": "ctrl",
}  # fmt: skip


class Mouse(Struct, frozen=True):
    """A pointing device of the machine.

    :ivar current: it is the one that gets what is sent
    :ivar absolute: it takes places, not distances
    """

    name: str
    index: int
    current: bool
    absolute: bool


async def query_mice(port: Port) -> list[Mouse]:
    """Return the pointing devices (``query-mice``)."""
    return convert(await port.execute("query-mice"), list[Mouse])


# -- keys ------------------------------------------------------------------------------------------------------------


async def sendkey(port: Port, keys: str | Iterable[str | int], *, hold: int = 100) -> None:
    """Press keys together, and release them after `hold` milliseconds (``send-key``); returns before that.

    :param keys: QEMU's names (QKeyCode), joined by ``-`` as in ``ctrl-alt-delete``, or one by one; numbers: scan codes
    :param hold: milliseconds
    :raises ArgumentError: QEMU has no such key
    """
    names = keys.split("-") if isinstance(keys, str) else list(keys)
    known = (await port.schema()).values("send-key", "keys.data")
    if not 0 < hold <= 60_000:
        raise ArgumentError("hold", hold, "1 to 60000 milliseconds")
    pressed = [_key(name, known) for name in names]
    if not pressed:
        raise ArgumentError("keys", keys, "one key at least")
    await port.execute("send-key", {"keys": pressed, "hold-time": hold})


def _key(name: str | int, known: frozenset[str]) -> dict[str, Any]:
    if isinstance(name, int):
        return {"type": "number", "data": name}
    code = _ALIASES.get(name.lower(), name.lower())
    if code in known:
        return {"type": "qcode", "data": code}
    if name.lower().startswith("0x"):
        try:
            return {"type": "number", "data": int(name, 16)}
        except ValueError:
            pass
    near = sorted(key for key in known if key.startswith(code[:2])) if code else []
    raise ArgumentError("keys", name, f"a key of QEMU's, such as {', '.join(near[:8] or ['ret', 'ctrl', 'f1'])}")


async def press_key(port: Port, key: str | int, *, down: bool) -> None:
    """Press a key, or release it (``input-send-event``): it stays down until it is released.

    :param key: as in :func:`sendkey`
    """
    known = (await port.schema()).values("send-key", "keys.data")
    await input_send_event(port, [{"type": "key", "data": {"key": _key(key, known), "down": down}}])


async def type_text(port: Port, text: str) -> None:
    """Type a text on a keyboard with the American layout, key after key; it takes 40 ms for each.

    :param text: letters, digits and signs of ASCII, blanks, tabs and line ends; 10,000 characters at most
    :raises ArgumentError: there is no key for something in it; nothing was typed. The text is not quoted
    """
    if len(text) > MAX_TEXT:
        raise ArgumentError("text", f"{len(text)} characters", f"{MAX_TEXT} at most")
    for position, letter in enumerate(text):
        if letter not in _KEYS:
            raise ArgumentError("text", f"U+{ord(letter):04X} at {position}", "what an American keyboard has")
    for letter in text:
        key, shift = _KEYS[letter]
        keys = [{"type": "qcode", "data": name} for name in (["shift", key] if shift else [key])]
        await port.execute("send-key", {"keys": keys, "hold-time": TYPE_HOLD})
        await port.sleep(_KEY_SECONDS)


# -- the mouse -------------------------------------------------------------------------------------------------------


async def input_send_event(
    port: Port, events: Iterable[dict[str, Any]], *, device: str | None = None, head: int | None = None
) -> None:
    """Send what an input device does, as QEMU's ``InputEvent`` has it; all at once.

    :param device: the display device whose input it is; None for the current one
    :param head: which of its screens
    :raises CommandError: the machine does not run
    """
    arguments: dict[str, Any] = {"events": list(events)}
    if device is not None:
        arguments["device"] = device
    if head is not None:
        arguments["head"] = head
    await port.execute("input-send-event", arguments)


async def mouse_move(port: Port, dx: int, dy: int) -> None:
    """Move the mouse by so many steps, right and down."""
    await input_send_event(port, [_axis("rel", "x", dx), _axis("rel", "y", dy)])


async def mouse_move_to(port: Port, x: float, y: float) -> None:
    """Move an absolute pointer (a tablet) to a place: 0.0 is left or top, 1.0 right or bottom."""
    for name, value in (("x", x), ("y", y)):
        if not 0 <= value <= 1:
            raise ArgumentError(name, value, "0.0 to 1.0")
    await input_send_event(port, [_axis("abs", "x", round(x * ABS_MAX)), _axis("abs", "y", round(y * ABS_MAX))])


def _axis(type: str, axis: str, value: int) -> dict[str, Any]:
    return {"type": type, "data": {"axis": axis, "value": value}}


async def mouse_button(port: Port, button: str, *, down: bool) -> None:
    """Press a button (``left``, ``middle``, ``right``, ``side``, ``extra``), or release it."""
    check_choice("button", button, BUTTONS)
    await input_send_event(port, [_button(button, down)])


async def mouse_click(port: Port, button: str = "left") -> None:
    """Press a button and release it."""
    check_choice("button", button, BUTTONS)
    await input_send_event(port, [_button(button, True)])
    await input_send_event(port, [_button(button, False)])


async def mouse_scroll(port: Port, steps: int) -> None:
    """Turn the wheel: down by so many steps, or up where they are negative."""
    wheel = "wheel-down" if steps > 0 else "wheel-up"
    for _ in range(abs(steps)):
        await input_send_event(port, [_button(wheel, True)])
        await input_send_event(port, [_button(wheel, False)])


def _button(button: str, down: bool) -> dict[str, Any]:
    return {"type": "btn", "data": {"button": button, "down": down}}


ready(Mouse)
