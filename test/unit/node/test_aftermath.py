"""What became of an operation whose daemon was killed: for each verb, done, to be done, or not to be told."""

from types import SimpleNamespace
from typing import Any

import pytest

from drover.kvm.ends import Stop
from drover.kvm.parcel import Parcel
from drover.kvm.record import Device, Document, Passage, Runtime, Saved
from drover.kvm.spec import Spec, parse
from drover.node.aftermath import Again, Before, Done, Now, Unknown, before, judge
from drover.node.operations import OPERATIONS

UUID, OTHER = "8a3c1f00-0000-4000-8000-000000000001", "8a3c1f00-0000-4000-8000-000000000002"


def spec(**more: Any) -> Spec:
    return parse({"name": "a", "uuid": UUID, "memory": {"size": "64MiB"}} | more)


def stopped(generation: int = 1, reason: str = "request") -> Document:
    return Document(spec=spec(), generation=generation, last_stop=Stop(reason=reason, at=1.0))


def running(generation: int = 1, **devices: str) -> Document:
    nics = [{"id": name, "mode": "user"} for name, kind in devices.items() if kind == "nic"]
    runtime = Runtime(
        generation=generation, boot_id="b", spec=spec(nics=nics), pid=7,
        devices={name: Device(kind=kind, size=1 << 30) for name, kind in devices.items()},
    )  # fmt: skip
    return Document(spec=runtime.spec, generation=generation, runtime=runtime)


def became(verb: str, was: Document | None, now: Document | None, *, other: str = "", **params: Any) -> Any:
    return judge(verb, before(Now(was, "")), Now(now, other), SimpleNamespace(**params))


@pytest.mark.parametrize("verb", ["start", "reboot"])
def test_what_begins_a_run_is_known_by_its_number(verb: str) -> None:
    assert became(verb, stopped(1), running(2)) == Done({"notices": []})
    assert became(verb, stopped(1), stopped(2, "guest-shutdown")) == Done({"notices": []})  # it ran, and has ended
    assert became(verb, stopped(1), stopped(1)) == Again()
    assert became(verb, stopped(1), stopped(2, "start-failed")) == Again()  # it was cut off before QEMU was up
    assert became(verb, running(1), running(1)) == Again()


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_what_ends_a_run_is_done_when_that_is_over(verb: str) -> None:
    assert became(verb, running(1), stopped(1)) == Done({"stop": {"reason": "request", "at": 1.0}})
    assert isinstance(became(verb, running(1), running(2)), Done)  # somebody started it again
    assert became(verb, running(1), running(1)) == Again()
    assert isinstance(became(verb, running(1), None), Unknown)


def saved(generation: int = 1) -> Document:
    document = stopped(generation, "saved")
    was = spec(vnc={"password": "secret"})
    parcel = Parcel(spec=was, machine="q35", accelerator="tcg", version=(7, 2, 0), generation=generation)
    document.saved = Saved(key="k", form="stream", at=1.0, parcel=parcel)
    return document


def test_what_is_saved_and_restored() -> None:
    done = became("save", running(1), saved(1))
    assert isinstance(done, Done)
    assert "secret" not in str(done)
    assert became("save", running(1), running(1)) == Again()  # cut off, it runs on
    assert isinstance(became("save", running(1), running(2)), Unknown)
    assert became("restore", saved(1), running(2)) == Done({"notices": []})
    assert became("restore", saved(1), saved(1)) == Again()
    assert became("discard", saved(1), saved(1)) == Again()
    assert became("discard", saved(1), stopped(1)) == Done(None)
    assert isinstance(became("discard", saved(1), saved(2)), Unknown)  # of another run: not ours to forget


def test_who_has_gone_over_to_another_qemu_is_known_by_its_run() -> None:
    done = became("upgrade", running(1), running(2))
    assert isinstance(done, Done)
    assert done.result["moved"] is True
    assert became("upgrade", running(1), running(1)) == Again()
    assert isinstance(became("upgrade", running(1), stopped(1)), Unknown)


