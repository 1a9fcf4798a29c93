"""What machines use, reckoned from two samples."""

from msgspec import structs

from drover.kvm.usage import LinkCounters, Links, process_usage
from drover.node.stats import Stats, disk_stats, migration_stats, nic_stats, percent, rate, vcpu_stats
from drover.ops.counters import DiskCounters, device_id
from drover.ops.migration import MigrationInfo, RamProgress

BASE = Stats(name="a", generation=1, at=100.0, nics_at=100.0, told_at=101.0)
LINK = LinkCounters(
    rx_bytes=1000, rx_packets=10, rx_errors=1, rx_dropped=2, tx_bytes=5000, tx_packets=50, tx_errors=3, tx_dropped=4
)


def test_rates() -> None:
    assert rate(300, 100, 2) == 100
    assert rate(300, None, 2) is None
    assert rate(300, 100, 0) is None  # the same sample twice
    assert rate(100, 300, 2) is None  # it counts anew: the disk was taken out and put in
    assert percent(2.0, 1.5, 1.0) == 50.0


def test_disks_are_known_by_their_id() -> None:
    first = disk_stats([DiskCounters(id="a", read_bytes=10), DiskCounters(id="b", written_bytes=5)], None, 101.0)
    assert [(disk.id, disk.read_rate, disk.write_rate) for disk in first] == [("a", None, None), ("b", None, None)]
    base = structs.replace(BASE, disks=first)
    second = disk_stats([DiskCounters(id="b", written_bytes=25), DiskCounters(id="new", read_bytes=7)], base, 111.0)
    assert [(disk.id, disk.read_rate, disk.write_rate) for disk in second] == [("b", 0.0, 2.0), ("new", None, None)]
    assert second[0].written_bytes == 25


def test_a_tap_receives_what_its_guest_sends() -> None:
    tap, macvtap = nic_stats([("nic0", False, LINK), ("nic1", True, LINK)], None, 100.0)
    assert (tap.received_bytes, tap.sent_packets, tap.received_errors, tap.sent_dropped) == (5000, 10, 3, 2)
    assert (macvtap.received_bytes, macvtap.sent_packets, macvtap.received_errors) == (1000, 50, 1)
    later = structs.replace(LINK, tx_bytes=6000)
    (next_,) = nic_stats([("nic0", False, later)], structs.replace(BASE, nics=[tap]), 110.0)
    assert (next_.receive_rate, next_.send_rate) == (100.0, 0.0)


def test_each_vcpu_by_its_number() -> None:
    first = vcpu_stats([(0, 1.0), (1, 2.0)], None, 100.0)
    second = vcpu_stats([(0, 1.0), (1, 7.0), (2, 0.5)], structs.replace(BASE, vcpus=first), 110.0)
    assert [vcpu.cpu_percent for vcpu in second] == [0.0, 50.0, None]


def test_a_migration_is_told_in_base_units() -> None:
    assert migration_stats(None) is None
    ram = RamProgress(transferred=10, remaining=20, total=30, mbps=8.0)
    told = migration_stats(MigrationInfo(status="active", ram=ram, total_time=1500, expected_downtime=30))
    assert told is not None
    assert (told.status, told.transferred, told.rate, told.seconds, told.downtime) == ("active", 10, 1e6, 1.5, 0.03)


def test_device_ids() -> None:
    assert device_id("/machine/peripheral/disk0/virtio-backend") == "disk0"
    assert device_id("disk1") == "disk1"


def test_what_has_gone_is_told_as_none() -> None:
    assert process_usage(2**22 + 1) is None
    links = Links()
    assert links.counters("no-such-link") is None
    lo = links.counters("lo")
    assert lo is not None
    assert lo.rx_bytes == lo.tx_bytes
