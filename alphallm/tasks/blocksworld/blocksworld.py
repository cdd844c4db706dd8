"""Blocksworld: move blocks with one hand, one at a time, until a goal holds (PlanBench, Valmeekam et al. 2023).

A problem says where the blocks are and which blocks are to be on which: "red on blue , blue on table . goal : blue on
red ." A step is an action in PlanBench's words and a newline, "unstack the red block from on top of the blue block".
The plan is done when the goal holds, which is worth 1 if every step was legal, or after so many steps as the task
allows. The verifier never parses: it writes all legal steps, at most one a block, and looks for the step among them.
With `states` a step also says where it leaves every block, as the states of RAP do (Hao et al. 2023): the policy is a
world model too, a wrong state is an illegal step, and where a plan stands can be read without following it.
"""

import dataclasses
import hashlib
import itertools
import math
import random
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alphallm.errors import UserError, check_range
from alphallm.tasks.base import Play, ProblemError, Task, TaskConfig, find_step, short
from alphallm.tasks.blocksworld import pddl, planner, plays, wording
from alphallm.tasks.blocksworld.planner import ABSENT, ANY, HAND, PICK_UP, PUT_DOWN, STACK, TABLE, UNSTACK
from alphallm.tasks.words import WordVocabulary
from alphallm.types import Problem, Steps, Transition, pytree


@dataclasses.dataclass(frozen=True)
class BlocksworldConfig(TaskConfig, names=("blocksworld",)):
    """Which problems, and how long a plan may be. Ranges are the least and the most, both included."""

    name: str = "blocksworld"
    num_blocks: tuple[int, int] = (4, 6)
    # Actions of a problem's shortest plan, an even number: a block is taken and then put somewhere. Validation problems
    # are as those of training.
    train_plan: tuple[int, int] = (2, 12)
    test_plan: tuple[int, int] = (2, 12)
    max_steps: int = 12  # D
    # Whether a step ends in the state that it leads to, each block and what it is on: " : red blue blue table".
    states: bool = False
    num_train: int = 5000  # at most, as the two below: of four or five blocks there are few problems.
    num_validation: int = 500
    num_test: int = 500
    seed: int = 0  # of which problems of a split are taken, and of the colours of their blocks.

    def __post_init__(self):
        super().__post_init__()
        check_range(self, 1, math.inf, "max_steps", "num_train", "num_validation", "num_test")
        ranges = {"num_blocks": (2, len(wording.COLOURS)), "train_plan": (2, self.max_steps)}
        ranges["test_plan"] = ranges["train_plan"]
        for field, (least, most) in ranges.items():
            low, high = getattr(self, field)
            if not least <= low <= high <= most:
                raise ValueError(f"{field} is {low},{high}: give a range within {least} to {most}.")

    def make(self) -> "Blocksworld":
        return Blocksworld(self)

    def splits(self) -> dict[str, list[str]]:
        """Problems that differ in more than the names of their blocks, as many of each plan length as there are.

        Of all problems of so many blocks a hash puts 70 % into train, 10 % into validation and 20 % into test, whatever
        the config says besides. Rows of different plan lengths take turns, the shortest first.
        """
        by_length: dict[str, dict[int, list[planner.Form]]] = {"train": {}, "validation": {}, "test": {}}
        for num_blocks in range(self.num_blocks[0], self.num_blocks[1] + 1):
            for form, length in planner.all_forms(num_blocks).items():
                split = _split_of(form)
                least, most = self.test_plan if split == "test" else self.train_plan
                if least <= length <= most:
                    by_length[split].setdefault(length, []).append(form)
        sizes = {"train": self.num_train, "validation": self.num_validation, "test": self.num_test}
        splits = {split: self._chosen(forms, sizes[split]) for split, forms in by_length.items()}
        for split, texts in splits.items():
            if not texts:
                raise UserError(f"There are no {split} problems of {self}: allow more blocks or other plan lengths.")
        return splits

    def _chosen(self, by_length: dict[int, list[planner.Form]], size: int) -> list[str]:
        """At most `size` problems in words, the plan lengths taking turns."""
        groups = [sorted(by_length[length], key=lambda form: _hash(self.seed, form)) for length in sorted(by_length)]
        turns = itertools.chain(*itertools.zip_longest(*groups))
        return [self._coloured(form) for form in itertools.islice(filter(None, turns), size)]

    def _coloured(self, form: planner.Form) -> str:
        """The text of a problem whose blocks get random colours."""
        colours = sorted(range(self.num_blocks[1]), key=lambda colour: _hash(self.seed, form, colour))
        state, goal = [ABSENT] * len(colours), [ANY] * len(colours)
        for places, new in zip(form, (state, goal), strict=True):
            for block, place in enumerate(places):
                new[colours[block]] = colours[place] if place >= 0 else place
        return wording.write(tuple(state), tuple(goal))


