"""What is asked of the other node before a migration, and how its clock is told from ours."""

import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from msgspec import json, structs, to_builtins

from drover.kvm.copying import locked_by_others
from drover.kvm.fitness import Fitness
from drover.kvm.parcel import Parcel
from drover.kvm.spec import completed, parse
from drover.migration.checks import Need, There
from drover.migration.storage import DiskImage
from drover.node.checking import Asking, ask
from drover.node.client import Daemon
from drover.node.kept import Kept


class OtherNode(Daemon):
    """One that has all, and a clock that may be wrong."""

    def __init__(self, ahead: float = 0.0) -> None:
        super().__init__(Path("/nowhere"))
        self._ahead = ahead
        self.asked: Any = None

    def exchange(self, connection: HTTPConnection, method: str, path: str, body: Any = None, *_: Any) -> Any:
        """The one call that is made."""
        assert (method, path) == ("POST", "/v1/migration-check")
        self.asked = json.decode(json.encode(body), type=Asking)
        for place in self.asked.marks.items():
            with open(place[0], "rb") as file:
                assert locked_by_others(file.fileno(), place[1])
        there = There(node="b", boot_id="x", fit=Fitness(version=(10, 0, 2)), now=time.time() + self._ahead)
        return to_builtins(there)


def need(**more: Any) -> Need:
    spec = completed(parse({"name": "vm", "vnc": {"password": "hidden"}}))
    parcel = Parcel(spec=spec, machine="pc-q35-7.2", version=(10, 0, 2), accelerator="tcg", generation=1)
    return Need(parcel=parcel, **more)


def test_what_is_asked() -> None:
    """Nothing secret, and of the QEMU that is to be there."""
    node = OtherNode()
    found = ask(node, need(), Kept(), emulator="/usr/bin/qemu", postcopy=True)
    assert (found.node, found.fit.version, found.ahead) == ("b", (10, 0, 2), 0.0)
    assert node.asked.parcel.spec.emulator == "/usr/bin/qemu"
    assert node.asked.postcopy
    assert "hidden" not in str(json.encode(node.asked))
    ask(node, need(), Kept(), emulator="", postcopy=False)
    assert node.asked.parcel.spec.emulator == "qemu-system-x86_64"


def test_images_are_marked_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    image = DiskImage(disk="d", depth=0, node="n", path=str(path), inode=(1, 2), format="raw", size=0, length=0,
                      allocated=0, still=False)  # fmt: skip
    node = OtherNode()
    elsewhere = structs.replace(image, path="nbd+unix:///x?socket=/s", local=True)
    ask(node, need(images=(image, elsewhere)), Kept(), emulator="", postcopy=False)
    assert node.asked.marks.keys() == {str(path)}
    with path.open("rb") as file:
        assert not locked_by_others(file.fileno(), node.asked.marks[str(path)])


@pytest.mark.parametrize("ahead", [-100.0, 100.0])
def test_a_clock_that_is_wrong(ahead: float) -> None:
    """What the call took is no fault of the clock's."""
    found = ask(OtherNode(ahead), need(), Kept(), emulator="", postcopy=False)
    assert 99.0 < abs(found.ahead) <= 100.0
    assert found.ahead * ahead > 0
