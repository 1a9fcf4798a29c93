"""One simulated migration from its start to its end, with the policy at the levers."""

from dataclasses import dataclass

from convergence.precopy import Case, Precopy
from drover.migration.course import Phase, begin
from drover.migration.policy import Act, Advice, look

# Seconds beyond the deadline after which a run counts as one that hangs.
HANGS = 60.0


@dataclass
class Run:
    """What came of it: when it was over, and what was told at which second."""

    seed: int
    case: Case
    ended: float
    blackout: float
    given_up: bool
    postcopy: bool
    told: list[tuple[float, Advice]]

    @property
    def converged(self) -> bool:
        """Whether precopy came to its end."""
        return not self.given_up and not self.postcopy

    @property
    def worst(self) -> float:
        """By how much the end told was off at the worst, from half-time on; as a share of the whole time."""
        late = [at + advice.eta for at, advice in self.told if at >= self.ended / 2]
        return max((abs(end - self.ended) / self.ended for end in late), default=0.0)


def migrate(seed: int, case: Case) -> Run:
    """Look every 100 ms at first, and later every fiftieth of the time that has passed, up to a second."""
    model, course, told, due = Precopy(case), begin(case.terms), [], 0.0
    while not model.ended and model.now < case.terms.deadline + HANGS:
        model.tick()
        if model.now + 1e-9 < due:
            continue
        due = model.now + min(max(0.1, model.now / 50), 1.0)
        course, advice = look(case.terms, course, model.look())
        told.append((model.now, advice))
        model.obey(advice)
    if model.phase is Phase.DONE:
        course, advice = look(case.terms, course, model.look())
        told.append((model.now, advice))
    postcopy = any(advice.act is Act.POSTCOPY for _, advice in told)
    return Run(seed, case, model.now, model.blackout, model.given_up, postcopy, told)
