"""What people are told where a migration cannot go on by itself, and what they are to type next."""

from .asking import AWAITED
from .knowledge import OWNER, SOURCE, TARGET, Knowledge
from .states import State
from .words import Raise

LOOK_AGAIN = "drover migrate {0} --recover"
TARGET_IS_DEAD = "drover migrate {0} --target-is-dead"
SHOW_OWNER = "drover show {0}"
START = "drover start {0}"
KILL = "drover kill {0} && drover start {0}"


def alarm(known: Knowledge, state: State) -> Raise:
    """What is in doubt, by whom was not heard or by what was.

    :param state: from which it came to it
    """
    text, command = _doubt(known, AWAITED.get(state, SOURCE))
    plan = known.plan
    return Raise(text.format(here=plan.source.node, there=plan.target.node), command.format(plan.machine))


def _doubt(known: Knowledge, awaited: int) -> tuple[str, str]:
    refused = known.refusal
    if known.usurped():
        return "the record of who may run it names neither {here} nor {there}: nothing is done to it", SHOW_OWNER
    if known.target_gone() and known.target.ran is None and known.handed_over():
        return "it was handed over to {there}, whose QEMU is dead, and nobody can tell whether it ran", TARGET_IS_DEAD
    if known.new_owner_named() and known.source_gone() and known.target_mute():
        return "QEMU on {there}, which is to run it, does not answer, and that on {here} is dead", KILL
    if known.pages_lost():
        return "it runs on {there}, and what it had not yet fetched of its memory is lost with QEMU on {here}", KILL
    if refused:
        return f"QEMU on {{here}} refuses: {refused}", LOOK_AGAIN
    if known.handed_over() and known.heard & TARGET:
        return f"{{there}} was told to run it, and does not: {known.target.refused or known.target.run}", LOOK_AGAIN
    silent = known.silent() & awaited
    if silent & OWNER:
        return "the store that says who may run it does not answer; it goes on by itself once it does", LOOK_AGAIN
    if silent & TARGET:
        return (
            "{there} does not answer, and nobody else can tell how the machine is there; it goes on by itself once it "
            "does. If that node is dead for certain, say so",
            TARGET_IS_DEAD,
        )
    if silent & SOURCE:
        return "QEMU on {here} does not answer; it goes on by itself once it does", LOOK_AGAIN
    return "the two sides contradict each other: all stays as it is", LOOK_AGAIN


def lost(known: Knowledge) -> Raise:
    """That the machine is lost. What is left of it on this node stands still, and is not taken from people."""
    plan = known.plan
    if known.source.gone:
        return Raise("its QEMU has ended, and with it what was in its memory", START.format(plan.machine))
    text = f"in the middle of a postcopy its QEMU on {plan.target.node} ended: it cannot run on, neither there nor here"
    return Raise(text, KILL.format(plan.machine))
