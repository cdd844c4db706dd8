"""Answers in MATH's style: pairs that are equal in different spellings, and pairs that are not.

Some are written by hand, in math_answers.txt. The others are made of a few numbers by the templates in `KINDS`: numbers
of one value have several spellings, and numbers of another value make a wrong answer.
"""

import dataclasses
import pathlib
import random
from collections.abc import Callable, Hashable, Iterator
from fractions import Fraction

BY_HAND = pathlib.Path(__file__).with_name("math_answers.txt")
Pair = tuple[str, str]  # (given answer, reference answer)


def by_hand() -> tuple[list[Pair], list[Pair], list[Pair]]:
    """The pairs of the file: right ones, wrong ones, and equal ones that the grader is known to call wrong."""
    right: list[Pair] = []
    wrong: list[Pair] = []
    limits: list[Pair] = []
    equal = right
    for line in BY_HAND.read_text(encoding="utf-8").splitlines():
        if line == "[limits]":
            equal = limits
        elif not line.startswith("#"):
            spellings, _, others = line.partition(" !! ")
            reference, *same = spellings.split(" ;; ")
            equal += [(spelling, reference) for spelling in same]
            wrong += [(other, reference) for other in others.split(" ;; ") if other]
    return right, wrong, limits


@dataclasses.dataclass(frozen=True)
class Kind:
    """Answers that are made of some whole numbers."""

    ranges: tuple[range, ...]  # of each number.
    value: Callable[..., Hashable]  # of the numbers: the same for two answers if and only if they are equal.
    spell: Callable[..., list[str]]  # of the numbers: spellings of the answer.


def several(*numbers: int) -> tuple[int, ...]:
    return numbers


ANY, POSITIVE, FLAG = range(-40, 41), range(1, 41), range(2)
LESS = ("<", r"\le ")
WORDS = ["even", "odd", "Saturday", "no solution", "circle", "hyperbola", "isosceles", "north", "undefined", "parabola"]
KINDS = {
    "fraction": Kind(
        (ANY, range(2, 30)),
        Fraction,
        lambda a, b: [
            rf"\frac{{{a}}}{{{b}}}",
            f"{a}/{b}",
            rf"\dfrac{{{3 * a}}}{{{3 * b}}}",
            rf"\tfrac{{{-a}}}{{{-b}}}",
        ],
    ),
    "mixed number": Kind(
        (POSITIVE, range(1, 7), range(7, 13)),
        lambda a, b, c: a + Fraction(b, c),
        lambda a, b, c: [rf"{a}\frac{{{b}}}{{{c}}}", f"{a} {b}/{c}", rf"\frac{{{a * c + b}}}{{{c}}}"],
    ),
    "decimal": Kind(
        (POSITIVE, range(1000)),
        lambda a, b: a * 1000 + b,
        lambda a, b: [
            f"{a}.{b:03}",
            rf"\frac{{{a * 1000 + b}}}{{1000}}",
            f"{a}.{b:03}00",
            rf"{a}+\frac{{{b}}}{{1000}}",
        ],
    ),
    "percent": Kind(
        (range(11, 100), range(1, 10)),
        several,
        lambda a, b: [rf"{a}.{b}\%", f"{a}.{b}", f"{a}.{b} percent", rf"{a}\frac{{{b}}}{{10}}\%"],
    ),
    "radical": Kind(
        (ANY, range(2, 9), range(4), range(2, 9)),
        lambda a, b, c, d: (Fraction(a, d), Fraction(b, d), c),
        lambda a, b, c, d: [
            rf"\frac{{{a}+{b}\sqrt{{{(2, 3, 5, 7)[c]}}}}}{{{d}}}",
            rf"\frac{{{a}}}{{{d}}}+\frac{{{b}}}{{{d}}}\sqrt{{{(2, 3, 5, 7)[c]}}}",
            rf"\frac{{\sqrt{{{b * b * (2, 3, 5, 7)[c]}}}+{a}}}{{{d}}}".replace("+-", "-"),
        ],
    ),
    "rationalised": Kind(
        (POSITIVE, POSITIVE),
        lambda a, b: Fraction(a * a, b),
        lambda a, b: [
            rf"\frac{{{a}}}{{\sqrt{{{b}}}}}",
            rf"\frac{{{a}\sqrt{{{b}}}}}{{{b}}}",
            rf"\sqrt{{\frac{{{a * a}}}{{{b}}}}}",
        ],
    ),
    "set": Kind(
        (ANY, ANY, ANY),
        lambda *numbers: frozenset(numbers),
        lambda a, b, c: [
            rf"\{{{a},{b},{c}\}}",
            f"{c}, {a}, {b}",
            rf"\left\{{{b}, {c}, {a}\right\}}",
            rf"{a},{c}\text{{ and }}{b}",
        ],
    ),
    "interval": Kind(
        (ANY, POSITIVE, FLAG, FLAG),
        several,
        lambda a, b, left, right: [
            f"{'(['[left]}{a},{a + b}{')]'[right]}",
            rf"\left{'(['[left]}{a}, \frac{{{2 * (a + b)}}}{{2}}\right{')]'[right]}",
            f"{a}{LESS[left]}x{LESS[right]}{a + b}",
        ],
    ),
    "pair": Kind(
        (ANY, ANY),
        several,
        lambda a, b: [f"({a},{b})", rf"\left({a}, {b}\right)", rf"({a}.0,\frac{{{b * 2}}}{{2}})"],
    ),
    "triple": Kind(
        (ANY, ANY, ANY),
        several,
        lambda a, b, c: [f"({a},{b},{c})", rf"\left({a}, {b}, {c}\right)", rf"({a},\frac{{{b * 2}}}{{2}},{c})"],
    ),
    "matrix": Kind(
        (ANY, ANY, ANY, ANY),
        several,
        lambda a, b, c, d: [
            rf"\begin{{pmatrix}} {a} & {b} \\ {c} & {d} \end{{pmatrix}}",
            rf"\begin{{bmatrix}}{a}&{b}\\{c}&\frac{{{3 * d}}}{{3}}\end{{bmatrix}}",
        ],
    ),
    "unit": Kind(
        (range(1, 200),),
        several,
        lambda a: [
            f"{a}",
            rf"{a}\text{{ cm}}^2",
            f"{a} square cm",
            rf"{a}\text{{ square centimeters}}",
            rf"{a}\,\text{{cm}}^{{2}}",
        ],
    ),
    "angle": Kind(
        (range(1, 360),),
        several,
        lambda a: [rf"{a}^\circ", f"{a}", f"{a} degrees", rf"{a}^{{\circ}}", f"{a}°"],
    ),
    "money": Kind(
        (range(1, 5000), range(100)),
        several,
        lambda a, b: [rf"\${a:,}.{b:02}", f"{a}.{b:02}", f"{a}.{b:02} dollars", f"${a}.{b:02}"],
    ),
    "polynomial": Kind(
        (range(1, 9), ANY, ANY),
        several,
        lambda a, b, c: [f"{a}x^2{b:+}x{c:+}", f"{c}{b:+}x+{a}x^2", f"x({a}x{b:+}){c:+}"],
    ),
    "product": Kind(
        (ANY, ANY),
        lambda a, b: tuple(sorted((a, b))),
        lambda a, b: [f"(x{a:+})(x{b:+})", f"(x{b:+})(x{a:+})", f"x^2{a + b:+}x{a * b:+}"],
    ),
    "line": Kind(
        (range(1, 40), ANY),
        several,
        lambda a, b: [f"y={a}x{b:+}", f"y = {b}+{a}x", f"{a}x{b:+}"],
    ),
    "equation": Kind((ANY,), several, lambda a: [f"x={a}", f"{a}", f"x = {a}", rf"x=\frac{{{2 * a}}}{{2}}"]),
    "pi": Kind(
        (range(1, 40), range(2, 13)),
        Fraction,
        lambda a, b: [rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}\pi", rf"{a}\pi/{b}", rf"{a}π/{b}"],
    ),
    "scientific": Kind(
        (range(11, 100), range(-6, 10)),
        lambda a, b: a * Fraction(10) ** b,
        lambda a, b: [
            rf"{a / 10}\times10^{{{b}}}",
            rf"{a} \cdot 10^{{{b - 1}}}",
            f"{a / 10}e{b}",
            f"{a * 10**b // 10}" if b > 0 else f"{a / 10 * 10**b:.{1 - b}f}",
        ],
    ),
    "thousands": Kind(
        (range(1000, 10_000_000),),
        several,
        lambda a: [
            f"{a:,}",
            f"{a}",
            f"{a:,}".replace(",", "{,}"),
            f"{a:,}".replace(",", r",\!"),
            f"{a:,}".replace(",", " "),
        ],
    ),
    "complex": Kind((ANY, range(1, 40)), several, lambda a, b: [f"{a}+{b}i", f"{b}i{a:+}", f"{a} + {b} i"]),
    "words": Kind(
        (range(len(WORDS)),), several, lambda a: [rf"\text{{{WORDS[a]}}}", WORDS[a], WORDS[a].capitalize() + "."]
    ),
}


