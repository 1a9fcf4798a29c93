"""A specification from TOML, JSON or plain data; every fault is found, not only the first."""

import difflib
import json
import re
import tomllib
import uuid
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from msgspec import ValidationError, convert

from ...errors import ArgumentError, Problem, SpecError
from .checks import check
from .document import Boot, Cpu, Disk, Machine, Memory, Nic, Part, Spec, Vnc

_PARTS: Final[Mapping[str, type[Part]]] = {
    "machine": Machine, "cpu": Cpu, "memory": Memory, "boot": Boot, "vnc": Vnc,
}  # fmt: skip
_LISTS: Final[Mapping[str, type[Part]]] = {"disks": Disk, "nics": Nic}
_SIZES: Final = (("memory", "size"), ("memory", "max"))
_UNITS: Final = {
    "": 1, "B": 1, "K": 1 << 10, "KIB": 1 << 10, "M": 1 << 20, "MIB": 1 << 20, "G": 1 << 30, "GIB": 1 << 30,
    "T": 1 << 40, "TIB": 1 << 40, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
# What msgspec says of a field, in front of the path to it.
_WHERE: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)


def load(text: str, format: str) -> Spec:
    """Read a specification.

    :param format: ``toml`` or ``json``
    :raises SpecError: it is none; tells all that is wrong
    :raises ArgumentError: there is no such format
    """
    try:
        if format == "toml":
            return parse(tomllib.loads(text))
        if format == "json":
            return parse(json.loads(text))
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise SpecError([Problem("", f"not {format.upper()}: {error}")]) from error
    raise ArgumentError("format", format, "toml or json")


def parse(data: object) -> Spec:
    """Make a specification of plain data, such as a parsed JSON text.

    :raises SpecError: it is none; tells all that is wrong
    """
    if not isinstance(data, Mapping):
        raise SpecError([Problem("", "a table of fields is wanted")])
    problems: list[Problem] = []
    fields = dict(data)
    for part, name in _SIZES:
        if isinstance(fields.get(part), dict) and isinstance(fields[part].get(name), str):
            fields[part] = fields[part] | {name: _size(f"{part}.{name}", fields[part][name], problems)}
    for name, kind in _PARTS.items():
        if name in fields:
            problems += _faults(name, fields[name], kind)
    for name, kind in _LISTS.items():
        if isinstance(fields.get(name), list):
            for number, entry in enumerate(fields[name]):
                problems += _faults(f"{name}[{number}]", entry, kind)
    inner = {*_PARTS, *(name for name in _LISTS if isinstance(fields.get(name), list))}
    problems += _faults("", {name: value for name, value in fields.items() if name not in inner}, Spec)
    if not problems:
        spec = convert(fields, Spec)
        problems += check(spec)
        if not problems:
            return spec
    raise SpecError(problems)


def dump(spec: Spec) -> bytes:
    """The specification as JSON; :func:`load` makes the same of it."""
    return msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n"


def completed(spec: Spec) -> Spec:
    """The specification with what is chosen once and for all: its uuid and the addresses of its cards."""
    whole = spec if spec.uuid else msgspec.structs.replace(spec, uuid=str(uuid.uuid4()))
    nics = [nic if nic.mac else msgspec.structs.replace(nic, mac=_mac(whole.uuid, nic.id)) for nic in whole.nics]
    return msgspec.structs.replace(whole, nics=nics)


def _mac(owner: str, nic: str) -> str:
    """An address that this card always gets, in the range that is QEMU's and KVM's by custom."""
    tail = uuid.uuid5(uuid.UUID(owner), nic).bytes[:3]
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in tail)


def _size(path: str, text: str, problems: list[Problem]) -> int:
    found = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in _UNITS:
        problems.append(Problem(path, f"{text!r} is no size: a number of bytes, or one with MiB, GiB, ..."))
        return 1 << 30
    return int(found[1]) * _UNITS[found[2].upper()]


def _faults(path: str, value: object, kind: type[Part]) -> Iterator[Problem]:
    """What is wrong with the types of one part: each unknown field, then the first of the others."""
    if isinstance(value, Mapping):
        known = kind.__struct_fields__
        unknown = [name for name in value if name not in known]
        for name in unknown:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            yield Problem(_join(path, str(name)), f"there is no such field{hint}")
        value = {name: field for name, field in value.items() if name in known}
    try:
        convert(value, kind)
    except ValidationError as error:
        found = _WHERE.match(str(error))
        assert found is not None
        yield Problem(_join(path, (found["path"] or "").lstrip(".")), found["what"])


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name and not name.startswith("[") else path + name
