"""`drover stats`, as people read it."""

from drover.cli.stats import devices_of, row, size, total

DISK = {"id": "disk0", "read_bytes": 2048, "written_bytes": 5 << 30, "read_ops": 1, "write_ops": 2, "read_rate": None,
        "write_rate": 1536.0}  # fmt: skip
NIC = {"id": "nic0", "received_bytes": 1, "sent_bytes": 2, "receive_rate": 0.0, "send_rate": 3.0}


def test_sizes_have_three_digits() -> None:
    sizes = (0, 999, 1000, 1536, 99.9 * 1024, 1 << 20, 512 << 20, 1023 << 20, 5 << 30, 1 << 60)
    told = ["0 B", "999 B", "1.0 KiB", "1.5 KiB", "99.9 KiB", "1.0 MiB", "512 MiB", "1.0 GiB", "5.0 GiB", "1024 PiB"]
    assert [size(each) for each in sizes] == told
    assert size(None) is None


def test_what_is_not_known_is_no_nought() -> None:
    assert total([DISK], "read_rate") is None
    assert total([DISK, DISK | {"read_rate": 1.0}], "read_rate") == 1.0
    assert total([], "read_rate") is None


def test_rows() -> None:
    machine = {"name": "a", "at": 100.0, "told_at": 97.0, "cpu_seconds": 1.0, "cpu_percent": 12.34, "resident": 1 << 20,
               "balloon": None, "disks": [DISK, DISK], "nics": [NIC], "migration": {"status": "active"}}  # fmt: skip
    cells = row(machine, 100.0)
    assert (cells["cpu"], cells["age"], cells["guest"], cells["migration"]) == ("12.3%", "3 s", None, "active")
    assert (cells["written"], cells["written/s"], cells["read/s"], cells["writes"]) == ("10.0 GiB", "3.0 KiB", None, 4)
    disk, _, nic = devices_of(machine)
    assert (disk["device"], disk["written/s"], nic["device"], nic["sent"]) == ("disk0", "1.5 KiB", "nic0", "2 B")
