"""The command line: the very words, for each specification of test/data/argv, and what must hold for all of them.

With ``DROVER_UPDATE_ARGV=1`` in the environment the files are written anew; what changed is for you to look at.
"""

import json
import os
import re
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from argv_cases import CASES, FOLDER, VERSIONS, Case
from drover.errors import ArgumentError, NotSupported
from drover.kvm.argv import Given, build
from drover.kvm.argv.disks import disk_needs
from drover.kvm.parcel import Board, Stick, Vcpu
from drover.kvm.spec import parse
from drover.ops.chain import Layer

BY_NAME = {case.name: case for case in CASES}
UPDATE = "DROVER_UPDATE_ARGV"
LINES = [(case, version) for case in CASES for version in VERSIONS]
EACH = pytest.mark.parametrize(("case", "version"), LINES, ids=[f"{case.name}-{version}" for case, version in LINES])
# Devices that are on no PCI bus.
NOT_PCI = re.compile(r"isa-serial|virtserialport|scsi-|ide-|usb-|tpm-|pvpanic")


def launch(document, **given):
    return build(parse({"name": "vm"} | document), Given(**DEFAULT | given))


DEFAULT = {"machine": "pc-q35-7.2", "accelerator": "tcg", "private": Path("/run/vm")}
DISK = {"source": "/d", "format": "raw"}


def options(words, option):
    """All values of an option, parsed where they are JSON."""
    values = [word for before, word in pairwise(words) if before == option]
    return [json.loads(value) if value.startswith("{") else value for value in values]


def device(words, id):
    return next(each for each in options(words, "-device") if each.get("id") == id)


# -- the files --------------------------------------------------------------------------------------


@EACH
def test_words(case: Case, version: str):
    words = "".join(f"{word}\n" for word in build(case.spec, case.given(version)).words)
    file = case.argv_file(version)
    if os.environ.get(UPDATE):
        file.write_text(words, encoding="utf-8")
    assert file.exists(), f"{file.name} is missing: run this test once with {UPDATE}=1"
    assert words == file.read_text(encoding="utf-8")


def test_there_are_no_other_files():
    expected = {case.argv_file(version) for case in CASES for version in VERSIONS}
    assert expected | {FOLDER / f"{case.name}.toml" for case in CASES} == set(FOLDER.iterdir())


def test_every_field_is_in_one_of_the_files():
    said: dict[type, set[str]] = {}
    for case in CASES:
        collect(case.spec, said)
    missing = {
        f"{kind.__name__}.{field.name}"
        for kind, names in said.items()
        for field in msgspec.structs.fields(kind)
        if field.name not in names
    }
    assert missing == set()


def collect(value, said):
    """Note which fields of which structures have something other than their default."""
    for field in msgspec.structs.fields(value):
        given = getattr(value, field.name)
        names = said.setdefault(type(value), set())
        default = (
            field.default_factory() if field.default is msgspec.NODEFAULT and not field.required else field.default
        )
        if given != default:
            names.add(field.name)
        for each in given if isinstance(given, tuple) else (given,):
            if isinstance(each, msgspec.Struct):
                collect(each, said)


# -- what holds for all -----------------------------------------------------------------------------


@EACH
def test_every_pci_address_is_said_and_said_once(case: Case, version: str):
    words = build(case.spec, case.given(version)).words
    places = [(each["bus"], each["addr"]) for each in options(words, "-device") if not NOT_PCI.match(each["driver"])]
    assert len(places) == len(set(places))
    for bus, addr in places:
        assert re.fullmatch(r"[0-9a-f]{2}\.[0-7]", addr), f"{addr} on {bus}"


@EACH
def test_all_ids_differ_and_buses_come_before_what_is_on_them(case: Case, version: str):
    words = build(case.spec, case.given(version)).words
    seen = {"pcie.0", "pci.0", *(f"ide.{n}" for n in range(6))}
    for each in options(words, "-device"):
        assert each["id"] not in seen
        bus = each.get("bus", "pci.0")
        assert bus in seen or bus.rpartition(".")[0] in seen, f"{each['id']} is on {bus}"
        seen.add(each["id"])
    for option, key in (("-blockdev", "node-name"), ("-object", "id")):
        names = [each[key] for each in options(words, option)]
        assert len(names) == len(set(names))


@EACH
def test_descriptors(case: Case, version: str):
    made = build(case.spec, case.given(version))
    named = [name for word in made.words for name in re.findall(r"\{fd:([^}]+)\}", word)]
    assert list(dict.fromkeys(name for name in named if name in made.fds)) == list(made.fds)
    assert set(made.fds) >= {name for need in made.disks for name in need.fds}
    paths = set(re.findall(r"/dev/fdset/(\d+)", " ".join(made.words)))
    assert paths == {re.search(r"set=(\d+)", word)[1] for word in options(made.words, "-add-fd")}
    resolved = made.resolve({name: number for number, name in enumerate(made.fds, 100)})
    assert not any(f"{{fd:{name}}}" in word for word in resolved for name in made.fds if name != "control")


