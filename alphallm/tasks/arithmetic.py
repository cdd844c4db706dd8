"""Game of 24 and Countdown: combine n numbers, two at a time, into a target, in exact rational arithmetic.

A step is the text `a op b = c` and a newline: a and b are two of the numbers that remain, c is their exact result in
lowest terms and takes their place. A chain of n - 1 legal steps that ends in the target solves the problem.

The verifier never parses: it finds which numbers the step begins with, writes the only legal step that begins so, and
compares. What `step` accepts is therefore what `legal_steps` writes, plus the other order of a sum or a product.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alphallm.errors import UserError
from alphallm.tasks import solver, splits
from alphallm.tasks import vocabulary as words
from alphallm.tasks.base import ProblemError, Task, TaskConfig, short
from alphallm.types import Problem, Steps, Transition, pytree

LARGEST = 32767  # of a numerator or denominator: a sum of two products of two of them still fits an int32.
_LARGEST_EXTRA = 24  # of game24's numbers: 9,254 extra puzzles up to it, which the solver finds in half a minute.
_LONGEST_NUMBER = 12  # tokens: minus, five digits, bar, five digits.
_POWERS = np.array([1, 10, 100, 1000, 10000], np.int32)
_FRACTION_TOKENS = words.fraction_tokens()
# The six steps of a pair of numbers, the larger one first; the last two have the smaller one first.
_PAIR_OPERATORS = np.array([words.PLUS, words.MINUS, words.TIMES, words.OVER, words.MINUS, words.OVER], np.int32)
_PAIR_SWAPPED = np.array([False, False, False, False, True, True])


@dataclasses.dataclass(frozen=True)
class ArithmeticConfig(TaskConfig, names=("game24", "countdown")):
    """Which problems, and how long a step may be."""

    name: str = "game24"
    dataset: str = "default"  # game24: "default", "tot" or "tsllm"; countdown: "default".
    num_numbers: int = 4  # numbers of a problem.
    max_number: int = 13  # the numbers are 1 .. max_number, at most 200; game24: those of puzzles to train on.
    max_target: int = 24  # countdown: targets are 1 .. max_target; game24: the target, 24.
    max_step_tokens: int = 8  # L: a step is "a op b = c" and a newline, six tokens if each number is a single token.
    manual_dir: str = ""  # the folder with 24.csv, for the datasets "tot" and "tsllm"; "" downloads it.

    def make(self) -> "Arithmetic":
        return Arithmetic(self)

    def rows(self, split: str, data_dir: str = "") -> list[str]:
        from alphallm.tasks import arithmetic_data

        return arithmetic_data.load_split(self, split, data_dir)

    def portable(self) -> "ArithmeticConfig":
        return dataclasses.replace(self, manual_dir="")


@pytree
class ArithmeticState:
    """Where a chain stands; numbers are in lowest terms, with a positive denominator."""

    num_n: jax.Array  # int32 [n]: numerators of the numbers that remain.
    den_n: jax.Array  # int32 [n]: denominators; 0 where the slot is empty.
    target_num: jax.Array  # int32 []
    target_den: jax.Array  # int32 []
    steps_done: jax.Array  # int32 []: steps so far, illegal ones included.
    chain_legal: jax.Array  # bool []: no step so far was illegal.


@pytree
class _Written:
    """A number as tokens: the first `length` of `tokens_W` (fewer than `length` if it does not fit)."""

    tokens_W: jax.Array  # int32 [W]
    length: jax.Array  # int32 []


class Arithmetic(Task):
    """The task: problems, verifier and lister of legal steps. Attributes are static, methods say where they run."""

    self_verifying = True  # a solver may see the reward at test time: checking a chain needs no answer key.

    def __init__(self, config: ArithmeticConfig):
        _check_config(config)
        super().__init__(config)
        self.vocabulary = words.Vocabulary()
        self.num_numbers = config.num_numbers
        self.max_steps = config.num_numbers - 1  # D
        self.max_step = config.max_step_tokens  # L
        self.max_prompt = 3 + config.num_numbers + len(self.vocabulary.encode(str(config.max_target)))  # P
        self._pairs = np.array(list(itertools.combinations(range(self.num_numbers), 2)), np.int32)
        self.max_legal_steps = len(self._pairs) * len(_PAIR_OPERATORS)  # A
        self.max_later_steps = math.comb(self.num_numbers - 1, 2) * len(_PAIR_OPERATORS)
        self._width = min(_LONGEST_NUMBER, self.max_step - 5)  # W: the longest number that a step has room for.

    # Host side: text and numpy.

    def problem(self, text: str, index: int = 0) -> Problem:
        """The problem written as "4 9 10 13" (game24) or "3 5 7 -> 22", as numpy arrays without a batch axis.

        Raises ProblemError where the text is malformed or, for game24, where no chain of steps reaches 24.
        """
        numbers, target = self.parse(text)
        if self.name == "game24" and not solver.solvable(numbers, target):
            raise ProblemError(f"{short(text)} cannot be made into 24 with + - * /: give a puzzle that has a solution.")
        return self.build_problem(numbers, target, index)

    def parse(self, text: str) -> tuple[tuple[int, ...], int]:
        """Sorted numbers and target of a problem's text; ProblemError where it is malformed."""
        left, arrow, right = text.partition("->")
        right = right if arrow or self.name != "game24" else "24"
        pieces, targets = left.split(), right.split()
        for piece in pieces + targets:
            if not (piece.isascii() and piece.isdigit() and len(piece) <= 6):
                raise ProblemError(f"{short(text)} has {piece!r}, which is not a whole number: {self._allowed()}")
        if len(pieces) != self.num_numbers or len(targets) != 1:
            raise ProblemError(f"{short(text)} has {len(pieces)} numbers and {len(targets)} targets: {self._allowed()}")
        numbers, target = tuple(sorted(map(int, pieces))), int(targets[0])
        least_target = 24 if self.name == "game24" else 1
        in_range = least_target <= target <= self.config.max_target
        if not in_range or numbers[0] < 1 or numbers[-1] > self.config.max_number:
            raise ProblemError(f"{short(text)} is out of range: {self._allowed()}")
        return numbers, target

    def _allowed(self) -> str:
        """What a problem's text must be, with an example."""
        form = f"give {self.num_numbers} whole numbers from 1 to {self.config.max_number}"
        if self.name == "game24":
            return f'{form}, for example "4 9 10 13".'
        example = " ".join(["1"] * self.num_numbers)
        most = self.config.max_target
        return f'{form}, an arrow and a target from 1 to {most}, for example "{example} -> {most}".'

    def build_problem(self, numbers: tuple[int, ...], target: int, index: int) -> Problem:
        """The problem of sorted `numbers` and `target`, which are trusted, as numpy arrays without a batch axis."""
        prompt = [words.BOS, *self.vocabulary.encode(" ".join(map(str, numbers)) + f" -> {target}\n")]
        # The fields are declared as device arrays; on the host they are NumPy's.
        state: dict[str, Any] = {
            "num_n": np.array(numbers, np.int32),
            "den_n": np.ones(self.num_numbers, np.int32),
            "target_num": np.int32(target),
            "target_den": np.int32(1),
            "steps_done": np.int32(0),
            "chain_legal": np.bool_(True),
        }
        return self.make_problem(prompt, ArithmeticState(**state), index)

    def load(self, text: str, index: int) -> Problem:
        """The problem of a split's row, whose text is checked for form but not for having a solution."""
        return self.build_problem(*self.parse(text), index)

    def solutions(self, text: str, limit: int | None = None) -> list[list[list[int]]]:
        """At most `limit` different solutions of a problem's text, as tokens of their steps."""
        lines = (solution.splitlines(keepends=True) for solution in self.solution_texts(text, limit))
        return [[self.vocabulary.encode(line) for line in each] for each in lines]

    def solution_texts(self, text: str, limit: int | None = None) -> list[str]:
        """The same in words: chains of n - 1 steps with operands in the order that `legal_steps` gives them, every step
        within L tokens."""
        numbers, target = self.parse(text)

        def fits(step: str) -> bool:
            return len(self.vocabulary.encode(step)) <= self.max_step

        return list(itertools.islice(solver.solutions(numbers, target, fits), limit))

    # Device side: pure functions of one unbatched state, to be vmapped and jitted.

    def step(self, state: ArithmeticState, tokens_L: jax.Array, length: jax.Array) -> Transition:
        """Verifies one step: the first `length` of `tokens_L` (int32 [L]), its newline included.

        An illegal step leaves the numbers as they were, counts as a step, and makes the whole chain illegal. After
        n - 1 steps the answer is done; a step of a done state is illegal, earns nothing and changes nothing.
        """
        _assert_shape("tokens_L", tokens_L, (self.max_step,))
        first, second, operator, found = self._read_operands(state, tokens_L)
        written_n = self._write_numbers(state.num_n, state.den_n)
        num, den, exact = _combine(
            state.num_n[first], state.den_n[first], state.num_n[second], state.den_n[second], operator
        )
        expected_L, expected_length = self._write_step(
            operator, _take(written_n, first), _take(written_n, second), self._write_number(num, den)
        )
        position_L = jnp.arange(self.max_step)
        same = jnp.all((tokens_L == expected_L) | (position_L >= expected_length))
        running = state.steps_done < self.max_steps
        legal = running & found & exact & same & (length == expected_length) & (expected_length <= self.max_step)

        slot_n = jnp.arange(self.num_numbers)
        steps_done = state.steps_done + running
        chain_legal = state.chain_legal & (legal | ~running)
        new_state = dataclasses.replace(
            state,
            num_n=jnp.where(legal & (slot_n == first), num, state.num_n),
            den_n=jnp.where(legal, jnp.select([slot_n == first, slot_n == second], [den, 0], state.den_n), state.den_n),
            steps_done=steps_done,
            chain_legal=chain_legal,
        )
        done = steps_done == self.max_steps
        solved = running & done & chain_legal & (num == state.target_num) & (den == state.target_den)
        return Transition(state=new_state, reward=solved.astype(jnp.float32), done=done, legal=legal)

    def augment(self, problem: Problem, key: jax.Array) -> Problem:
        """The same unbatched problem with its numbers in another order, drawn uniformly."""
        order = jax.random.permutation(key, self.num_numbers)
        state = problem.state
        # The prompt is the start token, one token for each number, the arrow, the target and a newline.
        numbers = problem.tokens_P[1 : 1 + self.num_numbers][order]
        return dataclasses.replace(
            problem,
            tokens_P=jnp.asarray(problem.tokens_P).at[1 : 1 + self.num_numbers].set(numbers),
            state=dataclasses.replace(state, num_n=state.num_n[order], den_n=state.den_n[order]),
        )

    def legal_steps(self, state: ArithmeticState) -> Steps:
        """All legal steps of `state`, for sums and products with the larger number first, each different text once.

        A step whose text needs more than L tokens, or whose result has a numerator or denominator above 32767, is not
        listed. A done state has none.
        """
        i_A, j_A = np.repeat(self._pairs, len(_PAIR_OPERATORS), axis=0).T
        operator_A = np.tile(_PAIR_OPERATORS, len(self._pairs))
        swapped_A = np.tile(_PAIR_SWAPPED, len(self._pairs))
        num_n, den_n = state.num_n, state.den_n
        i_larger_A = num_n[i_A] * den_n[j_A] >= num_n[j_A] * den_n[i_A]
        first_A = jnp.where(i_larger_A ^ swapped_A, i_A, j_A)
        second_A = jnp.where(i_larger_A ^ swapped_A, j_A, i_A)

        num_A, den_A, exact_A = _combine(num_n[first_A], den_n[first_A], num_n[second_A], den_n[second_A], operator_A)
        written_n = self._write_numbers(num_n, den_n)
        tokens_AL, length_A = jax.vmap(self._write_step)(
            operator_A, _take(written_n, first_A), _take(written_n, second_A), self._write_numbers(num_A, den_A)
        )

        equal = (num_n[i_A] == num_n[j_A]) & (den_n[i_A] == den_n[j_A])
        repeated_A = self._pair_seen_before(num_n, den_n) | (equal & swapped_A)
        there_A = (den_n[i_A] > 0) & (den_n[j_A] > 0) & (state.steps_done < self.max_steps)
        valid_A = there_A & exact_A & ~repeated_A & (length_A <= self.max_step)
        return Steps(
            tokens_AL=jnp.where(valid_A[:, None], tokens_AL, words.PAD),
            length_A=jnp.where(valid_A, length_A, 0),
            valid_A=valid_A,
        )

    def _pair_seen_before(self, num_n, den_n):
        """bool [A]: an earlier pair of slots holds the same two numbers."""
        same_nn = (num_n[:, None] == num_n[None, :]) & (den_n[:, None] == den_n[None, :])
        alike_n = jnp.argmax(same_nn, axis=1)  # the first slot with the same number.
        i, j = self._pairs.T
        key = jnp.minimum(alike_n[i], alike_n[j]) * self.num_numbers + jnp.maximum(alike_n[i], alike_n[j])
        earlier = np.tril(np.ones((len(i), len(i)), bool), -1)
        seen = jnp.any((key[:, None] == key[None, :]) & earlier, axis=1)
        return jnp.repeat(seen, len(_PAIR_OPERATORS), total_repeat_length=self.max_legal_steps)

    def _read_operands(self, state, tokens_L):
        """Slots of the two numbers and the operator that `tokens_L` begins with, and whether there are such."""
        written_n = self._write_numbers(state.num_n, state.den_n)
        padded = jnp.concatenate([tokens_L, jnp.full(self._width + 1, words.PAD, jnp.int32)])
        slot_n = jnp.arange(self.num_numbers)

        def begins_n(start):
            """Which slots hold the number written at `start`, and the token after each of them."""
            position_W = jnp.arange(self._width)
            here_W = padded[start + position_W]
            same_nW = (written_n.tokens_W == here_W[None, :]) | (position_W[None, :] >= written_n.length[:, None])
            fits_n = (written_n.length <= self._width) & (state.den_n > 0)
            after_n = padded[start + jnp.minimum(written_n.length, self._width)]
            return jnp.all(same_nW, axis=1) & fits_n, after_n

        same_n, after_n = begins_n(0)
        first_n = same_n & (after_n >= words.PLUS) & (after_n <= words.OVER)
        first = jnp.argmax(first_n)
        same_n, equals_n = begins_n(jnp.minimum(written_n.length[first], self._width) + 1)
        second_n = same_n & (equals_n == words.EQUALS) & (slot_n != first)
        return first, jnp.argmax(second_n), after_n[first], jnp.any(first_n) & jnp.any(second_n)

    def _write_numbers(self, num_X, den_X) -> _Written:
        return jax.vmap(self._write_number)(num_X, den_X)

    def _write_number(self, num, den) -> _Written:
        """The canonical tokens of num/den (int32 [], lowest terms, both at most 32767)."""
        size = jnp.abs(num)
        num_digits = 1 + jnp.sum(size >= _POWERS[1:])
        den_digits = 1 + jnp.sum(den >= _POWERS[1:])
        position_W = jnp.arange(self._width) - (num < 0)
        in_num_W = position_W < num_digits
        power_W = jnp.where(in_num_W, num_digits - 1 - position_W, num_digits + den_digits - position_W)
        scale_W = jnp.asarray(_POWERS)[jnp.clip(power_W, 0, 4)]
        digit_W = jax.lax.rem(jax.lax.div(jnp.where(in_num_W, size, den), scale_W), jnp.int32(10))
        spelled_W = jnp.select(
            [position_W < 0, position_W == num_digits], [words.NEGATIVE, words.BAR], words.DIGIT_ZERO + digit_W
        )
        spelled_length = (num < 0) + num_digits + jnp.where(den > 1, 1 + den_digits, 0)

        whole = (den == 1) & (num >= words.MIN_INTEGER) & (num <= words.MAX_INTEGER)
        fraction = jnp.asarray(_FRACTION_TOKENS)[
            jnp.clip(num + words.MAX_NUMERATOR, 0, 2 * words.MAX_NUMERATOR), jnp.clip(den, 0, words.MAX_DENOMINATOR)
        ]
        has_token = (size <= words.MAX_NUMERATOR) & (den <= words.MAX_DENOMINATOR) & (fraction >= 0)
        single = whole | has_token
        return _Written(
            tokens_W=jnp.where(single, jnp.where(whole, words.INTEGER_ZERO + num, fraction), spelled_W),
            length=jnp.where(single, 1, spelled_length).astype(jnp.int32),
        )

    def _write_step(self, operator, first: _Written, second: _Written, result: _Written):
        """(int32 [L], int32 []): the tokens of a step, padded, and its length, which is above L if it does not fit."""
        width = self._width
        separators = jnp.stack([operator, words.EQUALS, words.NEWLINE]).astype(jnp.int32)[:, None]
        pieces = zip([first, second, result], separators, strict=True)
        buffer = jnp.concatenate([x for written, separator in pieces for x in (written.tokens_W, separator)])
        source_L = position_L = jnp.arange(self.max_step)
        end: Any = 0
        for written in (first, second, result):
            end += written.length
            source_L += jnp.where(position_L >= end, width - written.length, 0)  # skips the unused rest of the number.
            end += 1  # the separator after it.
        tokens_L = buffer[jnp.clip(source_L, 0, 3 * width + 2)]
        return jnp.where(position_L < end, tokens_L, words.PAD), end


