"""A calculator inside the compiled search: `<<48/2=` is evaluated exactly, and `24>>` is what must follow.

The annotations of GSM8K (Cobbe et al. 2021), used as Toolformer's calculator (Schick et al. 2023). The search need not
know whether a token was written or forced: what stands in an annotation after its equals sign is always forced, also
where the expression has no result (`<<1/0=>>`), and counts in no probability and no loss.

Arithmetic is exact: fractions of 32 bits and a sign; what does not fit, or has no finite decimal expansion of at most
six places, has no result.
"""

import dataclasses
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alphallm.errors import UserError
from alphallm.tasks import answers
from alphallm.tasks.tokenizer import Tokenizer, automaton
from alphallm.types import pytree

_DEPTH = 4  # open parentheses, at most.
_PLACES = 6  # decimals of a result, at most.
_LONGEST = 64  # bytes of an expression.
_RESULT = 18  # bytes of a result: a sign, ten digits and a point, or a zero, a point and six decimals.
_MOST = np.uint32(2**32 - 1)
# An annotation; group 1 is its expression.
ANNOTATION = re.compile(r"<<([^<>=]*)=[^<>]*>>")
_OUTSIDE, _FORCED = 0, 3  # states of the automaton: outside, "<", "<<", forced, forced and ">".


class Calculator:
    """The tool of a tokenizer; see `alphallm.types.Tool`."""

    forced = _FORCED

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.table_SV = automaton(tokenizer.pieces, _after, 5)
        self._token_of_byte = np.full(256, tokenizer.pad, np.int32)
        for character in "0123456789.-":
            tokens = tokenizer.encode(character)
            joined = tokenizer.encode("1" + character)
            if len(tokens) != 1 or joined[-1:] != tokens:
                raise UserError(
                    "The calculator needs a tokenizer with a token for each digit, as Qwen2, Qwen3 and Llama 2 have, "
                    f"and this one writes '1{character}' as {len(joined)} tokens of its own: use task.calculator=false."
                )
            self._token_of_byte[ord(character)] = tokens[0]
        self._close = np.array(tokenizer.encode(">>"), np.int32)
        self.size = _RESULT + len(self._close)  # F

    def answer(self, tokens_L: jax.Array, length: jax.Array) -> jax.Array:
        """int32 [F]: what must follow the first `length` of `tokens_L`, which end in `<<EXPRESSION=`; then -1."""
        table = self._tokenizer
        text = answers.text_of_tokens(
            tokens_L, length, jnp.asarray(table.bytes_VW), jnp.asarray(table.num_bytes_V), 8 * tokens_L.shape[0]
        )
        place_M = jnp.arange(text.bytes_M.shape[0])
        inside = place_M < text.length
        opens_M = inside & (text.bytes_M == ord("<")) & jnp.roll(inside & (text.bytes_M == ord("<")), -1)
        start = jnp.max(jnp.where(opens_M, place_M, -1)) + 2
        count = text.length - 1 - start
        padded = jnp.concatenate([text.bytes_M, jnp.zeros(_LONGEST, jnp.uint8)])
        expression_E = lax.dynamic_slice_in_dim(padded, start, _LONGEST)
        result_R, num_bytes = write(evaluate(expression_E, jnp.where(count <= _LONGEST, count, 0)))
        place_F = jnp.arange(self.size)
        digits_F = jnp.pad(jnp.asarray(self._token_of_byte)[result_R], (0, len(self._close)))
        close_F = jnp.asarray(self._close)[jnp.clip(place_F - num_bytes, 0, len(self._close) - 1)]
        tokens_F = jnp.where(place_F < num_bytes, digits_F, close_F)
        return jnp.where(place_F < num_bytes + len(self._close), tokens_F, -1)

    def forced_tokens(self, tokens_L: jax.Array) -> jax.Array:
        """bool [L]: the tokens of a step that the tool wrote."""

        def read(state, token):
            return jnp.asarray(self.table_SV, jnp.int32)[state, token], state >= _FORCED

        return lax.scan(read, jnp.int32(_OUTSIDE), tokens_L)[1]

    # Host side: the twin.

    def encode(self, text: str) -> list[int]:
        """The tokens of a text as the search would have written it: results are the calculator's."""
        tokens, end = [], 0
        for found in ANNOTATION.finditer(text):
            tokens += self._tokenizer.encode(text[end : found.end(1) + 1])
            tokens += [int(self._token_of_byte[ord(character)]) for character in result(found[1])]
            tokens += self._close.tolist()
            end = found.end()
        return tokens + self._tokenizer.encode(text[end:])

    def is_forced(self, tokens: list[int]) -> list[bool]:
        """Which tokens of a step the tool wrote."""
        state, forced = _OUTSIDE, []
        for token in tokens:
            forced.append(state >= _FORCED)
            state = int(self.table_SV[state, token])
        return forced


