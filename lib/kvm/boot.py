"""The host's boot and shutdown, as its instances see them: started in their order, shut down in the reverse one.

Starts come one after another, for the next one may need what the last one serves. The machines of one order are shut
down at once: each guest takes as long as it takes, and the host waits for all.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from ..errors import DroverError, RecordError
from .ends import Stop
from .host import Host
from .instance import Instance
from .lock import LOCK_TIMEOUT
from .record import Document, load
from .restart import is_due
from .state import State

# Seconds for a QEMU to say what it does. One that is silent runs, which is all that is asked.
_LOOK: Final = 2.0
# It has run, and will not run on by itself; or somebody is at it, and a start waits for him.
_TO_START: Final = (State.STOPPED, State.SAVED, State.ENDED, State.SHUTDOWN, State.PANICKED, State.BUSY)


class Outcome(Struct, kw_only=True):
    """What became of one instance at the host's boot or shutdown.

    :ivar order: its ``autostart_order``
    :ivar outcome: ``started``, ``running`` (it did, and was left alone), ``stopped`` (its guest shut down), ``forced``
        (its guest had not in time) or ``failed``
    :ivar seconds: what it took
    :ivar notices: what the host lacks and the machine does without, in words
    :ivar stop: how its run ended
    :ivar error: why it failed
    """

    name: str
    order: int = 0
    outcome: Literal["started", "running", "stopped", "forced", "failed"] = "failed"
    seconds: float = 0.0
    notices: Sequence[str] = ()
    stop: Stop | None = None
    error: DroverError | OSError | None = None


Tell = Callable[[Outcome], None]


def start_all(host: Host, names: Sequence[str], tell: Tell) -> list[Outcome]:
    """Start those that are to start with the host, one after another.

    :param names: of all instances
    :param tell: called with each outcome when it is there
    """
    documents, outcomes = _documents(host, names)
    for outcome in outcomes:
        tell(outcome)
    wanted = sorted((it for it in documents if it.spec.autostart), key=lambda it: it.spec.autostart_order)
    pause = 0.0
    for document in wanted:
        time.sleep(pause)
        outcomes.append(_timed(Instance(host, document.spec.name), document, _start))
        tell(outcomes[-1])
        # nobody has to wait for one that has been there for long, or is not there at all
        pause = document.spec.autostart_delay if outcomes[-1].outcome == "started" else 0.0
    return outcomes


def stop_all(host: Host, names: Sequence[str], timeout: float, tell: Tell) -> list[Outcome]:
    """Shut down all that run, or are about to again.

    The highest order comes first, those of one order at once, the next order when they are done.

    :param names: of all instances
    :param timeout: seconds for each guest; one that has not shut down by then is ended as if the plug was pulled
    :param tell: called with each outcome when it is there
    """
    documents, outcomes = _documents(host, names)
    for outcome in outcomes:
        tell(outcome)

    def stop(document: Document) -> Outcome:
        # who shuts it down already may take as long as we would
        instance = Instance(host, document.spec.name, lock_timeout=max(LOCK_TIMEOUT, timeout))
        return _timed(instance, document, lambda instance, outcome: _stop(instance, outcome, timeout))

    running = [it for it in documents if it.runtime is not None or is_due(it, host.boot_id)]
    running.sort(key=lambda it: it.spec.autostart_order, reverse=True)
    for _, group in groupby(running, key=lambda it: it.spec.autostart_order):
        together = list(group)
        # a thread each, however many: in a queue, guests that do not hear would keep others from being asked
        with ThreadPoolExecutor(len(together), "stop") as threads:
            for done in as_completed([threads.submit(stop, document) for document in together]):
                outcomes.append(done.result())
                tell(outcomes[-1])
    return outcomes


def _documents(host: Host, names: Sequence[str]) -> tuple[list[Document], list[Outcome]]:
    """What is kept of all instances, and the failures of those of which it cannot be read."""
    documents, failed = list[Document](), list[Outcome]()
    for name in names:
        try:
            document = load(host.paths.instance(name).document)
        except FileNotFoundError:
            continue  # deleted meanwhile
        except (RecordError, OSError) as error:
            failed.append(Outcome(name=name, error=error))
        else:
            document.spec = replace(document.spec, name=name)  # a rename is that of the folder
            documents.append(document)
    return documents, failed


def _timed(instance: Instance, document: Document, act: Callable[[Instance, Outcome], None]) -> Outcome:
    outcome = Outcome(name=instance.name, order=document.spec.autostart_order)
    since = time.monotonic()
    try:
        act(instance, outcome)
    except (DroverError, OSError) as error:
        outcome.outcome, outcome.error = "failed", error
    outcome.seconds = time.monotonic() - since
    return outcome


def _start(instance: Instance, outcome: Outcome) -> None:
    condition = instance.show(timeout=_LOOK)
    # an unfinished change may be a start: whoever starts it completes that
    if condition.state in _TO_START or condition.document.pending is not None:
        outcome.notices = instance.start()
        outcome.outcome = "started"
    else:
        outcome.outcome = "running"


def _stop(instance: Instance, outcome: Outcome, timeout: float) -> None:
    outcome.stop = instance.stop(timeout=timeout)
    outcome.outcome = "forced" if outcome.stop.forced else "stopped"
