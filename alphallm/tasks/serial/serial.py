"""Inherently serial problems: a transformer of fixed depth can do them step by step, but (most of them) not at once.

Words of S5 (complete for NC1) and of Z60, sums modulo p, iterated squaring, circuit value: the problems of Li et al.
2024, "Chain of thought empowers transformers to solve inherently serial problems", after Feng et al. 2023, "Towards
revealing the mystery behind chain of thought". An element is one token, as in Merrill et al. 2024, "The illusion of
state in state-space models".

The prompt is the problem, filled up to the longest length: "31254 , 21345 , _ , _". With steps, a step is the result of
the next prefix, `31254` (of a circuit `g3 T`), and the last one is `answer 32154`; without, that is the only step. What
is right is not told: a step is legal where it is one of these forms, and the reward is for the right answer alone, or
with `check_steps` for the right chain alone.
"""

import dataclasses
import hashlib
import itertools
import math
import random
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from alphallm.errors import UserError, check_range
from alphallm.tasks.base import ProblemError, Task, TaskConfig, short
from alphallm.tasks.serial import problems
from alphallm.tasks.words import WordVocabulary
from alphallm.types import Problem, Steps, Transition, pytree

ANSWER, COMMA, NOTHING = "answer", ",", "_"

_MOST_LISTED = 64  # well-formed lines: with more, none is listed.
_MISSES = 20_000  # draws without a new problem after which there are taken to be no more.

_Kind = Literal["s5", "z60", "modular_sum", "squaring", "circuit"]
_Letters = Literal["all", "transpositions"]


@dataclasses.dataclass(frozen=True)
class SerialConfig(TaskConfig, names=("serial",)):
    """Which problems, how long, and whether intermediate results are written."""

    name: str = "serial"
    problem: _Kind = "s5"
    steps: bool = True  # a step for each prefix's result; else one step, the answer.
    # Does a chain earn its reward by its answer alone, or only if every step before is right too, with none left out?
    # The outcome and the process supervision of Lightman et al. 2023, "Let's verify step by step".
    check_steps: bool = False
    # Elements, squarings or gates of a problem, drawn evenly. A prompt has room for the longest of both kinds.
    min_length: int = 1  # in training and validation.
    max_length: int = 12
    min_test_length: int = 0  # in the test; 0 takes those of the training.
    max_test_length: int = 0
    # s5: words are made of all permutations, or of the ten that swap two. These generate the group too, and there are a
    # twelfth as many products of a prefix and a letter to learn; but the length tells whether the answer is even.
    letters: _Letters = "all"
    modulus: int = 251  # of modular_sum; squaring: problems have primes up to it, each its own.
    train_problems: int = 20_000
    validation_problems: int = 500
    test_problems: int = 1000
    seed: int = 0  # of the draw. (Which split a problem may be in does not depend on it.)

    def __post_init__(self):
        super().__post_init__()
        for field, known in (("problem", get_args(_Kind)), ("letters", get_args(_Letters))):
            if getattr(self, field) not in known:
                raise UserError(f"Unknown {field} {getattr(self, field)!r}: give one of {', '.join(known)}.")
        check_range(self, 1, math.inf, "min_length", "train_problems", "validation_problems", "test_problems")
        check_range(self, 3, 10_000, "modulus")
        for split in ("train", "test"):
            low, high = self.lengths(split)
            if not 1 <= low <= high:
                raise UserError(f"The lengths of {split} problems are {low} to {high}: give 1 or more, in this order.")

    def lengths(self, split: str) -> tuple[int, int]:
        """The shortest and the longest problem of a split."""
        if split != "test":
            return self.min_length, self.max_length
        return self.min_test_length or self.min_length, self.max_test_length or self.max_length

    @property
    def longest(self) -> int:
        return max(self.lengths("train")[1], self.lengths("test")[1])

    def make(self) -> "Serial":
        return Serial(self)

    def splits(self) -> dict[str, list[str]]:
        numbers = {"train": self.train_problems, "validation": self.validation_problems, "test": self.test_problems}
        return {split: self._draw(split, number) for split, number in numbers.items()}

    def _draw(self, split: str, number: int) -> list[str]:
        """Different problems of a split in the order drawn."""
        kind = problems.make(self.problem, self.letters, self.modulus, self.longest)
        generator, texts, misses = random.Random(f"{self.seed} {split}"), dict[str, None](), 0
        low, high = self.lengths(split)
        while len(texts) < number:
            text = _text(kind.draw(generator, generator.randint(low, high)))
            new = text not in texts and split_of(text) == split
            misses = 0 if new else misses + 1
            if new:
                texts[text] = None
            if misses == _MISSES:
                raise UserError(
                    f"After {len(texts)} of {number} {split} problems no new ones of {self.problem} of length {low} to "
                    f"{high} are found: lower {split}_problems, or raise the lengths or the modulus."
                )
        return list(texts)


