"""How fast something gets on, from looks at it."""

import pytest

from drover.store.progress import GAP, WINDOW, Sample, eta, rate, with_sample


def looks(*seen: tuple[float, float]) -> tuple[Sample, ...]:
    samples: tuple[Sample, ...] = ()
    for at, done in seen:
        samples = with_sample(samples, Sample(at, done))
    return samples


def test_too_little_was_seen() -> None:
    assert rate(()) is None
    assert rate(looks((0, 5))) is None
    assert rate(looks((0, 5), (0.1, 10))) is None


def test_steady() -> None:
    assert rate(looks(*((at, 10 * at) for at in range(100)))) == pytest.approx(10)


def test_it_follows_a_change() -> None:
    """A minute of 100 a second, then half a minute of 10."""
    done, seen = 0.0, []
    for at in range(91):
        seen.append((at, done))
        done += 100 if at < 60 else 10
    assert rate(looks(*seen)) == pytest.approx(10)


def test_rare_looks() -> None:
    assert rate(looks((0, 0), (100, 50))) == 0.5
    assert rate(looks((0, 0), (100, 50), (200, 300))) == 2.5


def test_frequent_looks_are_few_samples_over_the_whole_window() -> None:
    samples = looks(*((at / 1000, at) for at in range(100_000)))
    assert len(samples) <= WINDOW / GAP + 2
    assert samples[-1] == (99.999, 99_999)
    assert samples[-1].at - samples[0].at > WINDOW - 2 * GAP
    assert rate(samples) == pytest.approx(1000)


def test_less_is_a_new_beginning() -> None:
    assert rate(looks((0, 0), (1, 1000), (2, 0), (3, 5))) == 5


@pytest.mark.parametrize(
    ("done", "of", "speed", "seconds"),
    [(25, 100, 5.0, 15), (100, 100, None, 0), (120, 100, 1.0, 0), (25, 100, None, None), (25, 100, 0.0, None),
     (25, 0, 5.0, None)],
)  # fmt: skip
def test_the_end(done: float, of: float, speed: float | None, seconds: float | None) -> None:
    assert eta(done, of, speed) == seconds
