"""Migration capabilities and parameters, as one table: on which side, in which unit, since which QEMU."""

from collections.abc import Iterable, Mapping
from enum import Flag, auto
from typing import Any, Final, NamedTuple

from ..errors import ArgumentError, MigrationError, NotSupported
from .port import Port

Version = tuple[int, int]
# Bytes a second: more than there is. 0 would be none at all on 7.2; and what QEMU takes where nothing is said.
UNLIMITED: Final = 1 << 50
USUAL_BANDWIDTH: Final = 128 << 20
ROUNDS_ARE_SOUND: Final[Version] = (9, 0)
"""Under TCG, QEMU before this does not see all that a guest writes in the second round over its memory and later, and
does not send it (fixed by its commit 03bfc2188f). With a ``downtime-limit`` of 0 it makes one round, and the guest
stops before it looks what that has made dirty."""


class Side(Flag):
    """On which side of a migration a setting has its effect."""

    SOURCE = auto()
    TARGET = auto()
    BOTH = SOURCE | TARGET


class Setting(NamedTuple):
    """What is known of one capability or parameter.

    :ivar side: where it has its effect; BOTH must be equal on both sides
    :ivar kind: the JSON type of its value
    :ivar unit: of a number
    :ivar since: the first QEMU that has it; None if 7.2 or an older one did
    :ivar until: the last QEMU that has it; None if it is still there
    """

    side: Side
    kind: type
    unit: str = ""
    since: Version | None = None
    until: Version | None = None


_S, _T, _B = Side.SOURCE, Side.TARGET, Side.BOTH

CAPABILITIES: Final[Mapping[str, Setting]] = {
    "auto-converge": Setting(_S, bool),
    "background-snapshot": Setting(_S, bool),
    "block": Setting(_S, bool, until=(9, 0)),
    "compress": Setting(_B, bool, until=(9, 0)),
    "dirty-bitmaps": Setting(_B, bool),
    "dirty-limit": Setting(_S, bool, since=(8, 1)),
    "events": Setting(_B, bool),
    "late-block-activate": Setting(_T, bool),
    "mapped-ram": Setting(_B, bool, since=(9, 0)),
    "multifd": Setting(_B, bool),
    "pause-before-switchover": Setting(_S, bool),
    "postcopy-blocktime": Setting(_T, bool),
    "postcopy-preempt": Setting(_B, bool),
    "postcopy-ram": Setting(_B, bool),
    "rdma-pin-all": Setting(_B, bool),
    "release-ram": Setting(_S, bool),
    "return-path": Setting(_B, bool),
    "switchover-ack": Setting(_B, bool, since=(8, 1)),
    "validate-uuid": Setting(_B, bool),
    "x-colo": Setting(_B, bool),
    "x-ignore-shared": Setting(_B, bool),
    "xbzrle": Setting(_B, bool),
    "zero-blocks": Setting(_S, bool),
    "zero-copy-send": Setting(_S, bool),
}

PARAMETERS: Final[Mapping[str, Setting]] = {
    "announce-initial": Setting(_T, int, "ms"),
    "announce-max": Setting(_T, int, "ms"),
    "announce-rounds": Setting(_T, int),
    "announce-step": Setting(_T, int, "ms"),
    "avail-switchover-bandwidth": Setting(_S, int, "bytes/s", since=(8, 2)),
    "block-bitmap-mapping": Setting(_B, list),
    "block-incremental": Setting(_S, bool, until=(9, 0)),
    "compress-level": Setting(_S, int, until=(9, 0)),
    "compress-threads": Setting(_S, int, until=(9, 0)),
    "compress-wait-thread": Setting(_S, bool, until=(9, 0)),
    "cpr-exec-command": Setting(_S, list, since=(10, 2)),
    "cpu-throttle-increment": Setting(_S, int, "%"),
    "cpu-throttle-initial": Setting(_S, int, "%"),
    "cpu-throttle-tailslow": Setting(_S, bool),
    "decompress-threads": Setting(_T, int, until=(9, 0)),
    "direct-io": Setting(_S, bool, since=(9, 1)),
    "downtime-limit": Setting(_S, int, "ms"),
    "max-bandwidth": Setting(_S, int, "bytes/s"),
    "max-cpu-throttle": Setting(_S, int, "%"),
    "max-postcopy-bandwidth": Setting(_S, int, "bytes/s"),
    "mode": Setting(_S, str, since=(8, 2)),
    "multifd-channels": Setting(_B, int),
    "multifd-compression": Setting(_B, str),
    "multifd-qatzip-level": Setting(_S, int, since=(9, 2)),
    "multifd-zlib-level": Setting(_S, int),
    "multifd-zstd-level": Setting(_S, int),
    "throttle-trigger-threshold": Setting(_S, int, "%"),
    "tls-authz": Setting(_T, str),
    "tls-creds": Setting(_B, str),
    "tls-hostname": Setting(_S, str),
    "vcpu-dirty-limit": Setting(_S, int, "MB/s", since=(8, 1)),
    "x-checkpoint-delay": Setting(_S, int, "ms"),
    "x-vcpu-dirty-limit-period": Setting(_S, int, "ms", since=(8, 1)),
    "xbzrle-cache-size": Setting(_B, int, "bytes"),
    "zero-page-detection": Setting(_S, str, since=(9, 0)),
}


