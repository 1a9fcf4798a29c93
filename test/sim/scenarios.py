"""What QEMU does by itself in a migration: scenarios that the simulated QEMUs pass, and so do real ones, 7.2 and 10.0.

What is surprising in lib/migration rests on these. Each scenario is written once, over :class:`Pair`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Final, Literal, NamedTuple

Side = Literal["source", "target"]
SOURCE: Final = "source"
TARGET: Final = "target"
State = tuple[str, str]  # of the migration, and the run state


class Setting(NamedTuple):
    """How a pair is set up, besides its versions. The source runs, the target was started with -S and listens.

    :ivar pause: the source stands still before the end (``pause-before-switchover``)
    :ivar slow: there is more memory to send than is sent meanwhile, before the end or in postcopy
    :ivar unloadable: the target cannot load the machine
    """

    return_path: bool = True
    pause: bool = True
    postcopy: bool = False
    multifd: bool = False
    slow: bool = False
    unloadable: bool = False


class Pair(ABC):
    """A QEMU that a machine leaves and one that it goes to, simulated or real, with a connection that can be cut.

    :ivar versions: 7 or 10, of source and target
    """

    versions: tuple[int, int]

    @abstractmethod
    def tell(self, side: Side, command: str) -> bool:
        """Give a command; whether it was taken, and not refused."""

    @abstractmethod
    def reach(self, side: Side, *states: State) -> State:
        """Wait until it is in one of these states; in which."""

    @abstractmethod
    def stay(self, side: Side, state: State) -> None:
        """See that it stays in a state for a while."""

    @abstractmethod
    def end(self, side: Side) -> None:
        """Wait until the process has ended by itself, or says that it has failed."""

    @abstractmethod
    def mute(self, side: Side) -> bool:
        """Whether it answers nothing but what is out of band."""

    @abstractmethod
    def hold(self) -> None:
        """Let nothing through any more from the target to the source."""

    @abstractmethod
    def cut(self) -> None:
        """Break the connection."""

    @abstractmethod
    def kill(self, side: Side) -> None:
        """SIGKILL."""


Scenario = Callable[[Pair], None]

HELD: Final = ("pre-switchover", "finish-migrate")
DEVICE: Final = ("device", "finish-migrate")
FAILED: Final = ("failed", "running")
CANCELLED: Final = ("cancelled", "running")
SENT: Final = ("completed", "postmigrate")
LOADED: Final = ("completed", "paused")
RUNS: Final = ("completed", "running")


def before_the_end(pair: Pair) -> None:
    """The source stands still before the end."""
    assert pair.tell(SOURCE, "migrate")
    pair.reach(SOURCE, HELD)


def in_device(pair: Pair) -> None:
    """All was sent, the target has it, and its answer does not arrive."""
    before_the_end(pair)
    pair.hold()
    assert pair.tell(SOURCE, "continue")
    pair.reach(TARGET, LOADED)
    pair.reach(SOURCE, DEVICE)
    pair.stay(SOURCE, DEVICE)


def in_postcopy(pair: Pair) -> None:
    """The target has enough to run, and not all; it does not run by itself."""
    assert pair.tell(SOURCE, "migrate")
    pair.reach(SOURCE, ("active", "running"))
    assert pair.tell(SOURCE, "postcopy")
    pair.reach(SOURCE, HELD)
    assert pair.tell(SOURCE, "continue")
    pair.reach(TARGET, ("postcopy-active", "paused"))
    pair.reach(SOURCE, ("postcopy-active", "finish-migrate"))
    pair.stay(TARGET, ("postcopy-active", "paused"))


def it_stands_still_before_the_end_and_cannot_be_told_to_run(pair: Pair) -> None:
    before_the_end(pair)
    pair.stay(SOURCE, HELD)
    assert not pair.tell(SOURCE, "cont")
    pair.stay(SOURCE, HELD)


def cancelled_before_the_end_it_runs_by_itself(pair: Pair) -> None:
    before_the_end(pair)
    assert pair.tell(SOURCE, "cancel")
    pair.reach(SOURCE, CANCELLED, FAILED)
    pair.end(TARGET)


def cut_before_the_end_it_notices_when_it_goes_on_and_runs_by_itself(pair: Pair) -> None:
    before_the_end(pair)
    pair.cut()
    pair.end(TARGET)
    pair.stay(SOURCE, HELD)  # as long as nobody tells it to go on
    assert pair.tell(SOURCE, "continue")
    pair.reach(SOURCE, FAILED)


def cut_before_the_end_and_cancelled_it_runs_by_itself(pair: Pair) -> None:
    before_the_end(pair)
    pair.cut()
    pair.end(TARGET)
    assert pair.tell(SOURCE, "cancel")
    pair.reach(SOURCE, CANCELLED, FAILED)


def cut_when_all_is_sent_it_runs_by_itself_while_the_target_may_run(pair: Pair) -> None:
    in_device(pair)
    assert pair.tell(TARGET, "cont")
    pair.reach(TARGET, RUNS)
    pair.cut()
    pair.reach(SOURCE, FAILED)
    pair.stay(TARGET, RUNS)  # two copies: so a source that stands still is no proof


def cancelled_when_all_is_sent_it_runs_by_itself(pair: Pair) -> None:
    in_device(pair)
    assert pair.tell(SOURCE, "cancel")
    pair.reach(SOURCE, CANCELLED, FAILED)  # it breaks its connection itself, and may see that first
    pair.stay(TARGET, LOADED)


def the_target_dies_when_all_is_sent_and_it_runs_by_itself(pair: Pair) -> None:
    in_device(pair)
    pair.kill(TARGET)
    pair.reach(SOURCE, FAILED)


def completed_and_postmigrate_is_never_left_by_itself(pair: Pair) -> None:
    before_the_end(pair)
    assert pair.tell(SOURCE, "continue")
    pair.reach(SOURCE, SENT)
    pair.reach(TARGET, LOADED)
    pair.stay(TARGET, LOADED)
    assert pair.tell(SOURCE, "cancel")  # which does nothing
    pair.stay(SOURCE, SENT)
    pair.kill(TARGET)
    pair.stay(SOURCE, SENT)
    assert not pair.tell(SOURCE, "migrate")
    assert pair.tell(SOURCE, "cont")
    pair.reach(SOURCE, RUNS)


def cont_in_inmigrate_arms_it(pair: Pair) -> None:
    before_the_end(pair)
    assert pair.tell(TARGET, "cont")
    pair.stay(TARGET, ("active", "inmigrate"))
    assert pair.tell(SOURCE, "continue")
    pair.reach(TARGET, RUNS)  # nobody has told it to, now


def completed_lies_without_a_return_path(pair: Pair) -> None:
    before_the_end(pair)
    pair.hold()  # or the source may see in time that the connection breaks
    assert pair.tell(SOURCE, "continue")
    pair.reach(SOURCE, SENT)
    pair.end(TARGET)


def with_a_return_path_it_is_told_and_runs_on(pair: Pair) -> None:
    assert pair.tell(SOURCE, "migrate")
    pair.reach(SOURCE, FAILED)
    pair.end(TARGET)


def in_postcopy_the_target_waits_to_be_told_to_run(pair: Pair) -> None:
    in_postcopy(pair)
    assert pair.tell(TARGET, "cont")
    pair.reach(TARGET, ("postcopy-active", "running"))
    assert pair.tell(SOURCE, "hurry")
    pair.reach(SOURCE, SENT)
    pair.reach(TARGET, RUNS)


def cut_before_a_postcopy_it_goes_on_to_no_end(pair: Pair) -> None:
    """7.2 keeps the machine, and does not let it run by itself; 10.0 does not come out of it."""
    assert pair.tell(SOURCE, "migrate")
    pair.reach(SOURCE, ("active", "running"))
    assert pair.tell(SOURCE, "postcopy")
    pair.reach(SOURCE, HELD)
    pair.cut()
    pair.end(TARGET)
    assert pair.tell(SOURCE, "continue")
    if pair.versions[0] == 7:
        pair.reach(SOURCE, ("failed", "postmigrate"))
        pair.stay(SOURCE, ("failed", "postmigrate"))
        assert pair.tell(SOURCE, "cont")
        pair.reach(SOURCE, FAILED)
        return
    pair.reach(SOURCE, DEVICE)
    pair.stay(SOURCE, DEVICE)
    assert not pair.tell(SOURCE, "cont")
    assert pair.tell(SOURCE, "cancel")
    pair.reach(SOURCE, ("cancelling", "finish-migrate"))
    pair.stay(SOURCE, ("cancelling", "finish-migrate"))


def cut_before_a_postcopy_and_cancelled(pair: Pair) -> None:
    assert pair.tell(SOURCE, "migrate")
    pair.reach(SOURCE, ("active", "running"))
    assert pair.tell(SOURCE, "postcopy")
    pair.reach(SOURCE, HELD)
    pair.cut()
    pair.end(TARGET)
    assert pair.tell(SOURCE, "cancel")
    _comes_back_from_before_a_postcopy(pair)


def cancelled_before_a_postcopy(pair: Pair) -> None:
    assert pair.tell(SOURCE, "migrate")
    pair.reach(SOURCE, ("active", "running"))
    assert pair.tell(SOURCE, "postcopy")
    pair.reach(SOURCE, HELD)
    assert pair.tell(SOURCE, "cancel")
    _comes_back_from_before_a_postcopy(pair)
    pair.end(TARGET)


def _comes_back_from_before_a_postcopy(pair: Pair) -> None:
    """7.2 has to be told to."""
    if pair.versions[0] == 7:
        pair.reach(SOURCE, ("cancelled", "postmigrate"))
        pair.stay(SOURCE, ("cancelled", "postmigrate"))
        assert pair.tell(SOURCE, "cont")
    pair.reach(SOURCE, CANCELLED)


def cancelled_in_postcopy_the_machine_is_lost_or_it_is_refused(pair: Pair) -> None:
    in_postcopy(pair)
    taken = pair.tell(SOURCE, "cancel")
    assert taken == (pair.versions[0] == 7)
    if not taken:
        pair.stay(SOURCE, ("postcopy-active", "finish-migrate"))
        return
    # it never runs again by itself, and does not go on either
    pair.reach(SOURCE, ("cancelled", "postmigrate"), ("cancelling", "finish-migrate"), ("cancelling", "postmigrate"))
    assert not pair.tell(SOURCE, "rejoin")


def a_postcopy_that_is_cut_hangs_and_is_mended_out_of_band(pair: Pair) -> None:
    in_postcopy(pair)
    assert pair.tell(TARGET, "cont")
    pair.reach(TARGET, ("postcopy-active", "running"))
    pair.cut()
    pair.reach(SOURCE, ("postcopy-paused", "finish-migrate"))
    pair.reach(TARGET, ("postcopy-paused", "running"))
    assert pair.tell(TARGET, "touch")  # the main loop comes to memory that is not there, as it does at every turn
    assert pair.mute(TARGET)
    assert not pair.mute(SOURCE)
    assert pair.tell(TARGET, "reopen")
    assert pair.tell(SOURCE, "rejoin")
    pair.reach(SOURCE, ("postcopy-active", "finish-migrate"), SENT)
    assert pair.tell(SOURCE, "hurry")
    pair.reach(SOURCE, SENT)
    pair.reach(TARGET, RUNS)


def postcopy_with_multifd_kills_the_target_and_says_completed(pair: Pair) -> None:
    """Of 7.2; a later one refuses the settings: see :data:`REFUSED`."""
    in_postcopy(pair)
    assert pair.tell(SOURCE, "hurry")
    pair.end(TARGET)
    pair.reach(SOURCE, SENT)


BOTH: Final = ((7, 7), (10, 10))
ACROSS: Final = ((7, 7), (7, 10), (10, 7), (10, 10))
_POSTCOPY: Final = Setting(postcopy=True, slow=True)
_WITH_MULTIFD: Final = Setting(postcopy=True, multifd=True, slow=True)
SCENARIOS: Final[tuple[tuple[Scenario, Setting, Collection[tuple[int, int]]], ...]] = (
    (it_stands_still_before_the_end_and_cannot_be_told_to_run, Setting(), BOTH),
    (cancelled_before_the_end_it_runs_by_itself, Setting(), ACROSS),
    (cut_before_the_end_it_notices_when_it_goes_on_and_runs_by_itself, Setting(), ACROSS),
    (cut_before_the_end_and_cancelled_it_runs_by_itself, Setting(), BOTH),
    (cut_when_all_is_sent_it_runs_by_itself_while_the_target_may_run, Setting(), ACROSS),
    (cancelled_when_all_is_sent_it_runs_by_itself, Setting(), BOTH),
    (the_target_dies_when_all_is_sent_and_it_runs_by_itself, Setting(), BOTH),
    (completed_and_postmigrate_is_never_left_by_itself, Setting(), ACROSS),
    (cont_in_inmigrate_arms_it, Setting(), BOTH),
    (completed_lies_without_a_return_path, Setting(return_path=False, unloadable=True), BOTH),
    (with_a_return_path_it_is_told_and_runs_on, Setting(pause=False, unloadable=True), BOTH),
    (in_postcopy_the_target_waits_to_be_told_to_run, _POSTCOPY, ACROSS),
    (cut_before_a_postcopy_it_goes_on_to_no_end, _POSTCOPY, BOTH),
    (cut_before_a_postcopy_and_cancelled, _POSTCOPY, BOTH),
    (cancelled_before_a_postcopy, _POSTCOPY, BOTH),
    (cancelled_in_postcopy_the_machine_is_lost_or_it_is_refused, _POSTCOPY, BOTH),
    (a_postcopy_that_is_cut_hangs_and_is_mended_out_of_band, _POSTCOPY, BOTH),
    (postcopy_with_multifd_kills_the_target_and_says_completed, _WITH_MULTIFD, ((7, 7),)),
)
# Settings that a QEMU of this version refuses.
REFUSED: Final = ((Setting(postcopy=True, multifd=True), (10, 10)),)
