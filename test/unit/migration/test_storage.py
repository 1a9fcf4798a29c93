"""What becomes of a machine's disks, of what two nodes see: pure."""

from typing import Any

import pytest

from drover.kvm.likeness import Seen
from drover.kvm.spec import parse
from drover.migration import storage
from drover.migration.storage import Blocker, DiskImage, How, Plan
from drover.ops.bitmaps import Bitmap
from drover.ops.mirrors import StillFile

GIB = 1 << 30
ROOM = Seen(folder=True, storage=1, free=100 * GIB)
TOP = "/vm/top"
MID = "/vm/mid"
BASE = "/images/base"


def image(path: str, **more: Any) -> DiskImage:
    known: dict[str, Any] = {
        "disk": "d", "depth": 0, "node": "n-top", "path": path, "inode": (1, 2), "format": "qcow2", "size": GIB,
        "length": 1000, "allocated": 900, "still": False,
    }  # fmt: skip
    return DiskImage(**known | more)


IMAGES = [
    image(TOP),
    image(MID, depth=1, node="n-mid", still=True),
    image(BASE, depth=2, node="n-base", inode=(1, 7), still=True, allocated=5000, length=6000),
]


def seen(**paths: Seen) -> dict[str, Seen]:
    names = {"top": TOP, "mid": MID, "base": BASE}
    return {path: paths.get(name, ROOM) for name, path in names.items()}


def there(length: int = 1000, **more: Any) -> Seen:
    return Seen(kind="file", length=length, folder=True, storage=1, free=100 * GIB, **more)


def hows(plan: Plan) -> dict[str, How]:
    assert not plan.blockers
    return {part.image.path: part.how for part in plan.parts}


def only(plan: Plan) -> Blocker:
    (blocker,) = plan.blockers
    return blocker


def test_nothing_is_there() -> None:
    plan = storage.plan(IMAGES, seen())
    assert hows(plan) == {TOP: How.MIRROR, MID: How.COPY, BASE: How.COPY}
    assert [(it.name, it.node, it.still) for it in plan.mirrors] == [("d", "n-top", False)]
    assert [(it.name, it.file, it.still) for it in plan.copies] == [
        ("d-back1", StillFile(MID, 1, 2), True),
        ("d-back2", StillFile(BASE, 1, 7), True),
    ]
    assert plan.size == 900 + 900 + 5000
    assert [part.path for part in plan.made] == [TOP, MID, BASE]


def test_what_is_the_very_same_stays_whatever_else_is_known() -> None:
    plan = storage.plan(IMAGES, seen(top=there(same=True), mid=there(same=True), base=there(same=True)))
    assert set(hows(plan).values()) == {How.SHARED}
    assert (plan.mirrors, plan.copies, plan.made, plan.size) == ([], [], [], 0)


def test_a_base_that_is_found_is_not_copied() -> None:
    found = seen(base=there(6000))
    assert storage.to_compare(IMAGES, found) == {BASE: BASE}
    assert hows(storage.plan(IMAGES, found, alike=[BASE])) == {TOP: How.MIRROR, MID: How.COPY, BASE: How.FOUND}
    assert storage.to_compare(IMAGES, seen(base=there(6001), top=there(), mid=there(same=True))) == {}


def test_a_base_with_another_content_is_in_the_way() -> None:
    blocker = only(storage.plan(IMAGES, seen(base=there(6000))))
    assert (blocker.disk, blocker.text) == (
        "d",
        "there is something under /images/base on the other node, and it is not the same",
    )


def test_what_the_guest_writes_to_is_never_found_and_never_written_over() -> None:
    blocker = only(storage.plan(IMAGES, seen(top=there()), alike=[TOP]))
    assert "something under /vm/top" in blocker.text
    assert "remove /vm/top there" in blocker.todo


def test_somebody_says_what_cannot_be_seen() -> None:
    plan = storage.plan(IMAGES, seen(top=there(), base=there()), shared=["d"])
    assert set(hows(plan).values()) == {How.SHARED}


def test_block_devices() -> None:
    device = image("/dev/vg/d", format="raw", device=True)
    found = Seen(kind="device", length=GIB, folder=True)

    def of(found: Seen, it: DiskImage = device, **more: Any) -> Plan:
        return storage.plan([it], {"/dev/vg/d": found}, **more)

    assert "cannot be seen" in only(of(found)).text
    assert hows(of(found, shared=["d"])) == {"/dev/vg/d": How.SHARED}
    written = of(found, overwrite=["d"])
    assert hows(written) == {"/dev/vg/d": How.MIRROR}
    assert written.made == []
    assert "has 5 bytes there" in only(of(Seen(kind="device", length=5), overwrite=["d"])).text
    for wrong in (Seen(folder=True), there(GIB)):
        assert "cannot be seen" in only(of(wrong, overwrite=["d"])).text
    assert "cannot be seen" in only(of(found, image("/dev/vg/d", device=True), overwrite=["d"])).text
    still = image("/dev/vg/d", format="raw", device=True, still=True)
    assert hows(of(found, still, alike=["/dev/vg/d"])) == {"/dev/vg/d": How.FOUND}


def test_a_socket_of_the_host() -> None:
    local = image("nbd+unix:///x?socket=/s", local=True, format="raw")
    assert storage.to_compare([local], {}) == {}
    assert "a socket of this host" in only(storage.plan([local], {})).text
    assert hows(storage.plan([local], {}, shared=["d"])) == {local.path: How.SHARED}


