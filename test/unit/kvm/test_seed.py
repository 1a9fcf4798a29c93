"""The disk for cloud-init: what is on it, and that it is found."""

import json
import subprocess
from io import BytesIO

from pycdlib import PyCdlib

from drover.kvm.seed import seed_image
from drover.kvm.spec import parse

UUID = "3f0b1c9e-52d7-4c1e-9a55-0d6c1f1e8a01"


def read(image, kind="rr_path"):
    iso = PyCdlib()
    iso.open_fp(BytesIO(image))
    found = {}
    for child in iso.list_children(**{kind: "/"}):
        name = child.rock_ridge.name().decode() if kind == "rr_path" else child.file_identifier().decode("utf-16-be")
        if child.is_file():
            out = BytesIO()
            iso.get_file_from_iso_fp(out, **{kind: f"/{name}"})
            found[name] = out.getvalue().decode()
    iso.close()
    return found


def seed(**said):
    return seed_image(parse({"name": "web1", "uuid": UUID, "cloud_init": said}))


def test_all_of_it():
    said = {
        "user_data": "#cloud-config\npassword: „geheim“\n",
        "meta_data": "instance-id: x\n",
        "network_config": "version: 2\n",
        "vendor_data": "#cloud-config\n" + "# long\n" * 10_000,
    }
    image = seed(**said)
    expected = {name.replace("_", "-"): text for name, text in said.items()}
    assert read(image) == read(image, "joliet_path") == expected


def test_what_is_not_said():
    found = read(seed())
    assert json.loads(found.pop("meta-data")) == {"instance-id": UUID, "local-hostname": "web1"}
    assert found == {"user-data": ""}


def test_it_is_found_by_its_label(tmp_path):
    path = tmp_path / "seed"
    path.write_bytes(seed(user_data="#!/bin/sh\n"))
    found = subprocess.run(["blkid", "-p", "-o", "export", path], capture_output=True, text=True, check=True).stdout
    assert {"LABEL=cidata", "TYPE=iso9660"} <= set(found.splitlines())
