"""The words of exact arithmetic: one token for a common number, digit tokens for every other.

    "4 9 10 13 -> 24\\n"   4 | 9 | 10 | 13 | " -> " | 24 | "\\n"
    "4 * 9 = 36\\n"        4 | " * " | 9 | " = " | 36 | "\\n"
    "20 * 13 = 260\\n"     20 | " * " | 13 | " = " | digit 2 | digit 6 | digit 0 | "\\n"

Each number has one canonical tokenisation, the one that `encode` gives: its own token if it has one, otherwise an
optional minus, the digits of the numerator and, for a fraction, a bar and the digits of the denominator.
"""

import dataclasses
import math
import re

import numpy as np

PAD, BOS, NEWLINE, ARROW, EQUALS, PLUS, MINUS, TIMES, OVER, NEGATIVE, BAR, DIGIT_ZERO = range(12)
INTEGER_ZERO = DIGIT_ZERO + 10 + 50  # the single token of the integer 0; that of the integer i is INTEGER_ZERO + i.
MIN_INTEGER, MAX_INTEGER = -50, 200  # integers with a token of their own.
# Fractions in lowest terms with a token of their own. Without 24/q, nine of the 1,362 puzzles of 24 have no solution
# whose steps are at most eight tokens long.
_NUMERATORS = (*range(1, 14), 24)
MAX_NUMERATOR, MAX_DENOMINATOR = 24, 13

_SEPARATORS = {"\n": NEWLINE, " -> ": ARROW, " = ": EQUALS, " + ": PLUS, " - ": MINUS, " * ": TIMES, " / ": OVER}
_PIECE = re.compile(r"\n| -> | = | \+ | - | \* | / |( ?)(-?\d+(?:/\d+)?)")


def _fractions() -> list[tuple[int, int]]:
    """The fractions with a token of their own, positive and negative, in token order."""
    proper = [(p, q) for q in range(2, MAX_DENOMINATOR + 1) for p in _NUMERATORS if math.gcd(p, q) == 1]
    return [(sign * p, q) for p, q in proper for sign in (1, -1)]


_FRACTIONS = _fractions()
_FIRST_FRACTION = INTEGER_ZERO + MAX_INTEGER + 1
SIZE = _FIRST_FRACTION + len(_FRACTIONS)

_SINGLE = {str(i): INTEGER_ZERO + i for i in range(MIN_INTEGER, MAX_INTEGER + 1)}
_SINGLE |= {f"{p}/{q}": _FIRST_FRACTION + i for i, (p, q) in enumerate(_FRACTIONS)}
_SPELLING = {"-": NEGATIVE, "/": BAR} | {str(d): DIGIT_ZERO + d for d in range(10)}
_TEXT = {PAD: "", BOS: ""} | {
    token: text for table in (_SEPARATORS, _SINGLE, _SPELLING) for text, token in table.items()
}


def fraction_tokens() -> np.ndarray:
    """int32 [2 * 24 + 1, 13 + 1]: the token of p/q at [p + 24, q], and -1 where p/q has no token of its own."""
    tokens = np.full((2 * MAX_NUMERATOR + 1, MAX_DENOMINATOR + 1), -1, np.int32)
    for i, (p, q) in enumerate(_FRACTIONS):
        tokens[p + MAX_NUMERATOR, q] = _FIRST_FRACTION + i
    return tokens


def _step_ends() -> np.ndarray:
    return (np.arange(SIZE) == NEWLINE).astype(np.int8)[None]


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The vocabulary of arithmetic. Fields are what the model and the search need to know of any vocabulary."""

    size: int = SIZE
    pad: int = PAD
    bos: int = BOS
    step_end_SV: np.ndarray = dataclasses.field(
        default_factory=_step_ends
    )  # int8 [1, V]: 1 where an entry ends a step.

    def encode(self, text: str) -> list[int]:
        """The canonical tokens of `text`; ValueError where `text` is not made of numbers and separators."""
        tokens: list[int] = []
        position, after_number = 0, ""
        while position < len(text):
            piece = _PIECE.match(text, position)
            number = piece and piece.group(2)
            # Numbers that follow one another stand one space apart, and only there does a space count for nothing.
            if piece is None or (number and (piece.group(1) == " ") != bool(after_number)):
                raise ValueError(
                    f"{text!r} cannot be read at {text[position:]!r}: allowed are numbers (-5, 36, 2/3) one space "
                    "apart, ' + ', ' - ', ' * ', ' / ', ' = ', ' -> ' and a newline."
                )
            if number and after_number and not {number, after_number} & _SINGLE.keys():
                raise ValueError(f"{text!r} has two spelled numbers side by side, {after_number} and {number}.")
            tokens += self._encode_number(number) if number else [_SEPARATORS[piece.group()]]
            position, after_number = piece.end(), number or ""
        return tokens

    @staticmethod
    def _encode_number(number: str) -> list[int]:
        return [_SINGLE[number]] if number in _SINGLE else [_SPELLING[character] for character in number]

    def decode(self, tokens) -> str:
        """The text of `tokens` [any length]; padding and the first token (bos) have no text."""
        text, before = "", PAD
        for token in map(int, tokens):
            text += " " if _apart(before, token) else ""
            text += _TEXT[token]
            before = token
        return text


def _apart(before: int, token: int) -> bool:
    """Whether a space is written between two tokens: between two numbers of which at least one is a single token."""
    first_ends_number = before >= INTEGER_ZERO + MIN_INTEGER or DIGIT_ZERO <= before < DIGIT_ZERO + 10
    spelled = token == NEGATIVE or DIGIT_ZERO <= token < DIGIT_ZERO + 10
    if token >= INTEGER_ZERO + MIN_INTEGER:
        return first_ends_number
    return spelled and before >= INTEGER_ZERO + MIN_INTEGER