def test_all_blockers_are_told_at_once() -> None:
    images = [
        image(TOP, snapshots=("before", "after"), bitmaps=(Bitmap(name="b", busy=True), Bitmap(name="c"))),
        image(MID, depth=1, still=True, snapshots=("kept",)),
        image(BASE, depth=2, still=True),
    ]
    plan = storage.plan(images, seen(mid=Seen(), base=there(5)))
    texts = [blocker.text for blocker in plan.blockers]
    assert sorted(texts) == sorted(
        [
            f"{TOP} has snapshots inside of it, which a mirror does not take along: before, after",
            f"a backup or an export works with bitmaps of {TOP}: b",
            f"there is no folder for {MID} on the other node",
            f"there is something under {BASE} on the other node, and it is not the same",
        ]
    )


def test_snapshots_are_found_by_disk() -> None:
    images = [image(TOP, snapshots=("a", "b")), image(MID, depth=1, still=True, snapshots=("c",)), image("/x")]
    assert storage.internal_snapshots(images) == {"d": ("a", "b")}


def test_snapshots_are_no_blocker_where_the_image_goes_as_it_is() -> None:
    images = [image(TOP, snapshots=("a",)), image(MID, depth=1, still=True, snapshots=("b",))]
    assert hows(storage.plan(images, seen(top=there(same=True)))) == {TOP: How.SHARED, MID: How.COPY}


def test_room_is_counted_for_each_file_system() -> None:
    small = Seen(folder=True, storage=2, free=5000)
    plan = storage.plan(IMAGES, seen(top=small, base=small))
    assert "need 5900 bytes there, and 5000 are free" in only(plan).text
    assert not storage.plan(IMAGES, seen(base=small)).blockers


def test_an_image_beneath_several_disks_goes_once() -> None:
    images = [
        image(TOP),
        image(BASE, depth=1, still=True, inode=(1, 5)),
        image(MID, disk="e", node="e"),
        image(BASE, disk="e", depth=1, still=True, inode=(1, 5)),
    ]
    plan = storage.plan(images, seen())
    assert [(it.name, it.file) for it in plan.copies] == [("d-back1", StillFile(BASE, 1, 5))]
    assert [it.name for it in plan.mirrors] == ["d", "e"]


def test_images_may_be_elsewhere_there() -> None:
    paths = {TOP: "/other/top", BASE: "/other/base"}
    found = {"/other/top": ROOM, MID: ROOM, "/other/base": there(6000)}
    assert storage.to_compare(IMAGES, found, paths) == {BASE: "/other/base"}
    plan = storage.plan(IMAGES, found, alike=[BASE], paths=paths)
    assert [part.path for part in plan.parts] == ["/other/top", MID, "/other/base"]
    spec = parse(
        {
            "name": "vm",
            "disks": [
                {
                    "id": "d", "source": TOP, "format": "qcow2",
                    "backing": [{"source": MID, "format": "qcow2"}, {"source": BASE, "format": "qcow2"}],
                },
                {"id": "e", "source": "/elsewhere", "format": "raw"},
            ],
        }
    )  # fmt: skip
    moved = storage.relocated(spec, plan)
    assert [disk.source for disk in moved.disks] == ["/other/top", "/elsewhere"]
    assert [below.source for below in moved.disks[0].backing] == [MID, "/other/base"]


# -- bitmaps ---------------------------------------------------------------------------------------------------------

BITMAPS = (
    Bitmap(name="kept", persistent=True),
    Bitmap(name="passing"),
    Bitmap(name="broken", persistent=True, inconsistent=True),
    Bitmap(name=""),
)


def names(settings: storage.Settings) -> list[tuple[str, str, list[str]]]:
    mapping = settings.parameters.get("block-bitmap-mapping", [])
    return [(one["node-name"], one["alias"], [bitmap["name"] for bitmap in one["bitmaps"]]) for one in mapping]


@pytest.mark.parametrize(
    ("found", "wanted"), [(ROOM, ["kept", "passing"]), (there(same=True), ["passing"])], ids=["mirrored", "shared"]
)
def test_bitmaps_go_in_the_stream_unless_their_image_has_them(found: Seen, wanted: list[str]) -> None:
    images = [image(TOP, bitmaps=BITMAPS), image(MID, depth=1, node="n-mid", still=True, bitmaps=BITMAPS[:1])]
    source, target = storage.bitmap_settings(storage.plan(images, seen(top=found)))
    assert source.capabilities == target.capabilities == {"dirty-bitmaps": True}
    assert names(source) == [("n-top", "d", wanted)]
    assert names(target) == [("d", "d", wanted)]


def test_without_bitmaps_nothing_is_set_for_them() -> None:
    for settings in storage.bitmap_settings(storage.plan(IMAGES, seen())):
        assert settings == storage.Settings(capabilities={"dirty-bitmaps": False}, parameters={})


def test_what_cannot_be_used_there() -> None:
    """Not looked at, not written to, or written to by somebody else."""
    blocker = only(storage.plan(IMAGES[:1], seen(top=Seen(kind="other", trouble="Permission denied"))))
    assert "cannot be looked at on the other node (Permission denied)" in blocker.text
    blocker = only(storage.plan(IMAGES[:1], seen(top=there(same=True, barred=True))))
    assert "cannot be written to" in blocker.text
    still = [image(BASE, still=True)]
    assert hows(storage.plan(still, seen(base=there(same=True, barred=True)))) == {BASE: How.SHARED}
    blocker = only(storage.plan(IMAGES[:1], seen(top=Seen(folder=True, storage=1, free=100 * GIB, barred=True))))
    assert "no file can be made" in blocker.text
    blocker = only(storage.plan(still, seen(base=there(written=True)), alike=[BASE]))
    assert (blocker.code, "open to write to it" in blocker.text) == ("lock", True)