def loses_writes(accelerator: str, version: tuple[int, ...]) -> bool:
    """Tell whether a source sends a whole machine only if the guest stands still after the first round.

    :param accelerator: ``kvm`` or ``tcg``
    :param version: of its QEMU
    """
    return accelerator == "tcg" and version < ROUNDS_ARE_SOUND


def capabilities_of(version: Version) -> frozenset[str]:
    """Return the capabilities that a QEMU of a version has, of those that are known here."""
    return frozenset(
        name for name, it in CAPABILITIES.items() if (it.since or version) <= version <= (it.until or version)
    )


async def get_migration_capabilities(port: Port) -> dict[str, bool]:
    """Return each capability that this QEMU has, and whether it is on (``query-migrate-capabilities``)."""
    return _named(await port.execute("query-migrate-capabilities"))


async def set_migration_capabilities(port: Port, wanted: Mapping[str, bool]) -> dict[str, bool]:
    """Switch capabilities, and read back that QEMU has them so.

    :param wanted: name to on or off; others stay as they are
    :returns: all capabilities as they are afterwards
    :raises ArgumentError: a value is not a bool
    :raises NotSupported: this QEMU lacks one that is to be on; one to be off is left out then
    :raises MigrationError: QEMU took them and yet has not set them
    """
    return await _switch(port, await get_migration_capabilities(port), wanted)


async def reset_migration_capabilities(port: Port, wanted: Mapping[str, bool]) -> None:
    """Switch on what is wanted, and off all else that an earlier migration may have left.

    :raises NotSupported: this QEMU lacks one that is to be on
    """
    have = await get_migration_capabilities(port)
    await _switch(port, have, {name: False for name, is_on in have.items() if is_on} | dict(wanted))


async def get_migration_parameters(port: Port) -> dict[str, Any]:
    """Return the migration parameters and their values (``query-migrate-parameters``)."""
    parameters: dict[str, Any] = await port.execute("query-migrate-parameters")
    return parameters


async def set_migration_parameters(port: Port, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Set parameters, and read back that QEMU has them so.

    :param wanted: name to value, in the units of :data:`PARAMETERS`
    :returns: all parameters as they are afterwards
    :raises ArgumentError: a value is not of the parameter's type
    :raises NotSupported: this QEMU lacks a parameter
    :raises CommandError: QEMU refuses a value
    :raises MigrationError: QEMU took them and yet has not set them
    """
    for name, value in wanted.items():
        if name in PARAMETERS:
            _check(name, value, PARAMETERS[name].kind)
    schema = await port.schema()
    for name in wanted:
        if not schema.has_argument("migrate-set-parameters", name):
            raise _lacks("migration parameter", name, PARAMETERS)
    told = [("migrate-set-parameters", dict(wanted)), ("query-migrate-parameters", None)]
    now: dict[str, Any] = (await port.execute_many(told))[1]
    _read_back(now, wanted)
    return now


async def arm_migration(port: Port, capabilities: Mapping[str, bool], parameters: Mapping[str, Any]) -> None:
    """Make all settings of a migration, and read them back; see :func:`reset_migration_capabilities` and
    :func:`set_migration_parameters`."""
    await reset_migration_capabilities(port, capabilities)
    if parameters:
        await set_migration_parameters(port, parameters)


async def _switch(port: Port, have: Mapping[str, bool], wanted: Mapping[str, bool]) -> dict[str, bool]:
    """Set, and read back in the same breath.

    :param have: capabilities that it has
    """
    for name, value in wanted.items():
        _check(name, value, bool)
        if value and name not in have:
            raise _lacks("migration capability", name, CAPABILITIES)
    entries = [{"capability": name, "state": state} for name, state in wanted.items() if name in have]
    told = [("migrate-set-capabilities", {"capabilities": entries}), ("query-migrate-capabilities", None)]
    now = _named((await port.execute_many(told))[1])
    _read_back(now, {name: state for name, state in wanted.items() if name in have})
    return now


def _named(entries: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    return {entry["capability"]: entry["state"] for entry in entries}


def _check(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ArgumentError(name, value, f"a {kind.__name__}")


def _lacks(what: str, name: str, table: Mapping[str, Setting]) -> NotSupported:
    setting = table.get(name)
    needs = ""
    if setting is not None and setting.since:
        needs = "QEMU {}.{} or later".format(*setting.since)
    elif setting is not None and setting.until:
        needs = "QEMU {}.{} or earlier".format(*setting.until)
    return NotSupported(f"{what} '{name}'", needs)


def _read_back(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [
        f"{name} is {now.get(name)!r}, not {value!r}" for name, value in wanted.items() if now.get(name) != value
    ]
    if differing:
        raise MigrationError(f"QEMU did not take the migration settings: {'; '.join(differing)}")
