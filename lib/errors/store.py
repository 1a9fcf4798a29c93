"""What can be wrong with durable records, and the jobs kept in them; :mod:`drover.errors` draws the whole tree."""

from .base import DroverError


class StoreError(DroverError):
    """The store of durable records did not do it. Where it was to write, whether it has is unknown.

    :ivar store: which one
    :ivar reason: what is wrong, in its own words
    """

    def __init__(self, store: str, reason: str) -> None:
        super().__init__(f"{store}: {reason}")
        self.store = store
        self.reason = reason


class StoreFull(StoreError):
    """There is no room for what was to be written. Nothing was changed."""

    def __init__(self, store: str) -> None:
        super().__init__(store, "no room to write it: the disk is full, or a quota is; nothing was changed")


class StoreBusy(StoreError, TimeoutError):
    """Others had the store locked until the deadline. Nothing was changed.

    :ivar timeout: how long we waited, in seconds
    """

    def __init__(self, store: str, timeout: float) -> None:
        super().__init__(store, f"others have had it locked for over {timeout:g} s; nothing was changed")
        self.timeout = timeout


class RevisionConflict(StoreError):
    """A record is not at the revision that was expected. Nothing was changed.

    :ivar key: the record's
    :ivar expected: the revision; 0: there was to be none
    :ivar found: what it is; 0: there is none
    """

    def __init__(self, store: str, key: str, expected: int, found: int) -> None:
        is_now = f"is at revision {found}" if found else "does not exist"
        was = f"revision {expected} was expected" if expected else "it was not to exist"
        super().__init__(store, f"'{key}' {is_now}, and {was}; nothing was changed")
        self.key = key
        self.expected = expected
        self.found = found


class HistoryGone(StoreError):
    """What was removed since a revision is no longer known: read all that matters anew, and watch from there.

    :ivar after: the revision from which on it was to be told
    :ivar first: the earliest one for which it can be
    """

    def __init__(self, store: str, after: int, first: int) -> None:
        super().__init__(store, f"what changed after revision {after} is not known, only what did after {first}")
        self.after = after
        self.first = first


class DaemonJobError(DroverError):
    """A job of a daemon's is not as what was asked needs it.

    :ivar job: its number; 0 where there is none
    """

    def __init__(self, job: int, problem: str) -> None:
        super().__init__(f"job {job} {problem}" if job else problem)
        self.job = job


class JobNotFound(DaemonJobError):
    """There is no job of this number, or not any more: those that ended are not kept for ever."""

    def __init__(self, job: int) -> None:
        super().__init__(job, "is not known: there was none, or it ended long ago")


class JobWrongState(DaemonJobError):
    """A job is in a state from which it does not go where it was to go.

    :ivar state: the state it is in
    :ivar to: the one it was to come to
    """

    def __init__(self, job: int, state: str, to: str) -> None:
        super().__init__(job, f"is {state}, from where it cannot become {to}")
        self.state = state
        self.to = to


class JobTaken(DaemonJobError):
    """A job is run by another process: whoever asked has no say in it, or none any more.

    :ivar holder: that process
    """

    def __init__(self, job: int, holder: str) -> None:
        super().__init__(job, f"is run by {holder}")
        self.holder = holder


class IdempotencyConflict(DaemonJobError):
    """An idempotency key was used before, for something else. Nothing was begun.

    :ivar key: the key
    """

    def __init__(self, job: int, key: str) -> None:
        super().__init__(job, f"has the idempotency key '{key}', and it is another request than this one")
        self.key = key


class TooManyJobs(DaemonJobError):
    """So many jobs wait or run that no more are taken. Nothing was begun.

    :ivar limit: how many may
    """

    def __init__(self, limit: int) -> None:
        super().__init__(0, f"{limit} jobs wait or run, and no more are taken before some have ended")
        self.limit = limit


class OwnerError(DroverError):
    """Who may run a machine is not as what was asked needs it. Nothing was changed.

    :ivar machine: which; empty where that does not matter
    """

    def __init__(self, machine: str, problem: str) -> None:
        super().__init__(f"{machine}: {problem}" if machine else problem)
        self.machine = machine


class NotOwned(OwnerError):
    """There is no record of who may run a machine."""

    def __init__(self, machine: str) -> None:
        super().__init__(machine, "no record says who may run it")


class Fenced(OwnerError):
    """The record of a machine's owner is not as expected: somebody else has changed it. Look again before acting.

    :ivar expected: how it was to be, for people
    :ivar found: how it is
    """

    def __init__(self, machine: str, expected: str, found: str) -> None:
        super().__init__(machine, f"its owner is {found}, and was to be {expected}; nothing was changed")
        self.expected = expected
        self.found = found


class OwnerMoveError(OwnerError):
    """A record of an owner cannot become what was asked, whatever it is now: a fault of the caller's.

    :ivar old: what it was to come from
    :ivar new: what it was to become
    """

    def __init__(self, old: str, new: str) -> None:
        super().__init__("", f"an owner that is {old} does not become {new}")
        self.old = old
        self.new = new
