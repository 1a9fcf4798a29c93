"""Runs steps one after another, told by a face, and leaves nothing behind however that ends."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

from drover.cli.demo_face import End, Face, Seen
from drover.cli.demo_signals import Interrupted, Interrupts
from drover.errors import DroverError


class Step(NamedTuple):
    """One step: its name for programs, its title for people, and what does it."""

    name: str
    title: str
    run: Callable[[], Seen]


class Play(Protocol):
    """Something that is done in steps."""

    def steps(self) -> Sequence[Step]:
        """All of them, in order."""

    def ends(self) -> list[End]:
        """What became of the QEMUs, after an error."""


def run(make: Callable[[ExitStack, Interrupts], Play], face: Face) -> None:
    """Run all steps; raise :exc:`SystemExit` unless every one of them held.

    :param make: makes what has the steps; the stack ends what these begin
    """
    facts: dict[str, Any] = {}
    with face, Interrupts() as interrupts:
        try:
            with ExitStack() as stack:
                try:
                    play = make(stack, interrupts)
                    for step in play.steps():
                        facts |= _perform(play, step, face)
                finally:
                    interrupts.hold()  # what follows is the cleaning up
        except Interrupted as stop:
            face.interrupted(str(stop))
            raise SystemExit(128 + stop.number) from None
        face.summary(facts)


def _perform(play: Play, step: Step, face: Face) -> dict[str, Any]:
    face.begin(step.name, step.title)
    try:
        seen = step.run()
    except (DroverError, OSError) as error:
        face.failed(error, play.ends())
        raise SystemExit(1) from error
    face.done(seen)
    return seen.facts
