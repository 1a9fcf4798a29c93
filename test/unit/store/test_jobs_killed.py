"""Jobs whose process is killed: not one is lost, and not one is begun twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from drover.errors import JobTaken
from drover.store.job import Failure, JobState
from drover.store.jobs import Jobs
from drover.store.runner import Runner
from drover.store.sqlite import SqliteStore

TOP = Path(__file__).resolve().parents[3]

# Begins a job, says so, and stays in it.
HOLDER = """
import sys, time
from pathlib import Path
from drover.store.jobs import Jobs
from drover.store.sqlite import SqliteStore
jobs = Jobs(SqliteStore(Path(sys.argv[1])))
jobs.begin(int(sys.argv[2]))
jobs.step(int(sys.argv[2]), "half way")
print("begun", flush=True)
time.sleep(1000)
"""

# A daemon: takes over what one before it left, then does what waits. The effect of a job is a line in a file.
DAEMON = """
import os, sys
from pathlib import Path
from drover.errors import JobTaken, JobWrongState
from drover.store.job import JobState
from drover.store.jobs import Jobs
from drover.store.sqlite import SqliteStore
jobs = Jobs(SqliteStore(Path(sys.argv[1])))
effects = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def run(job):
    if not job.steps:
        jobs.step(job.id, "effect")
        os.write(effects, b"%d\\n" % job.id)
    elif ("\\n%d\\n" % job.id) not in "\\n" + Path(sys.argv[2]).read_text():
        os.write(effects, b"%d\\n" % job.id)
    jobs.progress(job.id, 1, of=1)
    jobs.finish(job.id, job.params)
print("up", flush=True)
for job in jobs.recover():
    try:
        run(jobs.adopt(job.id))
    except JobTaken:
        pass
while waiting := jobs.list(states={JobState.QUEUED}, limit=1000):
    for job in reversed(waiting):
        try:
            begun = jobs.begin(job.id)
        except JobWrongState:
            continue
        run(begun)
"""


def start(script: str, *words: object) -> "subprocess.Popen[str]":
    env = os.environ | {"PYTHONPATH": str(TOP / "build" / "py")}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)], stdout=subprocess.PIPE, text=True, env=env
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def jobs(path: Path) -> Iterator[Jobs]:
    with SqliteStore(path) as store:
        yield Jobs(store)


def test_a_runner_that_is_killed(jobs: Jobs, path: Path) -> None:
    """While it lives the job is its own. Then it is found, and one of those who want it gets it."""
    jobs.submit("copy")
    jobs.submit("another")
    with start(HOLDER, path, 1) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "begun\n"
        assert jobs.recover() == ()
        for act in (jobs.adopt, jobs.lose):
            with pytest.raises(JobTaken, match=f"process {holder.pid}") as caught:
                act(1)
            assert caught.value.holder == f"process {holder.pid}"
        holder.kill()
    (found,) = jobs.recover()
    assert (found.id, found.state, [step.name for step in found.steps]) == (1, JobState.RUNNING, ["half way"])
    adopted = jobs.adopt(1)
    assert (adopted.epoch, adopted.runner, adopted.started) == (2, Runner.me(), found.started)
    with SqliteStore(path) as store:
        other = Jobs(store)
        other._me = Runner(pid=1, start_time=1, boot_id=Runner.me().boot_id)
        assert other.recover() == ()
        with pytest.raises(JobTaken):
            other.adopt(1)
    assert jobs.finish(1).state is JobState.DONE
    assert jobs.recover() == ()


def test_those_that_wait(jobs: Jobs) -> None:
    """However many, and whatever else there is; in the order in which they were asked for."""
    for _ in range(1100):
        jobs.submit("copy")
    jobs.begin(2)
    jobs.ask_cancel(3)
    assert [job.id for job in jobs.waiting()] == [1, *range(4, 1101)]


def test_a_job_that_is_lost(jobs: Jobs, path: Path) -> None:
    jobs.submit("copy")
    with start(HOLDER, path, 1) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "begun\n"
        holder.kill()
    error = Failure(code="lost", message="the daemon was killed while it ran")
    jobs.lose(1, error)
    assert (jobs.get(1).state, jobs.get(1).error) == (JobState.LOST, error)
    assert jobs.recover() == ()


def test_a_begin_of_which_we_were_not_told_is_found(jobs: Jobs) -> None:
    """It was written, and an error came back all the same: it is ours to take up, though we live."""
    jobs.begin(jobs.submit("copy").id)
    jobs._runs.clear()
    assert [job.id for job in jobs.recover()] == [1]
    assert jobs.adopt(1).epoch == 2
    assert jobs.recover() == ()


def test_daemons_that_are_killed_again_and_again(jobs: Jobs, path: Path, tmp_path: Path) -> None:
    """Two at a time, killed at random 30 times while jobs come in: each is done once, and has its result."""
    effects = tmp_path / "effects"
    chance = random.Random(5)
    submitted = 0
    for _ in range(15):
        for _ in range(20):
            submitted += 1
            jobs.submit("start", params=submitted, idempotency_key=f"k{submitted}")
        with start(DAEMON, path, effects) as one, start(DAEMON, path, effects) as other:
            for daemon in (one, other):
                assert daemon.stdout is not None
                assert daemon.stdout.readline() == "up\n"
                time.sleep(chance.random() * 0.05)
                daemon.send_signal(signal.SIGKILL)
    killed = len(jobs.list(states={JobState.RUNNING}, limit=1000))
    with start(DAEMON, path, effects) as last:
        assert last.wait() == 0
    done = jobs.list(limit=1000)
    assert {(job.state, job.id == job.params == job.result) for job in done} == {(JobState.DONE, True)}
    assert len(done) == submitted == 300
    lines = Counter(effects.read_text().split())
    assert lines == Counter(str(number) for number in range(1, submitted + 1))
    assert max(job.epoch for job in done) > 1 or killed, "none was killed in the middle of a job"
