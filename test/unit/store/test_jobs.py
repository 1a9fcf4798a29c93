"""Jobs in a store: what callers do, and what the process that runs them does."""

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drover.errors import (
    ArgumentError,
    HistoryGone,
    IdempotencyConflict,
    JobNotFound,
    JobTaken,
    JobWrongState,
    StoreBusy,
    TooManyJobs,
)
from drover.store import job_records, sqlite
from drover.store.job import MAX_STEPS, MOVES, Caller, Failure, Job, JobState
from drover.store.job_records import KEPT_AGE, SURE_AGE, is_dropped
from drover.store.jobs import PROGRESS_EVERY, PROGRESS_GAP, Jobs
from drover.store.records import Store
from drover.store.runner import Runner
from drover.store.sqlite import SqliteStore

Opener = Callable[[], Store]


class Clock:
    """Both clocks of a daemon, moved by hand."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(store: Store, clock: Clock) -> Jobs:
    return Jobs(store, now=clock, ticks=clock)


@pytest.fixture
def elsewhere(opener: Opener) -> Jobs:
    """The same jobs, in the hands of a process that is not ours and lives: the first one."""
    found = Jobs(opener())
    found._me = Runner(pid=1, start_time=int(Runner.me().start_time), boot_id=Runner.me().boot_id)
    return found


def test_a_job_from_its_begin_to_its_end(jobs: Jobs, clock: Clock) -> None:
    caller = Caller(who="ann", role="operator", request="r1")
    job = jobs.submit("add-disk", instance="web", params={"size": [1, {"a": None}]}, caller=caller)
    assert job == Job(
        id=1, kind="add-disk", instance="web", params={"size": [1, {"a": None}]}, caller=caller, created=1_000_000
    )
    clock.time += 1
    assert jobs.begin(1).state is JobState.RUNNING
    clock.time += 1
    jobs.step(1, "copy")
    clock.time += 1
    jobs.step(1, "plug")
    clock.time += 1
    assert jobs.finish(1, {"id": "d1"}) == jobs.get(1)
    job = jobs.get(1)
    assert (job.created, job.started, job.ended) == (1_000_000, 1_000_001, 1_000_004)
    assert [(step.name, step.at) for step in job.steps] == [("copy", 1_000_002), ("plug", 1_000_003)]
    assert (job.state, job.result, job.error, job.runner, job.epoch) == ("done", {"id": "d1"}, None, Runner.me(), 1)


def test_a_job_that_fails(jobs: Jobs) -> None:
    error = Failure(code="no-free-slot", message="no room", field="bus", instance="web", qemu_class="GenericError")
    jobs.begin(jobs.submit("add-disk").id)
    jobs.fail(1, error)
    assert (jobs.get(1).state, jobs.get(1).error, jobs.get(1).result) == (JobState.FAILED, error, None)


def test_a_job_that_cannot_be_run_fails_at_once(jobs: Jobs) -> None:
    jobs.submit("unheard-of")
    assert jobs.fail(1, Failure(code="unknown", message="nobody can")).state is JobState.FAILED
    assert not jobs.get(1).started


def test_it_is_kept(opener: Opener) -> None:
    with opener() as store:
        jobs = Jobs(store)
        jobs.begin(jobs.submit("start", instance="web").id)
        jobs.finish(1, 7)
        left = jobs.get(1)
    with opener() as store:
        assert Jobs(store).get(1) == left
        assert Jobs(store).submit("start").id == 2


def test_none_of_that_number(jobs: Jobs) -> None:
    for act in (jobs.get, jobs.begin, jobs.finish, jobs.ask_cancel, jobs.adopt, jobs.lose):
        with pytest.raises(JobNotFound) as caught:
            act(7)
        assert caught.value.job == 7
    with pytest.raises(JobNotFound):
        jobs.wait(7, 0)


# --- idempotency keys ------------------------------------------------------------------------------------------------


def test_asked_again_by_the_same_key(jobs: Jobs, elsewhere: Jobs) -> None:
    ann, bob = Caller(who="ann", request="r1"), Caller(who="bob")
    first = jobs.submit("start", instance="web", params={"a": 1, "b": 2}, caller=ann, idempotency_key="k")
    ann = Caller(who="ann", request="r2")
    for face in (jobs, elsewhere):
        again = face.submit("start", instance="web", params={"b": 2, "a": 1}, caller=ann, idempotency_key="k")
        assert again == first
    jobs.begin(1)
    jobs.finish(1, "started")
    again = jobs.submit("start", instance="web", params={"a": 1, "b": 2}, caller=ann, idempotency_key="k")
    assert (again.id, again.state, again.result) == (1, JobState.DONE, "started")
    assert jobs.submit("stop", caller=bob, idempotency_key="k").id == 2, "another's key is another key"
    assert jobs.submit("start").id == 3
    assert jobs.submit("start").id == 4


@pytest.mark.parametrize(
    ("kind", "instance", "params"),
    [("stop", "web", {"n": 1}), ("start", "db", {"n": 1}), ("start", "web", {"n": 2}), ("start", "web", {"n": True}),
     ("start", "web", None)],
)  # fmt: skip
def test_the_same_key_for_something_else(jobs: Jobs, kind: str, instance: str, params: object) -> None:
    jobs.submit("start", instance="web", params={"n": 1}, idempotency_key="the key")
    with pytest.raises(IdempotencyConflict, match="the key") as caught:
        jobs.submit(kind, instance=instance, params=params, idempotency_key="the key")
    assert (caught.value.job, caught.value.key) == (1, "the key")
    assert len(jobs.list()) == 1


def test_many_ask_at_once_by_the_same_key(opener: Opener) -> None:
    """And each begins what it is given: one of them does."""
    got: list[Job] = []
    begun: list[Job] = []
    faces = [Jobs(opener()) for _ in range(4)]

    def ask(face: Jobs) -> None:
        for number in range(10):
            got.append(job := face.submit("start", idempotency_key=f"k{number}"))
            try:
                begun.append(face.begin(job.id))
            except JobWrongState:
                pass

    threads = [threading.Thread(target=ask, args=(face,)) for face in faces for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 80
    assert sorted({job.id for job in got}) == list(range(1, 11))
    assert sorted(job.id for job in begun) == list(range(1, 11))


@pytest.mark.parametrize(
    "wrong", [{"kind": ""}, {"kind": "x" * 256}, {"instance": "x" * 256}, {"idempotency_key": "x" * 256},
              {"params": object()}, {"params": {1j: 2}}],
)  # fmt: skip
def test_what_is_not_taken(jobs: Jobs, wrong: dict[str, object]) -> None:
    with pytest.raises(ArgumentError):
        jobs.submit(**({"kind": "start"} | wrong))  # type: ignore[arg-type]
    assert jobs.list() == ()


def test_too_many(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_records, "MAX_OPEN", 3)
    for _ in range(3):
        jobs.submit("start")
    with pytest.raises(TooManyJobs) as caught:
        jobs.submit("start")
    assert caught.value.limit == 3
    jobs.ask_cancel(2)
    assert jobs.submit("start").id == 4


# --- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", JobState)
@pytest.mark.parametrize("to", JobState)
def test_moves(jobs: Jobs, before: JobState, to: JobState) -> None:
    failure = Failure(code="c", message="m")

    def come_to(state: JobState) -> None:
        match state:
            case JobState.RUNNING:
                jobs.begin(1)
            case JobState.DONE:
                jobs.finish(1)
            case JobState.FAILED:
                jobs.fail(1, failure)
            case JobState.CANCELLED:
                jobs.cancelled(1)
            case JobState.LOST:
                jobs._runs.clear()
                jobs.lose(1)

    jobs.submit("start")
    if before is not JobState.QUEUED:
        jobs.begin(1)
    if before.ended:
        come_to(before)
    jobs.submit("another")
    if to is JobState.QUEUED:
        assert not [state for state, moves in MOVES.items() if to in moves]
    elif to in MOVES[before]:
        come_to(to)
        assert jobs.get(1).state is to
    else:
        was = jobs.get(1)
        with pytest.raises(JobWrongState) as caught:
            come_to(to)
        assert (caught.value.job, caught.value.state, caught.value.to) == (1, before, to)
        assert jobs.get(1) == was


def test_only_who_runs_it_changes_it(jobs: Jobs, elsewhere: Jobs) -> None:
    jobs.submit("start")
    with pytest.raises(JobTaken, match="nobody"):
        jobs.step(1, "early")
    jobs.begin(1)
    jobs.progress(1, 5)
    was = jobs.get(1)
    acts: list[Callable[[], object]] = [
        lambda: elsewhere.step(1, "mine"),
        lambda: elsewhere.progress(1, 7),
        lambda: elsewhere.finish(1),
        lambda: elsewhere.cancelled(1),
        lambda: elsewhere.fail(1, Failure(code="c", message="m")),
        lambda: elsewhere.adopt(1),
        lambda: elsewhere.lose(1),
    ]
    for act in acts:
        with pytest.raises(JobTaken) as caught:
            act()
        assert caught.value.holder == str(Runner.me())
    with pytest.raises(JobWrongState):
        elsewhere.begin(1)
    assert jobs.get(1) == was


def test_to_say_the_end_again(jobs: Jobs, clock: Clock) -> None:
    """Where it was not known whether that was written. Whoever says another end is wrong."""
    jobs.begin(jobs.submit("start").id)
    run = jobs._runs[1]
    ended = jobs.finish(1, 5)
    jobs._runs[1] = run
    clock.time += 1
    assert jobs.finish(1, 5) == ended
    with pytest.raises(JobWrongState):
        jobs.cancelled(1)


def test_steps_are_bounded(jobs: Jobs) -> None:
    jobs.begin(jobs.submit("loop").id)
    for number in range(MAX_STEPS + 7):
        jobs.step(1, str(number))
    job = jobs.get(1)
    assert [step.name for step in job.steps] == [str(number) for number in range(7, MAX_STEPS + 7)]
    assert job.steps_dropped == 7


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_one_that_waits_is_cancelled_at_once(jobs: Jobs) -> None:
    jobs.submit("start")
    assert jobs.ask_cancel(1).state is JobState.CANCELLED
    with pytest.raises(JobWrongState):
        jobs.begin(1)


def test_one_that_runs_is_asked(jobs: Jobs, elsewhere: Jobs, clock: Clock) -> None:
    jobs.begin(jobs.submit("copy").id)
    assert not jobs.progress(1, 1).cancel_asked
    asked = elsewhere.ask_cancel(1)
    assert asked.state is JobState.RUNNING
    assert asked.cancel_asked
    assert elsewhere.ask_cancel(1) == asked, "once is enough"
    assert jobs.progress(1, 2).cancel_asked == asked.cancel_asked
    assert jobs.step(1, "undo").cancel_asked == asked.cancel_asked
    assert jobs.cancelled(1).state is JobState.CANCELLED


def test_one_that_has_ended_stays_so(jobs: Jobs) -> None:
    jobs.begin(jobs.submit("start").id)
    ended = jobs.finish(1)
    assert jobs.ask_cancel(1) == ended


# --- progress --------------------------------------------------------------------------------------------------------


def test_progress_has_a_rate_and_an_end(jobs: Jobs, clock: Clock) -> None:
    jobs.begin(jobs.submit("copy").id)
    for done in range(0, 60, 10):
        job = jobs.progress(1, done, of=100, unit="GiB")
        clock.time += 2
    assert job.progress is not None
    assert (job.progress.done, job.progress.of, job.progress.unit) == (50, 100, "GiB")
    assert (job.progress.rate, job.progress.eta) == (5, 10)
    jobs.step(1, "verify")
    other = jobs.progress(1, 60, of=70, unit="blocks").progress
    assert other is not None
    assert (other.rate, other.eta) == (None, None), "of something else, nothing is known yet"


def test_progress_is_written_at_times(jobs: Jobs, elsewhere: Jobs, store: Store, clock: Clock) -> None:
    jobs.begin(jobs.submit("copy").id)
    began = store.revision()
    for done in range(1000):
        clock.time += 0.01
        job = jobs.progress(1, done, of=1000)
        assert job.progress is not None
        assert job.progress.done == done
    assert jobs.get(1) == jobs.list()[0] == job
    assert 9 <= store.revision() - began <= 10 / PROGRESS_EVERY + 1
    seen = elsewhere.get(1).progress
    assert seen is not None
    assert 800 <= seen.done < 999
    jobs.step(1, "next")
    seen = elsewhere.get(1).progress
    assert seen is not None
    assert seen.done == 999


def test_the_last_progress_is_kept_with_the_end(jobs: Jobs, elsewhere: Jobs) -> None:
    jobs.begin(jobs.submit("copy").id)
    jobs.progress(1, 1, of=2)
    jobs.progress(1, 2, of=2)
    jobs.finish(1)
    seen = elsewhere.get(1).progress
    assert seen is not None
    assert (seen.done, seen.eta) == (2, 0)


def test_many_jobs_share_the_writes(jobs: Jobs, store: Store, clock: Clock) -> None:
    for _ in range(50):
        jobs.begin(jobs.submit("copy").id)
    began = store.revision()
    for tick in range(100):
        clock.time += 0.02
        for number in range(1, 51):
            jobs.progress(number, tick)
    assert store.revision() - began <= 2 / PROGRESS_GAP + 1


def test_a_store_that_takes_nothing_stops_no_progress(tmp_path: Path, clock: Clock) -> None:
    with SqliteStore(tmp_path / "store", busy_timeout=0.05) as store:
        jobs = Jobs(store, now=clock, ticks=clock)
        jobs.begin(jobs.submit("copy").id)
        other = sqlite3.connect(tmp_path / "store", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for done in (5, 6):
            clock.time += 10
            job = jobs.progress(1, done)
            assert job.progress is not None
            assert job.progress.done == done
        with pytest.raises(StoreBusy):
            jobs.finish(1)
        other.close()
        assert jobs.finish(1, "late").progress == job.progress


# --- lists and waits -------------------------------------------------------------------------------------------------


def test_list(jobs: Jobs) -> None:
    for number in range(1, 11):
        jobs.submit("start", instance=("web", "db", "")[number % 3])
    for number in (2, 4, 6):
        jobs.begin(number)
    jobs.finish(4)

    def listed(**how: object) -> list[int]:
        return [job.id for job in jobs.list(**how)]  # type: ignore[arg-type]

    assert listed() == list(range(10, 0, -1))
    assert listed(states={JobState.RUNNING}) == [6, 2]
    assert listed(states={JobState.RUNNING, JobState.DONE}, limit=2) == [6, 4]
    assert listed(instance="web") == [9, 6, 3]
    assert listed(instance="") == [8, 5, 2]
    assert listed(instance="web", states=[JobState.QUEUED], before=9) == [3]
    assert listed(limit=3) == [10, 9, 8]
    assert listed(limit=3, before=8) == [7, 6, 5]
    assert listed(before=1) == []
    for limit in (0, 1001):
        with pytest.raises(ArgumentError):
            jobs.list(limit=limit)


def test_a_list_looks_behind_what_does_not_fit(jobs: Jobs) -> None:
    jobs.submit("start", instance="rare")
    for _ in range(job_records.PAGE * 2):
        jobs.submit("start", instance="web")
    assert [job.id for job in jobs.list(instance="rare", limit=1)] == [1]
    assert len(jobs.list(limit=1000)) == job_records.PAGE * 2 + 1


def test_wait(jobs: Jobs, elsewhere: Jobs) -> None:
    jobs.begin(jobs.submit("start").id)
    began = time.monotonic()
    assert elsewhere.wait(1, 0.2).state is JobState.RUNNING
    assert 0.2 <= time.monotonic() - began < 5
    for face in (jobs, elsewhere):
        job = jobs.begin(jobs.submit("start").id)
        ends = [
            threading.Timer(0.1, jobs.step, (job.id, "a step does not end the wait")),
            threading.Timer(0.3, jobs.finish, (job.id, "result")),
        ]
        for end in ends:
            end.start()
        began = time.monotonic()
        assert face.wait(job.id, 30).result == "result"
        assert 0.2 < time.monotonic() - began < 10
        for end in ends:
            end.join()
        assert face.wait(job.id, 30).result == "result"


def test_wait_for_one_that_began_long_ago(
    jobs: Jobs, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So much was removed since that the store no longer tells all of it."""
    monkeypatch.setattr(sqlite, "KEPT_REMOVALS", 2)
    monkeypatch.setattr(sqlite, "_FORGET_EVERY", 1)
    job = jobs.begin(jobs.submit("start").id)
    revision = store.revision()
    for _ in range(5):
        jobs.ask_cancel(jobs.submit("start").id)
    with store.watch("", revision) as watch, pytest.raises(HistoryGone):
        watch.poll(0)
    began = time.process_time()
    assert jobs.wait(job.id, 0.5) == job
    assert time.process_time() - began < 0.25, "it went round and round"


