"""Every change of an instance as a job: taken on, carried out in its turn, kept with what came of it.

A job is on disk before it begins, and its end before anybody is told of it. So whoever asks again, by the same
idempotency key or for the job itself, is told the same; and after a restart what was taken on and not begun is carried
out, and of what was cut off :mod:`.aftermath` says what became.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar
from uuid import uuid4

import msgspec
from msgspec import structs

from ..errors import (
    DroverError,
    InstanceNotFound,
    JobTaken,
    JobWrongState,
    OperationCancelled,
    StoreBusy,
    StoreError,
    StoreFull,
)
from ..kvm.witness import Witness, watched_by
from ..store.job import Caller, Failure, Job, JobState
from ..store.jobs import Jobs
from ..store.sqlite import SqliteStore
from . import aftermath
from .metrics import Metrics
from .model import Model
from .operations import CREATE, OPERATIONS, Operation, parameters, shown
from .problems import Refused, code_of, failure_of, refused_as
from .traffic import Traffic
from .work import Worker

T = TypeVar("T")

STORE: Final = "jobs.db"  # in the folder of what lasts
# Seconds until an end that found no room on the disk is written again.
_WRITE_AGAIN: Final = 5.0
# Seconds after which a job that was never begun is not begun any more: whoever asked has long looked for another way.
_STALE: Final = 600.0
MAX_RESULT: Final = 512 << 10  # bytes of JSON that are kept of what came of a job; whoever waits is told all
_TELL_EVERY: Final = 1.0  # s between two words of a job's progress
_LEFT: Final = "daemon-ends"
log = logging.getLogger("drover.node")
audit = logging.getLogger("drover.audit")


class _Act(NamedTuple):
    """What a job comes to.

    :ivar params: as the operation takes them
    """

    operation: Operation
    name: str
    params: Any


class Desk:
    """Takes on jobs. Belongs to one loop.

    :param worker: does what blocks
    :param model: is true again before a job's end is told
    :param metrics: counts them
    :param tell: called on the loop with each change of a job
    :param traffic: moves machines between nodes
    """

    def __init__(
        self, worker: Worker, model: Model, metrics: Metrics, tell: Callable[[Job], None], traffic: Traffic
    ) -> None:
        self._worker = worker
        self._traffic = traffic
        self._model = model
        self._metrics = metrics
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._opening = threading.Lock()
        self._store: SqliteStore | None = None
        self._known: Jobs | None = None
        self._taking: set[asyncio.Task[Job]] = set()
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._unwritten: dict[int, Callable[[], Job]] = {}
        self._wanted_to_end: set[int] = set()
        self._stopping = False

    async def start(self) -> None:
        """Take up what an earlier daemon has left. Where the store cannot be opened now, that is done when it can."""
        try:
            await self._in_thread(self._jobs)
        except (DroverError, OSError) as error:
            log.error("the jobs cannot be read, and no changes be made: %s", error)

    def let_go(self) -> None:
        """Begin nothing more, and wait for no guest: the next daemon takes it up."""
        self._traffic.leave()
        self._stopping = True

    async def stop(self, timeout: float) -> None:
        """Have what runs come to its end.

        :param timeout: seconds for that
        """
        self.let_go()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks.values()), timeout=timeout)
        if self._store is not None and not self._tasks:
            await self._in_thread(self._store.close)

    @property
    def waiting(self) -> int:
        """How many jobs wait or run."""
        return len(self._tasks)

    # -- for those who call -------------------------------------------------------------------------------------------

    async def take(self, operation: Operation, name: str, params: Any, caller: Caller, key: str) -> Job:
        """Take on a job; it is carried out in its turn.

        :param params: what :func:`.operations.parameters` has made of what was sent
        :param key: an idempotency key, or empty
        :returns: the job, or the one that has this key
        """
        taking = asyncio.create_task(self._take(_Act(operation, name, params), caller, key))
        self._taking.add(taking)
        taking.add_done_callback(self._taking.discard)
        return await asyncio.shield(taking)  # whoever goes meanwhile leaves no job that nobody begins

    async def outcome(self, job: Job) -> Any:
        """What came of a job, once it has ended; what went wrong is raised.

        :raises DroverError: as the operation raised it, or, of a job that ended before, with its code and its words
        """
        if (task := self._tasks.get(job.id)) is not None:
            return await asyncio.shield(task)
        job = await self.get(job.id)
        if job.state is JobState.DONE:
            return job.result
        raise refused_as(job)

    async def get(self, id: int, wait: float = 0) -> Job:
        """A job.

        :param wait: seconds to wait for its end
        :raises JobNotFound: there is none of this number
        """
        if wait and (task := self._tasks.get(id)) is not None:
            await asyncio.wait([task], timeout=wait)
        return await self._in_thread(lambda: self._jobs().get(id))

    async def list(
        self, *, states: Collection[JobState], instance: str | None, before: int | None, limit: int
    ) -> tuple[Job, ...]:
        """Jobs, the newest first; see :meth:`drover.store.jobs.Jobs.list`."""
        return await self._in_thread(
            lambda: self._jobs().list(states=states, instance=instance, before=before, limit=limit)
        )

    async def cancel(self, id: int, caller: Caller) -> Job:
        """Have a job end. One that waits does at once; one that runs, where it can end well.

        :raises JobNotFound: there is none of this number
        """
        job = await self._in_thread(lambda: self._jobs().ask_cancel(id))
        if not job.state.ended and id in self._tasks:
            self._wanted_to_end.add(id)
        self.note("cancel", job.instance, caller, "done", job=id)
        self._tell(job)
        return job

    async def _take(self, act: _Act, caller: Caller, key: str) -> Job:
        told, lacks = shown(act.operation, act.params)
        job = await self._in_thread(
            lambda: self._jobs().submit(
                act.operation.verb, instance=act.name, params=told, partial=lacks, caller=caller, idempotency_key=key
            )
        )
        if job.state is JobState.QUEUED and job.id not in self._tasks:
            self._begin(job, act)
        return job

    # -- one job ------------------------------------------------------------------------------------------------------

    def _begin(self, job: Job, act: _Act) -> None:
        self._follow(job, lambda: self._carry_out(job, act))
        self._tell(job)

    def _follow(self, job: Job, does: Callable[[], Any]) -> None:
        """Have something done in the turn of its instance."""
        task = asyncio.create_task(self._run(job, does), name=f"job {job.id}")
        self._tasks[job.id] = task
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may have waited

    async def _run(self, job: Job, does: Callable[[], Any]) -> Any:
        outcome, begun = "failed", time.monotonic()
        try:
            result = await self._worker.do(_turn(job), does)
            outcome = "done"
        except Exception as error:
            outcome = code_of(error)
            if not isinstance(error, (DroverError, OSError, Refused)):  # which nobody but us is told of
                log.exception("job %d, %s %s", job.id, job.kind, job.instance, extra={"job": job.id})
            if outcome != _LEFT:
                await self._in_thread(partial(self._see_failed, job, error))
            raise
        finally:
            try:
                self.note(job.kind, job.instance, job.caller, outcome, job=job.id)
                self._metrics.seconds.labels(job.kind).observe(time.monotonic() - begun)
                params = job.params if isinstance(job.params, dict) else {}
                for name in {job.instance, params.get("to") or job.instance}:
                    await self._model.refreshed(name)
            finally:
                del self._tasks[job.id]
                self._wanted_to_end.discard(job.id)
        return result

    def _see_failed(self, job: Job, error: Exception) -> None:
        """A job that did not even begin has failed, too: as when too many wait for their turn."""
        jobs, said = self._jobs(), failure_of(error)
        with suppress(DroverError, OSError):
            if jobs.get(job.id).state is JobState.QUEUED:
                self._end(job, lambda: jobs.fail(job.id, said))

    def note(self, verb: str, name: str, caller: Caller, outcome: str, *, job: int = 0) -> None:
        """Log and count a change: who, what, and what came of it."""
        said = {"caller": caller.who, "operation": verb, "instance": name, "outcome": outcome} | (
            {"job": job, "request": caller.request} if job else {"request": caller.request}
        )
        self._metrics.calls.labels(verb, outcome).inc()
        audit.info("%s %s by %s: %s", verb, name, caller.who, outcome, extra=said)

    # -- in a thread, in the turn of the instance -------------------------------------------------------------------

    def _carry_out(self, job: Job, act: _Act) -> Any:
        if self._stopping:
            raise _left(job)
        node, jobs = self._worker.node, self._jobs()
        if not act.operation.journey and not act.operation.socket and act.operation.verb != "kill":
            self._traffic.check_settled(act.name)
        was = aftermath.before(aftermath.look(node, act.name, act.params))
        if act.operation is CREATE:
            was = aftermath.Before(uuid=act.params.uuid or str(uuid4()))
        try:
            begun = jobs.begin(job.id, before=msgspec.to_builtins(was))
        except JobWrongState as error:
            if error.state is JobState.CANCELLED:
                raise OperationCancelled(act.name, act.operation.verb) from None
            raise
        self.say(begun)
        return self._do(begun, act, was)

    def _do(self, job: Job, act: _Act, was: aftermath.Before, *, again: bool = False) -> Any:
        """Carry out a job that is ours, and write down what came of it.

        :param again: it was begun before
        """
        jobs = self._jobs()
        params = structs.replace(act.params, uuid=was.uuid) if act.operation is CREATE else act.params
        try:
            with watched_by(_Witness(self, jobs, job)):
                result = self._done(act, params, again=again)
        except OperationCancelled as error:
            if job.id not in self._wanted_to_end:
                raise _left(job) from error
            self._end(job, lambda: jobs.cancelled(job.id))
            raise
        except Exception as error:
            said = failure_of(error)
            self._end(job, lambda: jobs.fail(job.id, said))
            raise
        told = result if isinstance(result, dict) else {"result": result}
        size = len(msgspec.json.encode(told))
        kept = told if size <= MAX_RESULT else {"too_large": size}
        self._end(job, lambda: jobs.finish(job.id, kept))
        return told

    def _done(self, act: _Act, params: Any, *, again: bool) -> Any:
        if act.operation.journey:
            return self._traffic.move(act.name, params, again=again)
        if act.operation.verb == "kill" and (ended := self._traffic.kill(act.name)) is not None:
            return ended
        return act.operation.does(self._worker.node, act.name, params)

    def _end(self, job: Job, write: Callable[[], Job]) -> None:
        """Write down a job's end. Where there is no room, that is done later: it has ended all the same."""
        try:
            self.say(write())
        except (StoreError, OSError) as error:
            log.warning("the end of job %d could not be written, and will be: %s", job.id, error)
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._write_later, job.id, write)

    def _write_later(self, id: int, write: Callable[[], Job]) -> None:
        self._unwritten[id] = write
        self._loop.call_later(_WRITE_AGAIN, lambda: asyncio.ensure_future(self._write_again(id)))

    async def _write_again(self, id: int) -> None:
        write = self._unwritten.pop(id)
        try:
            self._tell(await self._in_thread(write))
        except (StoreError, OSError):
            self._write_later(id, write)
        except DroverError as error:
            log.error("the end of job %d cannot be written: %s", id, error)

    # -- after a restart ----------------------------------------------------------------------------------------------

    def _jobs(self) -> Jobs:
        """The jobs; at first, takes up what an earlier daemon left.

        :raises DroverError: they cannot be read now
        """
        with self._opening:
            if self._known is None:
                path = self._worker.node.host.paths.state / STORE
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._store = store = SqliteStore(path)
                try:
                    jobs = Jobs(store)
                    left, waiting = jobs.recover(), jobs.waiting()
                except BaseException:
                    store.close()
                    raise
                self._known = jobs
                self._loop.call_soon_threadsafe(self._take_up, left, waiting)
            return self._known

    def _take_up(self, left: Collection[Job], waiting: Collection[Job]) -> None:
        for job in left:
            log.info("job %d, %s %s, was cut off", job.id, job.kind, job.instance, extra={"job": job.id})
            self._follow(job, partial(self._settle, job))
        for job in waiting:
            if job.id not in self._tasks:  # or it is one that was taken on just now
                self._follow(job, partial(self._carry_out_kept, job))

    def _carry_out_kept(self, job: Job) -> Any:
        """Carry out a job of which only the record is left."""
        age = time.time() - job.created
        if job.partial:
            raise Refused(409, "job-partial", f"job {job.id} was not begun, and its secrets are not kept: ask again")
        if not 0 <= age <= min(_STALE, time.clock_gettime(time.CLOCK_BOOTTIME)):
            raise Refused(409, "job-stale", f"job {job.id} was not begun for {age:.0f} s: ask again")
        return self._carry_out(job, _act_of(job))

    def _settle(self, job: Job) -> Any:
        """See what became of a job that was cut off, and bring it to its end."""
        jobs, node = self._jobs(), self._worker.node
        try:
            act, was = _act_of(job), msgspec.convert(job.before, aftermath.Before)
        except (DroverError, msgspec.ValidationError) as error:
            return self._lose(job, str(error))
        if act.operation.journey:
            return self._adopt(job, act, was)
        try:
            node.instance(act.name).mend()
        except InstanceNotFound:
            pass
        except (DroverError, OSError) as error:
            return self._lose(job, str(error))
        verdict = aftermath.judge(job.kind, was, aftermath.look(node, act.name, act.params), act.params)
        if isinstance(verdict, aftermath.Done):
            jobs.adopt(job.id)
            told = verdict.result if isinstance(verdict.result, dict) else {"result": verdict.result}
            self._end(job, lambda: jobs.finish(job.id, told))
            return told
        if isinstance(verdict, aftermath.Again):
            verdict = self._why_not_again(job) or verdict
        if isinstance(verdict, aftermath.Unknown):
            return self._lose(job, verdict.why)
        return self._adopt(job, act, was)

    def _adopt(self, job: Job, act: _Act, was: aftermath.Before) -> Any:
        """Go on with a job that was cut off."""
        self.say(adopted := self._jobs().adopt(job.id))
        if adopted.cancel_asked:
            self._wanted_to_end.add(job.id)
        return self._do(adopted, act, was, again=True)

    def _why_not_again(self, job: Job) -> aftermath.Unknown | None:
        """Why what was not done is not to be done now."""
        if job.partial:
            return aftermath.Unknown("it was not done, and its secrets are not kept: ask again")
        if job.runner is not None and job.runner.boot_id != self._worker.node.host.boot_id:
            return aftermath.Unknown("it was not done, and the host was booted anew: ask again")
        return None

    def _lose(self, job: Job, why: str) -> Any:
        text = f"the daemon was killed while it was at it: {why}"
        said = Failure(code="job-lost", message=text, instance=job.instance)
        self.say(lost := self._jobs().lose(job.id, said))
        raise refused_as(lost)

    # -- how ----------------------------------------------------------------------------------------------------------

    def is_to_end(self, id: int) -> bool:
        """Whether somebody wants a job to end, or the daemon ends."""
        return self._stopping or id in self._wanted_to_end

    def say(self, job: Job) -> None:
        """Tell of a job; from any thread."""
        with suppress(RuntimeError):  # the loop has ended, and whoever listened
            self._loop.call_soon_threadsafe(self._tell, job)

    async def _in_thread(self, act: Callable[[], T]) -> T:
        return await self._worker.do("", act)