def _split_of(form: planner.Form) -> str:
    share = int(_hash(form), 16) % 10
    return "test" if share < 2 else "validation" if share < 3 else "train"


def _hash(*what: Any) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()


@pytree
class BlocksworldState:
    """Where a plan stands. A place is a block's number, or one of the planner's `TABLE`, `HAND`, `ABSENT` and `ANY`."""

    place_n: jax.Array  # int32 [n]: what each block is on.
    goal_n: jax.Array  # int32 [n]: what each block is to be on.
    order_n: jax.Array  # int32 [n]: the blocks in the prompt's order, the absent ones last.
    steps_done: jax.Array  # int32 []: steps so far, illegal ones included.
    chain_legal: jax.Array  # bool []: no step so far was illegal.


class Blocksworld(Task):
    """The task: problems, verifier and lister of legal steps. Attributes are static, methods say where they run."""

    self_verifying = True  # checking a plan needs no answer key.

    def __init__(self, config: BlocksworldConfig):
        super().__init__(config)
        self.num_blocks = config.num_blocks[1]  # n
        self.vocabulary = WordVocabulary(wording.words(self.num_blocks))
        self.max_steps = config.max_steps  # D
        self.max_prompt = (
            8 * self.num_blocks + 4
        )  # P: two facts of a block, four tokens each, ". goal :", bos, newline.
        # A: a clear block is taken, or the held one is put on it or, for its own entry in the list, on the table.
        self.max_legal_steps = self.max_later_steps = self.num_blocks
        self._first_name = self.vocabulary.token_of[wording.COLOURS[0]]  # the others follow.
        self._written, self._lengths = self._write_actions()
        longest_state = 1 + 2 * self.num_blocks if config.states else 0
        self.max_step = self._written.shape[-1] + longest_state + 1  # L, with the newline.

    def _write_actions(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of every action without its newline, int32 [4, n, n, ...], and how many a kind has, int32 [4]."""
        kinds, blocks = range(len(wording.ACTIONS)), range(self.num_blocks)
        tokens = {
            action: self.vocabulary.encode(wording.write_action(action))
            for action in itertools.product(kinds, blocks, blocks)
        }
        lengths = np.array([len(tokens[kind, 0, 0]) for kind in kinds], np.int32)
        shape = (len(kinds), self.num_blocks, self.num_blocks, lengths.max())
        written = np.full(shape, self.vocabulary.pad, np.int32)
        for action, words in tokens.items():
            written[action][: len(words)] = words
        return written, lengths

    # Host side: text and numpy.

    def problem(self, text: str, index: int = 0) -> Problem:
        """The problem of a text as `wording.parse` takes it, as numpy arrays without a batch axis.

        Raises ProblemError where the text is malformed, the state impossible, or no plan of 1 to D steps reaches the
        goal.
        """
        state, goal = self.parse(text)
        length = planner.plan_length(state, goal)
        if length is None:
            raise ProblemError(f"No plan reaches the goal of {short(text)}: give one in which all blocks can stand.")
        if length == 0:
            raise ProblemError(f"The goal of {short(text)} holds already: give one that takes a step.")
        if length > self.max_steps:
            raise ProblemError(
                f"The shortest plan for {short(text)} has {length} steps: the task allows {self.max_steps} (max_steps)."
            )
        return self._build_problem(state, goal, index)

    def load(self, row: str, index: int) -> Problem:
        """The problem of a split's row, whose text is checked for form but not for having a plan."""
        return self._build_problem(*self.parse(row), index)

    def parse(self, text: str) -> planner.Form:
        """Where the blocks are and are to be, as the planner has it; ProblemError where the text is malformed."""
        return wording.parse(text, self.num_blocks)

    def from_file(self, text: str) -> str:
        """The problem's text of a PDDL file's; ProblemError where it is malformed."""
        return pddl.parse(text, self.num_blocks)

    def _build_problem(self, state: planner.Places, goal: planner.Places, index: int) -> Problem:
        # The fields are declared as device arrays; on the host they are NumPy's.
        order = planner.order(state, goal)
        fields: dict[str, Any] = {
            "place_n": np.array(state, np.int32),
            "goal_n": np.array(goal, np.int32),
            "order_n": np.array([*order, *(b for b in range(self.num_blocks) if b not in order)], np.int32),
            "steps_done": np.int32(0),
            "chain_legal": np.bool_(True),
        }
        return self.make_problem(self._prompt(state, goal), BlocksworldState(**fields), index)

    def _prompt(self, state: planner.Places, goal: planner.Places) -> list[int]:
        return [self.vocabulary.bos, *self.vocabulary.encode(wording.write(state, goal) + "\n")]

    def solutions(self, row: str, limit: int | None = None) -> list[list[list[int]]]:
        """At most `limit` shortest plans of a row, as tokens of their steps."""
        plans = itertools.islice(planner.shortest_plans(*self.parse(row)), limit)
        return [[*map(self.vocabulary.encode, self._lines(row, plan))] for plan in plans]

    def solution_texts(self, row: str) -> list[str]:
        """All shortest plans of a row in words, a line a step."""
        return ["".join(self._lines(row, plan)) for plan in planner.shortest_plans(*self.parse(row))]

    def _lines(self, row: str, plan: Iterable[planner.Action]) -> list[str]:
        """The steps of a plan for a row, whose states have the row's order of blocks."""
        return wording.write_steps(self.parse(row)[0], plan, wording.order(row) if self.config.states else None)

    def hindsight(self, row: str, number: int, seed: int) -> list[Play]:
        """Random legal plays from a row's start, each as a plan for some of what it built.

        The goal names a random part of the blocks that stand on others at the play's end, and the play is over when it
        holds first. Plans of more than D steps are left out, and so are problems that belong to another split.
        """
        start, _ = self.parse(row)
        chooser = random.Random(f"{seed} {row}")
        found = []
        for _ in range(number):
            # About half of its actions are undone.
            goal, states, actions = plays.play(start, 3 * self.max_steps // 2, chooser)
            ways = [plays.way(states, i) for i in range(len(actions))]
            if not ways or len(ways[0]) > self.max_steps or _split_of(planner.form(start, goal)) != "train":
                continue
            steps = [*map(self.vocabulary.encode, self._lines(wording.write(start, goal), actions))]
            taken = [i in ways[0] for i in range(len(actions))]
            found.append(Play(self._prompt(start, goal), steps, taken, [*map(len, ways)]))
        return found

    # Device side: pure functions of one unbatched state, to be vmapped and jitted.

    def step(self, state: BlocksworldState, tokens_L: jax.Array, length: jax.Array) -> Transition:
        """Verifies one step: the first `length` of `tokens_L` (int32 [L]), its newline included.

        An illegal step leaves the blocks as they were, counts as a step, and makes the whole plan illegal. The answer
        is done when the goal holds, and after D steps; a step of a done state is illegal, earns nothing and changes
        nothing.
        """
        if tokens_L.shape != (self.max_step,):
            raise ValueError(f"tokens_L has shape {tokens_L.shape}, expected {(self.max_step,)}: vmap over a batch.")
        running = ~self._done(state)
        chosen, legal = find_step(self.legal_steps(state), tokens_L, length)
        *_, place_nn = self._moves(state)
        new_state = dataclasses.replace(
            state,
            place_n=jnp.where(legal, place_nn[chosen], state.place_n),
            steps_done=state.steps_done + running,
            chain_legal=state.chain_legal & (legal | ~running),
        )
        solved = running & new_state.chain_legal & _goal_holds(new_state)
        return Transition(state=new_state, reward=solved.astype(jnp.float32), done=self._done(new_state), legal=legal)

    def _done(self, state: BlocksworldState) -> jax.Array:
        return _goal_holds(state) | (state.steps_done >= self.max_steps)

    def legal_steps(self, state: BlocksworldState) -> Steps:
        """All legal steps of `state`, that of a block in its place in the list. A done state has none."""
        valid_n, kind_n, (moved_n, other_n), place_nn = self._moves(state)
        valid_n &= ~self._done(state)
        tokens_nL, length_n = jax.vmap(self._write_step, (0, 0, 0, None))(
            jnp.asarray(self._written)[kind_n, moved_n, other_n],
            jnp.asarray(self._lengths)[kind_n],
            place_nn,
            state.order_n,
        )
        return Steps(
            tokens_AL=jnp.where(valid_n[:, None], tokens_nL, self.vocabulary.pad),
            length_A=jnp.where(valid_n, length_n, 0),
            valid_A=valid_n,
        )

    def _moves(self, state: BlocksworldState) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array], jax.Array]:
        """Of each block's entry in the list: whether there is one, its kind, its blocks, and all places after it."""
        block_n, place_n = jnp.arange(self.num_blocks), state.place_n
        held_n = place_n == HAND
        held, holding = jnp.argmax(held_n), jnp.any(held_n)
        clear_n = (place_n >= TABLE) & ~jnp.any(place_n[None, :] == block_n[:, None], -1)
        taken_n = jnp.where(place_n == TABLE, PICK_UP, UNSTACK)
        put_n = jnp.where(held_n, PUT_DOWN, STACK)
        moved_n, other_n = jnp.where(holding, held, block_n), jnp.where(holding, block_n, jnp.maximum(place_n, 0))
        new_n = jnp.where(holding, jnp.where(held_n, TABLE, block_n), HAND)
        place_nn = jnp.where(block_n[None] == moved_n[:, None], new_n[:, None], place_n[None])
        return clear_n | held_n, jnp.where(holding, put_n, taken_n), (moved_n, other_n), place_nn

    def _write_step(self, action_A, length, place_n, order_n) -> tuple[jax.Array, jax.Array]:
        """The tokens [L] of a step and how many they are: the action, the state after it if asked for, a newline."""
        token_of = self.vocabulary.token_of
        state_S, state_length = jnp.zeros(1, jnp.int32), jnp.int32(0)
        if self.config.states:
            name_n = jnp.where(place_n >= 0, self._first_name + place_n, token_of["table"])
            name_n = jnp.where(place_n == HAND, token_of["hand"], name_n)
            facts_n2 = jnp.stack([self._first_name + order_n, name_n[order_n]], -1)
            state_S = jnp.concatenate([jnp.array([token_of[":"]]), facts_n2.reshape(-1)])
            state_length = 1 + 2 * jnp.sum(place_n != ABSENT)
        # Position by position: of the action, of what follows it, of the end.
        position_L = jnp.arange(self.max_step)
        after_L = position_L - length
        tokens_L = jnp.where(
            after_L < 0,
            action_A[jnp.minimum(position_L, action_A.shape[0] - 1)],
            state_S[jnp.clip(after_L, 0, state_S.shape[0] - 1)],
        )
        tokens_L = jnp.where(after_L == state_length, self.vocabulary.newline, tokens_L)
        return jnp.where(after_L > state_length, self.vocabulary.pad, tokens_L), length + state_length + 1

    def augment(self, problem: Problem, key: jax.Array) -> Problem:
        """The same unbatched problem with its blocks' names permuted, drawn uniformly of all names of the task.

        The prompt keeps its order, which does not depend on names but where two orders are alike.
        """
        new_name_n = self._new_names(key)
        old_name_n = jnp.argsort(new_name_n)

        def renamed(places_n):
            moved_n = places_n[old_name_n]
            return jnp.where(moved_n >= 0, new_name_n[jnp.maximum(moved_n, 0)], moved_n)

        state = problem.state
        return dataclasses.replace(
            problem,
            tokens_P=self.renaming(key)[problem.tokens_P],
            state=dataclasses.replace(
                state,
                place_n=renamed(state.place_n),
                goal_n=renamed(state.goal_n),
                order_n=new_name_n[state.order_n],
            ),
        )

    def renaming(self, key: jax.Array) -> jax.Array:
        """The blocks' names permuted, as `augment` permutes them with the same key."""
        names = self._first_name + np.arange(self.num_blocks)
        return jnp.arange(self.vocabulary.size).at[names].set(self._first_name + self._new_names(key))

    def _new_names(self, key: jax.Array) -> jax.Array:
        return jax.random.permutation(key, self.num_blocks)


def _goal_holds(state: BlocksworldState) -> jax.Array:
    return jnp.all((state.goal_n == ANY) | (state.goal_n == state.place_n))
