"""Ganeti's QMP messages and events."""

import json
from typing import Any, NamedTuple

from .errors import QmpDataError


class QmpMessage:
    """A message as it is on the wire: a JSON object.

    :param data: its members
    :raises TypeError: it is no object
    """

    def __init__(self, data: dict[str, Any]) -> None:
        if not isinstance(data, dict):
            raise TypeError("QmpMessage must be initialized with a dict")
        self.data = data

    def __getitem__(self, field_name: str) -> Any:
        """The member, or None if there is none of this name."""
        return self.data.get(field_name)

    def __setitem__(self, field_name: str, field_value: Any) -> None:
        self.data[field_name] = field_value

    def __delitem__(self, key: str) -> None:
        del self.data[key]

    def __len__(self) -> int:
        return len(self.data)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, QmpMessage):
            return self.data == other.data
        return self.data == other if isinstance(other, dict) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def __str__(self) -> str:
        return self.to_json_string()

    def __repr__(self) -> str:
        return f"QmpMessage({sorted(self.data)})"  # names only: an argument may be a password

    @staticmethod
    def build_from_json_string(json_string: str | bytes) -> "QmpMessage":
        """Parse a message.

        :raises QmpDataError: it is no JSON object
        """
        try:
            return QmpMessage(json.loads(json_string))
        except (ValueError, TypeError, RecursionError) as error:
            raise QmpDataError(f"QMP data serialization error: {error}") from error

    @staticmethod
    def BuildFromJsonString(json_string: str | bytes) -> "QmpMessage":
        """The name of :meth:`build_from_json_string` up to Ganeti 3.0."""
        return QmpMessage.build_from_json_string(json_string)

    def to_bytes(self) -> bytes:
        """One line, with its end.

        :raises QmpDataError: a member is no JSON value
        """
        try:
            return json.dumps(self.data).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise QmpDataError(f"QMP data serialization error: {error}") from error

    def to_json_string(self) -> str:
        """The same as text."""
        return self.to_bytes().decode()


class QmpTimestamp(NamedTuple):
    """When an event happened, by the host's clock; both -1 where QEMU could not tell."""

    seconds: int
    microseconds: int


class QmpEvent:
    """An event; ``event["member"]`` is a member of its data, None if it has none of this name.

    :param timestamp: when it happened
    :param event_type: its name, such as ``DEVICE_DELETED``
    :param data: its members
    """

    def __init__(self, timestamp: QmpTimestamp, event_type: str, data: dict[str, Any]) -> None:
        self._timestamp = timestamp
        self._event_type = event_type
        self._data = data

    def __getitem__(self, field_name: str) -> Any:
        return self._data.get(field_name)

    @property
    def timestamp(self) -> QmpTimestamp:
        """When it happened."""
        return self._timestamp

    @property
    def event_type(self) -> str:
        """Its name."""
        return self._event_type

    @staticmethod
    def build_from_data(data: dict[str, Any]) -> "QmpEvent":
        """Make an event of a message's members; ``data`` may be absent, as in STOP or RESUME."""
        stamp = data.get("timestamp") or {}
        timestamp = QmpTimestamp(stamp.get("seconds", -1), stamp.get("microseconds", -1))
        return QmpEvent(timestamp, data["event"], data.get("data") or {})
