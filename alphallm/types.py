"""Axis letters and the dataclasses that cross module boundaries.

Arrays carry their axes as a suffix, one letter an axis, and a letter means the same thing everywhere:

    B  problems (= search trees) on one device      V  vocabulary entries
    N  nodes of a tree (simulations + 1)            E  model width
    K  candidate steps of a node                    H  query heads
    L  tokens of a step, at most                    G  key-value heads
    P  tokens of a prompt, at most                  C  channels of a head
    D  steps from the root to a leaf, at most       Y  layers
    T  tokens of a whole sequence                   S  cached positions that queries may attend to
    X  new positions computed in one forward pass   M  training rows kept of one tree
    A  steps that a task lists as legal, at most

Everything here is a frozen dataclass registered as a JAX pytree: it can be passed through `jit`, `vmap` and `pmap`.
Shapes in the comments are those of one problem; functions over a batch put `B` in front of all of them.
"""

import dataclasses
import typing
from typing import Any, TypeVar

import jax

_T = TypeVar("_T")

# A pytree of fixed-shape arrays that a task defines and only that task reads.
TaskState = Any


@typing.dataclass_transform(frozen_default=True)
def pytree(cls: type[_T]) -> type[_T]:
    """Class decorator: a frozen dataclass that is a JAX pytree whose leaves are its fields."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@pytree
class Problem:
    """One problem as the device sees it; stacked along a leading axis it is a batch of problems."""

    tokens_P: jax.Array  # int32 [P]: the prompt, padded at the end with the vocabulary's pad token.
    length: jax.Array  # int32 []: the number of real prompt tokens.
    state: TaskState  # the task's state before the first step.
    index: jax.Array  # int32 []: the problem's number within its split.


@pytree
class Transition:
    """What a task says of one step."""

    state: TaskState  # the state after the step.
    reward: jax.Array  # float32 [] in [0, 1]: nonzero only where the whole chain is legal, done and right.
    done: jax.Array  # bool []: the answer is complete, right or wrong.
    legal: jax.Array  # bool []: this step follows the rules (earlier steps are not looked at).


class Vocabulary(typing.Protocol):
    """What the library asks of the tokens that a task's text is made of."""

    size: int  # V
    pad: int
    # int8 [S, V]: where steps end, as an automaton over tokens. S is the length of the delimiter; from state s (so much
    # of it is matched), token v leads to state step_end_SV[s, v], and S says that the step ends. With a delimiter that
    # no token divides there is one state, and the table is a mask of the tokens that hold it.
    step_end_SV: Any

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""

    def decode(self, tokens) -> str:
        """The text of tokens."""


class Tool(typing.Protocol):
    """What writes a part of a step by itself, as a calculator does, while the step is decoded."""

    size: int  # F: tokens of an answer, at most.
    # int8 [., V]: an automaton over tokens that begins in state 0 with each step. The token that leads to a state of
    # `forced` or more from one below asks the tool; every token that follows such a state is the tool's.
    table_SV: Any
    forced: int

    def answer(self, tokens_L: jax.Array, length: jax.Array) -> jax.Array:
        """int32 [F]: what must follow the first `length` of an unbatched step's tokens, padded with -1; compiled."""

    def forced_tokens(self, tokens_L: jax.Array) -> jax.Array:
        """bool [L]: which tokens of an unbatched step are the tool's; compiled."""

    def is_forced(self, tokens: list[int]) -> list[bool]:
        """The same on the host, of a step of any length."""


class Task(typing.Protocol):
    """What the library asks of a task. Attributes are static; the methods are pure and are vmapped and compiled."""

    name: str
    vocabulary: "Vocabulary"
    tool: "Tool | None"
    max_prompt: int  # P
    max_step: int  # L
    max_steps: int  # D
    max_legal_steps: int  # A: of any state.
    max_later_steps: int  # the same after a first legal step.
    self_verifying: bool  # may a solver see the reward at test time?

    def problem(self, text: str, index: int = 0) -> "Problem":
        """On the host: the problem that a user wrote, without a batch axis; UserError where it is none."""

    def load(self, row: Any, index: int) -> "Problem":
        """On the host: the problem of a row of a split, as `alphallm.tasks.data.load_split` gives it."""

    def solutions(self, row: Any, limit: int | None = None) -> list[list[list[int]]]:
        """On the host: at most `limit` worked solutions of a row, as tokens of their steps; there may be none."""

    def hindsight(self, row: Any, number: int, seed: int) -> list[Any]:
        """On the host: random legal plays (`alphallm.tasks.base.Play`) from a training row's start."""

    def step(self, state: TaskState, tokens_L: jax.Array, length: jax.Array) -> "Transition":
        """Verifies the first `length` of `tokens_L` as one step from an unbatched state."""

    def augment(self, problem: "Problem", key: jax.Array) -> "Problem":
        """A random problem equivalent to an unbatched one; training sees these, evaluation does not."""

    def renaming(self, key: jax.Array) -> jax.Array:
        """Of each token [V] the one to read in its place, int32: random other names, under which every problem and all
        answers to it say the same; training sees searched trees under several."""

    def legal_steps(self, state: TaskState) -> "Steps":
        """All legal steps of an unbatched state, for tasks that can list them."""


@pytree
class Steps:
    """Steps that a task lists for one state."""

    tokens_AL: jax.Array  # int32 [A, L]: up to and including a step-end token, then padding.
    length_A: jax.Array  # int32 [A]: tokens of each step, its step-end token included; 0 where not valid.
    valid_A: jax.Array  # bool [A]: True where there is a step.


@pytree
class KeyValues:
    """Attention keys and values. Inside a layer without Y; a cache stacks the layers in front."""

    keys: jax.Array  # [Y, B, G, S, C]
    values: jax.Array  # [Y, B, G, S, C]


@pytree
class Past:
    """A cached block that new positions may attend to.

    Keys and values are `[Y, B, G, S, C]`, the same slots for all new positions of a problem, or `[Y, B, G, X, S, C]`,
    slots of each new position's own.
    """

    keys_values: KeyValues
    mask_BXS: jax.Array  # bool: True where new position x may attend to cached position s. X may be 1 (all alike).


@pytree
class Branches:
    """Who attends to whom among X new positions of which the last J * L are J short texts that go on from the others.

    A branch attends to shared positions and to itself; what comes before the branches attends to shared positions, its
    own among them. That is X * (S + L) scores, where a mask over all pairs has X * X.
    """

    shared_BS: jax.Array  # int32: the new positions that may be attended to from outside their branch.
    mask_BXS: jax.Array  # bool: True where position x may attend to shared position s.
    own_JLL: jax.Array  # bool: the same within each branch.