# --- retention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "age", "dropped"),
    [(1, KEPT_AGE, False), (1, KEPT_AGE + 1, True), (1000, KEPT_AGE, False), (1001, SURE_AGE, False),
     (1001, SURE_AGE + 1, True), (10_000, SURE_AGE, False), (10_001, 0, True)],
)  # fmt: skip
def test_which_are_dropped(rank: int, age: float, dropped: bool) -> None:
    assert is_dropped(rank, age) is dropped


def test_old_ones_are_dropped(jobs: Jobs, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their keys, and never one that has not ended. Numbers are not used again."""
    monkeypatch.setattr(job_records, "KEPT", 5)
    monkeypatch.setattr(job_records, "PAGE", 3)
    running, waiting = jobs.begin(jobs.submit("forever").id), jobs.submit("never")
    for number in range(60):
        jobs.begin(jobs.submit("start", idempotency_key=f"k{number}").id)
        jobs.finish(number + 3)
    assert jobs.prune() == 0
    clock.time += SURE_AGE + 1
    assert jobs.prune() == 55
    assert [job.id for job in jobs.list()] == [62, 61, 60, 59, 58, 2, 1]
    assert jobs.submit("start", idempotency_key="k59").id == 62
    assert jobs.submit("start", idempotency_key="k0").id == 63
    clock.time += KEPT_AGE
    assert jobs.prune() == 5
    assert [job.id for job in jobs.list()] == [63, 2, 1]
    assert [jobs.get(1), jobs.get(2)] == [running, waiting]
    assert store.count("jobs/asked/") == 1
    assert store.count("") == 3 + 3 + 1 + 1


def test_they_are_dropped_by_and_by(jobs: Jobs, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_records, "KEPT", 5)
    for _ in range(310):
        jobs.ask_cancel(jobs.submit("start").id)
        clock.time += SURE_AGE
    assert len(jobs.list(limit=1000)) < 120
