"""The specification: what is read from a document, and what is said of one that is wrong."""

import pytest

from drover.errors import ArgumentError, SpecError
from drover.kvm.spec import Secret, dump, load, parse


def problems(document):
    with pytest.raises(SpecError) as caught:
        parse(document)
    return [str(problem) for problem in caught.value.problems]


def test_all_that_is_wrong_is_said_with_its_path():
    document = {
        "name": "web1",
        "disks": [
            {"source": "/a", "format": "raw"},
            {"source": "b", "format": "vmdk", "cache": "fast", "cach": "none", "boot_index": -1},
        ],
        "memory": {"size": "512MB"},
        "cpu": {"count": True},
    }
    assert problems(document) == [
        "disks[1].source: 'b' is not an absolute path, nbd://HOST:PORT/EXPORT, "
        "nbd+unix:///EXPORT?socket=PATH or rbd:POOL/IMAGE",
        "disks[1].format: 'vmdk' is not one of qcow2, raw",
        "disks[1].cache: 'fast' is not one of directsync, none, unsafe, writeback, writethrough",
        "disks[1].cach: there is no such field; the nearest is 'cache'",
        "disks[1].boot_index: -1 is not a whole number from 0 to 999",
        "memory.size: '512MB' is not a size: bytes, or a text such as '512MiB' or '4GiB'",
        "cpu.count: True is not a whole number from 1 to 4096",
    ]


def test_the_error_is_an_argument_error_about_the_first_problem():
    with pytest.raises(ArgumentError) as caught:
        parse({"name": "a b"})
    assert (caught.value.field, caught.value.value) == ("name", "a b")


def test_what_is_not_said_follows_from_the_rest():
    spec = load('name = "a"\n[[disks]]\nsource = "/x"\nformat = "raw"\n[[disks]]\nkind = "cdrom"\n[[nics]]\n')
    assert [(disk.id, disk.bus, disk.boot_index) for disk in spec.disks] == [
        ("disk0", "virtio-blk", 1),
        ("disk1", "sata", 2),
    ]
    assert spec.nics[0].id == "nic0"
    assert (spec.cpu.max, spec.memory.max) == (1, 512 << 20)


def test_a_dumped_specification_is_read_to_an_equal_one():
    text = 'name = "a"\n[vnc]\npassword = "geheim"\n[memory]\nsize = "1GiB"\n[[disks]]\nsource = "/x"\nformat = "raw"\n'
    spec = load(text)
    assert load(dump(spec), "json") == spec
    assert spec.vnc.password == Secret("geheim")
    assert "geheim" not in repr(spec)
