"""Jobs that outlive whoever runs them: none is lost, and none is begun twice.

Who begins a job is decided by one compare-and-swap of its record. From then on only that process changes what it has
come to; others may ask that it be cancelled. Where the process is gone, another may take the job over, or say that it
is lost. Each way a job ends is one write with the job's result.
"""

import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final

from msgspec.structs import replace

from ..errors import ArgumentError, HistoryGone, JobNotFound, JobTaken, JobWrongState, StoreBusy, StoreFull
from .job import MAX_STEPS, Caller, Failure, Job, JobState, Step, moved
from .job_records import JobRecords
from .progress import Progress, Sample, eta, rate, with_sample
from .records import Store
from .runner import Runner

LIST_MAX: Final = 1_000  # jobs in one list: about 1 MB as JSON
PROGRESS_EVERY: Final = 1.0  # s between two writes of a job's progress; each waits for the disk
PROGRESS_GAP: Final = 0.1  # s between two such writes of any jobs: ten a second leave the disk to what counts
_PRUNE_EVERY: Final = 100  # jobs of this process: to look which are too old costs some 10 ms
_MAX_NAME: Final = 255  # characters of a kind, an instance, an idempotency key


class _Run:
    """A job that this process runs: what of it is not in the store yet.

    :ivar epoch: the job's
    :ivar steps: all that the job has come to, with `dropped` earlier ones
    """

    def __init__(self, job: Job) -> None:
        self.epoch = job.epoch
        self.steps = job.steps
        self.dropped = job.steps_dropped
        self.samples: tuple[Sample, ...] = ()
        self.progress: Progress | None = None
        self.written = float("-inf")


