"""What is in the way of a migration, of what two nodes say: pure."""

import time
from typing import Any

import pytest
from msgspec import structs

from drover.errors import Blocker
from drover.kvm.fitness import Fitness
from drover.kvm.handover import Settings
from drover.kvm.likeness import Seen
from drover.kvm.parcel import Parcel
from drover.kvm.spec import completed, parse
from drover.migration.checks import CLOCKS, Manner, Need, There, compare, goes_along
from drover.migration.combinations import Have, Transport
from drover.migration.storage import Blocker as DiskBlocker
from drover.migration.storage import DiskImage, How, Part, Plan
from drover.ops.cpu_model import CpuModel

NOW = 1_800_000_000.0
DAY = 86_400.0
CPU = CpuModel(model="max", flags=frozenset({"sse2", "avx"}), vendor="AuthenticAMD", address_bits=40)
OLD, NEW = (7, 2, 22), (10, 0, 2)


def need(version: tuple[int, int, int] = NEW, **more: Any) -> Need:
    parcel = Parcel(
        spec=completed(parse({"name": "vm"})), machine="pc-q35-7.2", version=version, accelerator="tcg", generation=1
    )
    return Need(**{"parcel": parcel, "cpu": CPU, "until": NOW + DAY} | more)


def there(version: tuple[int, int, int] | None = NEW, **more: Any) -> There:
    known = {"version": version, "accelerator": "tcg", "cpu": CPU}
    fit = Fitness(**known | {name: more.pop(name) for name in Fitness.__struct_fields__ if name in more})
    return There(**{"node": "b", "boot_id": "x", "fit": fit, "now": NOW, "until": NOW + DAY} | more)


def manner(**more: Any) -> Manner:
    return Manner(**{"deadline": 600.0} | more)


def only(found: list[Blocker], code: str) -> str:
    (blocker,) = found
    assert blocker.code == code
    assert blocker.what
    assert blocker.remedy
    return blocker.why


def setting(*on: str, **parameters: Any) -> Settings:
    return Settings(capabilities=dict.fromkeys(on, True), parameters=parameters)


def test_nothing_is_in_the_way() -> None:
    assert compare(need(), there(), Plan(), manner()) == []


def test_all_at_once() -> None:
    """What holds it here, what the other node lacks, and what comes of both, in this order."""
    held, lacking = Blocker("qemu", "QEMU", "x", "y"), Blocker("link", "nics[0].link", "x", "y")
    found = compare(
        need(blockers=(held,), until=NOW),
        there(accelerator="kvm", cpu=None, blockers=(lacking,), ahead=60.0, now=NOW + 60),
        Plan(blockers=(DiskBlocker("d", "it is small", "make it larger"),)),
        manner(source=setting("multifd", "postcopy-ram")),
    )
    codes = ["qemu", "link", "acceleration", "clock", "certificate", "combination", "disk"]
    assert [each.code for each in found] == codes


def test_another_accelerator() -> None:
    why = only(compare(need(), there(accelerator="kvm", cpu=None), Plan(), manner()), "acceleration")
    assert why == "it runs with TCG here, and would with KVM on b"
    assert compare(need(), there(accelerator="", cpu=None), Plan(), manner()) == []  # that is told there already


def test_a_cpu_that_can_less() -> None:
    lacks = CpuModel(model="max", flags=frozenset({"sse2"}), vendor="AuthenticAMD", address_bits=40)
    why = only(compare(need(), there(OLD, cpu=lacks), Plan(), manner()), "cpu-flags")
    assert why == "the CPU that QEMU 7.2.22 makes of max on b lacks what its guest may use: avx"
    assert compare(need(cpu=lacks), there(), Plan(), manner()) == []  # one that can more does no harm


def test_a_cpu_of_another_kind() -> None:
    other = CpuModel(model="host", flags=CPU.flags, vendor="GenuineIntel", address_bits=39)
    found = compare(need(), there(cpu=other), Plan(), manner())
    assert [each.code for each in found] == ["cpu-vendor", "address-bits"]
    assert "GenuineIntel" in found[0].why
    assert "39 bits" in found[1].why


@pytest.mark.parametrize("cpus", [(None, CPU), (CPU, None)])
def test_a_cpu_that_nobody_can_tell(cpus: tuple[CpuModel | None, CpuModel | None]) -> None:
    assert compare(need(cpu=cpus[0]), there(cpu=cpus[1]), Plan(), manner()) == []


def test_another_firmware() -> None:
    found = compare(need(firmware=(1, 2)), there(firmware=(1, 3)), Plan(), manner())
    assert "on b 1 and 3" in only(found, "firmware")
    assert compare(need(firmware=(1, 2)), there(firmware=(1, 2)), Plan(), manner()) == []


