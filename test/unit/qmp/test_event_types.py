"""The table of event types against the schemas of real QEMUs, and against the list of 2011."""

import inspect as python
import re
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import inspect

from drover.qmp.event_types import EVENTS, EventData, typed_data
from drover.qmp.messages import Event, MessageReader
from drover.testing.recorded import RECORDED, recorded_schema

SCHEMAS = {version: {entity["name"]: entity for entity in recorded_schema(version)} for version in RECORDED}
JSON = {"string": inspect.StrType, "int": inspect.IntType, "boolean": inspect.BoolType}


def number_of(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def events_of(version: str) -> set[str]:
    return {name for name, entity in SCHEMAS[version].items() if entity["meta-type"] == "event"}


def members(version: str, entity: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Name, type and "always sent" of each member of an object; those of variants are not always sent."""
    for member in entity["members"]:
        yield member["name"], member["type"], "default" not in member
    for variant in entity.get("variants", ()):
        for name, kind, _ in members(version, SCHEMAS[version][variant["type"]]):
            yield name, kind, False


def bare(kind: inspect.Type) -> tuple[inspect.Type, list[str]]:
    """A field's type without its ``| None``, and the values that are known of it."""
    if isinstance(kind, inspect.UnionType):
        (kind,) = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
    if isinstance(kind, inspect.Metadata):
        return kind.type, (kind.extra_json_schema or {})["examples"]
    return kind, []


class Comparison:
    """One event's type beside what the schemas say of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.known = EVENTS[name]
        self.values: dict[str, set[str]] = {}
        self.versions = {version: SCHEMAS[version] for version in RECORDED if name in events_of(version)}
        tops = {version: types[types[name]["arg-type"]] for version, types in self.versions.items()}
        self.compare(inspect.type_info(self.known.type), tops, "")

    def compare(self, kind: inspect.Type, entities: dict[str, Any], path: str) -> None:
        assert isinstance(kind, inspect.StructType), f"{self.name}{path}: an object"
        found = {
            version: {name: (type_name, always) for name, type_name, always in members(version, entity)}
            for version, entity in entities.items()
        }
        fields = {field.encode_name: field for field in kind.fields}
        assert set(fields) == set().union(*found.values()), f"{self.name}{path}: neither missing nor invented"
        for member, field in fields.items():
            here = {version: of[member] for version, of in found.items() if member in of}
            inner, values = bare(field.type)
            for version, (type_name, _) in here.items():
                self.fits(inner, values, version, type_name, f"{path}.{member}")
            if isinstance(inner, inspect.StructType):
                deeper = {version: SCHEMAS[version][type_name] for version, (type_name, _) in here.items()}
                self.compare(inner, deeper, f"{path}.{member}")
            assert set(values) == self.values.get(f"{path}.{member}", set()), f"{self.name}{path}.{member}: values"
            self.presence(field, {version: here.get(version, ("", False))[1] for version in found}, path)

    def fits(self, kind: inspect.Type, values: list[str], version: str, type_name: str, path: str) -> None:
        entity = SCHEMAS[version][type_name]
        if entity["meta-type"] == "enum":
            assert isinstance(kind, inspect.StrType), path
            assert values, path
            self.values.setdefault(path, set()).update(member["name"] for member in entity["members"])
        elif entity["meta-type"] == "builtin":
            assert isinstance(kind, JSON[entity["json-type"]]), f"{self.name}{path}"
        else:
            assert entity["meta-type"] == "object", f"{self.name}{path}"

    def presence(self, field: inspect.Field, always: dict[str, bool], path: str) -> None:
        """Required where every QEMU sends it; one that came later is in the table with its version."""
        where = f"{path}.{field.name}".lstrip(".")
        later = self.known.later.get(where)
        if later is None:
            assert field.required == all(always.values()), f"{self.name}.{where}"
        else:
            assert not field.required
            assert always == {version: number_of(version) >= later for version in always}, f"{self.name}.{where}"


@pytest.mark.parametrize("name", sorted(set().union(*map(events_of, RECORDED))))
def test_type_has_what_the_schemas_have(name: str) -> None:
    Comparison(name)


def test_versions_of_the_table_are_those_of_the_schemas() -> None:
    assert set(EVENTS) == set().union(*map(events_of, RECORDED))
    for version in RECORDED:
        number = number_of(version)
        expected = {
            name for name, known in EVENTS.items() if known.since <= number and number <= (known.until or number)
        }
        assert expected == events_of(version)
        assert not [
            name for name, known in EVENTS.items() if any(later <= known.since for later in known.later.values())
        ]


def all_types() -> Iterator[type[EventData]]:
    def down(kind: inspect.Type) -> Iterator[type[EventData]]:
        inner, _ = bare(kind)
        if isinstance(inner, inspect.StructType):
            yield inner.cls
            for field in inner.fields:
                yield from down(field.type)

    for known in EVENTS.values():
        yield from down(inspect.type_info(known.type))


@pytest.mark.parametrize("kind", sorted(set(all_types()), key=lambda kind: kind.__name__))
def test_each_type_tells_its_meaning_and_that_of_each_field(kind: type[EventData]) -> None:
    text = python.getdoc(kind) or ""
    assert kind.__doc__ != EventData.__doc__
    assert len(text.splitlines()[0]) > len("What it is.")
    assert re.findall(r"^:ivar (\w+): \S", text, re.MULTILINE) == list(kind.__struct_fields__)


VNC = {"host": "0.0.0.0", "service": "5901", "family": "ipv4", "auth": "sasl"}
SPICE = {"host": "127.0.0.1", "port": "5920", "family": "ipv4"}
CHANNEL = SPICE | {"connection-id": 1, "channel-type": 3, "channel-id": 0, "tls": True}
# What QEMU 0.15 sent: the events and members of qmp-events.txt as it was then.
IN_2011: dict[str, dict[str, Any]] = {
    "BLOCK_IO_ERROR": {"device": "ide0-hd1", "operation": "write", "action": "stop"},
    "RESET": {},
    "RESUME": {},
    "RTC_CHANGE": {"offset": 78},
    "SHUTDOWN": {},
    "STOP": {},
    "VNC_CONNECTED": {"server": VNC, "client": {"host": "127.0.0.1", "service": "58425", "family": "ipv4"}},
    "VNC_DISCONNECTED": {"server": VNC, "client": VNC | {"sasl_username": "u", "x509_dname": "CN=u"}},
    "VNC_INITIALIZED": {"server": VNC, "client": VNC | {"sasl_username": "u"}},
    "SPICE_CONNECTED": {"server": SPICE, "client": SPICE},
    "SPICE_DISCONNECTED": {"server": SPICE, "client": SPICE},
    "SPICE_INITIALIZED": {"server": SPICE | {"auth": "spice"}, "client": CHANNEL},
    "WATCHDOG": {"action": "reset"},
}


@pytest.mark.parametrize("name", IN_2011)
def test_data_of_2011_still_fit(name: str) -> None:
    typed = typed_data(name, IN_2011[name])
    assert type(typed) is EVENTS[name].type
    for member, value in IN_2011[name].items():
        if not isinstance(value, dict):
            assert getattr(typed, member.replace("-", "_")) == value


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("__com.example_EVENT", {"a": [1]}),
        ("NOT_YET_INVENTED", {}),
        ("RTC_CHANGE", {"offset": "soon"}),
        ("VNC_CONNECTED", {"server": None}),
        ("DEVICE_DELETED", {"device": "d1"}),
    ],
)
def test_what_has_no_type_or_does_not_fit_it_is_passed_untouched(name: str, data: dict[str, Any]) -> None:
    assert Event(name, data, 0.0, 1).typed is data


def test_newer_values_and_members_pass() -> None:
    data = {"status": "sublimated", "id": "j", "__com.example_why": 1}
    typed = Event("JOB_STATUS_CHANGE", data, 0.0, 1).typed
    assert isinstance(typed, EVENTS["JOB_STATUS_CHANGE"].type)
    assert (typed.id, typed.status) == ("j", "sublimated")  # type: ignore[attr-defined]


def test_from_the_wire_and_by_pattern() -> None:
    from drover.qmp.event_types.device import DeviceDeleted
    from drover.qmp.event_types.machine import Stop
    from drover.qmp.events import EventLog

    log = EventLog()
    log.extend(MessageReader().feed(b'{"event": "STOP"}\n{"event": "DEVICE_DELETED", "data": {"path": "/p"}}\n'))
    stop, deleted = log
    assert stop.typed == Stop()
    match deleted.typed:
        case DeviceDeleted(device=None, path=path):
            assert path == "/p"
        case other:
            pytest.fail(f"{other}")