def _after(state: int, byte: int) -> int:
    """The automaton's next state: outside, "<", "<<", forced, forced and ">"."""
    if state == _FORCED + 1:
        return _OUTSIDE if byte == ord(">") else _FORCED
    if state == _FORCED:
        return _FORCED + 1 if byte == ord(">") else _FORCED
    if byte == ord("<"):
        return min(state + 1, 2)
    return {2: _FORCED if byte == ord("=") else _OUTSIDE if byte == ord(">") else 2}.get(state, _OUTSIDE)


def result(expression: str) -> str:
    """On the host, in plain Python: the result of an expression as it is written; "" if there is none."""
    value = _Parser(expression).value() if len(expression) <= _LONGEST else None
    if value is None:
        return ""
    places = next((k for k in range(_PLACES + 1) if (value * 10**k).denominator == 1), None)
    if places is None or abs(value * 10**places) > _MOST:
        return ""
    digits = str(abs(value * 10**places).numerator).rjust(places + 1, "0")
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
    return ("-" if value < 0 else "") + whole + ("." + decimals if places else "")


class _Parser:
    """Recursive descent over `sum = term (+|- term)*`, `term = signed (*|/|// signed)*`; None where it is no sum."""

    def __init__(self, text: str):
        self._pieces = re.findall(r"\d+\.?\d*|\.\d+|//|[-+*/()]|.", text, re.DOTALL)
        self._pieces.append("")
        self._at, self._depth = 0, 0

    def value(self) -> Fraction | None:
        try:
            value = self._sum()
        except (ValueError, ZeroDivisionError, OverflowError):
            return None
        return value if self._pieces[self._at] == "" else None

    def _take(self, *pieces: str) -> str:
        piece = self._pieces[self._at]
        self._at += piece in pieces
        return piece if piece in pieces else ""

    def _sum(self) -> Fraction:
        value = self._term()
        while sign := self._take("+", "-"):
            term = self._term()
            value = _checked(value + term if sign == "+" else value - term)
        return value

    def _term(self) -> Fraction:
        value = self._signed()
        while operator := self._take("*", "/", "//"):
            factor = self._signed()
            quotient = _checked(value * factor if operator == "*" else value / factor)
            value = Fraction(quotient.__floor__()) if operator == "//" else quotient
        return value

    def _signed(self) -> Fraction:
        if sign := self._take("+", "-"):
            return -self._signed() if sign == "-" else self._signed()
        if self._take("("):
            self._depth += 1
            value = self._sum()
            if not self._take(")") or self._depth >= _DEPTH:
                raise ValueError
            self._depth -= 1
            return value
        piece = self._pieces[self._at]
        self._at += 1
        value = Fraction(piece)  # ValueError if it is no number.
        if max(int(piece.replace(".", "")), 10 ** len(piece.partition(".")[2])) > _MOST:
            raise OverflowError
        return value


def _checked(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) > _MOST:
        raise OverflowError
    return value


