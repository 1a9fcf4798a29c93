"""Real machines for the live tests: one of each kind, booted once, shared by the tests that leave it as it was."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from drover import QmpConnection
from drover.kvm.node import Node
from drover.testing.machine import Machine
from faces import FACES, Face
from instances import VERSIONS, temporary_node
from machines import qemu_of
from noded import Noded, running
from pairs import Pair, faults_by_anybody, two_nodes

KINDS = ["7.2-q35", "7.2-pc", "10.0-q35", "10.0-pc"]
# Every kind of machine, every face, each version on each face; the flows are the same ones.
PAIRS = [(kind, "blocking") for kind in KINDS] + [("7.2-pc", "asyncio"), ("10.0-q35", "asyncio")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take a booted machine run on each kind, those that take a face on each pair."""
    marker = metafunc.definition.get_closest_marker("machines")
    wanted = marker.args if marker else ("q35", "pc")
    if "booted" not in metafunc.fixturenames:
        return
    if "face" in metafunc.fixturenames:
        pairs = [pair for pair in PAIRS if pair[0].endswith(wanted)]
        metafunc.parametrize(("booted", "face"), pairs, indirect=True)
    else:
        metafunc.parametrize("booted", [kind for kind in KINDS if kind.endswith(wanted)], indirect=True)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two nodes with one network, between which machines move."""
    with two_nodes(tmp_path) as pair:
        yield pair


@pytest.fixture(scope="session")
def shared_machines() -> Iterator[dict[str, Machine]]:
    """Started together: the last ones boot while the first ones are tested."""
    with ExitStack() as stack:
        machines: dict[str, Machine] = {}
        for name in KINDS:
            bridges = 1 if name.endswith("pc") else 0
            options = {"scsi": True, "bridges": bridges, "smp": "2,maxcpus=4"}
            machine = Machine(qemu=qemu_of(name), machine=name.split("-")[1], name=name, **options)
            machines[name] = stack.enter_context(machine)
        yield machines


@pytest.fixture
def booted(request: pytest.FixtureRequest, shared_machines: dict[str, Machine]) -> Iterator[Machine]:
    """A machine with its guest ready; between two tests it stands still, for emulated it takes a fifth of a CPU."""
    machine = shared_machines[request.param]
    with QmpConnection(machine.qmp) as vm:
        vm.cont()
    machine.wait_ready()
    yield machine
    with QmpConnection(machine.qmp) as vm:
        vm.stop()


@pytest.fixture
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    """A face of a QMP monitor."""
    face = FACES[request.param]()
    yield face
    face.close()


@pytest.fixture(params=KINDS)
def firmware(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine of its own, of each kind, whose guest does not run yet."""
    machine = request.param.split("-")[1]
    with Machine(qemu=qemu_of(request.param), machine=machine, scsi=True, paused=True, name=request.param) as found:
        yield found


# -- instances -----------------------------------------------------------------------------------------------------


@pytest.fixture
def node() -> Iterator[Node]:
    """A node of one's own."""
    with temporary_node() as node:
        yield node


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Of QEMU."""
    found: str = request.param
    return found


@pytest.fixture
def noded(node: Node, tmp_path: Path) -> Iterator[Noded]:
    """Its daemon."""
    with running(node.host.paths, tmp_path / "log") as daemon:
        yield daemon


@pytest.fixture(name="faults_by_anybody")
def faults_caught_by_anybody() -> Iterator[None]:
    """As a target of 7.2 wants it for a postcopy."""
    with faults_by_anybody():
        yield