@pytest.mark.parametrize(("ahead", "way"), [(60.0, "60 s ahead of"), (-60.0, "60 s behind")])
def test_a_clock_that_is_wrong(ahead: float, way: str) -> None:
    assert way in only(compare(need(), there(ahead=ahead), Plan(), manner()), "clock")
    assert compare(need(), there(ahead=CLOCKS if ahead > 0 else -CLOCKS), Plan(), manner()) == []


def test_certificates_that_end() -> None:
    soon = NOW + 599
    found = compare(need(until=soon), there(until=soon), Plan(), manner())
    assert [(each.code, each.what) for each in found] == [("certificate", "this node"), ("certificate", "b")]
    assert time.strftime("%Y-%m-%d %H:%M", time.localtime(soon)) in found[0].why


@pytest.mark.parametrize(
    ("ways", "versions", "said"),
    [
        ({"source": setting("multifd", "postcopy-ram")}, (NEW, NEW), "multifd with postcopy-ram"),
        ({"target": setting("postcopy-ram"), "source": setting("multifd")}, (OLD, NEW), "multifd with postcopy-ram"),
        ({"source": setting("dirty-limit"), "have": (Have.DIRTY_RING,)}, (OLD, NEW), "QEMU 7.2 lacks it"),
        ({"source": setting("dirty-limit")}, (NEW, NEW), "KVM's dirty ring"),
        ({"source": setting(**{"multifd-compression": "zstd"})}, (NEW, NEW), "only multifd compresses so"),
        ({"source": setting("x-colo")}, (NEW, NEW), "nobody has tried"),
        ({"source": setting("multifd", "zero-copy-send"), "have": (Have.LOCKED_MEMORY,), "tls": True},
         (NEW, NEW), "tls with zero-copy-send"),
        ({"source": setting("multifd", "zero-copy-send"), "have": (Have.LOCKED_MEMORY,), "transport": Transport.UNIX},
         (NEW, NEW), "without a copy over TCP"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(ways: dict[str, Any], versions: tuple[Any, Any], said: str) -> None:
    found = compare(need(versions[0]), there(versions[1]), Plan(), manner(**ways))
    assert said in only(found, "combination")


def test_what_goes_together() -> None:
    settings = setting("multifd", "auto-converge", **{"multifd-compression": "zstd", "downtime-limit": 300})
    assert compare(need(OLD), there(NEW), Plan(), manner(source=settings)) == []
    assert compare(need(), there(None, cpu=None), Plan(), manner(source=setting("multifd", "postcopy-ram"))) == []


def image(**more: Any) -> DiskImage:
    known: dict[str, Any] = {
        "disk": "d", "depth": 0, "node": "n", "path": "/vm/d", "inode": (1, 2), "format": "raw", "size": 512,
        "length": 512, "allocated": 512, "still": False,
    }  # fmt: skip
    return DiskImage(**known | more)


def test_disks() -> None:
    plan = Plan(parts=(Part(image=image(), how=How.MIRROR, path="/vm/d"),))
    assert goes_along(plan)
    assert compare(need(), there(), plan, manner(copy=True)) == []
    (blocker,) = compare(need(), there(), plan, manner())
    assert str(blocker) == "/vm/d: not there on the other node: say that disks are to be copied (--copy-disks)"
    plan = Plan(parts=(Part(image=image(), how=How.SHARED, path="/vm/d"),))
    assert not goes_along(plan)
    assert compare(need(), there(), plan, manner()) == []
    buffered = {"/vm/d": Seen(kind="file", buffered=True)}
    spec = completed(parse({"name": "vm", "disks": [{"id": "d", "source": "/vm/d", "format": "raw"}]}))
    wanted = need(parcel=structs.replace(need().parcel, spec=spec))
    assert "cache = 'none' wants it" in only(compare(wanted, there(seen=buffered), plan, manner()), "disk")
    assert compare(need(), there(seen=buffered), plan, manner()) == []
    plan = Plan(blockers=(DiskBlocker("d", "there is no room", "make some", "space"),))
    assert compare(need(), there(), plan, manner()) == [Blocker("space", "d", "there is no room", "make some")]


def test_bitmaps_do_not_go_in_one_round() -> None:
    """Of a source that loses what is written after the first."""
    found = compare(need(), there(), Plan(), manner(source=setting("dirty-bitmaps"), once=True))
    assert "loses what a guest writes after the first round" in only(found, "combination")
    assert compare(need(), there(), Plan(), manner(source=setting("dirty-bitmaps"))) == []