@pytree
class Rational:
    """A fraction in lowest terms; a denominator of 0 where there is no value."""

    size: jax.Array  # uint32: the numerator without its sign.
    den: jax.Array  # uint32
    negative: jax.Array  # bool


def evaluate(bytes_E: jax.Array, length: jax.Array) -> Rational:
    """The value of the first `length` bytes (uint8 [E]) of an unbatched expression in `0-9 . + - * / ( )`."""

    def body(i, state: "_State") -> "_State":
        return _read(state, jnp.where(i < length, bytes_E[jnp.minimum(i, bytes_E.shape[0] - 1)], ord(")")))

    state = lax.fori_loop(0, jnp.maximum(length, 0) + 1, body, _initial())
    fine = (state.level == 0) & state.closed & ~state.wrong & (length > 0)
    return dataclasses.replace(state.last, den=jnp.where(fine, state.last.den, jnp.uint32(0)))


@pytree
class _State:
    """Of the reader. The outermost level stands in parentheses that `evaluate` closes; arrays are by level."""

    sum: Rational  # [DEPTH + 1] of the finished terms.
    term: Rational  # [DEPTH + 1] of the factors so far of the current one.
    subtract: jax.Array  # bool [DEPTH + 1]: the current term is subtracted.
    operator: jax.Array  # int32 [DEPTH + 1]: what its next factor does: 0 *, 1 /, 2 //.
    negate: jax.Array  # bool [DEPTH + 1]: the next factor has a minus sign.
    level: jax.Array  # int32
    number: jax.Array  # uint32: the digits read so far.
    scale: jax.Array  # uint32: ten to the power of the decimals read so far.
    in_number: jax.Array  # bool
    has_digit: jax.Array  # bool
    has_point: jax.Array  # bool
    wants: jax.Array  # bool: a factor must come next.
    slash: jax.Array  # bool: the byte before was the first slash of an operator.
    closed: jax.Array  # bool: the last parenthesis was that of the outermost level.
    wrong: jax.Array  # bool
    last: Rational  # the value of the parentheses closed last.


def _constant(size: int, shape=()) -> Rational:
    return Rational(jnp.full(shape, size, jnp.uint32), jnp.ones(shape, jnp.uint32), jnp.zeros(shape, bool))


def _initial() -> _State:
    no, levels, one = jnp.bool_(False), (_DEPTH,), jnp.uint32(1)
    none = jnp.zeros(levels, bool)
    return _State(
        sum=_constant(0, levels), term=_constant(1, levels), subtract=none, operator=jnp.zeros(levels, jnp.int32),
        negate=none, level=jnp.int32(0), number=jnp.uint32(0), scale=one, in_number=no, has_digit=no, has_point=no,
        wants=jnp.bool_(True), slash=no, closed=no, wrong=no, last=_constant(0),
    )  # fmt: skip