class _Witness(Witness):
    """Looks on at one job."""

    def __init__(self, desk: Desk, jobs: Jobs, job: Job) -> None:
        self._desk = desk
        self._jobs = jobs
        self._job = job.id
        self._told = 0.0

    def step(self, name: str, at: float | None = None) -> None:
        """Keep it with the job; it is written with what comes next."""
        with suppress(StoreFull, StoreBusy, JobTaken):
            self._desk.say(self._jobs.step(self._job, name, at, at_once=False))

    def progress(self, done: float, of: float, unit: str, *, eta: float | None = None, detail: str = "") -> None:
        """Keep it, and tell of it at times."""
        with suppress(JobTaken):
            job = self._jobs.progress(self._job, done, of, unit, eta=eta, detail=detail)
            if (now := time.monotonic()) >= self._told + _TELL_EVERY:
                self._told = now
                self._desk.say(job)

    def wants_end(self) -> bool:
        """Whether somebody wants it, or the daemon ends."""
        return self._desk.is_to_end(self._job)


def _turn(job: Job) -> str:
    """What is worked on by one at a time: an instance, or a socket of its own."""
    operation = OPERATIONS.get(job.kind)
    if operation is not None and operation.journey:
        return f"{job.instance}'s journey"
    return f"{job.instance}'s {operation.socket}" if operation is not None and operation.socket else job.instance


def _act_of(job: Job) -> _Act:
    """What a job comes to, from its record.

    :raises DroverError: that cannot be told from it
    """
    if (operation := OPERATIONS.get(job.kind)) is None:
        raise Refused(409, "job-unknown", f"this daemon knows no {job.kind}")
    return _Act(operation, job.instance, parameters(operation, job.params))


def _left(job: Job) -> Refused:
    """What is told of a job that this daemon does not come to the end of."""
    return Refused(503, _LEFT, f"the daemon ends; job {job.id} is carried out when it is back")
