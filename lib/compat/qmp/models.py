"""The few messages whose shape the specification fixes, checked when they are made."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Model:
    """A JSON object of known shape.

    :param raw: the object
    :raises KeyError: a member is missing
    :raises TypeError: a member has the wrong type
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw

    def _member(self, key: str, kind: type[T], what: str) -> T:
        name = type(self).__name__
        if key not in self._raw:
            raise KeyError(f"'{name}' object requires '{key}' member")
        value = self._raw[key]
        if not isinstance(value, kind):
            raise TypeError(f"'{name}' member '{key}' must be a {what}")
        return value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._raw!r})"


class Greeting(Model):
    """What the server says first.

    :ivar QMP: its only member
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        super().__init__(raw)
        self.QMP = QMPGreeting(self._member("QMP", Mapping, "JSON object"))  # type: ignore[type-abstract]

    def _asdict(self) -> dict[str, object]:
        return dict(copy.deepcopy(self._raw))


class QMPGreeting(Model):
    """What a greeting holds.

    :ivar version: QEMU's version, as in ``query-version``
    :ivar capabilities: what may be negotiated
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        super().__init__(raw)
        version: Mapping[str, object] = self._member("version", Mapping, "JSON object")  # type: ignore[type-abstract]
        capabilities: Sequence[object] = self._member(
            "capabilities",
            Sequence,  # type: ignore[type-abstract]
            "JSON array",
        )
        self.version = version
        self.capabilities = capabilities


class ErrorResponse(Model):
    """An error reply.

    :ivar error: what is wrong
    :ivar id: the command's id; None where there is none
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        super().__init__(raw)
        self.error = ErrorInfo(self._member("error", Mapping, "JSON object"))  # type: ignore[type-abstract]
        self.id: object | None = raw.get("id")


class ErrorInfo(Model):
    """What an error reply says.

    :ivar class_: the error class, such as ``GenericError``
    :ivar desc: QEMU's text
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        super().__init__(raw)
        self.class_ = self._member("class", str, "string")
        self.desc = self._member("desc", str, "string")