def test_a_device_is_added_once() -> None:
    was = running(1, n1="nic")
    done = became("add-nic", was, running(1, n1="nic", n2="nic"))
    assert isinstance(done, Done)
    assert done.result["id"] == "n2"
    assert became("add-nic", was, was) == Again()
    assert became("add-nic", was, running(1, n1="nic", m="memory")) == Again()
    assert became("add-memory", was, running(1, n1="nic", m="memory")).result == {
        "id": "m", "size": 1 << 30, "type": "dimm",
    }  # fmt: skip
    assert isinstance(became("add-nic", was, running(2, n1="nic", n2="nic")), Unknown)  # in another run: not ours
    assert isinstance(became("add-nic", was, stopped(1)), Unknown)


def test_a_device_is_removed_once() -> None:
    was = running(1, n1="nic")
    assert became("remove-nic", was, running(1), id="n1") == Done(None)
    assert became("remove-nic", was, was, id="n1") == Again()
    assert became("remove-nic", was, was, id="none") == Again()  # and fails, as it would have


def test_what_sets_something_is_set_again_in_the_same_run_alone() -> None:
    for verb in ("pause", "resume", "set-link", "balloon", "resize-disk", "change-nic", "mend", "wait-driver"):
        assert became(verb, running(3), running(3)) == Again()
        assert isinstance(became(verb, running(3), running(4)), Unknown)
        assert isinstance(became(verb, running(3), stopped(3)), Unknown)
        assert became(verb, stopped(3), stopped(3)) == Again()  # and fails, as it would have


def test_what_makes_and_removes_instances() -> None:
    born = Before(uuid=UUID)
    assert judge("create", born, Now(stopped(0), ""), None) == Done({"name": "a", "uuid": UUID})
    assert judge("create", born, Now(None, ""), None) == Again()
    assert judge("create", Before(uuid=OTHER), Now(stopped(0), ""), None) == Again()  # and fails: there is another
    assert became("delete", stopped(), None) == Done(None)
    assert became("delete", stopped(), stopped()) == Again()
    assert became("rename", stopped(), None, other=UUID, to="b") == Done({"name": "b"})
    assert became("rename", stopped(), stopped(), to="b") == Again()
    assert became("rename", stopped(), stopped(), other=OTHER, to="b") == Again()
    assert became("clone", stopped(), stopped(), other=OTHER, to="b") == Done({"name": "b", "notices": []})
    assert became("clone", stopped(), stopped(), to="b") == Again()


def test_what_may_be_done_once_only_is_not_done_again() -> None:
    for verb in ("reset", "qmp", "agent", "agent-exec", "agent-write-file", "agent-shutdown"):
        assert isinstance(became(verb, running(1), running(1)), Unknown), verb


def test_what_was_sent_is_not_sent_again() -> None:
    on_its_way = running(1)
    on_its_way.passage = Passage(way="out", epoch=3, other="b")
    assert became("migration-start", running(1), on_its_way, epoch=3) == Done(None)
    assert became("migration-start", running(1), running(1), epoch=3) == Again()
    assert became("migration-start", running(1), on_its_way, epoch=4) == Again()  # and fails, as it would have
    assert isinstance(became("migration-continue", on_its_way, on_its_way, epoch=3), Unknown)


def test_each_operation_has_its_word() -> None:
    """None raises, whatever was and is: each verb of the table."""
    params = SimpleNamespace(id="n1", to="b", epoch=1)
    for verb in OPERATIONS:
        for was in (None, stopped(), running(1, n1="nic")):
            for now in (None, stopped(), stopped(2), running(1), running(2, n1="nic")):
                verdict = judge(verb, before(Now(was, "")), Now(now, ""), params)
                assert isinstance(verdict, Done | Again | Unknown), verb
