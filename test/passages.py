"""Ways for a machine to go, by the table of combinations, and two real QEMUs that it goes between."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import combinations, product
from pathlib import Path
from typing import Any, Final, NamedTuple

from drover import QmpConnection
from drover.migration.combinations import (
    CONNECTIONS,
    FEATURES,
    FILES,
    ROWS,
    Feature,
    Have,
    Row,
    Transport,
    refused,
    settings,
    with_needs,
)
from drover.ops.migration_settings import Side, Version

MIB: Final = 1 << 20
PATIENCE: Final = 60.0
NODE, BITMAP = "bitmapped", "kept"  # of each machine
HAVE: Final = (Have.LOCKED_MEMORY,)  # of those that run as root
# What cannot be tried: see UNTRIED of the table.
TRANSPORTS: Final = [transport for transport in Transport if transport is not Transport.VSOCK]
TRIED: Final = [feature for feature in Feature if feature is not Feature.DIRTY_LIMIT]
_SET: Final = "migrate-set-parameters"
# Whatever a way before has left.
_CLEAN: Final[dict[str, Any]] = {
    "multifd-compression": "none", "zero-page-detection": "legacy", "tls-creds": "", "direct-io": False,
    "max-bandwidth": 1 << 40, "downtime-limit": 300,
}  # fmt: skip


class Way(NamedTuple):
    """How a machine goes once."""

    features: frozenset[Feature]
    transport: Transport

    def __str__(self) -> str:
        return f"{' '.join(sorted(self.features)) or 'precopy'} over {self.transport}"


def way(features: frozenset[Feature], transport: Transport) -> Way:
    """One with all that its features need."""
    needed = {Feature.RETURN_PATH} if transport in CONNECTIONS else set()
    return Way(with_needs(features | needed), transport)


def covering(source: Version, target: Version) -> Iterator[Way]:
    """Ways that have each allowed pair of features, and of feature and transport, in one of them."""

    def allowed(way: Way) -> bool:
        return not refused(*way, source, target, have=HAVE)

    def pairs(way: Way) -> set[tuple[str, ...]]:
        two = {tuple(sorted(pair)) for pair in combinations(way.features, 2)}
        return two | {(feature, way.transport) for feature in way.features} | {("", way.transport)}

    least = [frozenset(pair) for pair in combinations(TRIED, 2)]
    least += [frozenset({feature}) for feature in TRIED] + [frozenset()]
    seeds = [seed for each in product(least, TRANSPORTS) if allowed(seed := way(*each))]
    todo = set().union(*(pairs(seed) for seed in seeds))
    for seed in seeds:
        if not pairs(seed) & todo:
            continue
        found = seed
        for feature in TRIED:
            more = way(found.features | {feature}, found.transport)
            if allowed(more) and (pairs(more) - pairs(found)) & todo:
                found = more
        todo -= pairs(found)
        yield found


def triggering(source: Version, target: Version) -> Iterator[tuple[Way, Row]]:
    """Each row of the table that says something of these versions, and a way that nothing else speaks against."""
    for row in ROWS:
        have = [] if row.unless else tuple(Have)
        for transport in TRANSPORTS:
            more = {Feature.RETURN_PATH} if transport in CONNECTIONS else set()
            found = Way(with_needs(row.on | more) - row.off, transport)
            reasons = refused(*found, source, target, have=have)
            if row.holds(*found, source, target, have) and len(reasons) == 1:
                yield found, row
                break


# -- real ones --------------------------------------------------------------------------------------------------------


class Road:
    """What two QEMUs are connected by; a context manager."""

    def __init__(self, transport: Transport, folder: Path) -> None:
        self.transport = transport
        self._file = folder / f"road{time.monotonic_ns()}"
        self._stack = ExitStack()
        self._uri: str | None = {
            Transport.UNIX: f"unix:{self._file}", Transport.TCP: "tcp:127.0.0.1:0", Transport.IPV6: "tcp:[::1]:0",
            Transport.FILE: f"file:{self._file}",
        }.get(transport)  # fmt: skip
        self._fds: tuple[int | None, int | None] = (None, None)
        if transport is Transport.FD:
            one, two = socket.socketpair()
            self._stack.callback(one.close)
            self._stack.callback(two.close)
            self._fds = one.fileno(), two.fileno()
        elif transport is Transport.FILE_FD:
            self._fds = self._open(os.O_WRONLY | os.O_CREAT), self._open(os.O_RDONLY)

    def _open(self, flags: int) -> int:
        fd = os.open(self._file, flags, 0o600)
        self._stack.callback(os.close, fd)
        return fd

    def await_machine(self, vm: Any) -> None:
        """Let the target wait at its end."""
        info = vm.migrate_incoming(self._uri, fd=self._fds[1])
        if self._uri and self._uri.endswith(":0"):
            self._uri = self._uri.removesuffix("0") + info.socket_address[0]["port"]

    def send(self, vm: Any) -> None:
        """Let the source begin."""
        vm.migrate(self._uri, fd=self._fds[0])

    def __enter__(self) -> "Road":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._file.unlink(missing_ok=True)


def prepare(vm: Any, way: Way, side: Side, folder: Path) -> None:
    """Set one side up, and undo what was set before.

    :raises CommandError: QEMU refuses it
    """
    have = vm.get_migration_capabilities()
    off = {str(feature): False for feature in FEATURES if feature in have}
    _set_capabilities(vm, off)
    there = vm.get_migration_parameters()
    clean = {name: value for name, value in _CLEAN.items() if name in there}
    if _one_round(vm, way):
        clean["downtime-limit"] = 0
    vm.execute(_SET, clean)
    capabilities, parameters = settings(way.features, side)
    if Feature.TLS in way.features:
        parameters["tls-creds"] = _secured(vm, side, folder)
    _set_capabilities(vm, {**off, "events": True, "late-block-activate": True, **capabilities})
    if parameters:
        vm.execute(_SET, parameters)


def _one_round(vm: Any, way: Way) -> bool:
    """Whether all has to go in one round: without KVM it loses writes of later ones (QEMU's commit 03bfc2188f)."""
    # with a limit of 0 a bitmap, which goes last, never would: such a machine stands still
    return bool(vm.version < (9, 0)) and Feature.BITMAPS not in way.features


def _set_capabilities(vm: Any, wanted: dict[str, bool]) -> None:
    """Past what Drover itself knows of them."""
    entries = [{"capability": name, "state": state} for name, state in wanted.items()]
    vm.execute("migrate-set-capabilities", {"capabilities": entries})


def _secured(vm: Any, side: Side, folder: Path) -> str:
    """Give a QEMU a key for TLS; the name of its object."""
    (folder / "keys.psk").write_text(f"drover:{'5e' * 32}\n")
    name = f"tls{time.monotonic_ns()}"
    end = {"endpoint": "client", "username": "drover"} if side is Side.SOURCE else {"endpoint": "server"}
    vm.execute("object-add", {"qom-type": "tls-creds-psk", "id": name, "dir": str(folder), **end})
    return name


def go(way: Way, one: QmpConnection, two: QmpConnection, folder: Path) -> None:
    """Let the machine go, up to where the target has it, and was told to run it.

    :raises CommandError: a QEMU refuses it
    :raises AssertionError: it does not arrive
    """
    with Road(way.transport, folder) as road:
        if way.transport not in FILES:
            road.await_machine(two)
        if Feature.POSTCOPY in way.features:
            one.set_migration_parameters({"max-bandwidth": 10 * MIB, "max-postcopy-bandwidth": 0})
        if one.version < (9, 0) and not _one_round(one, way):
            one.stop()
        road.send(one)
        if Feature.POSTCOPY in way.features:
            one.wait_migration(until=["active"], timeout=PATIENCE)
            time.sleep(0.2)
            one.migrate_start_postcopy()
            one.wait_migration(until=["postcopy-active"], timeout=PATIENCE)
            reach(two, "paused")
            two.cont()
        reach(one, "postmigrate")
        assert one.query_migrate().status == "completed"
        if way.transport in FILES:
            road.await_machine(two)
        if Feature.POSTCOPY not in way.features:
            two.wait_incoming(timeout=PATIENCE)
            two.cont()


def reach(vm: QmpConnection, status: str) -> None:
    """Wait until it is in a run state.

    :raises AssertionError: it comes to another end
    """
    deadline = time.monotonic() + PATIENCE
    while (now := vm.query_status().status) != status:
        migration = vm.query_migrate()
        assert migration.status not in ("failed", "cancelled"), migration.error_desc
        assert time.monotonic() < deadline, f"{now}, not {status}"
        time.sleep(0.02)


def bitmaps(vm: Any) -> list[str]:
    """Those of the node that each machine has."""
    nodes = vm.execute("query-named-block-nodes", {"flat": True})
    return [each["name"] for node in nodes if node["node-name"] == NODE for each in node.get("dirty-bitmaps", [])]
