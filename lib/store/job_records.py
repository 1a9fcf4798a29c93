"""Jobs as records of a store: under which keys, and how one is added and changed by compare-and-swap."""

import hashlib
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import replace

from ..errors import (
    ArgumentError,
    IdempotencyConflict,
    JobNotFound,
    RecordError,
    RevisionConflict,
    StoreBusy,
    TooManyJobs,
)
from .job import Job
from .records import MAX_CHANGES, Store

MAX_OPEN: Final = 10_000  # jobs that wait or run: ten for each of 1,000 machines
KEPT: Final = 1_000  # jobs that ended
KEPT_AGE: Final = 30 * 86400.0  # s
# A client that had no answer asks again within minutes, and must find its job, however many have ended meanwhile.
SURE_AGE: Final = 600.0  # s
SURE_KEPT: Final = 10_000  # but no more than these: some 10 MB
PAGE: Final = 200  # records read at once
_TRIES: Final = 1_000  # each time, somebody else has got a change in: so many in a row say that something is wrong

_NEXT: Final = "jobs/next"
_ALL: Final = "jobs/all/"
_OPEN: Final = "jobs/open/"  # of jobs that have not ended: few, so that a start need not read all
_ASKED: Final = "jobs/asked/"  # by idempotency key


class JobRecords:
    """The jobs in a store.

    :param store: which
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @staticmethod
    def key(id: int) -> str:
        """Where a job lies; in the order of the numbers."""
        return f"{_ALL}{id:012d}"

    def load(self, id: int) -> tuple[Job, int]:
        """A job, and its record's revision.

        :raises JobNotFound: there is none of this number, or not any more
        """
        record = self.store.get(self.key(id))
        if record is None:
            raise JobNotFound(id)
        return self._decode(self.key(id), record.value), record.revision

    def page(self, before: int | None) -> list[tuple[Job, int]]:
        """Up to `PAGE` jobs with their revisions, the newest first.

        :param before: only those of lower numbers
        """
        below = "" if before is None else self.key(before)
        found = self.store.range(_ALL, before=below, limit=PAGE, last_first=True)
        return [(self._decode(key, record.value), record.revision) for key, record in found]

    def open_ids(self) -> list[int]:
        """The numbers of the jobs that have not ended, in their order."""
        return [int(key.removeprefix(_OPEN)) for key, _ in self.store.range(_OPEN)]

    def add(self, wanted: Job) -> Job:
        """Give a job a number and keep it; or find the one that has its idempotency key.

        :raises IdempotencyConflict: that is another request
        :raises TooManyJobs: too many wait or run
        """
        for _ in range(_TRIES):
            known = self._asked_before(wanted)
            if known is not None:
                return known
            if self.store.count(_OPEN) >= MAX_OPEN:
                raise TooManyJobs(MAX_OPEN)
            counter = self.store.get(_NEXT)
            job = replace(wanted, id=int(counter.value) + 1 if counter else 1)
            changes: dict[str, bytes | None] = {
                _NEXT: b"%d" % job.id,
                self.key(job.id): encode(job),
                f"{_OPEN}{job.id:012d}": b"",
            }
            expect = {_NEXT: counter.revision if counter else 0, self.key(job.id): 0}
            if job.idempotency_key:
                changes[_asked(job)] = b"%d" % job.id
                expect[_asked(job)] = 0
            try:
                self.store.txn(changes, expect=expect)
                return job
            except RevisionConflict:
                continue
        raise StoreBusy(self.store.name, 0)

    def change(self, id: int, change: Callable[[Job], Job]) -> Job:
        """Change a job as it is at that moment: `change` is called again where somebody else was quicker.

        :param change: from the job to what it is to be; the job itself: nothing is written
        :raises JobNotFound: there is none of this number, or not any more
        """
        for _ in range(_TRIES):
            job, revision = self.load(id)
            new = change(job)
            if new is job:
                return job
            changes: dict[str, bytes | None] = {self.key(id): encode(new)}
            if new.state.ended:
                changes[f"{_OPEN}{id:012d}"] = None
            try:
                self.store.txn(changes, expect={self.key(id): revision})
                return new
            except RevisionConflict:
                continue
        raise StoreBusy(self.store.name, 0)

    def prune(self, now: float) -> int:
        """Drop the jobs that :func:`is_dropped` names.

        :returns: how many
        """
        ended, dropped, before = 0, 0, None
        while page := self.page(before):
            before = page[-1][0].id
            old: list[tuple[Job, int]] = []
            for job, revision in page:
                if job.state.ended:
                    ended += 1
                    if is_dropped(ended, now - job.ended):
                        old.append((job, revision))
            dropped += sum(self._drop(old[at : at + MAX_CHANGES // 2]) for at in range(0, len(old), MAX_CHANGES // 2))
        return dropped

    def _drop(self, jobs: list[tuple[Job, int]]) -> int:
        changes: dict[str, bytes | None] = {self.key(job.id): None for job, _ in jobs}
        changes |= {_asked(job): None for job, _ in jobs if job.idempotency_key}
        try:
            self.store.txn(changes, expect={self.key(job.id): revision for job, revision in jobs})
        except RevisionConflict:  # somebody else drops them
            return 0
        return len(jobs)

    def _asked_before(self, wanted: Job) -> Job | None:
        """The job of the same idempotency key."""
        if not wanted.idempotency_key or (record := self.store.get(_asked(wanted))) is None:
            return None
        try:
            job, _ = self.load(int(record.value))
        except JobNotFound:  # dropped between the two looks, and its key with it
            return None
        if _request(job) != _request(wanted):
            raise IdempotencyConflict(job.id, wanted.idempotency_key)
        return job

    def _decode(self, key: str, value: bytes) -> Job:
        try:
            return msgspec.json.decode(value, type=Job)
        except msgspec.MsgspecError as error:
            raise RecordError(f"{self.store.name}: {key}", f"it cannot be read: {error}") from error


def is_dropped(rank: int, age: float) -> bool:
    """Whether a job that has ended is no longer kept.

    :param rank: 1 for the newest of those that ended, and so on
    :param age: seconds since its end
    """
    return age > KEPT_AGE or rank > SURE_KEPT or (rank > KEPT and age > SURE_AGE)


def encode(job: Job) -> bytes:
    """A job as its record's value.

    :raises ArgumentError: its parameters, or its result, are no JSON values
    """
    try:
        return msgspec.json.encode(job)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        field = "params" if job.result is None else "result"
        raise ArgumentError(field, str(error), "JSON values alone") from error


def _request(job: Job) -> tuple[str, str, bytes]:
    """What was asked, so that it can be compared: True is not 1."""
    return job.kind, job.instance, msgspec.json.encode(job.params, order="deterministic")


def _asked(job: Job) -> str:
    """The key by which a job is found by its idempotency key, of which each caller has their own."""
    return _ASKED + hashlib.sha256(msgspec.json.encode((job.caller.who, job.idempotency_key))).hexdigest()
