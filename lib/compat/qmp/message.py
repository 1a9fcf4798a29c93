"""One QMP message as a mapping that can turn into bytes."""

import json
from collections.abc import Iterator, Mapping, MutableMapping

from .error import ProtocolError


class Message(MutableMapping[str, object]):
    """A QMP message: a mapping of its members; ``bytes()`` gives its JSON, ``str()`` prints it over many lines.

    :param value: JSON as bytes, or a mapping, which is copied
    :param eager: convert at once, so that the constructor raises what would be raised later
    :raises DeserializationError: the bytes are no JSON
    :raises UnexpectedTypeError: they are, but no object
    :raises TypeError: a member of the mapping has no JSON
    """

    def __init__(self, value: bytes | Mapping[str, object] = b"{}", *, eager: bool = True) -> None:
        # at least one is there; a change drops the bytes
        self._bytes: bytes | None = None
        self._dict: dict[str, object] | None = None
        if isinstance(value, bytes):
            self._bytes = value
            if eager:
                self._dict = _parse(value)
        else:
            self._dict = dict(value)
            if eager:
                self._bytes = _dump(self._dict)

    def __getitem__(self, key: str) -> object:
        return self._members()[key]

    def __setitem__(self, key: str, value: object) -> None:
        self._members()[key] = value
        self._bytes = None

    def __delitem__(self, key: str) -> None:
        del self._members()[key]
        self._bytes = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._members())

    def __len__(self) -> int:
        return len(self._members())

    def __repr__(self) -> str:
        return f"Message({self._bytes!r})" if self._dict is None else f"Message({self._dict!r})"

    def __str__(self) -> str:
        return json.dumps(self._members(), indent=2)

    def __bytes__(self) -> bytes:
        if self._bytes is None:
            self._bytes = _dump(self._members())
        return self._bytes

    def _members(self) -> dict[str, object]:
        if self._dict is None:
            self._dict = _parse(self._bytes or b"{}")
        return self._dict


def received(members: dict[str, object]) -> Message:
    """A message of members that came as JSON and need no check; they are not copied."""
    message = Message(b"", eager=False)
    message._bytes, message._dict = None, members
    return message


def _dump(members: dict[str, object]) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


def _parse(data: bytes) -> dict[str, object]:
    try:
        members = json.loads(data)
    except ValueError as error:  # JSONDecodeError, or bytes that are no text
        raise DeserializationError("Failed to deserialize QMP message.", data) from error
    if not isinstance(members, dict):
        raise UnexpectedTypeError("QMP message is not a JSON object.", members)
    return members


class DeserializationError(ProtocolError):
    """A message is no JSON; ``__cause__`` says where.

    :ivar raw: the bytes
    """

    def __init__(self, error_message: str, raw: bytes) -> None:
        super().__init__(error_message, raw)
        self.raw = raw

    def __str__(self) -> str:
        return f"{super().__str__()}\n  raw bytes were: {self.raw!r}"


class UnexpectedTypeError(ProtocolError):
    """A message is JSON, but no object.

    :ivar value: what it is
    """

    def __init__(self, error_message: str, value: object) -> None:
        super().__init__(error_message, value)
        self.value = value

    def __str__(self) -> str:
        return f"{super().__str__()}\n  json value was: {json.dumps(self.value, indent=2)}"
