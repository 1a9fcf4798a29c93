"""The specification: what is read, what is refused, and that all that is wrong is told at once."""

import pytest

from drover.errors import ArgumentError, SpecError
from drover.kvm.spec import Spec, completed, dump, load, parse

WHOLE = """
name = "web1"
[memory]
size = "1GiB"
max = "2GiB"
slots = 2
[cpu]
count = 2
max = 4
pinning = ["0-1", "3"]
[[disks]]
id = "root"
source = "/srv/web1.qcow2"
format = "qcow2"
boot_index = 0
[[nics]]
id = "net0"
mode = "bridge"
link = "br0"
queues = 2
"""


def problems(**fields: object) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse({"name": "vm"} | fields)
    return {problem.path: problem.text for problem in caught.value.problems}


def test_whole() -> None:
    spec = load(WHOLE, "toml")
    assert (spec.memory.size, spec.memory.max) == (1 << 30, 2 << 30)
    assert spec.disks[0].format == "qcow2"
    assert load(dump(spec).decode(), "json") == spec


def test_completed() -> None:
    spec = completed(load(WHOLE, "toml"))
    assert len(spec.uuid) == 36
    assert spec.nics[0].mac.startswith("52:54:00:")
    assert completed(spec) == spec


def test_everything_that_is_wrong_is_told() -> None:
    disk = {"id": "d", "source": "/d", "format": "raw"}
    found = problems(
        colour="red",
        cpu={"count": "two"},
        memory={"size": "many"},
        disks=[disk | {"cahce": "none"}, "no disk", {"id": "x"}],
        nics={"id": "n"},
    )
    assert "did you mean" not in found["colour"]
    assert found["disks[0].cahce"].endswith("did you mean cache?")
    assert found["cpu.count"] == "Expected `int`, got `str`"
    assert "no size" in found["memory.size"]
    assert found["disks[1]"] == "Expected `object`, got `str`"
    assert "`source`" in found["disks[2]"]
    assert "array" in found["nics"]


@pytest.mark.parametrize(
    ("fields", "path", "text"),
    [
        ({"name": "a b"}, "name", "'a b'"),
        ({"uuid": "1"}, "uuid", "no UUID"),
        ({"acceleration": "fast"}, "acceleration", "'fast' is not one of auto, kvm, tcg"),
        ({"machine": {"root_ports": 65}}, "machine.root_ports", "64"),
        ({"boot": {"initrd": "/i"}}, "boot.initrd", "kernel"),
        ({"boot": {"cmdline": "x"}}, "boot.cmdline", "kernel"),
        ({"cpu": {"count": 0}}, "cpu.count", "at least 1"),
        ({"cpu": {"count": 4, "max": 2}}, "cpu.max", "less than"),
        ({"cpu": {"sockets": 2}}, "cpu.sockets", "together"),
        ({"cpu": {"count": 4, "sockets": 1, "cores": 1, "threads": 2}}, "cpu.sockets", "4"),
        ({"cpu": {"pinning": ["all"]}}, "cpu.pinning[0]", "'0-3,8'"),
        ({"memory": {"size": 1000}}, "memory.size", "1 MiB"),
        ({"memory": {"size": 2 << 20, "max": 1 << 20}}, "memory.max", "less"),
        ({"memory": {"max": 1 << 40}}, "memory.slots", "each other"),
        ({"memory": {"slots": 1}}, "memory.slots", "each other"),
    ],
)
def test_what_is_refused(fields: dict[str, object], path: str, text: str) -> None:
    assert text in problems(**fields)[path]


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("id", "0x", "letter"),
        ("id", "a" * 27, "26"),
        ("source", "relative", "absolute"),
        ("format", "vmdk", "raw, qcow2"),
        ("bus", "floppy", "virtio-blk, virtio-scsi"),
        ("cache", "fast", "none, writeback"),
        ("aio", "posix", "threads, native, io_uring"),
        ("discard", "x", "unmap, ignore"),
        ("detect_zeroes", "x", "off, on, unmap"),
        ("serial", "s" * 21, "20"),
        ("boot_index", -1, "negative"),
        ("werror", "x", "report, ignore, stop, enospc"),
        ("rerror", "enospc", "report, ignore, stop"),
    ],
)
def test_disks_that_are_refused(field: str, value: object, text: str) -> None:
    disk = {"id": "d", "source": "/d", "format": "raw"}
    assert text in problems(disks=[disk | {"id": "other"}, disk | {field: value}])[f"disks[1].{field}"]


def test_native_needs_direct() -> None:
    disk = {"id": "d", "source": "/d", "format": "raw", "aio": "native", "cache": "writeback"}
    assert "O_DIRECT" in problems(disks=[disk])["disks[0].aio"]


@pytest.mark.parametrize(
    ("nic", "field", "text"),
    [
        ({"mode": "wifi"}, "mode", "user, bridge"),
        ({"mode": "bridge"}, "link", "bridge's name"),
        ({"link": "br0"}, "link", "no other mode"),
        ({"mac": "x"}, "mac", "six octets"),
        ({"mac": "01:00:00:00:00:00"}, "mac", "multicast"),
        ({"queues": 2}, "queues", "1 to 1"),
        ({"mode": "bridge", "link": "b", "model": "e1000", "queues": 2}, "queues", "1 to 1"),
        ({"model": "ne2k"}, "model", "virtio-net-pci"),
    ],
)
def test_nics_that_are_refused(nic: dict[str, object], field: str, text: str) -> None:
    assert text in problems(nics=[{"id": "n"} | nic])[f"nics[0].{field}"]


def test_what_must_differ() -> None:
    disk = {"id": "d", "source": "/d", "format": "raw", "boot_index": 1}
    nic = {"id": "d", "mac": "52:54:00:00:00:01"}
    found = problems(disks=[disk, disk], nics=[nic, nic | {"id": "e"}])
    assert "disks[0]" in found["disks[1].id"]
    assert "disks[0]" in found["disks[1].boot_index"]
    assert "disks[0]" in found["nics[0].id"]
    assert "nics[0]" in found["nics[1].mac"]


@pytest.mark.parametrize(("text", "format"), [("name = ", "toml"), ("{", "json"), ("[]", "json"), ("{}", "json")])
def test_no_document(text: str, format: str) -> None:
    with pytest.raises(SpecError):
        load(text, format)


def test_format() -> None:
    with pytest.raises(ArgumentError, match="toml or json"):
        load("", "xml")


def test_defaults() -> None:
    assert parse({"name": "vm"}) == Spec(name="vm")