class Jobs:
    """The jobs in a store. One such object in a process, shared between its threads.

    Whatever changes a job may raise the errors of :class:`.records.Store`; nothing was changed then, but for a bare
    :class:`~drover.errors.StoreError`.

    :param store: where they are kept; one host's own, for whether a job's runner lives is seen on its host alone
    :param now: tells Unix time
    :param ticks: tells seconds that never jump
    """

    def __init__(
        self, store: Store, *, now: Callable[[], float] = time.time, ticks: Callable[[], float] = time.monotonic
    ) -> None:
        self._records = JobRecords(store)
        self._now = now
        self._ticks = ticks
        self._me = Runner.me()
        self._runs: dict[int, _Run] = {}
        self._lock = threading.Lock()
        self._taking = threading.Lock()  # so that a job taken is known as ours before anybody else looks at it
        self._progress_written = float("-inf")
        self._submitted = 0

    # --- what callers do -------------------------------------------------------------------------------------------

    def submit(
        self,
        kind: str,
        *,
        instance: str = "",
        params: Any = None,
        partial: bool = False,
        caller: Caller | None = None,
        idempotency_key: str = "",
    ) -> Job:
        """Take on a job. It waits until somebody begins it.

        :param kind: what is to be done
        :param instance: to which; empty: to none
        :param params: how; JSON values without secrets, for they are kept and shown
        :param partial: something secret was left out of them
        :param caller: on whose behalf
        :param idempotency_key: a caller who asks again by the same one gets the job of the first time, as long as that
            is kept; empty: each time is another job
        :returns: the job; one that is not queued was begun before
        :raises IdempotencyConflict: the key was used by this caller for something else
        :raises TooManyJobs: so many wait or run that none is taken
        """
        for name, text in (("kind", kind), ("instance", instance), ("idempotency_key", idempotency_key)):
            if len(text) > _MAX_NAME or (name == "kind" and not text):
                raise ArgumentError(name, text, f"up to {_MAX_NAME} characters, and a kind")
        wanted = Job(
            id=0, kind=kind, instance=instance, params=params, partial=partial, caller=caller or Caller(),
            idempotency_key=idempotency_key, created=self._now(),
        )  # fmt: skip
        with self._lock:
            self._submitted += 1
            prune = self._submitted % _PRUNE_EVERY == 0
        if prune:
            self.prune()
        return self._records.add(wanted)

    def get(self, id: int) -> Job:
        """A job as it is now.

        :raises JobNotFound: there is none of this number, or not any more
        """
        return self._seen(self._records.load(id)[0])

    def list(
        self,
        *,
        states: Collection[JobState] = (),
        instance: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> tuple[Job, ...]:
        """Jobs, the newest first.

        :param states: only those in one of these; empty: whatever their state
        :param instance: only those of this one; empty: only those of none; None: whatever theirs
        :param before: only those with lower numbers: the next page begins before the last job of this one
        :param limit: at most so many, up to `LIST_MAX`
        """
        if not 0 < limit <= LIST_MAX:
            raise ArgumentError("limit", limit, f"1 to {LIST_MAX}")
        found: list[Job] = []
        while len(found) < limit and (page := self._records.page(before)):
            found += [
                self._seen(job)
                for job, _ in page
                if (not states or job.state in states) and instance in (None, job.instance)
            ]
            before = page[-1][0].id
        return tuple(found[:limit])

    def wait(self, id: int, timeout: float) -> Job:
        """Wait for the end of a job.

        :param timeout: at most so long, in seconds
        :returns: the job as it is then, ended or not
        :raises JobNotFound: there is none of this number, or not any more
        """
        store, deadline = self._records.store, time.monotonic() + timeout
        while True:
            # not from the job's own revision: it may be long ago, and what was removed since unknown
            revision = store.revision()
            job, _ = self._records.load(id)
            left = deadline - time.monotonic()
            if job.state.ended or left <= 0:
                return self._seen(job)
            try:
                with store.watch(self._records.key(id), revision) as watch:
                    watch.poll(left)
            except HistoryGone:
                pass  # very much was removed in between: the job is read anew

    def ask_cancel(self, id: int) -> Job:
        """Ask that a job be cancelled. One that waits is cancelled at once; one that runs is when who runs it sees it.

        :returns: the job; one that has ended is as it was
        :raises JobNotFound: there is none of this number, or not any more
        """

        def ask(job: Job) -> Job:
            if job.state is JobState.QUEUED:
                return moved(job, JobState.CANCELLED, self._now(), cancel_asked=self._now())
            return job if job.state.ended or job.cancel_asked else replace(job, cancel_asked=self._now())

        return self._seen(self._records.change(id, ask))

    # --- what the process that runs a job does ---------------------------------------------------------------------

    def begin(self, id: int, *, before: Any = None) -> Job:
        """Begin a job: from now on it is this process that runs it, and no other will.

        :param before: how things are now; JSON values
        :raises JobWrongState: it has begun or ended already
        """
        return self._take(id, lambda job: moved(job, JobState.RUNNING, self._now(), started=self._now(), before=before))

    def step(self, id: int, name: str, at: float | None = None, *, at_once: bool = True) -> Job:
        """Say which step a job begins.

        :param at: Unix time when it began; None: now
        :param at_once: it is on disk before this returns; else it is with whatever of the job is written next
        :returns: the job, with `cancel_asked`
        :raises JobTaken: another process runs it
        """
        with self._lock:
            if (run := self._runs.get(id)) is not None:
                steps = (*run.steps, Step(name, self._now() if at is None else at))
                over = max(0, len(steps) - MAX_STEPS)
                run.steps, run.dropped = steps[over:], run.dropped + over
        if at_once:
            return self._records.change(id, self._mine)
        return self._mine(self._records.load(id)[0])

    def progress(
        self, id: int, done: float, of: float = 0, unit: str = "", *, eta: float | None = None, detail: str = ""
    ) -> Job:
        """Say how far a job is: as often as one likes, for it is written down at times only.

        Where there is no room to write it down, it is remembered, and the job goes on.

        :param done: so much
        :param of: of so much; 0 where nobody knows
        :param unit: such as ``bytes``
        :param eta: seconds to the end, where who runs it knows better than by its rate
        :param detail: more of it, in words
        :returns: the job, with `cancel_asked`
        :raises JobTaken: another process runs it
        """
        due = self._remember(id, Progress(done=done, of=of, unit=unit, eta=eta, detail=detail, at=self._now()))
        if due:
            try:
                return self._records.change(id, self._mine)
            except (StoreFull, StoreBusy):
                pass
        return self._mine(self._records.load(id)[0])

    def finish(self, id: int, result: Any = None) -> Job:
        """Say that a job is done.

        :param result: what came of it; JSON values
        :raises JobTaken: another process runs it
        """
        return self._end(id, JobState.DONE, result=result)

    def fail(self, id: int, error: Failure) -> Job:
        """Say that a job has failed; one that waits, too, as it cannot be run.

        :raises JobTaken: another process runs it
        """
        return self._end(id, JobState.FAILED, error=error)

    def cancelled(self, id: int) -> Job:
        """Say that a job was cancelled, as somebody asked.

        :raises JobTaken: another process runs it
        """
        return self._end(id, JobState.CANCELLED)

    # --- what a daemon does at its start ---------------------------------------------------------------------------

    def recover(self) -> tuple[Job, ...]:
        """The jobs that were being run by a process that is gone, the oldest first: to be adopted, or lost.

        Those that wait are not among them: they are begun like any other. Drops what is too old, too.
        """
        try:
            self.prune()
        except (StoreFull, StoreBusy):  # of no matter now
            pass
        found: list[Job] = []
        for number in self._records.open_ids():
            with self._taking:
                try:
                    job, _ = self._records.load(number)
                except JobNotFound:  # it has ended and was dropped meanwhile
                    continue
                if job.state is JobState.RUNNING and self._is_orphan(job):
                    found.append(job)
        return tuple(found)

    def waiting(self) -> tuple[Job, ...]:
        """The jobs that nobody has begun, the oldest first."""
        found: list[Job] = []
        for number in self._records.open_ids():
            with suppress(JobNotFound):  # it has ended and was dropped meanwhile
                job, _ = self._records.load(number)
                if job.state is JobState.QUEUED:
                    found.append(job)
        return tuple(found)

    def adopt(self, id: int) -> Job:
        """Run a job on whose runner is gone. How far it had come, its steps tell, and what it works on.

        :raises JobTaken: its runner lives, or another process was quicker
        :raises JobWrongState: it does not run
        """
        return self._take(id, self._orphan)

    def lose(self, id: int, error: Failure | None = None) -> Job:
        """Say of a job whose runner is gone that nobody knows what became of it.

        :raises JobTaken: its runner lives
        :raises JobWrongState: it does not run
        """
        with self._taking:
            return self._records.change(
                id, lambda job: moved(self._orphan(job), JobState.LOST, self._now(), error=error)
            )

    def prune(self) -> int:
        """Drop jobs that ended long ago: the oldest of more than `KEPT`, and those older than `KEPT_AGE`.

        None is dropped within `SURE_AGE` of its end, unless `SURE_KEPT` have ended since (:mod:`.job_records`).

        :returns: how many
        """
        return self._records.prune(self._now())

    # --- within ----------------------------------------------------------------------------------------------------

    def _take(self, id: int, change: Callable[[Job], Job]) -> Job:
        with self._taking:
            job = self._records.change(id, lambda job: replace(change(job), runner=self._me, epoch=job.epoch + 1))
            with self._lock:
                self._runs[id] = _Run(job)
        return job

    def _end(self, id: int, state: JobState, **fields: Any) -> Job:
        def end(job: Job) -> Job:
            if job.state is state and self._run_of(job) is not None:
                return job  # asked again, as nobody knew whether it was written
            return moved(self._mine(job) if job.state is JobState.RUNNING else job, state, self._now(), **fields)

        job = self._records.change(id, end)
        with self._lock:
            self._runs.pop(id, None)
        return job

    def _run_of(self, job: Job) -> _Run | None:
        """Our run of a job, if it is we who run it."""
        run = self._runs.get(job.id)
        return run if run is not None and (run.epoch, self._me) == (job.epoch, job.runner) else None

    def _mine(self, job: Job) -> Job:
        """A job that we run, with the steps and the progress that we know of."""
        if job.state.ended:
            raise JobWrongState(job.id, job.state, JobState.RUNNING)
        if self._run_of(job) is None:
            raise JobTaken(job.id, str(job.runner or "nobody"))
        return self._seen(job)

    def _seen(self, job: Job) -> Job:
        """A job with the steps and the progress that we know of, if it is we who run it."""
        run = self._run_of(job)
        if run is None or job.state is not JobState.RUNNING:
            return job
        if run.progress in (None, job.progress) and run.steps == job.steps:
            return job
        return replace(job, progress=run.progress or job.progress, steps=run.steps, steps_dropped=run.dropped)

    def _is_orphan(self, job: Job) -> bool:
        if job.runner == self._me:  # and yet not ours: its begin was written, though we were told that it may not be
            return self._run_of(job) is None
        return job.runner is None or not job.runner.lives

    def _orphan(self, job: Job) -> Job:
        if job.state is not JobState.RUNNING:
            raise JobWrongState(job.id, job.state, JobState.LOST)
        if not self._is_orphan(job):
            raise JobTaken(job.id, str(job.runner))
        return job

    def _remember(self, id: int, new: Progress) -> bool:
        """Keep in mind how far a job is.

        :returns: whether it is to be written down now
        """
        ticks = self._ticks()
        with self._lock:
            run = self._runs.get(id)
            if run is None:
                return False
            of_same = run.progress is not None and run.progress.unit == new.unit
            run.samples = with_sample(run.samples if of_same else (), Sample(ticks, new.done))
            speed = rate(run.samples)
            to_go = eta(new.done, new.of, speed) if new.eta is None else new.eta
            run.progress = replace(new, rate=speed, eta=to_go)
            due = ticks >= max(run.written + PROGRESS_EVERY, self._progress_written + PROGRESS_GAP)
            if due:
                run.written = self._progress_written = ticks
            return due
