"""What is left when a migration is over: who runs, what both nodes say of it, and nothing else."""

import re
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from drover.errors import NotOwned
from drover.kvm.lock import is_locked
from drover.kvm.record import Document, load
from drover.node.books import FILE
from drover.store.owner import Owner, Owners, Phase
from drover.store.sqlite import SqliteStore
from nodes.lane import BRIDGE, Lane, ask, wait_until
from nodes.watch import Watch
from people import Member

SETTLING = 75.0  # s; who was not told asks after a minute at most


class Truth(NamedTuple):
    """Where it is.

    :ivar where: it runs: ``here``, ``there``; or ``nowhere``, and belongs to `owner`'s node
    """

    where: str
    owner: Owner


class Books(NamedTuple):
    """What a node's own store has of a machine."""

    owner: Owner | None
    journey: bool


def books_of(member: Member, name: str) -> Books:
    path = member.paths.state / FILE
    if not path.exists():
        return Books(None, False)
    with closing(SqliteStore(path)) as store:
        owner = None
        with suppress(NotOwned):
            owner = Owners(store).read(name)
        return Books(owner, store.get(f"journeys/{name}") is not None)


def document_of(member: Member, name: str) -> Document | None:
    with suppress(FileNotFoundError):
        return load(member.paths.instance(name).document)
    return None


def processes_of(uuid: str) -> set[int]:
    """Whatever has the machine's uuid among its words."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if uuid.encode() in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


def check_agreement(lane: Lane, name: str, uuid: str, watch: Watch, job: dict[str, Any], kills: str) -> Truth:
    """See that what runs, both documents, both stores, both lists and the job agree.

    :param kills: the QEMU that was killed, if one was
    """
    look = _Look(lane, name, uuid, watch, job, kills)
    wait_until(look.agrees, SETTLING, lambda: f"{look.wrong} (job: {job['state']}, {job.get('error')})")
    return look.truth


class _Look:
    def __init__(self, lane: Lane, name: str, uuid: str, watch: Watch, job: dict[str, Any], kills: str) -> None:
        self.lane, self.name, self.uuid, self.watch, self.job, self.kills = lane, name, uuid, watch, job, kills
        self.wrong = "nobody has looked"
        self.truth: Truth

    def agrees(self) -> bool:
        try:
            self._look()
        except AssertionError as error:
            self.wrong = str(error)
            return False
        return True

    def _look(self) -> None:
        lane, name = self.lane, self.name
        books = [books_of(member, name) for member in lane.pair.both]
        documents = [document_of(member, name) for member in lane.pair.both]
        owner = max((each.owner for each in books if each.owner is not None), key=lambda owner: owner.age)
        there = owner.node == "b"
        assert owner.phase is Phase.RUNNING, f"the record is {owner}"
        assert books[there].owner == owner, f"its own node says {books[there].owner}, and the other {owner}"
        assert not any(each.journey for each in books), "a journey is left"
        self._check_other(there, documents[not there])
        pid = self._check_own(there, documents[there], owner)
        assert processes_of(self.uuid) - _keepers(self.uuid) == ({pid} if pid else set()), "a process is left"
        for member in lane.pair.both:
            assert not is_locked(member.paths.locks / f"{name}.lock"), f"its lock is held on {member.address}"
        self._check_job(there, pid)
        self.truth = Truth(("there" if there else "here") if pid else "nowhere", owner)

    def _check_other(self, there: bool, document: Document | None) -> None:
        """Of the node that does not have it."""
        if not there:
            assert document is None, f"b keeps something of it: {document.passage if document else ''}"
            assert self._row(self.lane.there) == "", "b has it in its list"
            return
        assert document is not None, "a has forgotten it"
        assert document.passage is not None, "a says it is on no way, and b has it"
        assert (document.passage.way, document.runtime, document.pending) == ("gone", None, None), document.passage
        assert self._row(self.lane.here) == "stopped", self._row(self.lane.here)

    def _check_own(self, there: bool, document: Document | None, owner: Owner) -> int:
        """Of the node that has it; its process."""
        assert document is not None, f"{owner.node} owns it, and has no document"
        assert document.passage is None, f"{owner.node} owns it, and it is {document.passage}"
        assert document.pending is None, document.pending
        assert owner.incarnation.startswith(self.uuid), owner
        member = self.lane.there if there else self.lane.here
        watched = self.watch.there if there else self.watch.here
        pid = self.lane.qemu(member, self.name)
        if pid:
            assert watched.runs, f"its QEMU lives on {owner.node}, and does not run"
            assert owner.incarnation.split("/")[1] == str(document.generation), (owner, document.generation)
            assert self._row(member) == "running", self._row(member)
        else:
            assert document.runtime is None, "a run is written down that there is not"
            assert self.kills, "nobody has killed it, and it runs nowhere"
            assert self._row(member) in ("stopped", "crashed"), self._row(member)
        return pid

    def _check_job(self, there: bool, pid: int) -> None:
        if there:
            states = ("done",) if pid else ("done", "failed")  # it may have ended by itself, once it was there
            assert self.job["state"] in states, f"it is on b, and the job is {self.job['state']}"
        else:
            assert self.job["state"] in ("failed", "cancelled"), f"it is not on b, and the job is {self.job['state']}"

    def _row(self, member: Member) -> str:
        status, told = ask(member, "GET", "/v1/instances")
        assert status == 200, f"{member.address} does not answer"
        rows: dict[str, str] = {row["name"]: row["state"] for row in told["instances"]}
        return rows.get(self.name, "")


def _keepers(uuid: str) -> set[int]:
    """The processes among them that are no QEMU."""
    found = set()
    for pid in processes_of(uuid):
        with suppress(OSError):
            if b"qemu" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                found.add(pid)
    return found


def check_nothing_left(lane: Lane, name: str, uuid: str, truth: Truth) -> None:
    """Start it if it does not run; then delete it, and see that there is nothing of it any more.

    Its owner record stays: the other node may have to be told by it yet that it is overtaken.
    """
    member = lane.there if truth.owner.node == "b" else lane.here
    if truth.where == "nowhere":
        member.daemon.do("start", name)
    member.daemon.do("kill", name)
    for each in lane.pair.both:
        if document_of(each, name) is not None:
            status, told = each.daemon.call("DELETE", f"/v1/instances/{name}")
            assert status in (200, 204), told
    wait_until(lambda: not _left(lane, name, uuid), 5, lambda: f"something is left: {_left(lane, name, uuid)}")


def _left(lane: Lane, name: str, uuid: str) -> list[str]:
    found = [f"process {pid}" for pid in processes_of(uuid)]
    for member, network in zip(lane.pair.both, lane.cable.ends, strict=True):
        for top in (member.paths.state, member.paths.run):
            found += [str(path) for path in top.rglob("*") if _names(path.relative_to(top), name, uuid)]
        links = {re.split("[@ ]", line)[0] for line in network.ip("-brief link").splitlines()}
        found += sorted(links - {"lo", "wire", BRIDGE})
        if books_of(member, name).journey:
            found.append(f"{member.address}: a journey")
    return found


def _names(path: Path, name: str, uuid: str) -> bool:
    """Whether a path is about a machine; its lock is no more than a file, and stays."""
    if path.parts[0] == "locks":
        return False
    return uuid in str(path) or any(re.split(r"[.\-]", part)[0] == name for part in path.parts)