@EACH
def test_the_same_comes_out_again(case: Case, version: str):
    first = build(case.spec, case.given(version))
    assert build(case.spec, case.given(version)) == first
    kept = {each.id: (each.bus, each.addr) for each in first.devices}
    assert build(case.spec, case.given(version, places=kept)).words == first.words


@EACH
def test_no_password_is_in_it(case: Case, version: str):
    assert "geheim" not in " ".join(build(case.spec, case.given(version)).words)


# -- descriptors ------------------------------------------------------------------------------------


def test_a_descriptor_that_is_missing():
    made = launch({"disks": [DISK]})
    numbers = {name: 7 for name in made.fds if name != "disk.disk0"}
    with pytest.raises(ArgumentError, match="missing: disk.disk0"):
        made.resolve(numbers)


def test_a_text_that_only_looks_like_a_descriptor():
    boot = {"kernel": "/k", "cmdline": "x={fd:disk.other}"}
    made = launch({"boot": boot})
    assert "x={fd:disk.other}" in made.resolve(dict.fromkeys(made.fds, 7))


def test_images_with_what_they_stand_on():
    backing = [{"source": "/m", "format": "qcow2"}, {"source": "/b", "format": "raw"}]
    disks = [
        {"id": "a", "source": "/t", "format": "qcow2", "backing": backing, "cache": "writeback"},
        {"kind": "cdrom"},
    ]
    spec = parse({"name": "vm", "disks": [*disks, {"id": "n", "source": "nbd://h/x", "format": "raw"}]})
    (need,) = disk_needs(spec)
    assert need.fds == ("disk.a", "disk.a.1", "disk.a.2")
    assert need.layers == (Layer("/t", "qcow2"), Layer("/m", "qcow2"), Layer("/b", "raw"))
    assert (need.read_only, need.cache) == (False, "writeback")
    assert build(spec, Given(**DEFAULT)).disks == (need,)


# -- places -----------------------------------------------------------------------------------------


def test_what_can_be_unplugged_has_a_root_port_and_others_stay_free():
    made = launch({"disks": [DISK, DISK], "nics": [{}], "machine": {"root_ports": 3}})
    assert [(each.id, each.kind, each.bus) for each in made.devices] == [
        ("nic0", "nic", "rp0"),
        ("disk0", "disk", "rp1"),
        ("disk1", "disk", "rp2"),
    ]
    ports = [each for each in options(made.words, "-device") if each["driver"] == "pcie-root-port"]
    assert [port["chassis"] for port in ports] == [1, 2, 3, 4, 5, 6]
    assert [port["addr"] for port in ports if port.get("multifunction")] == ["02.0"]


def test_what_was_somewhere_stays_there_when_another_one_goes():
    first = launch({"disks": [DISK | {"id": "a"}, DISK | {"id": "b"}]})
    kept = {each.id: (each.bus, each.addr) for each in first.devices}
    then = launch({"disks": [DISK | {"id": "c"}, DISK | {"id": "b"}]}, places=kept)
    assert device(then.words, "b")["bus"] == device(first.words, "b")["bus"] == "rp1"
    assert device(then.words, "c")["bus"] == "rp0"


def test_a_place_that_is_not_there_any_more_is_forgotten():
    bridge = {"disk0": ("br1", "05.0")}
    assert device(launch({"disks": [DISK]}, places=bridge).words, "disk0")["bus"] == "rp0"
    assert device(launch({"disks": [DISK], "machine": {"bridges": 2}}, places=bridge).words, "disk0")["bus"] == "br1"
    odd = {"disk0": ("rp999", "00.0")}
    assert device(launch({"disks": [DISK]}, places=odd).words, "disk0")["bus"] == "rp0"
    scsi = {"disk0": ("scsi0.0", "3:0")}
    assert device(launch({"disks": [DISK]}, places=scsi).words, "disk0")["bus"] == "rp0"


def test_a_pc_that_is_full():
    disks = [DISK] * 30
    with pytest.raises(ArgumentError, match="no PCI slot is left for disk"):
        launch({"disks": disks, "machine": {"type": "pc"}}, machine="pc-i440fx-7.2")
    made = launch({"disks": disks, "machine": {"type": "pc", "bridges": 1}}, machine="pc-i440fx-7.2")
    assert made.devices[-1].bus == "br0"


