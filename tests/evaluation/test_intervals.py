"""Intervals against published values, and against simulated coverage."""

import numpy as np
import pytest

from alphallm.evaluation import intervals


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), Statistics in Medicine 17, table I, strategy 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(successes, trials, low, high):
    interval = intervals.wilson(successes / trials, trials)
    np.testing.assert_allclose((interval.low, interval.high), (low, high), atol=5e-5)


def test_an_interval_holds_its_estimate():
    """A figure's error bars must not be negative: with 0 of 362 the lower end was 1e-18."""
    for trials in range(1, 2000):
        for rate in (0.0, 1.0):
            interval = intervals.wilson(rate, trials)
            assert interval.low <= rate <= interval.high


def test_one_seed_is_wilson_and_agreeing_seeds_add_nothing():
    solved = (np.arange(40) < 13).astype(np.float32)[None]
    expected = intervals.wilson(13 / 40, 40)
    one, same = intervals.solve_rate(solved), intervals.solve_rate(np.repeat(solved, 5, 0))
    np.testing.assert_allclose((one.low, one.high), (expected.low, expected.high), atol=1e-3)
    np.testing.assert_allclose((same.low, same.high), (one.low, one.high))


def test_seeds_that_differ_freely_count_as_problems():
    solved = np.random.default_rng(0).random((4, 2000)) < 0.3
    interval, independent = intervals.solve_rate(solved), intervals.wilson(solved.mean(), solved.size)
    np.testing.assert_allclose(interval.high - interval.low, independent.high - independent.low, rtol=0.05)


def draws(rng, seeds, problems):
    """Solve rates of problems that differ in difficulty: a strategy of 0.5 and one of 0.6 on average."""
    difficulty = rng.beta(0.5, 0.5, problems)
    better = np.minimum(1.0, difficulty + 0.1 * rng.random(problems))
    return (rng.random((seeds, problems)) < better), (rng.random((seeds, problems)) < difficulty)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_intervals_cover(seeds):
    rng = np.random.default_rng(1)
    rate_hit = difference_hit = 0
    truth = draws(rng, 1, 2_000_000)
    rate, difference = truth[1].mean(), truth[0].mean() - truth[1].mean()
    for _ in range(500):
        better, worse = draws(rng, seeds, 60)
        interval, paired = intervals.solve_rate(worse), intervals.paired_difference(better, worse)
        rate_hit += interval.low <= rate <= interval.high
        difference_hit += paired.low <= difference <= paired.high
    assert 0.92 <= rate_hit / 500 <= 0.99
    assert 0.92 <= difference_hit / 500 <= 0.995


def test_paired_difference():
    # Bonett and Price (2012): b = 9 solved by the first only, c = 2 by the second only, of 50.
    first, second = np.zeros((1, 50)), np.zeros((1, 50))
    first[0, :9], second[0, 9:11] = 1, 1
    interval = intervals.paired_difference(first, second)
    p12, p21 = 10 / 52, 3 / 52
    half = intervals.Z95 * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / 52)
    np.testing.assert_allclose((interval.low, interval.high), (p12 - p21 - half, p12 - p21 + half))
    assert interval.estimate == pytest.approx(7 / 50)
    equal = intervals.paired_difference(first, first)
    assert equal.low < 0 < equal.high
    with pytest.raises(ValueError, match="50 and 10"):
        intervals.paired_difference(first, second[:, :10])


def test_not_worse_is_a_one_sided_test_with_a_margin():
    """Equal outcomes of many problems are not worse by 2 points; of few they may be; and worse ones are."""
    rng = np.random.default_rng(0)
    solved = (rng.random((1, 1000)) < 0.5).astype(np.float32)
    assert intervals.not_worse(solved, solved, 0.02) < 1e-6
    assert intervals.not_worse(solved[:, :20], solved[:, :20], 0.02) > 0.3
    worse = solved * (np.arange(1000) % 10 > 0)
    assert intervals.not_worse(worse, solved, 0.02) > 0.99
    # Where the truth is on the margin, one test in twenty is below 0.05.
    below = 0
    for _ in range(400):
        first, second = (rng.random((1, 400)) < 0.48), (rng.random((1, 400)) < 0.5)
        below += intervals.not_worse(first.astype(np.float32), second.astype(np.float32), 0.02) < 0.05
    assert 8 <= below <= 32


def test_holm_multiplies_the_smallest_by_the_number_of_tests():
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert intervals.holm([0.9, 0.8]) == [1.0, 1.0]
    assert intervals.holm([]) == []
