"""An exact solver in plain Python: what can be reached from a few numbers, and by which steps. Host side, no JAX."""

import functools
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction

OPERATIONS = "+-*/-/"  # the steps of a pair (a, b) with a >= b, as `legal_steps` lists them: the last two are b op a.


def pair_results(a: Fraction, b: Fraction) -> Iterator[tuple[Fraction, str, Fraction, Fraction]]:
    """(first, op, second, result) of the steps of two numbers, each different text once, in canonical order."""
    a, b = max(a, b), min(a, b)
    for position, op in enumerate(OPERATIONS):
        first, second = (a, b) if position < 4 else (b, a)
        if (op == "/" and second == 0) or (position >= 4 and a == b):
            continue
        yield first, op, second, _apply(first, op, second)


def _apply(a: Fraction, op: str, b: Fraction) -> Fraction:
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    return a * b if op == "*" else a / b


@functools.lru_cache(maxsize=20000)
def reachable(numbers: tuple[int, ...]) -> frozenset[Fraction]:
    """Every value that uses all of the sorted `numbers` once each."""
    if len(numbers) == 1:
        return frozenset([Fraction(numbers[0])])
    values: set[Fraction] = set()
    for left, right in _partitions(numbers):
        for a, b in itertools.product(reachable(left), reachable(right)):
            values.update(result for _, _, _, result in pair_results(a, b))
    return frozenset(values)


def solvable(numbers: tuple[int, ...], target: int) -> bool:
    """Whether some chain of steps makes the sorted `numbers` into `target`."""
    if len(numbers) == 1:
        return numbers[0] == target
    return any(
        result == target
        for left, right in _partitions(numbers)
        for a, b in itertools.product(reachable(left), reachable(right))
        for _, _, _, result in pair_results(a, b)
    )


def _partitions(numbers: tuple[int, ...]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The ways to part sorted numbers in two sorted non-empty halves, the first number always on the left."""
    rest = range(1, len(numbers))
    parts = set()
    for size in range(len(rest)):
        for chosen in itertools.combinations(rest, size):
            left = (numbers[0], *(numbers[i] for i in chosen))
            parts.add((left, tuple(numbers[i] for i in rest if i not in chosen)))
    return parts


def solutions(numbers: tuple[int, ...], target: int, allowed: Callable[[str], bool]) -> Iterator[str]:
    """The chains of steps from `numbers` to `target` whose every step text is `allowed`, each different text once."""

    def extend(remaining: tuple[Fraction, ...]) -> Iterator[str]:
        if len(remaining) == 1:
            if remaining[0] == target:
                yield ""
            return
        for a, b in sorted(set(itertools.combinations(remaining, 2)), reverse=True):
            others = list(remaining)
            others.remove(a)
            others.remove(b)
            for first, op, second, result in pair_results(a, b):
                text = f"{first} {op} {second} = {result}\n"
                if allowed(text):
                    yield from (text + rest for rest in extend(tuple(sorted([*others, result]))))

    return extend(tuple(sorted(map(Fraction, numbers))))
