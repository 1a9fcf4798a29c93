"""Passwords and keys, which must never reach a log or an error message."""

import re
from typing import Any

HIDDEN = "<hidden>"

# Arguments that are secret in every command that has them: set_password,
# change-vnc-password, guest-set-user-password, blockdev options, chardev options ...
_SECRET_NAMES = re.compile(r"pass(word|wd|phrase)$|^secret$|^key$|^private[-_]key$", re.IGNORECASE)

# Arguments that are secret in one command only. `object-add qom-type=secret` carries
# the secret itself in `data`; a ring buffer or agent write may carry anything.
_SECRET_OF = {
    "object-add": frozenset({"data", "props"}),
    "guest-exec": frozenset({"input-data", "env"}),
    "guest-file-write": frozenset({"buf-b64"}),
    "ringbuf-write": frozenset({"data"}),
    "send-key": frozenset({"keys"}),  # somebody may be typing a password
    "input-send-event": frozenset({"events"}),
}

# HMP lines that hold a password, or may.
_SECRET_LINE = re.compile(
    r"\b(set_password\s+\S+|change\s+\S+\s+passw\w*|object_add\b.*?\bdata=|sendkey\b|ringbuf_write\b)", re.IGNORECASE
)


def redact(command: str, arguments: Any) -> Any:
    """A copy of `arguments` that may be shown; what is secret in it is replaced."""
    return _hide(arguments, _SECRET_OF.get(command, frozenset()))


# In what could not be understood: words that stand before a secret.
_SECRET_TEXT = re.compile(r"passw|passphrase|secret|\bkey|\bdata\b|input-data|buf-b64|private", re.IGNORECASE)


def may_hold_secret(text: str) -> bool:
    """Whether `text`, of which nothing else is known, may hold a secret."""
    return bool(_SECRET_TEXT.search(text) or _SECRET_LINE.search(text))


def _hide(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {
            name: HIDDEN if name in names or _is_secret(name, item) else _hide(item, names)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_hide(item, names) for item in value]
    return value


def _is_secret(name: object, value: object) -> bool:
    if name == "command-line" and isinstance(value, str):
        return bool(_SECRET_LINE.search(value))
    return isinstance(name, str) and bool(_SECRET_NAMES.search(name))
