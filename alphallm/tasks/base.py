"""What a task is made of: a config that poses the problems of its splits, and rules that verify steps.

A new task subclasses both and is named in `alphallm/tasks/__init__.py`; docs/tasks.md shows a whole one.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alphallm.errors import ConfigError, UserError
from alphallm.types import Problem, Steps


class ProblemError(UserError):
    """A problem that this task cannot pose, in words for the user."""


class Play(NamedTuple):
    """A random legal play, and the prompt of the problem that it turned out to solve."""

    prompt: list[int]
    steps: list[list[int]]
    taken: list[bool]  # of each step whether it is of the solution: of no detour, that came back to where it began.
    steps_left: list[int]  # before each step: those of the solution that the play went on to find from there.


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Which problems, and how long a step may be. A subclass gives the names of its tasks: `names=("blocksworld",)`."""

    name: str

    names: ClassVar[Sequence[str]] = ()
    version: ClassVar[str] = "1"  # of what `splits` returns: raise it with every change.
    class_of: ClassVar[dict[str, type["TaskConfig"]]] = {}  # every task that is known.

    def __init_subclass__(cls, names: Sequence[str]):
        cls.names = names
        for name in names:
            TaskConfig.class_of[name] = cls

    def __post_init__(self):
        if self.name in self.names:
            return
        if self.name in TaskConfig.class_of:
            other = TaskConfig.class_of[self.name].__name__
            raise UserError(f"The task {self.name} has a config of its own, {other}: start from one that has it.")
        raise UserError(_unknown(self.name))

    @classmethod
    def choose(cls, values: Mapping[str, Any]) -> type["TaskConfig"]:
        """The subclass that recorded values are of. (`alphallm.config.from_dict` asks.)"""
        name = values.get("name", "")
        if cls is not TaskConfig:
            return cls
        if name not in TaskConfig.class_of:
            raise ConfigError(f"{_unknown(name)} One of your own has to be imported before.")
        return TaskConfig.class_of[name]

    def make(self) -> "Task":
        """The task of this config."""
        raise NotImplementedError

    def splits(self) -> dict[str, list[str]]:
        """The problems of "train", "validation" and "test" in words: the same on every machine, none in two splits."""
        raise NotImplementedError

    def rows(self, split: str, data_dir: str = "") -> list[Any]:
        """The rows of a split, through a tensorflow-datasets builder; `data_dir` as in `alphallm.tasks.data`."""
        from alphallm.tasks import data

        return data.generated(self, split, data_dir)

    def portable(self) -> "TaskConfig":
        """The config without folders of this machine: what goes into an export."""
        return self


class Task:
    """The rules. Attributes are static, methods say where they run; `alphallm.types.Task` says what is asked of them.

    A subclass gives the attributes without a value, `problem` and `step`.
    """

    vocabulary: Any
    max_prompt: int  # P
    max_step: int  # L
    max_steps: int  # D

    tool: Any = None
    self_verifying = False
    max_legal_steps = 0
    max_later_steps = 0

    def __init__(self, config: Any):
        self.config = config
        self.name: str = config.name

    # Host side: text and numpy.

    def problem(self, text: str, index: int = 0) -> Problem:
        """The problem that a user wrote; ProblemError where it is malformed or has no solution."""
        raise NotImplementedError

    def from_file(self, text: str) -> str:
        """The problem in words of a file in its field's own format."""
        raise UserError(f"The task {self.name} reads no files: give the problem in words.")

    def load(self, row: Any, index: int) -> Problem:
        """The problem of a split's row."""
        return self.problem(row, index)

    def solutions(self, row: Any, limit: int | None = None) -> list[list[list[int]]]:
        """At most `limit` worked solutions of a row, as tokens of their steps."""
        texts = self.solution_texts(row)[:limit]
        return [[self.vocabulary.encode(line) for line in text.splitlines(keepends=True)] for text in texts]

    def solution_texts(self, row: Any) -> list[str]:
        """The same in words, a line a step; a task may have none to offer."""
        return []

    def hindsight(self, row: Any, number: int, seed: int) -> list[Play]:
        """At most `number` random legal plays from a training row's start, each with the problem that it solves, which
        is of no other split. A task may have none to offer.
        """
        del row, number, seed
        return []

    def make_problem(self, prompt: Sequence[int], state: Any, index: int) -> Problem:
        """The problem of a prompt's tokens and its first state, without a batch axis."""
        if len(prompt) > self.max_prompt:
            text = self.vocabulary.decode(prompt)
            raise ProblemError(f"The prompt has {len(prompt)} tokens, and {self.max_prompt} fit: {short(text)}")
        tokens_P = np.full(self.max_prompt, self.vocabulary.pad, np.int32)
        tokens_P[: len(prompt)] = prompt
        # The fields are declared as device arrays; on the host they are NumPy's.
        arrays: dict[str, Any] = {"tokens_P": tokens_P, "length": np.int32(len(prompt)), "index": np.int32(index)}
        return Problem(state=state, **arrays)

    # Device side: pure functions of one unbatched state, to be vmapped and jitted.

    def step(self, state: Any, tokens_L: jax.Array, length: jax.Array) -> Any:
        raise NotImplementedError

    def augment(self, problem: Problem, key: jax.Array) -> Problem:
        """The problem itself, where a task has no symmetries to show."""
        del key
        return problem

    def renaming(self, key: jax.Array) -> jax.Array:
        """Every token itself, where a task has no names that could be others."""
        del key
        return jnp.arange(self.vocabulary.size)

    def legal_steps(self, state: Any) -> Steps:
        raise UserError(f"The task {self.name} lists no steps: use proposer=gumbel_top_k or iid, and no random play.")


def find_step(steps: Steps, tokens_L: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which of the listed steps the first `length` of `tokens_L` are: its place in the list, and whether there is one.

    With it a task that lists its legal steps needs no other verifier.
    """
    position_L = jnp.arange(tokens_L.shape[0])
    same_AL = (steps.tokens_AL == tokens_L[None]) | (position_L[None] >= steps.length_A[:, None])
    found_A = steps.valid_A & (steps.length_A == length) & jnp.all(same_AL, -1)
    return jnp.argmax(found_A), jnp.any(found_A)


def _unknown(name: str) -> str:
    known = [*TaskConfig.class_of]
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
    return f"Unknown task {name!r}: did you mean {nearest[0]!r}? Known tasks are {', '.join(known)}."


def short(text: str) -> str:
    """A user's text in quotes, cut where it is long."""
    return repr(text if len(text) <= 60 else text[:60] + "…")