def test_a_q35_that_is_full():
    assert len(launch({"disks": [DISK] * 64, "machine": {"root_ports": 48}}).devices) == 64
    with pytest.raises(ArgumentError, match=r"machine.root_ports: 113 is not allowed"):
        launch({"disks": [DISK] * 65, "machine": {"root_ports": 48}})


def test_scsi_disks_get_targets_that_are_free():
    scsi = DISK | {"bus": "virtio-scsi"}
    kept = {"disk1": ("scsi0.0", "0:0"), "disk2": ("scsi0.0", "9:0")}
    made = launch({"disks": [scsi] * 4}, places=kept)
    assert [(each.id, each.addr) for each in made.devices] == [
        ("disk0", "1:0"),
        ("disk1", "0:0"),
        ("disk2", "9:0"),
        ("disk3", "2:0"),
    ]


def test_sata_disks_stay_on_their_ports():
    cds = [{"kind": "cdrom", "id": name} for name in "abc"]
    first = launch({"disks": cds})
    assert [each.bus for each in first.devices] == ["ide.0", "ide.1", "ide.2"]
    kept = {each.id: (each.bus, each.addr) for each in first.devices}
    then = launch({"disks": [{"kind": "cdrom", "id": "d"}, cds[2], {"kind": "cdrom", "id": "e"}]}, places=kept)
    assert [each.bus for each in then.devices] == ["ide.0", "ide.2", "ide.1"]


# -- the QEMU ---------------------------------------------------------------------------------------


class Poor:
    def has_device(self, name):
        return name != "virtio-rng-pci"


def test_a_device_that_this_qemu_lacks():
    spec = parse({"name": "vm"})
    with pytest.raises(NotSupported, match="virtio-rng-pci"):
        build(spec, Given(**DEFAULT), Poor())
    build(parse({"name": "vm", "rng": False}), Given(**DEFAULT), Poor())


# -- a machine that arrives ---------------------------------------------------------------------------


def test_it_has_what_it_was_booted_with_and_what_came_since():
    """And not what follows from its specification, which has grown."""
    board = Board(
        vcpus=1,
        memory=256 << 20,
        root_ports=7,
        scsi={"scsi0": "", "scsi1": "fast"},
        usb=True,
        plugged_vcpus=(Vcpu(id="cpu1", driver="max-x86_64-cpu", place={"socket-id": 0, "core-id": 1}),),
        sticks=(
            Stick(id="dimm0", kind="dimm", size=128 << 20, used=128 << 20, at=1 << 32, slot=3),
            Stick(id="vmem0", kind="virtio-mem", size=256 << 20, used=64 << 20, at=5 << 30, bus="rp5", addr="00.0"),
        ),
    )
    document = {"memory": {"size": 448 << 20, "max": 1 << 30, "slots": 4}, "cpu": {"count": 2, "max": 3}}
    usb = {"usb": [{"type": "mouse", "id": "m"}, {"type": "keyboard", "id": "k"}]}
    plan = launch(document | usb, incoming=True, board=board, places={"m": ("xhci.0", "2")})
    words = plan.words
    assert options(words, "-m") == [f"size={256 << 20}B,slots=4,maxmem={1 << 30}B"]
    assert options(words, "-smp")[0].startswith("cpus=1,maxcpus=3,")
    assert sum(each["driver"] == "pcie-root-port" for each in options(words, "-device") if isinstance(each, dict)) == 7
    assert device(words, "scsi1")["iothread"] == "fast"
    assert {each["id"] for each in options(words, "-object")} >= {"fast", "dimm0-mem", "vmem0-mem", "ram"}
    assert device(words, "cpu1") == {"driver": "max-x86_64-cpu", "id": "cpu1", "socket-id": 0, "core-id": 1}
    assert device(words, "dimm0") | {"memdev": "dimm0-mem", "slot": 3, "addr": 1 << 32} == device(words, "dimm0")
    assert device(words, "vmem0") | {"bus": "rp5", "memaddr": 5 << 30} == device(words, "vmem0")
    assert (device(words, "m")["port"], device(words, "k")["port"]) == ("2", "1")
    sizes = {built.id: built.size for built in plan.devices if built.kind == "memory"}
    assert sizes == {"dimm0": 128 << 20, "vmem0": 64 << 20}
    assert "cpu1" in {built.id for built in plan.devices if built.kind == "cpu"}


def test_a_controller_stays_though_nothing_is_left_on_it():
    board = Board(vcpus=1, memory=512 << 20, root_ports=2, usb=True)
    words = launch({"machine": {"scsi_controllers": 2}}, board=board).words
    ids = {each["id"] for each in options(words, "-device") if isinstance(each, dict)}
    assert "xhci" in ids
    assert not ids & {"scsi0", "scsi1"}
