"""The table of combinations on real QEMUs: a booted guest goes all ways that it allows; what it refuses, they do."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from pathlib import Path

import pytest

from blocks import Lab, lab
from drover import QmpConnection
from drover.errors import CommandError, MigrationError
from drover.migration.combinations import FEATURES, FILES, ROWS, Feature, Have, Known, Transport
from drover.ops.migration_settings import Side, Version
from drover.testing.console import Console
from drover.testing.machine import Machine
from machines import qemu_of
from passages import BITMAP, MIB, NODE, Road, Way, bitmaps, covering, go, prepare, reach, triggering, way

pytestmark = [pytest.mark.live, pytest.mark.alone, pytest.mark.timeout(600)]

TYPE = "pc-i440fx-7.2"  # both know it
OLD, NEW = (7, 2), (10, 0)
PAIRS = [(OLD, OLD), (OLD, NEW), (NEW, OLD), (NEW, NEW)]
TRIPS = {"7-7": [(OLD, OLD)], "7-10-7": [(OLD, NEW), (NEW, OLD)], "10-10": [(NEW, NEW)]}
IDS = [f"{source[0]}-{target[0]}" for source, target in PAIRS]


def qemu(version: Version) -> Path:
    """The binary of this version."""
    return qemu_of("{}.{}".format(*version))


def machine(version: Version, *, incoming: bool) -> Machine:
    """One that can take a guest over."""
    node = ("-blockdev", f"null-co,node-name={NODE},size={MIB},read-zeroes=on")
    return Machine(qemu=qemu(version), machine=TYPE, memory=128, incoming=incoming, extra=node)


def moved(here: Machine, version: Version, way: Way, folder: Path) -> Machine:
    """Move the guest to a new machine, see that all of it is there, and end the old one."""
    there = machine(version, incoming=True)
    with ExitStack() as stack:
        stack.enter_context(there)
        here.hand_over(there)
        one, two = (stack.enter_context(QmpConnection(each.qmp)) for each in (here, there))
        prepare(one, way, Side.SOURCE, here.directory)
        prepare(two, way, Side.TARGET, there.directory)
        if not bitmaps(one):
            one.execute("block-dirty-bitmap-add", {"node": NODE, "name": BITMAP})
        go(way, one, two, folder)
        assert bitmaps(two) == ([BITMAP] if Feature.BITMAPS in way.features else [])
        stack.pop_all()
        one.close()
        two.close()
    here.close()
    return there


def check(console: Console, since: float, noise: str) -> None:
    """The guest goes on where it was."""
    beat = console.view.beat
    console.wait_until(lambda view: view.beat > beat + 10)
    seen = console.blackout(since)
    assert (seen.lost, seen.duplicated) == (0, 0)
    assert console.run("sha256sum /noise") == noise


@pytest.mark.parametrize(
    "pairs",
    [pytest.param(pairs, id=trip, marks=[pytest.mark.slow] * (len(pairs) > 1)) for trip, pairs in TRIPS.items()],
)
def test_what_is_allowed_arrives(pairs: list[tuple[Version, Version]], tmp_path: Path) -> None:
    """One guest goes all the ways, one after another, to and fro between the versions."""
    ways = [list(covering(*pair)) for pair in pairs]
    turns = max(map(len, ways))
    trip = [each for turn in zip(*(islice(cycle(ways), turns) for ways in ways), strict=True) for each in turn]
    assert len(set(trip)) >= turns > 10
    here = machine(pairs[0][0], incoming=False)
    with ExitStack() as stack:
        stack.callback(lambda: here.close())  # noqa: PLW0108 - the one that it is then
        here.start()
        here.wait_ready()
        console = here.console
        noise = console.run("dd if=/dev/urandom of=/noise bs=1M count=4 2>/dev/null; sha256sum /noise")
        for (source, target), chosen in zip(cycle(pairs), trip, strict=False):
            since = time.monotonic()
            try:
                here = moved(here, target, chosen, tmp_path)
                check(console, since, noise)
            except BaseException as error:
                error.add_note(f"{chosen}, {source} to {target}")
                raise


# -- what is refused --------------------------------------------------------------------------------------------------


@contextmanager
def labs(source: Version, target: Version, folder: Path, wrapper: Path | None = None) -> Iterator[tuple[Lab, Lab]]:
    """Two QEMUs whose firmware finds nothing to start; the source runs."""
    for name in ("source", "target"):
        (folder / name).mkdir(parents=True)
    with ExitStack() as stack:
        here = stack.enter_context(lab(wrapper or qemu(source), "blocking", folder / "source", machine=TYPE))
        defer = ("-incoming", "defer")
        there = stack.enter_context(lab(qemu(target), "blocking", folder / "target", *defer, machine=TYPE))
        here.vm.cont()
        yield here, there


def outcome(here: Lab, there: Lab, way: Way) -> str:
    """What QEMU says to it: ``arrives``, or why not; in any case one of the two has the machine."""
    try:
        for each, side in ((here, Side.SOURCE), (there, Side.TARGET)):
            prepare(each.vm, way, side, each.folder)
        go(way, here.vm, there.vm, here.folder)
    except (CommandError, MigrationError) as error:
        said = str(error)
    except AssertionError as error:
        said = f"failed {error}"
    else:
        reach(there.vm, "running")
        return "arrives"
    if way.transport in FILES and here.vm.query_status().status == "postmigrate":
        here.vm.cont()  # it is in the file, which the target does not take
    reach(here.vm, "running")
    return said


def confined(binary: Path, folder: Path) -> Path:
    """A QEMU that may lock next to nothing of its memory."""
    wrapper = folder / "confined"
    drop = "setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock prlimit --memlock=65536"
    wrapper.write_text(f'#!/bin/sh\nexec {drop} "{binary}" "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=IDS)
def test_what_is_refused(source: Version, target: Version, tmp_path: Path) -> None:
    """Each row alone: QEMU refuses, or takes it without effect, as the row says. What does harm: see below."""
    wrong = []
    rows = list(triggering(source, target))
    for number, (chosen, row) in enumerate(rows):
        wrapper = confined(qemu(source), tmp_path) if row.unless is Have.LOCKED_MEMORY else None
        known = row.known_of(source, target)
        if known is Known.HARMS:
            continue
        with labs(source, target, tmp_path / str(number), wrapper) as (here, there):
            said = outcome(here, there, chosen)
        if (said == "arrives") != (known is Known.USELESS):
            wrong.append(f"{chosen}: {known}: {said}")
    assert wrong == []
    assert len(rows) > 15


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=IDS)
def test_what_a_version_lacks(source: Version, target: Version, tmp_path: Path) -> None:
    """It refuses to set it."""
    with labs(source, target, tmp_path) as (here, there):
        for feature, sets in FEATURES.items():
            for version, each, side in ((source, here, Side.SOURCE), (target, there, Side.TARGET)):
                if side in sets.setting.side and sets.setting.since and version < sets.setting.since:
                    with pytest.raises(CommandError):
                        prepare(each.vm, way(frozenset({feature}), Transport.UNIX), side, each.folder)


def test_what_does_harm_is_tried_somewhere() -> None:
    """Two rows in the facts that the design rests on (test/sim/scenarios.py), and one below."""
    found = {tuple(sorted(row.on)) for row in ROWS if Known.HARMS in row.known.values()}
    assert found == {(), ("multifd", "postcopy-ram"), ("multifd", "zero-page-detection=multifd")}


def test_pages_that_become_zero_are_lost_on_the_way_to_an_old_target(tmp_path: Path) -> None:
    """And are not, where they are found as the table says."""
    for feature, kept in ((Feature.ZERO_PAGES, True), (Feature.ZERO_PAGES_BY_MULTIFD, False)):
        with machine(NEW, incoming=False) as here, machine(OLD, incoming=True) as there, ExitStack() as stack:
            here.wait_ready()
            console = here.console
            console.run("dd if=/dev/urandom of=/dirty bs=1M count=16 2>/dev/null")
            here.hand_over(there)
            one, two = (stack.enter_context(QmpConnection(each.qmp)) for each in (here, there))
            chosen = way(frozenset({Feature.MULTIFD, feature}), Transport.UNIX)
            prepare(one, chosen, Side.SOURCE, here.directory)
            prepare(two, chosen, Side.TARGET, there.directory)
            # it comes to no end by itself
            one.set_migration_parameters({"max-bandwidth": 16 * MIB, "downtime-limit": 1})
            console.dirty(40, 16)
            with Road(Transport.UNIX, tmp_path) as road:
                road.await_machine(two)
                road.send(one)
                while one.query_migrate().ram.dirty_sync_count < 2:
                    time.sleep(0.02)
                console.run("dd if=/dev/zero of=/dirty bs=1M count=16 conv=notrunc 2>/dev/null")
                console.dirty_stop()
                one.set_migration_parameters({"downtime-limit": 2000, "max-bandwidth": 1 << 40})
                reach(one, "postmigrate")
            two.wait_incoming(timeout=60)
            two.cont()
            beat = console.view.beat
            console.wait_until(lambda view, beat=beat: view.beat > beat + 10)  # type: ignore[misc]
            zeros = console.run("tr -d '\\0' </dirty | wc -c").strip() == "0"
            assert zeros is kept


def test_without_multifd_or_its_own_place_a_feature_has_no_effect(tmp_path: Path) -> None:
    """Of what QEMU takes and the table calls useless."""
    with labs(OLD, OLD, tmp_path / "old") as (here, there):
        both = way(frozenset({Feature.MULTIFD, Feature.XBZRLE}), Transport.UNIX)
        assert outcome(here, there, both) == "arrives"
        assert here.vm.execute("query-migrate")["xbzrle-cache"]["pages"] == 0


def test_over_vsock(tmp_path: Path) -> None:
    """Where the kernel has a loopback for it."""
    with socket.socket(socket.AF_VSOCK) as listener, socket.socket(socket.AF_VSOCK) as caller:
        listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listener.listen()
        caller.settimeout(1)
        port = listener.getsockname()[1]
        try:
            caller.connect((1, port))
        except OSError as error:
            pytest.skip(f"no vsock loopback: {error}")
    with labs(OLD, NEW, tmp_path) as (here, there):
        for each, side in ((here, Side.SOURCE), (there, Side.TARGET)):
            prepare(each.vm, way(frozenset(), Transport.VSOCK), side, each.folder)
        there.vm.migrate_incoming(f"vsock:{socket.VMADDR_CID_ANY}:{port}")
        here.vm.migrate(f"vsock:1:{port}")
        reach(here.vm, "postmigrate")
        reach(there.vm, "paused")