def _read(state: _State, byte: jax.Array) -> _State:
    """The state after one more byte."""
    is_digit = (byte >= ord("0")) & (byte <= ord("9"))
    is_point = byte == ord(".")
    numeric = is_digit | is_point
    digit = (byte - ord("0")).astype(jnp.uint32)
    wrong = state.wrong | state.closed  # nothing follows the outermost parenthesis.

    # A number goes on, or begins where a factor is wanted.
    wrong |= numeric & ~state.in_number & ~state.wants
    wrong |= is_point & state.in_number & state.has_point
    wrong |= is_digit & (state.number > (_MOST - digit) // 10)
    scaled = is_digit & state.has_point & state.in_number
    wrong |= scaled & (state.scale > _MOST // 10)

    # A number that has ended is a factor.
    ends = state.in_number & ~numeric
    wrong |= ends & ~state.has_digit
    term, negate = _pick(state.term, state.level), state.negate[state.level]
    factor = _reduced(state.number, state.scale, jnp.bool_(False))
    term = _where(ends, _times(term, factor, state.operator[state.level], negate), term)
    wants = state.wants & ~ends
    negate &= ~ends

    plus, minus = byte == ord("+"), byte == ord("-")
    star, slash = byte == ord("*"), byte == ord("/")
    opens, closes = byte == ord("("), byte == ord(")")
    wrong |= ~(numeric | plus | minus | star | slash | opens | closes)

    # Signs of a factor, and the second slash of `//`.
    second_slash = slash & state.slash
    wrong |= wants & ((star | slash) & ~second_slash)
    negate ^= wants & minus
    # The term is finished, and is added to the sum.
    adds = ~wants & (plus | minus)
    total = _plus(_pick(state.sum, state.level), term, state.subtract[state.level])
    wrong |= closes & wants
    finished = closes & ~wants
    now = state.level
    new_sum = _where(adds, total, _pick(state.sum, now))
    new_term = _where(adds, _constant(1), term)
    subtract = jnp.where(adds, minus, state.subtract[now])
    operator = jnp.where(adds, 0, state.operator[now])
    operator = jnp.where(~wants & star, 0, jnp.where(~wants & slash, 1, jnp.where(second_slash, 2, operator)))
    state = dataclasses.replace(
        state,
        sum=_put(state.sum, now, new_sum), term=_put(state.term, now, new_term),
        subtract=state.subtract.at[now].set(subtract), operator=state.operator.at[now].set(operator),
        negate=state.negate.at[now].set(negate),
        number=jnp.where(is_digit, state.number * 10 + digit, jnp.where(numeric, state.number, jnp.uint32(0))),
        scale=jnp.where(scaled, state.scale * 10, jnp.where(numeric, state.scale, jnp.uint32(1))),
        in_number=numeric, has_digit=numeric & (state.has_digit | is_digit),
        has_point=numeric & ((state.has_point & state.in_number) | is_point),
        slash=slash & ~second_slash, wants=wants | (~wants & (plus | minus | star | slash)),
    )  # fmt: skip

    # A parenthesis opens where a factor is wanted, and what it closed is a factor of the level below.
    wrong |= opens & (~wants | (now + 1 >= _DEPTH))
    up = jnp.minimum(now + 1, _DEPTH - 1)
    fresh = lambda x, value: jnp.where(opens, x.at[up].set(value), x)
    below = jnp.maximum(now - 1, 0)
    folded = _times(_pick(state.term, below), total, state.operator[below], state.negate[below])
    inner = finished & (now > 0)
    return dataclasses.replace(
        state,
        sum=_where(opens, _put(state.sum, up, _constant(0)), state.sum),
        term=_where(
            opens, _put(state.term, up, _constant(1)), _where(inner, _put(state.term, below, folded), state.term)
        ),
        subtract=fresh(state.subtract, False),
        operator=fresh(state.operator, 0),
        negate=jnp.where(inner, state.negate.at[below].set(False), fresh(state.negate, False)),
        level=jnp.where(opens, up, jnp.where(inner, below, now)),
        wants=(state.wants | opens) & ~finished,
        closed=state.closed | (finished & (now == 0)),
        last=_where(finished, total, state.last),
        wrong=wrong,
    )  # fmt: skip


def write(value: Rational) -> tuple[jax.Array, jax.Array]:
    """uint8 [18] and its length: the value with as many decimals as it needs; empty if it can not be written."""
    powers = jnp.asarray([10**k for k in range(10)], jnp.uint32)
    scale_k = powers[: _PLACES + 1]
    divides_k = lax.rem(scale_k, jnp.maximum(value.den, 1)) == 0
    places = jnp.argmax(divides_k)
    times = lax.div(scale_k[places], jnp.maximum(value.den, 1))
    fits = (value.den > 0) & jnp.any(divides_k) & (value.size <= lax.div(_MOST, jnp.maximum(times, 1)))
    size = value.size * times
    num_digits = jnp.maximum(1 + jnp.sum(size >= powers[1:]), places + 1)
    sign = (value.negative & (size > 0)).astype(jnp.int32)
    place_R = jnp.arange(_RESULT) - sign
    point = num_digits - places  # the place of the point, if there are decimals.
    after_R = (places > 0) & (place_R > point)
    power_R = num_digits - 1 - place_R + after_R
    digit_R = lax.rem(lax.div(size, powers[jnp.clip(power_R, 0, 9)]), jnp.uint32(10)).astype(jnp.uint8)
    bytes_R = jnp.select(
        [place_R < 0, (places > 0) & (place_R == point)], [jnp.uint8(ord("-")), jnp.uint8(ord("."))],
        jnp.uint8(ord("0")) + digit_R,
    )  # fmt: skip
    length = jnp.where(fits, sign + num_digits + (places > 0), 0)
    return jnp.where(jnp.arange(_RESULT) < length, bytes_R, 0), length


def _times(one: Rational, factor: Rational, operator: jax.Array, negate: jax.Array) -> Rational:
    """`one` times, over, or floor-divided by the factor with its sign."""
    over = operator > 0
    size, den = jnp.where(over, factor.den, factor.size), jnp.where(over, factor.size, factor.den)
    size = jnp.where(factor.den == 0, jnp.uint32(0), size)  # what has no value does not get one by division.
    den = jnp.where(factor.den == 0, jnp.uint32(0), den)
    # Reduced before they are multiplied: the product overflows only where its lowest terms do.
    g, h = _gcd(one.size, den), _gcd(size, one.den)
    left, right = lax.div(one.size, g), lax.div(size, h)
    low, high = lax.div(one.den, h), lax.div(den, g)
    fits = _product_fits(left, right) & _product_fits(low, high)
    negative = one.negative ^ factor.negative ^ negate
    size, den = left * right, jnp.where(fits, low * high, jnp.uint32(0))
    whole = lax.div(size, jnp.maximum(den, 1))
    whole += (negative & (whole * den != size)).astype(jnp.uint32)
    floor = (operator == 2) & (den > 0)
    return Rational(jnp.where(floor, whole, size), jnp.where(floor, jnp.uint32(1), den), negative)


def _plus(one: Rational, other: Rational, subtract: jax.Array) -> Rational:
    g = _gcd(one.den, other.den)
    to_one, to_other = lax.div(other.den, g), lax.div(one.den, g)
    fits = _product_fits(one.size, to_one) & _product_fits(other.size, to_other) & _product_fits(to_other, other.den)
    x, y = one.size * to_one, other.size * to_other
    negative_y = other.negative ^ subtract
    same = one.negative == negative_y
    fits &= ~same | (x <= _MOST - y)
    size = jnp.where(same, x + y, jnp.where(x >= y, x - y, y - x))
    negative = jnp.where(same | (x >= y), one.negative, negative_y)
    fits &= (one.den > 0) & (other.den > 0)
    return _reduced(size, jnp.where(fits, to_other * other.den, jnp.uint32(0)), negative)


def _reduced(size, den, negative) -> Rational:
    g = _gcd(size, den)
    return Rational(lax.div(size, g), lax.div(den, g), negative)


def _product_fits(x, y):
    return x <= lax.div(_MOST, jnp.maximum(y, 1))


def _gcd(x, y):
    """The greatest common divisor of uint32 numbers, at least 1."""

    def euclid(pair):
        x, y = pair
        return jnp.where(y > 0, y, x), jnp.where(y > 0, lax.rem(x, jnp.maximum(y, 1)), jnp.uint32(0))

    return jnp.maximum(lax.while_loop(lambda pair: jnp.any(pair[1] > 0), euclid, (x, y))[0], 1)


def _pick(levels: Rational, level) -> Rational:
    return jax.tree.map(lambda x: x[level], levels)


def _put(levels: Rational, level, value: Rational) -> Rational:
    return jax.tree.map(lambda x, new: x.at[level].set(new), levels, value)


def _where(mask, one: Rational, other: Rational) -> Rational:
    return jax.tree.map(lambda x, y: jnp.where(mask, x, y), one, other)