def _take(written: _Written, slot) -> _Written:
    """The numbers at `slot` (int32 of any shape) of numbers stacked along a leading axis."""
    return jax.tree.map(lambda x: x[slot], written)


def _combine(num_a, den_a, num_b, den_b, operator):
    """a op b in lowest terms, elementwise: numerator, denominator, and whether it exists and both are <= 32767.

    Operands are int32 with absolute values of at most 32767, so that nothing overflows. Where there is no result,
    0/1 stands in its place.
    """
    cross_a, cross_b = num_a * den_b, num_b * den_a
    is_over = operator == words.OVER
    num = jnp.select(
        [operator == words.PLUS, operator == words.MINUS, operator == words.TIMES],
        [cross_a + cross_b, cross_a - cross_b, num_a * num_b],
        cross_a * jnp.sign(num_b),
    )
    den = jnp.where(is_over, jnp.abs(cross_b), den_a * den_b)
    divisor = jnp.maximum(_gcd(jnp.abs(num), den), 1)
    num, den = jax.lax.div(num, divisor), jax.lax.div(den, divisor)
    exists = (den > 0) & (den <= LARGEST) & (jnp.abs(num) <= LARGEST)
    return jnp.where(exists, num, 0), jnp.where(exists, den, 1), exists


def _gcd(x, y):
    """Greatest common divisor of int32 x, y >= 0, elementwise; Euclid stops when the last of the batch has ended."""

    def euclid(pair):
        x, y = pair
        return jnp.where(y > 0, y, x), jnp.where(y > 0, jax.lax.rem(x, jnp.maximum(y, 1)), 0)

    return jax.lax.while_loop(lambda pair: jnp.any(pair[1] > 0), euclid, (x, y))[0]


def _assert_shape(name: str, array, shape: tuple[int, ...]):
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}: vmap over a batch.")


def _check_config(config: ArithmeticConfig):
    """UserError where the fields do not describe a task."""
    if config.name == "game24" and (config.num_numbers, config.max_target) != (4, 24):
        raise UserError(
            f"game24 has 4 numbers and the target 24, not {config.num_numbers} and {config.max_target}: leave "
            "num_numbers and max_target out, or use name='countdown'."
        )
    if config.name == "game24" and not splits.LARGEST_GAME24 <= config.max_number <= _LARGEST_EXTRA:
        raise UserError(
            f"task.max_number={config.max_number} is out of range for game24: give {splits.LARGEST_GAME24} to "
            f"{_LARGEST_EXTRA}; above {splits.LARGEST_GAME24} are puzzles to train on only."
        )
    limits = {
        "num_numbers": (2, 8),
        "max_number": (1, words.MAX_INTEGER),
        "max_target": (1, LARGEST),
        "max_step_tokens": (6, 3 * _LONGEST_NUMBER + 3),
    }
    for field, (least, most) in limits.items():
        if not least <= getattr(config, field) <= most:
            raise UserError(f"task.{field}={getattr(config, field)} is out of range: give {least} to {most}.")