def split_of(text: str) -> str:
    """The split that a problem may be in, by a hash of its text: a tenth is for each of validation and test."""
    tenth = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")


@pytree
class SerialState:
    """Where a chain of steps stands."""

    reference: jax.Array  # int32 []: the token of the right answer.
    right_DL: jax.Array  # int32 [D, L]: the right chain, a line a step.
    steps_done: jax.Array  # int32 []: steps so far, illegal ones included.
    chain_legal: jax.Array  # bool []: no step so far was illegal.
    chain_right: jax.Array  # bool []: none was another than the right chain has there, or none is asked for.
    done: jax.Array  # bool []: an answer was given, or D steps.


class Serial(Task):
    """The task. Attributes are static; methods say where they run."""

    max_step = 3  # L: "answer", a value and a newline, or a circuit's label, a value and a newline.

    def __init__(self, config: SerialConfig):
        super().__init__(config)
        self._kind = problems.make(config.problem, config.letters, config.modulus, config.longest)
        values = self._kind.values
        self.vocabulary = WordVocabulary([ANSWER, COMMA, NOTHING, *values, *self._kind.other_words])
        self.max_steps = config.longest if config.steps else 1  # D
        # The start token, and a comma or the newline after each item, of which a squaring's start is one.
        items = config.longest + (config.problem == "squaring")
        self.max_prompt = 1 + self._kind.prompt_words(config.longest) + items  # P
        labels = self._kind.labels(config.longest)
        result = [labels, values] if labels else [values]
        self._answer_form = self._form([ANSWER], values)
        self._forms = [self._answer_form, *([self._form(*result)] if config.steps else [])]
        lines = [line for form in self._forms for line in itertools.product(*form)]
        if len(lines) <= _MOST_LISTED:
            self.max_legal_steps = self.max_later_steps = len(lines)  # A
            self._lines = lines

    def _form(self, *words) -> list[list[int]]:
        """The tokens that may stand at each place of a line."""
        return [[self.vocabulary.token_of[word] for word in each] for each in (*words, "\n")]

    # Host side: text and numpy.

    def problem(self, text: str, index: int = 0) -> Problem:
        """The problem written as "31254 , 21345", as numpy arrays without a batch axis; ProblemError where malformed.

        The state holds the right answer, which is always known here.
        """
        items, results = self._solve(text)
        right_DL = np.full((self.max_steps, self.max_step), self.vocabulary.pad, np.int32)
        for row, line in zip(right_DL, self._lines_of(results), strict=False):
            tokens = self.vocabulary.encode(line)
            row[: len(tokens)] = tokens
        state: dict[str, Any] = {
            "reference": np.int32(self.vocabulary.token_of[results[-1]]),
            "right_DL": right_DL,
            "steps_done": np.int32(0),
            "chain_legal": np.bool_(True),
            "chain_right": np.bool_(True),
            "done": np.bool_(False),
        }
        missing = self.config.longest - len(results)
        prompt = _text([*items, *[[NOTHING]] * missing]) + "\n"
        return self.make_problem([self.vocabulary.bos, *self.vocabulary.encode(prompt)], SerialState(**state), index)

    def _solve(self, text: str) -> tuple[list[problems.Item], list[str]]:
        """A problem's items and the results of its prefixes; ProblemError where it is malformed."""
        items = [item.split() for item in text.split(COMMA)]
        allowed = (
            f"give 1 to {self.config.longest} {self._kind.things} with commas between, for example "
            f"{self._kind.example!r}."
        )
        length = self._kind.length(items)
        if not 1 <= length <= self.config.longest:
            raise ProblemError(f"The problem {short(text)} has length {length}: {allowed}")
        try:
            return items, self._kind.results(items)
        except ValueError as error:
            raise ProblemError(f"The problem {short(text)} {error}: {allowed}") from error

    def solution_texts(self, row: str) -> list[str]:
        """The one right chain."""
        return ["".join(self._lines_of(self._solve(row)[1]))]

    def _lines_of(self, results: list[str]) -> list[str]:
        """The right chain to the results of a problem's prefixes."""
        labels = self._kind.labels(len(results)) or [""] * len(results)
        lines = [f"{label} {value}\n".lstrip() for label, value in zip(labels[:-1], results[:-1], strict=True)]
        return [*(lines if self.config.steps else []), f"{ANSWER} {results[-1]}\n"]

    # Device side: pure functions of one unbatched state, to be vmapped and jitted.

    def step(self, state: SerialState, tokens_L: jax.Array, length: jax.Array) -> Transition:
        """Verifies the form of one step, the first `length` of `tokens_L` (int32 [L]), its newline included.

        Any well-formed line is legal. An answer ends the chain, and so does step D. A malformed step counts as a step
        and takes the reward from the whole chain, and with `check_steps` so does a wrong one. A step of a done state is
        illegal and changes nothing.
        """
        running = ~state.done
        answered = running & self._has_form(self._answer_form, tokens_L, length)
        legal = running & jnp.any(jnp.stack([self._has_form(form, tokens_L, length) for form in self._forms]))
        steps_done = state.steps_done + running
        chain_legal = state.chain_legal & (legal | ~running)
        done = state.done | answered | (steps_done >= self.max_steps)
        chain_right = state.chain_right
        if self.config.check_steps:
            line_L = jnp.where(jnp.arange(self.max_step) < length, tokens_L, self.vocabulary.pad)
            wanted_L = state.right_DL[jnp.minimum(state.steps_done, self.max_steps - 1)]
            chain_right &= (legal & jnp.all(line_L == wanted_L)) | ~running
        right = answered & chain_legal & chain_right & (tokens_L[1] == state.reference)
        new_state = dataclasses.replace(
            state, steps_done=steps_done, chain_legal=chain_legal, chain_right=chain_right, done=done
        )
        return Transition(state=new_state, reward=right.astype(jnp.float32), done=done, legal=legal)

    def _has_form(self, form: list[list[int]], tokens_L: jax.Array, length: jax.Array) -> jax.Array:
        allowed = np.zeros((len(form), self.vocabulary.size), bool)
        for place, tokens in enumerate(form):
            allowed[place, tokens] = True
        places = np.arange(len(form))
        return (length == len(form)) & jnp.all(jnp.asarray(allowed)[places, tokens_L[places]])

    def legal_steps(self, state: SerialState) -> Steps:
        """All well-formed lines, where these are few; a done state has none."""
        if not self.max_legal_steps:
            return super().legal_steps(state)
        tokens_AL = np.full((self.max_legal_steps, self.max_step), self.vocabulary.pad, np.int32)
        for row, line in zip(tokens_AL, self._lines, strict=True):
            row[: len(line)] = line
        length_A = np.array([len(line) for line in self._lines], np.int32)
        valid_A = jnp.broadcast_to(~state.done, length_A.shape)
        return Steps(
            tokens_AL=jnp.where(valid_A[:, None], tokens_AL, self.vocabulary.pad),
            length_A=jnp.where(valid_A, length_A, 0),
            valid_A=valid_A,
        )


def _text(items: list[problems.Item]) -> str:
    return f" {COMMA} ".join(" ".join(item) for item in items)
