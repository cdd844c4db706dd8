"""A plain-Python twin of the compiled verifier, written from the rules and sharing nothing with it but the words.

It reads a step's text and computes with `fractions`; the compiled verifier never parses, so they agree for no shared
reason. `TASK` shapes are those of `alphallm.tasks.arithmetic`.
"""

import dataclasses
import itertools
import re
from collections import Counter
from fractions import Fraction

import numpy as np

from alphallm.tasks.arithmetic import ArithmeticState

_NUMBER = r"-?\d+(?:/\d+)?"
_STEP = re.compile(rf"({_NUMBER}) ([-+*/]) ({_NUMBER}) = ({_NUMBER})\n")


@dataclasses.dataclass(frozen=True)
class TwinState:
    numbers: tuple[Fraction, ...]  # what remains, sorted.
    target: int
    steps_done: int = 0
    chain_legal: bool = True


def twin_step(task, state: TwinState, tokens, length: int) -> tuple[TwinState, bool, float, bool]:
    """(new state, legal, reward, done) of the first `length` of `tokens`."""
    if state.steps_done == task.num_numbers - 1:
        return state, False, 0.0, True
    numbers = _after(task, state.numbers, tokens, length)
    legal = numbers is not None
    new = TwinState(numbers or state.numbers, state.target, state.steps_done + 1, state.chain_legal and legal)
    done = new.steps_done == task.num_numbers - 1
    return new, legal, float(done and new.chain_legal and new.numbers == (state.target,)), done


def _after(task, numbers, tokens, length):
    """The numbers that remain after a step, or None where it is illegal."""
    if not 1 <= length <= len(tokens):
        return None
    tokens = [int(token) for token in tokens[:length]]
    text = task.vocabulary.decode(tokens)
    try:
        canonical = task.vocabulary.encode(text) == tokens
    except ValueError:
        return None
    match = _STEP.fullmatch(text)
    if not canonical or not match:
        return None
    words = match.group(1, 3, 4)
    try:
        a, b, c = map(Fraction, words)
    except ZeroDivisionError:
        return None
    remaining = Counter(numbers)
    remaining.subtract([a, b])
    if any(str(Fraction(word)) != word for word in words) or min(remaining.values()) < 0:
        return None
    if c != apply(a, match.group(2), b) or not representable(c):
        return None
    return tuple(sorted([*remaining.elements(), c]))


def apply(a, op, b):
    """a op b, or None where it divides by zero."""
    if op == "/":
        return a / b if b else None
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def representable(c) -> bool:
    return abs(c.numerator) <= 32767 and c.denominator <= 32767


def legal_texts(numbers, canonical: bool) -> set[str]:
    """The texts of all legal steps; `canonical` leaves out sums and products with the smaller number first."""
    texts = set()
    for a, b in itertools.permutations(numbers, 2):
        for op in "+-*/":
            c = apply(a, op, b)
            if c is not None and representable(c) and not (canonical and op in "+*" and a < b):
                texts.add(f"{a} {op} {b} = {c}\n")
    return texts


def device_state(task, state: TwinState) -> ArithmeticState:
    """The same state as numpy arrays, empty slots last."""
    empty = task.num_numbers - len(state.numbers)
    return ArithmeticState(
        num_n=np.array([x.numerator for x in state.numbers] + [0] * empty, np.int32),
        den_n=np.array([x.denominator for x in state.numbers] + [0] * empty, np.int32),
        target_num=np.int32(state.target),
        target_den=np.int32(1),
        steps_done=np.int32(state.steps_done),
        chain_legal=np.bool_(state.chain_legal),
    )


def device_numbers(state: ArithmeticState) -> tuple[Fraction, ...]:
    """The numbers of one state of numpy arrays, sorted; fails where one is not in lowest terms."""
    pairs = [(int(n), int(d)) for n, d in zip(state.num_n, state.den_n, strict=True) if d != 0]
    numbers = [Fraction(n, d) for n, d in pairs]
    assert [(x.numerator, x.denominator) for x in numbers] == pairs
    return tuple(sorted(numbers))