def right_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Pairs of two different spellings, of every kind in turn."""
    draw = random.Random(seed)

    def pairs() -> Iterator[Pair]:
        while True:
            for kind in KINDS.values():
                given, reference = draw.sample(kind.spell(*_numbers(kind, draw)), 2)
                yield given, reference

    return _different(pairs(), count)


def wrong_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Pairs of one kind whose values differ: the given answer's numbers are a perturbation of the reference's."""
    draw = random.Random(seed)

    def pairs() -> Iterator[Pair]:
        while True:
            for kind in KINDS.values():
                numbers = _numbers(kind, draw)
                others = _perturbed(numbers, draw)
                allowed = all(number in allowed for number, allowed in zip(others, kind.ranges, strict=True))
                if allowed and kind.value(*others) != kind.value(*numbers):
                    yield draw.choice(kind.spell(*others)), draw.choice(kind.spell(*numbers))

    return _different(pairs(), count)


def _numbers(kind: Kind, draw: random.Random) -> list[int]:
    return [draw.choice(numbers) for numbers in kind.ranges]


def _perturbed(numbers: list[int], draw: random.Random) -> list[int]:
    """One number changed: by one, by ten, in its sign, tenfold; or two of them in each other's place."""
    others = list(numbers)
    i, j = draw.randrange(len(numbers)), draw.randrange(len(numbers))
    if i != j and draw.random() < 0.3:
        others[i], others[j] = others[j], others[i]
    else:
        n = numbers[i]
        others[i] = draw.choice([n + 1, n - 1, n + 10, n - 10, -n, 10 * n])
    return others


def _different(pairs: Iterator[Pair], count: int) -> list[Pair]:
    found: dict[Pair, None] = {}
    while len(found) < count:
        found[next(pairs)] = None
    return list(found)
