"""The five problems: how they are drawn and written, and what is right. Plain Python, host side.

A problem of length n is a list of items, in words: n elements of a group, a number and n squarings, or n gates. It has
n results, one of each prefix; the last one is its answer.
"""

import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Protocol

Item = list[str]  # the words of an element, of a squaring, or of a gate.


class Problems(Protocol):
    """What a task asks of one kind of problem."""

    values: Sequence[str]  # the words of results.
    other_words: Sequence[str]  # that its items are written in.
    things: str  # what its length counts, in words.
    example: str

    def prompt_words(self, length: int) -> int:
        """Words of the items of a problem of this length, at most."""

    def labels(self, length: int) -> list[str]:
        """The words that the results are told apart by; none where their order does."""

    def draw(self, generator: random.Random, length: int) -> list[Item]:
        """A random problem, each of its choices uniform."""

    def length(self, items: list[Item]) -> int:
        """The length of a problem, which may be malformed."""

    def results(self, items: list[Item]) -> list[str]:
        """The result of each prefix; ValueError, whose text goes on after "The problem ...", where malformed."""


class Words:
    """Word problems: elements, combined one after the other."""

    things = "elements"
    other_words: Sequence[str] = ()

    def __init__(self, values: Sequence[str], letters: Sequence[str], combine: Callable[[str, str], str]):
        """Problems are made of `letters`, some or all of `values`; `combine(a, b)` stands for a, then b."""
        self.values: Sequence[str] = values
        self._letters, self._combine = letters, combine
        self.example = f"{letters[-1]} , {letters[1]}"

    def prompt_words(self, length: int) -> int:
        return length

    def labels(self, length: int) -> list[str]:
        return []

    def draw(self, generator: random.Random, length: int) -> list[Item]:
        return [[generator.choice(self._letters)] for _ in range(length)]

    def length(self, items: list[Item]) -> int:
        return len(items)

    def results(self, items: list[Item]) -> list[str]:
        for item in items:
            if len(item) != 1 or item[0] not in self._letters:
                raise ValueError(f"has {' '.join(item)!r} where one of {_range(self._letters)} is due")
        return list(itertools.accumulate((word for (word,) in items), self._combine))


class Squaring:
    """x^(2^n) modulo a prime of each problem's own, up to `modulus`: "5 mod97 , ^2 , ^2"."""

    things = "times ^2, after a number and its modulus,"
    example = "2 mod3 , ^2 , ^2"

    def __init__(self, modulus: int):
        primes = [p for p in range(3, modulus + 1) if all(p % d for d in range(2, math.isqrt(p) + 1))]
        self.values: Sequence[str] = [str(x) for x in range(modulus)]
        self.other_words: Sequence[str] = [*(f"mod{p}" for p in primes), "^2"]
        # 0 and 1 are squares of themselves.
        self._starts = [[str(x), f"mod{p}"] for p in primes for x in range(2, p)]

    def prompt_words(self, length: int) -> int:
        return 2 + length

    def labels(self, length: int) -> list[str]:
        return []

    def draw(self, generator: random.Random, length: int) -> list[Item]:
        return [generator.choice(self._starts), *([["^2"]] * length)]

    def length(self, items: list[Item]) -> int:
        return len(items) - 1

    def results(self, items: list[Item]) -> list[str]:
        start, *squarings = items
        if len(start) != 2 or start[0] not in self.values or start[1] not in self.other_words[:-1]:
            raise ValueError(f"starts with {' '.join(start)!r} instead of a number and its modulus, a prime")
        value, prime = int(start[0]), int(start[1].removeprefix("mod"))
        if value >= prime:
            raise ValueError(f"starts with {value}, which is no remainder modulo {prime}")
        for item in squarings:
            if item != ["^2"]:
                raise ValueError(f"has {' '.join(item)!r} where ^2 is due")
        powers = itertools.accumulate(squarings, lambda x, _: x * x % prime, initial=value)
        return [str(x) for x in powers][1:]


class Circuits:
    """Boolean circuits in topological order: "g1 T , g2 F , g3 AND g1 g2 , g4 NOT g3"; the last gate is the answer."""

    things = "gates"
    values: Sequence[str] = ("T", "F")
    example = "g1 T , g2 NOT g1"
    _INPUTS = {"T": 0, "F": 0, "NOT": 1, "AND": 2, "OR": 2}

    def __init__(self, longest: int):
        self.other_words: Sequence[str] = [*self.labels(longest), "NOT", "AND", "OR"]

    def prompt_words(self, length: int) -> int:
        return 4 * length

    def labels(self, length: int) -> list[str]:
        return [f"g{i}" for i in range(1, length + 1)]

    def draw(self, generator: random.Random, length: int) -> list[Item]:
        """The first two gates are constants; later ones have different inputs, from anywhere before them."""
        names, items = self.labels(length), []
        for i, name in enumerate(names):
            kind = generator.choice(self.values if i < 2 else ("NOT", "AND", "OR"))
            items.append([name, kind, *generator.sample(names[:i], self._INPUTS[kind])])
        return items

    def length(self, items: list[Item]) -> int:
        return len(items)

    def results(self, items: list[Item]) -> list[str]:
        known: dict[str, bool] = {}
        for name, item in zip(self.labels(len(items)), items, strict=True):
            form = f"{' '.join(item)!r} where a gate such as {f'{name} T' if not known else f'{name} NOT g1'!r} is due"
            if item[:1] != [name] or len(item) < 2 or len(item) != 2 + self._INPUTS.get(item[1], -2):
                raise ValueError(f"has {form}")
            kind, inputs = item[1], item[2:]
            if any(gate not in known for gate in inputs):
                raise ValueError(f"has {form}, with inputs from before it")
            given = [known[gate] for gate in inputs]
            known[name] = {"T": True, "F": False, "NOT": not all(given), "AND": all(given), "OR": any(given)}[kind]
        return ["T" if value else "F" for value in known.values()]


def s5(letters: str) -> Words:
    """Permutations of five; "31254" takes 1 to 3, 2 to 1 and so on, and they are applied from left to right."""
    values = ["".join(digits) for digits in itertools.permutations("12345")]
    moved = {value: sum(a != b for a, b in zip(value, "12345", strict=True)) for value in values}
    return Words(values, [value for value in values if letters == "all" or moved[value] == 2], _compose)


def _compose(first: str, then: str) -> str:
    return "".join(then[int(digit) - 1] for digit in first)


def sums(modulus: int) -> Words:
    """Sums modulo a number, the group Z of that order."""
    values = [str(x) for x in range(modulus)]
    return Words(values, values, lambda a, b: str((int(a) + int(b)) % modulus))


@functools.lru_cache(maxsize=8)
def make(problem: str, letters: str, modulus: int, longest: int) -> Problems:
    """The problems of a name, up to a length."""
    makers: dict[str, Callable[[], Problems]] = {
        "s5": lambda: s5(letters),
        "z60": lambda: sums(60),
        "modular_sum": lambda: sums(modulus),
        "squaring": lambda: Squaring(modulus),
        "circuit": lambda: Circuits(longest),
    }
    return makers[problem]()


def _range(values: Sequence[str]) -> str:
    return f"{values[0]}, {values[1]}, …, {values[-1]}"
