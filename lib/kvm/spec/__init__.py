"""What an instance is to be: one typed document, from TOML or JSON, checked as a whole before anything is touched.

- :mod:`.model`, :mod:`.devices`  the structures; :mod:`.types`  the kinds of values in them
- :mod:`.reader`  from plain values to the structures
- :mod:`.complete`  what is not said and follows from the rest
- :mod:`.checks`  what no field can see alone

``doc/specification.md`` has every field.
"""

import tomllib
from typing import Any

from msgspec import UNSET, DecodeError, json, to_builtins
from msgspec.structs import replace

from ...errors import ArgumentError, Problem, SpecError
from .checks import check, check_names
from .complete import complete, completed
from .devices import (
    BackingImage,
    Disk,
    Network,
    Nic,
    Serial,
    Spice,
    Throttle,
    Tpm,
    UsbDevice,
    VfioDevice,
    Vnc,
    Watchdog,
)
from .model import BootSpec, CloudInit, CpuSpec, FirmwareSpec, LimitSpec, MachineSpec, MemorySpec, Smbios, Spec
from .reader import Reader
from .types import Secret

__all__ = [
    "Spec",
    "load",
    "parse",
    "dump",
    "public",
    "completed",
    "extended",
    "MachineSpec",
    "CpuSpec",
    "LimitSpec",
    "MemorySpec",
    "FirmwareSpec",
    "BootSpec",
    "Disk",
    "BackingImage",
    "Throttle",
    "Nic",
    "Network",
    "Serial",
    "Vnc",
    "Spice",
    "Tpm",
    "Watchdog",
    "UsbDevice",
    "VfioDevice",
    "CloudInit",
    "Smbios",
    "Secret",
]


def load(text: str | bytes, format: str = "toml") -> Spec:
    """Read a specification from a document.

    :param format: ``toml`` or ``json``
    :raises SpecError: it is no such document, or something in it is wrong; says all of it
    :raises ArgumentError: there is no such format
    """
    if format not in ("toml", "json"):
        raise ArgumentError("format", format, "toml or json")
    try:
        plain = text.decode() if isinstance(text, bytes) else text
        document = json.decode(plain) if format == "json" else tomllib.loads(plain)
    except (tomllib.TOMLDecodeError, DecodeError, UnicodeDecodeError) as error:
        raise SpecError([Problem("", UNSET, f"this is no {format.upper()}: {error}")]) from error
    return parse(document)


def parse(document: Any) -> Spec:
    """Read a specification from plain values: a mapping with lists, texts, numbers.

    :returns: with what follows from the rest filled in, such as the ids of disks
    :raises SpecError: something in it is wrong; says all of it
    """
    reader = Reader()
    return _checked(reader, reader.struct(Spec, document))


def extended(spec: Spec, field: str, fields: Any) -> Spec:
    """A specification with one more entry in one of its lists: as if all of it was parsed anew, for less.

    :param spec: that is complete
    :param fields: of the entry, as plain values
    :raises SpecError: something in it is wrong, or does not go with the rest; says all of it
    """
    reader, others = Reader(), getattr(spec, field)
    return _checked(reader, replace(spec, **{field: (*others, reader.entry(Spec, field, len(others), fields))}))


def _checked(reader: Reader, found: Spec) -> Spec:
    spec = complete(found)
    # where a field is wrong already, its default would only be blamed for what it is not
    parts = [problem for problem in check(spec) if not reader.is_broken(problem.path, with_part=True)]
    names = [problem for problem in check_names(spec) if not reader.is_broken(problem.path, with_part=False)]
    if problems := [*reader.problems, *parts, *names]:
        raise SpecError(problems)
    return spec


def dump(spec: Spec) -> bytes:
    """The specification as JSON, which :func:`load` reads to an equal one.

    Passwords are in it, in clear: what it is written to is nobody else's to read.
    """
    return json.format(json.encode(spec), indent=2) + b"\n"


def public(spec: Spec) -> dict[str, Any]:
    """The specification as JSON values for whoever may see it: of a password only that there is one."""
    shown: dict[str, Any] = to_builtins(spec)
    for screen in ("vnc", "spice"):
        if shown.get(screen) and shown[screen].get("password"):
            shown[screen] |= {"password": "***"}
    return shown
