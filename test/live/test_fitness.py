"""Whether an instance that runs elsewhere could run here: with real QEMUs of both versions."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from drover.errors import BinaryError, Blocker
from drover.kvm import cpu, faults, fitness
from drover.kvm.cpu import probe_cpu
from drover.kvm.host import Host
from drover.kvm.parcel import Parcel
from drover.kvm.record import Document, Passage
from drover.kvm.spec import CpuSpec, completed, parse
from instances import VERSIONS, bare, temporary_node
from machines import qemu_of


@pytest.fixture
def host() -> Iterator[Host]:
    with temporary_node() as node:
        yield node.host


def parcel(version: str, machine: str = "pc-q35-7.2", **more: Any) -> Parcel:
    spec = completed(parse(bare(version) | more))
    return Parcel(spec=spec, machine=machine, version=(7, 2, 0), accelerator="tcg", generation=1)


def lacks(host: Host, wanted: Parcel, **more: Any) -> dict[str, Blocker]:
    found = fitness.fitness(host, wanted, **more).blockers
    assert all(each.what and each.why and each.remedy for each in found)
    return {each.code: each for each in found}


@pytest.mark.parametrize("version", VERSIONS)
def test_it_fits(host: Host, version: str) -> None:
    found = fitness.fitness(host, parcel(version))
    assert found.blockers == ()
    assert found.version is not None
    assert (found.version[0], found.accelerator) == (int(version.partition(".")[0]), "tcg")
    assert found.cpu is not None
    assert (found.cpu.model, "sha-ni" in found.cpu.flags) == ("max", version == "10.0")


def test_its_qemu(host: Host) -> None:
    assert lacks(host, parcel("7.2", emulator="/nowhere/qemu")).keys() == {"emulator"}
    found = lacks(host, parcel("7.2", machine="pc-q35-10.0"))
    assert found.keys() == {"machine-type"}
    assert "has no pc-q35-10.0" in found["machine-type"].why
    assert lacks(host, parcel("7.2", acceleration="kvm")).keys() <= {"acceleration"}


def test_its_devices(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that the QEMU lacks, and none that the machine has not."""
    binary = host.binary(str(qemu_of("10.0")))
    poor = structs.replace(
        binary, devices=binary.devices - {"virtio-rng-pci", "virtio-balloon-pci", "e1000"},
        commands=binary.commands - {"query-spice", "query-vnc"},
    )  # fmt: skip
    monkeypatch.setattr(host, "binary", lambda emulator: poor)
    found = {(each.code, each.what) for each in fitness.fitness(host, parcel("10.0", spice={})).blockers}
    assert found == {("device", name) for name in ("virtio-rng-pci", "virtio-balloon-pci", "spice")}


@pytest.mark.parametrize("version", VERSIONS)
def test_its_cpu(host: Host, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of a QEMU once."""
    binary = host.binary(str(qemu_of(version)))
    asked = binary, "pc-q35-7.2", "tcg", CpuSpec(model="qemu64", features={"avx2": True}), host.paths.cache
    found = probe_cpu(*asked, "boot")
    assert {"sse2", "avx2"} <= found.flags
    with pytest.raises(BinaryError):
        probe_cpu(binary, "pc-q35-7.2", "tcg", CpuSpec(model="none"), host.paths.cache, "boot")
    assert lacks(host, parcel(version, cpu={"model": "none"})).keys() == {"cpu-model"}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it was asked again")

    monkeypatch.setattr(cpu, "Trial", refuse)
    assert probe_cpu(*asked, "boot") == found
    with pytest.raises(AssertionError, match="asked again"):  # after another boot the host may do other things
        probe_cpu(*asked, "another boot")
    with pytest.raises(AssertionError, match="asked again"):
        probe_cpu(structs.replace(binary, key="another"), *asked[1:], "boot")


def test_its_memory(host: Host) -> None:
    assert lacks(host, parcel("10.0", memory={"size": 1 << 50})).keys() == {"memory"}
    found = lacks(host, parcel("10.0", memory={"size": 1 << 50, "hugepages": "1GiB"}))
    assert found.keys() == {"hugepages"}
    assert "in pages of 1GiB" in found["hugepages"].why


def test_its_name(host: Host) -> None:
    with temporary_node() as node:
        vm = node.create(parse(bare("10.0")))
        wanted = parcel("10.0")
        assert "there is an instance vm there, another one" in lacks(node.host, wanted)["name"].why
        mine = structs.replace(wanted, spec=vm.show().document.spec)
        assert "there is an instance vm there, the same" in lacks(node.host, mine)["name"].why
        document = Document(spec=mine.spec, passage=Passage(way="gone", epoch=1, other="a"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fitness, "load", lambda path: document)
            assert lacks(node.host, mine) == {}  # it comes back
        node.host.paths.instance("vm").document.write_text("{")
        assert "cannot be read" in lacks(node.host, wanted)["name"].why
        shutil.rmtree(node.host.paths.instance("vm").state)


def test_its_firmware(host: Host, tmp_path: Path) -> None:
    for name in ("code", "vars"):
        (tmp_path / name).write_bytes(bytes(len(name)))
    paths = {"code": str(tmp_path / "code"), "vars_template": str(tmp_path / "vars")}
    wanted = parcel("10.0", firmware={"type": "uefi"} | paths)
    assert fitness.fitness(host, wanted).firmware == (4, 4)
    (tmp_path / "vars").unlink()
    assert lacks(host, wanted).keys() == {"path"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drover.kvm.firmware.FOLDERS", ())
        patch.setattr(fitness.find_firmware, "__defaults__", ((), "x86_64"))
        assert lacks(host, parcel("10.0", firmware={"type": "uefi"})).keys() == {"firmware"}


@pytest.mark.parametrize("version", VERSIONS)
def test_faults_of_its_memory(host: Host, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which only postcopy wants."""
    device = tmp_path / "userfaultfd"
    monkeypatch.setattr(faults, "DEVICE", str(device))
    (tmp_path / "knob").write_text("0\n")
    monkeypatch.setattr(faults, "_ANYBODY", tmp_path / "knob")
    assert lacks(host, parcel(version)) == {}
    found = lacks(host, parcel(version), postcopy=True)
    assert "vm.unprivileged_userfaultfd=1" in found["userfaultfd"].remedy
    device.touch()
    assert lacks(host, parcel(version), postcopy=True).keys() == ({"userfaultfd"} if version == "7.2" else set())


def test_no_secret_is_told(host: Host) -> None:
    wanted = parcel("10.0", vnc={"password": "hidden1"}, spice={"password": "hidden2"},
                    cloud_init={"user_data": "hidden3"}, smbios={"oem_strings": ["hidden4"]})  # fmt: skip
    told = fitness.unsecret(wanted)
    assert "hidden" not in str([told.spec.cloud_init, told.spec.smbios])
    for screen in (told.spec.vnc, told.spec.spice):
        assert screen is not None
        assert screen.password is None
    assert lacks(host, told) == {}
