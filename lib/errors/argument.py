"""What the caller passed was wrong; :mod:`drover.errors` draws the whole tree."""

from collections.abc import Iterable
from typing import NamedTuple

from msgspec import UNSET

from .base import DroverError


class ArgumentError(DroverError, ValueError):
    """A wrong argument, found before anything was touched.

    :ivar field: the argument's name
    :ivar value: what was passed
    :ivar allowed: what may be passed
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}: {value!r} is not allowed; {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


class DeviceNotFound(ArgumentError):
    """An instance that runs has no such device; `allowed` names those that it has.

    :ivar name: the instance's
    """

    def __init__(self, name: str, id: str, allowed: str) -> None:
        super().__init__("id", id, allowed)
        self.name = name


class Problem(NamedTuple):
    """One thing that is wrong with a specification.

    :ivar path: of the field, such as ``disks[1].cache``; empty for the document itself
    :ivar value: what stands there; ``msgspec.UNSET`` where nothing does, or where it is not to be shown
    :ivar allowed: what may stand there; without a value, what is wrong
    """

    path: str
    value: object
    allowed: str

    @property
    def text(self) -> str:
        """What is wrong, without the path."""
        return self.allowed if self.value is UNSET else f"{self.value!r} is not {self.allowed}"

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


class SpecError(ArgumentError):
    """A specification is wrong; nothing was touched. As an :class:`ArgumentError` it is about the first problem.

    :ivar problems: all that is wrong, in the order of the document
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(*self.problems[0])
        self.args = ("\n".join(map(str, self.problems)),)
