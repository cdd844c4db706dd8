"""The final answer of a step, found and compared inside compiled code: the twin of `grader.extract`, and of the grader
where both answers are integers.

Bytes in, bytes out; M is the number of bytes of a text, R that of an answer. All functions are of one unbatched text.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

from alphallm.types import pytree

MOST_BYTES = 128  # R: longer answers are right for no reference.
_DIGITS = 32  # of an integer, at most, with zeros in front.
_MARK, _BOX = b"####", b"\\boxed"
_SPACES = b" \t\r\v\f"


# The twin of `integer` on the host.
_INTEGER = re.compile(r"[ $+\-\\]*(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?:\.0*)? *", re.ASCII)


def is_integer(text: str) -> bool:
    """On the host: whether compiled code takes a text for an integer."""
    found = _INTEGER.fullmatch(text)
    if not found:
        return False
    before, digits = text[: found.start("whole")], found["whole"].replace(",", "")
    signs, dollars = sum(before.count(sign) for sign in "+-"), before.count("$")
    return signs <= 1 and dollars <= 1 and before.count("\\") == before.count("\\$") and len(digits) <= _DIGITS


@pytree
class Text:
    """Bytes, padded at the end with zeros."""

    bytes_M: jax.Array  # uint8 [M]
    length: jax.Array  # int32 []


@pytree
class Integer:
    """An integer as the digits it is written with, the last one at the end."""

    digits_X: jax.Array  # int8 [32], zeros in front.
    negative: jax.Array  # bool []
    valid: jax.Array  # bool []: the text is an integer.


def text_of(content: str, size: int) -> Text:
    """On the host: the first `size` bytes of a string, as numpy arrays."""
    data = content.encode()[:size]
    bytes_M = np.zeros(size, np.uint8)
    bytes_M[: len(data)] = list(data)
    length: jax.Array = np.int32(len(data))  # type: ignore[assignment]
    return Text(bytes_M, length)  # type: ignore[arg-type]


def text_of_tokens(tokens_L, length, bytes_VW, num_bytes_V, size: int) -> Text:
    """The first `size` bytes of the first `length` of `tokens_L`."""
    count_L = jnp.where(jnp.arange(tokens_L.shape[0]) < length, num_bytes_V[tokens_L], 0)
    start_L = jnp.cumsum(count_L) - count_L
    place_LW = start_L[:, None] + jnp.arange(bytes_VW.shape[1])[None]
    real_LW = jnp.arange(bytes_VW.shape[1])[None] < count_L[:, None]
    bytes_M = jnp.zeros(size, jnp.uint8).at[jnp.where(real_LW, place_LW, size)].set(bytes_VW[tokens_L], mode="drop")
    return Text(bytes_M, jnp.minimum(jnp.sum(count_L), size))


def extract(text: Text) -> tuple[Text, jax.Array]:
    """The answer [R] that a text ends in, and whether there is one: what follows the last `####` on its line, or what
    the last \\boxed{} holds, whichever begins later."""
    bytes_M = text.bytes_M
    size = bytes_M.shape[0]
    place_M = jnp.arange(size)
    mark_M = _occurs(bytes_M, _MARK)
    mark = jnp.max(jnp.where(mark_M, place_M, -1))
    # strip() may go on to the next line before the line's rest is taken: so does this.
    after_M = (place_M >= mark + len(_MARK)) & (place_M < text.length)
    filled_M = after_M & ~_is_one_of(bytes_M, _SPACES + b"\n")
    line_start = jnp.min(jnp.where(filled_M, place_M, size))
    ends_M = (bytes_M == ord("\n")) & (place_M > line_start)
    line_end = jnp.minimum(jnp.min(jnp.where(ends_M, place_M, size)), text.length)

    # A brace counts unless an odd number of backslashes stands before it.
    backslash_M = bytes_M == ord("\\")
    last_other_M = jax.lax.cummax(jnp.where(backslash_M, -1, place_M))
    run_M = place_M - last_other_M  # backslashes that end here.
    escaped_M = jnp.concatenate([jnp.zeros(1, bool), run_M[:-1] % 2 == 1])
    opens_M = (bytes_M == ord("{")) & ~escaped_M
    closes_M = (bytes_M == ord("}")) & ~escaped_M
    depth_M = jnp.cumsum(opens_M.astype(jnp.int32) - closes_M.astype(jnp.int32))
    # \boxed, spaces, and a brace; the backslash is not itself escaped.
    word_M = _occurs(bytes_M, _BOX) & ~escaped_M
    spaces_M = _is_one_of(bytes_M, _SPACES + b"\n")
    last_solid_M = jax.lax.cummax(jnp.where(spaces_M, -1, place_M))
    before_M = jnp.concatenate([jnp.full(1, -1), last_solid_M[:-1]])  # the last byte before that is not a space.
    boxed_M = opens_M & (before_M >= len(_BOX) - 1) & word_M[jnp.maximum(before_M - len(_BOX) + 1, 0)]
    lowest_after_M = jax.lax.cummin(depth_M, reverse=True)
    lowest_after_M = jnp.concatenate([lowest_after_M[1:], jnp.full(1, size)])
    closed_M = boxed_M & (lowest_after_M < depth_M)
    box = jnp.max(jnp.where(closed_M, place_M, -1))
    box_end = jnp.min(jnp.where(closes_M & (place_M > box) & (depth_M < depth_M[jnp.maximum(box, 0)]), place_M, size))

    boxed = box > jnp.where(mark >= 0, mark, -1)
    start, end = jnp.where(boxed, box + 1, line_start), jnp.where(boxed, box_end, line_end)
    answer = _strip(bytes_M, start, end)
    return answer, (boxed | (mark >= 0)) & (answer.length > 0)


def integer(text: Text) -> Integer:
    """The integer that a text is: spaces and one dollar sign are allowed for, a sign, commas every three digits, and
    zeros after a point. (What a grader takes for an integer besides is not one here.)"""
    bytes_R = text.bytes_M
    place_R = jnp.arange(bytes_R.shape[0])
    inside_R = place_R < text.length
    digit_R = inside_R & (bytes_R >= ord("0")) & (bytes_R <= ord("9"))
    comma_R, point_R = inside_R & (bytes_R == ord(",")), inside_R & (bytes_R == ord("."))
    sign_R = inside_R & ((bytes_R == ord("-")) | (bytes_R == ord("+")))
    dollar_R = inside_R & (bytes_R == ord("$"))
    # A backslash belongs to the dollar sign after it.
    next_R = jnp.concatenate([bytes_R[1:], jnp.zeros(1, jnp.uint8)])
    escape_R = inside_R & (bytes_R == ord("\\")) & (next_R == ord("$"))
    space_R = inside_R & (bytes_R == ord(" "))
    known_R = digit_R | comma_R | point_R | sign_R | dollar_R | escape_R | space_R

    first = jnp.min(jnp.where(digit_R, place_R, bytes_R.shape[0]))
    last = jnp.max(jnp.where(digit_R, place_R, -1))
    point = jnp.min(jnp.where(point_R, place_R, bytes_R.shape[0]))
    whole_R = digit_R & (place_R < point)
    num_whole = jnp.sum(whole_R)
    right_R = num_whole - jnp.cumsum(whole_R)  # digits of the whole part to the right of each place.
    fits = (num_whole >= 1) & (num_whole <= _DIGITS)
    all_known = jnp.all(known_R | ~inside_R)
    inner_R = (place_R > first) & (place_R < last)
    signs = (jnp.sum(sign_R) <= 1) & ~jnp.any(sign_R & (place_R > first))
    dollars = (jnp.sum(dollar_R) <= 1) & ~jnp.any((dollar_R | escape_R) & (place_R > first))
    gaps = ~jnp.any(space_R & inner_R)
    # Every comma has a multiple of three digits to its right, and there are all commas or none.
    commas = ~jnp.any(comma_R & ((right_R % 3 != 0) | (right_R == 0) | (place_R < first) | (place_R > point)))
    commas &= (jnp.sum(comma_R) == 0) | (jnp.sum(comma_R) == (num_whole - 1) // 3)
    points = (jnp.sum(point_R) <= 1) & ~jnp.any(point_R & (place_R < first))
    points &= ~jnp.any(digit_R & (place_R > point) & (bytes_R != ord("0")))

    target_R = jnp.where(whole_R, _DIGITS - 1 - right_R, _DIGITS)
    digits_X = jnp.zeros(_DIGITS, jnp.int8).at[target_R].set((bytes_R - ord("0")).astype(jnp.int8), mode="drop")
    negative = jnp.any(inside_R & (bytes_R == ord("-"))) & jnp.any(digits_X > 0)
    return Integer(digits_X, negative, fits & all_known & signs & dollars & gaps & commas & points)


def equal_integers(one: Integer, other: Integer) -> jax.Array:
    """Whether both are integers, and the same one."""
    return one.valid & other.valid & (one.negative == other.negative) & jnp.all(one.digits_X == other.digits_X)


def _strip(bytes_M, start, end) -> Text:
    """The first R bytes between two places, without the spaces around them."""
    place_M = jnp.arange(bytes_M.shape[0])
    solid_M = (place_M >= start) & (place_M < end) & ~_is_one_of(bytes_M, _SPACES + b"\n")
    start = jnp.min(jnp.where(solid_M, place_M, bytes_M.shape[0]))
    length = jnp.maximum(jnp.max(jnp.where(solid_M, place_M, -1)) + 1 - start, 0)
    padded = jnp.concatenate([bytes_M, jnp.zeros(MOST_BYTES, jnp.uint8)])
    answer_R = jax.lax.dynamic_slice_in_dim(padded, start, MOST_BYTES)
    # One that is too long becomes zeros: no part of it may be taken for it.
    kept = (jnp.arange(MOST_BYTES) < length) & (length <= MOST_BYTES)
    return Text(jnp.where(kept, answer_R, 0), jnp.minimum(length, MOST_BYTES))


def _occurs(bytes_M, word: bytes):
    """bool [M]: the word begins here."""
    padded = jnp.concatenate([bytes_M, jnp.zeros(len(word), jnp.uint8)])
    same = [padded[i : i + bytes_M.shape[0]] == byte for i, byte in enumerate(word)]
    return jnp.all(jnp.stack(same), 0)


def _is_one_of(bytes_M, values: bytes):
    return jnp.any(jnp.stack([bytes_M == value for value in values]), 0)
