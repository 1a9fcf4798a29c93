"""The specification: what is read from a document, and what is said of one that is wrong."""

import json
from collections.abc import Callable

import msgspec
import pytest

from argv_cases import CASES, FOLDER, Case
from drover.errors import ArgumentError, SpecError
from drover.kvm.spec import Secret, Spec, completed, dump, extended, load, parse
from drover.kvm.spec.types import size_of

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
features = {avx = false}
[[disks]]
id = "root"
source = "/srv/web1.qcow2"
format = "qcow2"
boot_index = 0
throttle = {iops_total = 100}
backing = [{source = "/srv/base", format = "raw"}]
[[nics]]
mode = "bridge"
link = "br0"
queues = 2
network = {name = "lan"}
[vnc]
password = "geheim"
"""
DISK = {"source": "/d", "format": "raw"}
QCOW2 = {"source": "/d", "format": "qcow2"}
BACKING = {"source": "/b", "format": "raw"}


def problems(**fields):
    with pytest.raises(SpecError) as caught:
        parse({"name": "vm"} | fields)
    return {problem.path: problem.text for problem in caught.value.problems}


# -- what is right ----------------------------------------------------------------------------------


def test_a_dumped_specification_is_read_to_an_equal_one():
    spec = load(WHOLE)
    assert load(dump(spec), "json") == spec
    assert parse(msgspec.to_builtins(spec)) == spec


def test_it_can_be_kept_inside_another_document():
    spec = load(WHOLE)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=Spec) == spec


def test_what_is_not_said_follows_from_the_rest():
    disks = [DISK, {"kind": "cdrom"}, {"id": "disk0", **DISK}]
    spec = parse({"name": "vm", "disks": disks, "nics": [{}, {}], "usb": [{"type": "mouse"}]})
    assert [(disk.id, disk.bus, disk.boot_index) for disk in spec.disks] == [
        ("disk1", "virtio-blk", 1),
        ("disk2", "sata", 2),
        ("disk0", "virtio-blk", 3),
    ]
    assert [nic.id for nic in spec.nics] == ["nic0", "nic1"]
    assert [usb.id for usb in spec.usb] == ["usb1"]
    assert (spec.cpu.max, spec.memory.max, spec.memory.size) == (1, 512 << 20, 512 << 20)


def test_a_boot_order_that_is_said_is_all_of_it():
    spec = parse({"name": "vm", "disks": [DISK, DISK], "nics": [{"boot_index": 0}]})
    assert [disk.boot_index for disk in spec.disks] == [None, None]


def test_completed():
    spec = completed(load(WHOLE))
    assert len(spec.uuid) == 36
    assert spec.nics[0].mac.startswith("52:54:00:")
    assert completed(spec) == spec
    assert spec.nics[0].network.name == "lan"


def test_a_switch_that_is_off_can_be_said_so():
    assert parse({"name": "vm", "memory": {"hugepages": False}}).memory.hugepages == "off"


def test_a_part_can_be_there_or_not_by_a_word():
    spec = parse({"name": "vm", "serial": False, "vnc": True, "tpm": None, "watchdog": False})
    assert (spec.serial, spec.tpm, spec.watchdog) == (None, None, None)
    assert spec.vnc == parse({"name": "vm", "vnc": {}}).vnc
    assert "network" in problems(nics=[{"network": {}}]).popitem()[0]


def test_defaults():
    assert parse({"name": "vm"}).disks == ()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (5, 5), ("5", 5), ("5B", 5), ("2KiB", 2048), ("512MiB", 512 << 20), ("1 GiB", 1 << 30), ("1TiB", 1 << 40),
        ("512MB", None), ("512M", None), ("-1", None), ("1.5GiB", None), (True, None), (1.5, None), ("MiB", None),
    ],
)  # fmt: skip
def test_sizes(text, size):
    assert size_of(text) == size


@pytest.mark.parametrize(
    ("cpu", "topology"),
    [
        ({"count": 4}, (1, 4, 1)),
        ({"count": 1, "max": 8, "threads": 2}, (1, 4, 2)),
        ({"count": 8, "sockets": 2}, (2, 4, 1)),
        ({"count": 8, "cores": 2, "threads": 2}, (2, 2, 2)),
    ],
)
def test_topology(cpu, topology):
    assert parse({"name": "vm", "cpu": cpu}).cpu.topology == topology


# -- secrets ----------------------------------------------------------------------------------------


def test_a_password_does_not_print():
    spec = load(WHOLE)
    assert spec.vnc.password == Secret("geheim")
    assert "geheim" not in f"{spec} {spec!r} {spec.vnc.password}"


def test_a_password_in_the_wrong_place_is_not_in_the_error():
    wrong = {"vnc": {"pasword": "geheim"}, "spice": {"password": ["geheim"]}}
    with pytest.raises(SpecError) as caught:
        parse({"name": "vm"} | wrong)
    assert "geheim" not in f"{caught.value} {caught.value!r} {caught.value.problems}"
    assert {problem.path for problem in caught.value.problems} == {"vnc.pasword", "spice.password"}


# -- what is wrong ----------------------------------------------------------------------------------


def test_all_that_is_wrong_is_said_with_its_path():
    document = {
        "name": "web1",
        "disks": [
            {"id": "a", "source": "/a", "format": "raw"},
            {"id": "a", "source": "b", "format": "vmdk", "cache": "fast", "cach": "none", "boot_index": -1},
            "no disk",
        ],
        "memory": {"size": "512MB"},
        "cpu": {"count": True},
        "nics": [{"mode": "user", "queues": 2}],
    }
    with pytest.raises(SpecError) as caught:
        parse(document)
    assert str(caught.value).splitlines() == [
        "disks[1].source: 'b' is not an absolute path, nbd://HOST:PORT/EXPORT, "
        "nbd+unix:///EXPORT?socket=PATH or rbd:POOL/IMAGE",
        "disks[1].format: 'vmdk' is not one of qcow2, raw",
        "disks[1].cache: 'fast' is not one of directsync, none, unsafe, writeback, writethrough",
        "disks[1].cach: there is no such field; the nearest is 'cache'",
        "disks[1].boot_index: -1 is not a whole number from 0 to 999",
        "disks[2]: 'no disk' is not a table of fields",
        "memory.size: '512MB' is not a size: bytes, or a text such as '512MiB' or '4GiB'",
        "cpu.count: True is not a whole number from 1 to 4096",
        "nics[0].queues: 2 is not possible: mode 'user' has a single pair of queues",
        "disks[1].id: 'a' is not unique: it is also disks[0].id",
    ]


def test_the_error_is_an_argument_error_about_the_first_problem():
    with pytest.raises(ArgumentError) as caught:
        parse({"name": "a b", "uuid": 5})
    assert (caught.value.field, caught.value.value) == ("name", "a b")
    assert caught.value.problems[1] == ("uuid", 5, "a UUID such as 3f0b1c9e-52d7-4c1e-9a55-0d6c1f1e8a01")


@pytest.mark.parametrize(("text", "format"), [("name = ", "toml"), (b"\xff", "toml"), ("{", "json"), ("[]", "json")])
def test_no_document(text, format):
    with pytest.raises(SpecError):
        load(text, format)


def test_no_such_format():
    with pytest.raises(ArgumentError, match="toml or json"):
        load("", "xml")


def test_what_is_missing():
    with pytest.raises(SpecError, match="^name: it is missing; it has to be a name"):
        parse({})


@pytest.mark.parametrize(
    ("fields", "path", "text"),
    [
        ({"name": "a b"}, "name", "a name"),
        ({"name": "a\n"}, "name", "a name"),
        ({"name": "a" * 64}, "name", "at most 62"),
        ({"uuid": "1"}, "uuid", "a UUID"),
        ({"emulator": "./qemu"}, "emulator", "absolute path"),
        ({"acceleration": "fast"}, "acceleration", "'fast' is not one of auto, kvm, tcg"),
        ({"autostart": "yes"}, "autostart", "true or false"),
        ({"autostart_order": 1.5}, "autostart_order", "whole number"),
        ({"autostart_delay": -1}, "autostart_delay", "a number from 0"),
        ({"restart": "often"}, "restart", "one of always, never, on-failure"),
        ({"xyz": "red"}, "xyz", "there are name, uuid"),
        ({"machin": {}}, "machin", "the nearest is 'machine'"),
        ({"machine": {"type": "q36"}}, "machine.type", "q35, pc"),
        ({"machine": {"type": "microvm"}}, "machine.type", "q35, pc"),
        ({"machine": {"root_ports": 113}}, "machine.root_ports", "112"),
        ({"machine": {"bridges": 5}}, "machine.bridges", "0 to 4"),
        ({"machine": {"scsi_controllers": 5}}, "machine.scsi_controllers", "0 to 4"),
        ({"machine": {"rtc": "UTC"}}, "machine.rtc", "localtime, utc"),
        ({"machine": {"video": "cirrus"}}, "machine.video", "virtio"),
        ({"cpu": []}, "cpu", "a table of fields"),
        ({"cpu": {"model": "host,+avx"}}, "cpu.model", "CPU model"),
        ({"cpu": {"features": ["avx"]}}, "cpu.features", "a table"),
        ({"cpu": {"features": {"avx": "on"}}}, "cpu.features.avx", "true or false"),
        ({"cpu": {"features": {"+avx": True}}}, "cpu.features", "'+avx' is not a word"),
        ({"cpu": {"count": 0}}, "cpu.count", "1 to 4096"),
        ({"cpu": {"count": 4, "max": 2}}, "cpu.count", "at most cpu.max, which is 2"),
        ({"cpu": {"count": 4, "sockets": 3}}, "cpu.sockets", "come to 3"),
        ({"cpu": {"count": 4, "sockets": 1, "cores": 1, "threads": 2}}, "cpu.sockets", "come to 2"),
        ({"cpu": {"pinning": ["all"]}}, "cpu.pinning[0]", "'0-3'"),
        ({"cpu": {"pinning": ["3-1"]}}, "cpu.pinning[0]", "lower end"),
        ({"cpu": {"pinning": ["1", "2"]}}, "cpu.pinning", "at most 1"),
        ({"memory": {"size": 1000}}, "memory.size", "multiple of 1 MiB"),
        ({"memory": {"size": 0}}, "memory.size", "positive"),
        ({"memory": {"size": "2048PiB"}}, "memory.size", "a size"),
        ({"memory": {"size": -5}}, "memory.size", "a size"),
        ({"memory": {"size": "1GiB", "max": "3GiB", "hugepages": "2GiB"}}, "memory.hugepages", "1GiB, 2MiB, off"),
        ({"memory": {"size": "3MiB", "hugepages": "2MiB"}}, "memory.size", "multiple of 2 MiB"),
        ({"memory": {"size": "2MiB", "max": "1MiB"}}, "memory.max", "at least memory.size"),
        ({"memory": {"slots": 1}}, "memory.slots", "memory.max above"),
        ({"chroot": True, "chroot_paths": ["/usr/.."]}, "chroot_paths[0]", "the host's whole root"),
        ({"chroot": True, "chroot_paths": ["/srv", "/proc/sys"]}, "chroot_paths[1]", "a /proc of its own"),
        ({"chroot_paths": ["srv"]}, "chroot_paths[0]", "an absolute path"),
        ({"chroot_paths": ["/srv"]}, "chroot_paths", "possible without chroot = true"),
        ({"chroot": True, "vnc": {"tls_dir": "/"}}, "vnc.tls_dir", "the host's whole root"),
        ({"chroot": "yes"}, "chroot", "true or false"),
        ({"limits": {"memory": "512MiB"}}, "limits.memory", "256 MiB for QEMU itself"),
        ({"limits": {"threads": 80}}, "limits.threads", "at least 81"),
        ({"limits": {"cpus": 0}}, "limits.cpus", "0.01"),
        ({"memory": {"slots": 257, "max": "1TiB"}}, "memory.slots", "0 to 256"),
        ({"firmware": {"type": "efi"}}, "firmware.type", "bios, uefi"),
        ({"firmware": {"secure_boot": True}}, "firmware.secure_boot", "'uefi' on machine.type 'q35'"),
        (
            {"firmware": {"type": "uefi", "secure_boot": True}, "machine": {"type": "pc"}},
            "firmware.secure_boot",
            "possible but with",
        ),
        ({"firmware": {"vars_template": "/v"}}, "firmware.vars_template", "possible but with"),
        ({"firmware": {"type": "uefi", "code": "/c"}}, "firmware.vars_template", "missing"),
        ({"boot": {"kernel": "vmlinuz"}}, "boot.kernel", "absolute path"),
        ({"boot": {"initrd": "/i"}}, "boot.initrd", "boot.kernel"),
        ({"boot": {"cmdline": "x"}}, "boot.cmdline", "boot.kernel"),
        ({"boot": {"kernel": "/k", "cmdline": "x\ny"}}, "boot.cmdline", "one line"),
        ({"boot": {"kernel": "/k"}, "nics": [{"boot_index": 0}]}, "nics[0].boot_index", "boot.kernel"),
        ({"tpm": {"model": "spapr"}}, "tpm.model", "crb, tis"),
        ({"serial": "yes"}, "serial", "a table of fields"),
        ({"machine": True}, "machine", "a table of fields"),
        ({"vnc": {"listen": "127.0.0.1"}}, "vnc.listen", "ADDRESS:PORT"),
        ({"vnc": {"listen": "127.0.0.1:80"}}, "vnc.listen", "5900"),
        ({"vnc": {"listen": "::1:5900"}}, "vnc.listen", "ADDRESS:PORT"),
        ({"vnc": {"tls_verify": True}}, "vnc.tls_verify", "tls_dir"),
        ({"vnc": {"password": "geheimnis"}}, "vnc.password", "longer than 8"),
        ({"vnc": {"password": ""}}, "vnc.password", "a text"),
        ({"vnc": {"keymap": "deutsch"}}, "vnc.keymap", "a keymap"),
        ({"spice": {"listen": "localhost"}}, "spice.listen", "ADDRESS:PORT"),
        ({"spice": {"tls_dir": "/pki"}}, "spice.tls_dir", "spice.listen"),
        ({"watchdog": {"model": "itco"}, "machine": {"type": "pc"}}, "watchdog.model", "q35's own"),
        ({"watchdog": {"action": "bark"}}, "watchdog.action", "reset"),
        ({"vsock_cid": 2}, "vsock_cid", "from 3 on"),
        ({"usb": [{"type": "floppy"}]}, "usb[0].type", "tablet"),
        ({"usb": [{"type": "host"}]}, "usb[0]", "by vendor and product"),
        ({"usb": [{"vendor": "1234"}]}, "usb[0]", "by vendor and product"),
        ({"usb": [{"vendor": "1234", "product": "1", "bus": 1}]}, "usb[0].product", "four hexadecimal"),
        ({"usb": [{"type": "mouse", "bus": 1}]}, "usb[0].type", "'host'"),
        ({"usb": [{"type": "mouse"}] * 15, "vnc": {}}, "usb", "than ports, 15"),
        ({"vfio": [{}]}, "vfio[0]", "host or by mediated"),
        ({"vfio": [{"host": "01:00.0"}]}, "vfio[0].host", "0000:01:00.0"),
        ({"vfio": [{"host": "0000:01:00.0"}, {"host": "0000:01:00.0"}]}, "vfio[1].host", "unique"),
        ({"smbios": {"serial": 5}}, "smbios.serial", "one line"),
        ({"cloud_init": {"user": "x"}}, "cloud_init.user", "user_data"),
        ({"extra_args": "-foo"}, "extra_args", "a list"),
        ({"extra_args": ["a\0"]}, "extra_args[0]", "a text"),
    ],
)  # fmt: skip
def test_what_is_refused(fields, path, text):
    assert text in problems(**fields)[path]


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({"id": "0x"}, "id", "a letter"),
        ({"id": "a" * 27}, "id", "26"),
        ({"id": "a,b"}, "id", "a letter"),
        ({"source": "relative"}, "source", "absolute"),
        ({"source": "nbd://"}, "source", "absolute path, nbd"),
        ({"source": "nbd://["}, "source", "HOST:PORT"),
        ({"source": "nbd://host/x", "format": "qcow2"}, "format", "serves it raw"),
        ({"source": "nbd://host/" + "x" * 5000}, "source", "4096 bytes"),
        ({"source": "nbd://:10809/x"}, "source", "HOST:PORT"),
        ({"source": "nbd://host:99999/x"}, "source", "HOST:PORT"),
        ({"source": "nbd+unix:///x"}, "source", "socket=PATH"),
        ({"source": "nbd+unix:///x?other=s"}, "source", "socket=PATH"),
        ({"source": "nbd+unix:///x?socket=s"}, "source", "an absolute path of the socket"),
        ({"source": "rbd:image"}, "source", "rbd:POOL/IMAGE"),
        ({"source": ""}, "source", "only a cdrom can be empty"),
        ({"source": "nbd://host/x", "aio": "io_uring"}, "aio", "no file of this host"),
        ({"format": "vmdk"}, "format", "qcow2, raw"),
        ({"format": None}, "format", "never probed"),
        ({"kind": "floppy"}, "kind", "cdrom, disk"),
        ({"kind": "cdrom", "bus": "virtio-blk"}, "bus", "sata or virtio-scsi"),
        ({"kind": "cdrom", "source": ""}, "format", "it needs a source"),
        ({"bus": "ide"}, "bus", "sata"),
        ({"bus": "sata", "iothread": "t"}, "iothread", "on sata"),
        ({"bus": "sata", "read_only": True}, "read_only", "on sata"),
        ({"cache": "fast"}, "cache", "writeback"),
        ({"aio": "posix"}, "aio", "io_uring, native, threads"),
        ({"aio": "native", "cache": "writeback"}, "aio", "none or directsync"),
        ({"discard": "x"}, "discard", "ignore, unmap"),
        ({"detect_zeroes": "x"}, "detect_zeroes", "off, on, unmap"),
        ({"detect_zeroes": "unmap", "discard": "ignore"}, "detect_zeroes", "discard 'unmap'"),
        ({"serial": "s" * 21}, "serial", "at most 20"),
        ({"serial": "a b"}, "serial", "no blanks"),
        ({"iothread": "1"}, "iothread", "a letter"),
        ({"throttle": {"iops": 1}}, "throttle.iops", "iops_"),
        ({"throttle": {"iops_total": 1, "iops_read": 1}}, "throttle.iops_total", "a total, or"),
        ({"throttle": {"iops_total": "x"}}, "throttle.iops_total", "a whole number"),
        ({"boot_index": -1}, "boot_index", "0 to 999"),
        ({"werror": "x"}, "werror", "enospc, ignore, report, stop"),
        ({"rerror": "enospc"}, "rerror", "ignore, report, stop"),
        ({"backing": [BACKING]}, "backing[0]", "stands on nothing"),
        ({"format": "qcow2", "backing": [{"source": "/b"}]}, "backing[0].format", "missing"),
        ({"format": "qcow2", "backing": [BACKING, BACKING]}, "backing[1]", "stands on nothing"),
        ({"format": "qcow2", "backing": [BACKING | {"source": "nbd://h/x"}]}, "backing[0].source", "only files"),
        ({"format": "qcow2", "backing": [BACKING | {"source": ""}]}, "backing[0].source", "empty"),
        ({"format": "qcow2", "backing": [QCOW2] * 200}, "backing", "at most 199"),
        ({"format": "qcow2", "backing": [BACKING], "id": "a" * 26}, "id", "at most 20 characters"),
        ({"id": "xhci"}, "id", "the machine itself"),
        ({"id": "rp7"}, "id", "the machine itself"),
        ({"iothread": "ram"}, "iothread", "the machine itself"),
    ],
)
def test_disks_that_are_refused(fields, field, text):
    assert text in problems(disks=[DISK | {"id": "other"}, DISK | fields])[f"disks[1].{field}"]


@pytest.mark.parametrize(
    ("nic", "field", "text"),
    [
        ({"mode": "wifi"}, "mode", "bridge"),
        ({"mode": "bridge"}, "link", "it is missing"),
        ({"link": "br0"}, "link", "mode 'user'"),
        ({"mode": "bridge", "link": "a b"}, "link", "a link of the host"),
        ({"mac": "x"}, "mac", "a unicast MAC"),
        ({"mac": "01:00:00:00:00:00"}, "mac", "a unicast MAC"),
        ({"queues": 2}, "queues", "single pair"),
        ({"mode": "bridge", "link": "b", "model": "e1000", "queues": 2}, "queues", "single pair"),
        ({"mode": "bridge", "link": "b", "queues": 257}, "queues", "1 to 256"),
        ({"model": "ne2k"}, "model", "virtio-net-pci"),
        ({"vhost": True}, "vhost", "mode 'user'"),
        ({"mode": "fd", "vhost": True, "model": "e1000"}, "vhost", "it needs virtio"),
        ({"mtu": 9000}, "mtu", "mode 'user'"),
        ({"mode": "fd", "mtu": 60}, "mtu", "68 to 65521"),
        ({"mode": "routed", "ip": "10.0.0.1", "vlan": 5}, "vlan", "mode 'routed'"),
        ({"mode": "bridge", "link": "b", "vlan": 4095}, "vlan", "1 to 4094"),
        ({"mode": "routed"}, "ip", "it is missing"),
        ({"ip": "10.0.0.300"}, "ip", "IPv4 or IPv6"),
        ({"network": {"name": "x", "colour": "red"}}, "network.colour", "there is no such field"),
        ({"network": {}}, "network.name", "it is missing"),
        ({"script_up": "/up"}, "script_up", "mode 'user'"),
        ({"script_up": "up", "mode": "bridge", "link": "b"}, "script_up", "absolute path"),
        ({"mode": "fd", "forwards": ["tcp::1-:2"]}, "forwards", "mode 'fd'"),
        ({"forwards": ["2222:22"]}, "forwards[0]", "tcp:127.0.0.1:2222-:22"),
        ({"forwards": ["tcp:127.0.0.300:1-:2"]}, "forwards[0]", "tcp:127.0.0.1:2222-:22"),
        ({"forwards": ["tcp::70000-:2"]}, "forwards[0]", "tcp:127.0.0.1:2222-:22"),
    ],
)
def test_nics_that_are_refused(nic, field, text):
    assert text in problems(nics=[nic])[f"nics[0].{field}"]


def test_what_must_differ():
    disk = DISK | {"id": "d", "boot_index": 1}
    nic = {"id": "d", "mac": "52:54:00:00:00:0a", "boot_index": 1}
    found = problems(disks=[disk, disk], nics=[nic, nic | {"id": "e", "mac": "52:54:00:00:00:0A", "boot_index": 2}])
    assert found["disks[1].id"] == "'d' is not unique: it is also disks[0].id"
    assert "disks[0]" in found["disks[1].boot_index"]
    assert "disks[0]" in found["nics[0].boot_index"]
    assert "disks[0]" in found["nics[0].id"]
    assert "nics[0]" in found["nics[1].mac"]


@pytest.mark.parametrize("name", ["a-file", "a-back1", "a-back1-file"])
def test_ids_that_look_like_block_nodes(name):
    assert "nodes of other disks" in problems(disks=[DISK | {"id": name}])["disks[0].id"]


def test_how_many_disks_a_controller_takes():
    found = problems(disks=[{"kind": "cdrom"} for _ in range(7)])
    assert found == {"disks[6].bus": "'sata' is not possible: the machine has 6 SATA ports"}
    scsi = DISK | {"bus": "virtio-scsi"}
    assert "256 places" in problems(disks=[scsi] * 257)["disks[256].bus"]
    threads = [scsi | {"iothread": f"t{n}"} for n in range(4)]
    assert "3 threads" in problems(disks=threads)["disks[3].iothread"]


MORE: dict[str, list[object]] = {
    "disks": [
        {"source": "/a", "format": "raw"},
        {"id": "x", "source": "nbd://h/x", "bus": "virtio-scsi", "boot_index": 7},
        {"id": "disk0", "source": "/a", "format": "raw"},
        {"source": "", "format": "vmdk", "sauce": 1},
        {"format": "raw"},
        3,
    ],
    "nics": [{}, {"mode": "bridge"}, {"mode": "user", "mac": "01:00:00:00:00:00"}, {"id": "nic0", "mtu": -1}],
    "usb": [{"type": "mouse"}, {"type": "cat"}],
    "vfio": [{"host": "0000:3b:00.0"}, {"host": "x", "mediated": "y"}],
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_more_is_as_if_all_was_read_anew(case: Case) -> None:
    spec = completed(load((FOLDER / f"{case.name}.toml").read_text(encoding="utf-8")))
    for field, entries in MORE.items():
        for fields in entries:
            document = json.loads(dump(spec))
            document[field] = [*document.get(field, ()), fields]
            assert told(extended, spec, field, fields) == told(parse, document), fields


def told(act: Callable[..., Spec], *args: object) -> object:
    """What it gives, or what it says is wrong."""
    try:
        return act(*args)
    except SpecError as error:
        return error.problems
