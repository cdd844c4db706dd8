"""Confidence intervals of solve rates and of paired differences, over problems that are answered with several seeds."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054  # the normal distribution's quantile of 0.975.


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.3f}, {self.high:.3f}]"


def wilson(rate: float, trials: float) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927); `trials` may be an effective number."""
    z2 = Z95**2
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * np.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2))
    # At a rate of 0 or 1 an end is the rate itself, but for rounding.
    return Interval(float(rate), float(max(0.0, min(rate, centre - half))), float(min(1.0, max(rate, centre + half))))


def solve_rate(solved_SB: np.ndarray) -> Interval:
    """The mean of `solved_SB` (0 or 1, [seeds, problems]), for problems like these and any seed.

    Seeds on the same problem are not independent trials. With one seed this is Wilson's interval over B trials; with
    more, Wilson's with the effective number of trials `p(1-p) / var(mean)`, whose variance is that of the problems'
    means, between B (seeds agree, and teach nothing) and S * B (they differ as freely as problems do).
    """
    seeds, problems = solved_SB.shape
    rate = float(solved_SB.mean())
    variance = float(np.var(solved_SB.mean(0), ddof=1)) / problems if problems > 1 else 0.0
    effective = rate * (1 - rate) / variance if variance > 0 else 0.0
    return wilson(rate, float(np.clip(effective, problems, seeds * problems)))


def paired_difference(first_SB: np.ndarray, second_SB: np.ndarray) -> Interval:
    """How much larger the first's solve rate is than the second's, on the same problems; numbers of seeds may differ.

    Bonett and Price (2012): Wald's interval after one more problem that only the first solved and one that only the
    second solved, so that equal outcomes on few problems do not look like certainty. A problem's difference is that of
    its means over seeds. The estimate itself is the plain difference.
    """
    if first_SB.shape[1] != second_SB.shape[1]:
        raise ValueError(f"Paired outcomes of {first_SB.shape[1]} and {second_SB.shape[1]} problems.")
    difference_B = first_SB.mean(0) - second_SB.mean(0)
    padded = np.concatenate([difference_B, [1.0, -1.0]])
    centre, half = float(padded.mean()), Z95 * float(np.std(padded)) / np.sqrt(len(padded))
    return Interval(float(difference_B.mean()), max(-1.0, centre - half), min(1.0, centre + half))


def not_worse(first_SB: np.ndarray, second_SB: np.ndarray, margin: float) -> float:
    """The p-value of a one-sided paired test whose null hypothesis is that the first solves `margin` less, or worse.

    Bonett and Price's estimate and standard error, as in `paired_difference`, and the normal distribution.
    """
    padded = np.concatenate([first_SB.mean(0) - second_SB.mean(0), [1.0, -1.0]])
    z = (float(padded.mean()) + margin) / (float(np.std(padded)) / np.sqrt(len(padded)))
    return 0.5 * math.erfc(z / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, so that the chance of any false rejection stays bounded (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        corrected[at] = largest
    return corrected
