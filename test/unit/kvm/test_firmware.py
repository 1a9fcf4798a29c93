"""Which firmware is taken, of those that a host describes."""

import json

import pytest

from drover.errors import NotSupported
from drover.kvm.firmware import Firmware, find_firmware
from drover.kvm.spec import FirmwareSpec

Q35, PC = "pc-q35-10.0", "pc-i440fx-10.0"
UEFI = FirmwareSpec(type="uefi")
SECURE = FirmwareSpec(type="uefi", secure_boot=True)
KEYS = ["secure-boot", "requires-smm", "enrolled-keys"]


def describe(folder, name, *features, machines=("pc-q35-*", "pc-i440fx-*"), mapping=None, **other):
    folder.mkdir(exist_ok=True)
    files = {"executable": {"filename": f"/{name}.code", "format": "raw"}}
    files["nvram-template"] = {"filename": f"/{name}.vars", "format": "raw"}
    document = {
        "description": name,
        "interface-types": ["uefi"],
        "mapping": {"device": "flash", **files} | (mapping or {}),
        "targets": [{"architecture": "x86_64", "machines": list(machines)}],
        "features": list(features),
        "tags": [],
    }
    (folder / f"{name}.json").write_text(json.dumps(document | other))


def find(spec, machine, *folders):
    return find_firmware(spec, machine, folders, "x86_64").code


def test_the_first_that_fits(tmp_path):
    describe(tmp_path, "10-secure", *KEYS, machines=["pc-q35-*"])
    describe(tmp_path, "20-smm", "requires-smm", "secure-boot")
    describe(tmp_path, "30-arm", machines=["virt-*"])
    describe(tmp_path, "40-plain", "verbose-dynamic")
    describe(tmp_path, "50-later")
    assert find(UEFI, Q35, tmp_path) == find(UEFI, PC, tmp_path) == "/40-plain.code"
    assert find(SECURE, Q35, tmp_path) == "/10-secure.code"
    with pytest.raises(NotSupported, match="UEFI with secure boot for pc-i440fx-10.0 is not supported by this host"):
        find(SECURE, PC, tmp_path)


@pytest.mark.parametrize(
    "mapping",
    [
        {"device": "memory", "filename": "/x"},
        {"mode": "combined", "nvram-template": None},
        {"mode": "stateless"},
        {"executable": {"filename": "/x", "format": "qcow2"}},
    ],
)
def test_kinds_that_are_passed_over(tmp_path, mapping):
    describe(tmp_path, "10-odd", mapping=mapping)
    describe(tmp_path, "20-plain")
    assert find(UEFI, Q35, tmp_path) == "/20-plain.code"


def test_the_administrator_hides_what_packages_bring(tmp_path):
    etc, usr = tmp_path / "etc", tmp_path / "usr"
    describe(usr, "10-a")
    describe(usr, "20-b")
    describe(etc, "10-a", machines=["other"])
    assert find(UEFI, Q35, etc, usr) == "/20-b.code"
    (etc / "20-b.json").write_text("")
    with pytest.raises(NotSupported, match="ovmf"):
        find(UEFI, Q35, etc, usr, tmp_path / "absent")


def test_what_is_said_is_taken():
    spec = FirmwareSpec(type="uefi", code="/c", vars_template="/v")
    assert find_firmware(spec, Q35, ()) == Firmware(code="/c", vars_template="/v")


def test_what_this_distribution_describes():
    """Those of Debian's ovmf, which the live tests start."""
    assert find_firmware(UEFI, Q35).code.startswith("/usr/share/")
    assert find_firmware(SECURE, Q35).code != find_firmware(UEFI, Q35).code
