"""What every task keeps, whatever it is about: those of the library, and the example of docs/tasks.md.

A task whose config works by its defaults alone is found by its name; one that needs files, or would take long by its
defaults, is named in `_CONFIGS`. ALPHALLM_FULL=1 loads every row and plays more.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm.tasks import (
    ArithmeticConfig,
    BlocksworldConfig,
    IgsmConfig,
    ProblemError,
    SerialConfig,
    TaskConfig,
    TextConfig,
    data,
)
from alphallm.types import Transition

from . import page, worked

FULL = os.environ.get("ALPHALLM_FULL") == "1"
_B = 256 if FULL else 24  # problems that are played at once.
_PLAYS = 10 if FULL else 2
_ROWS = None if FULL else 200  # of a split, that are loaded.
_SOLVED = 200 if FULL else 8  # rows of a split whose solutions are played.

_OUTSIDE = ("gsm8k", "math")  # need a download, and are of the same class as "jsonl".
_CONFIGS: dict[str, Callable[[], TaskConfig]] = {
    "blocksworld": lambda: BlocksworldConfig(num_blocks=(3, 4)),
    "blocksworld, states told": lambda: BlocksworldConfig(num_blocks=(3, 4), states=True),
    "countdown": lambda: ArithmeticConfig(
        name="countdown", num_numbers=3, max_number=6, max_target=24, max_step_tokens=16
    ),
    "serial": lambda: SerialConfig(train_problems=200, validation_problems=50, test_problems=50),
    "serial, its steps checked": lambda: SerialConfig(
        check_steps=True, train_problems=200, validation_problems=50, test_problems=50
    ),
    "serial, its lines listed": lambda: SerialConfig(
        problem="circuit", max_length=6, train_problems=200, validation_problems=50, test_problems=50
    ),
    "igsm": lambda: IgsmConfig(train_problems=300, validation_problems=50, test_problems=50),
    "jsonl": lambda: TextConfig(name="jsonl", manual_dir=worked.write(data.root() / "worked"), vocabulary_size=300),
    "the page's": lambda: page.example().KnightConfig(),
}
_DEFAULTS = {
    name: functools.partial(config, name=name)
    for name, config in TaskConfig.class_of.items()
    if name not in (*_CONFIGS, *_OUTSIDE)
}
CONFIGS = {**_CONFIGS, **_DEFAULTS}


@dataclasses.dataclass(frozen=True)
class Level:
    """One step of a batch of chains: the states before it, the step, and what the task said."""

    state: Any
    tokens_BL: np.ndarray
    length_B: np.ndarray
    said: Transition


class Case:
    """A task, its rows, some of its problems as a batch, and its methods, compiled for a batch."""

    def __init__(self, config: TaskConfig):
        self.config, self.task = config, config.make()
        self.vocabulary = self.task.vocabulary
        self.rows = {split: data.load_split(config, split) for split in data.SPLITS}
        some = list(itertools.chain(*(rows[:_SOLVED] for rows in self.rows.values())))
        self.batch_rows = [some[i % len(some)] for i in range(_B)]
        self.problems = data.load_problems(self.task, self.batch_rows)
        self.lists = self.task.max_legal_steps > 0
        self._step = jax.jit(jax.vmap(self.task.step))
        self._legal_steps = jax.jit(jax.vmap(self.task.legal_steps))
        self.solved = [(row, steps) for row in some for steps in self.task.solutions(row, 2)]

    def step(self, state, tokens_BL, length_B) -> Transition:
        return jax.device_get(self._step(state, tokens_BL, length_B))

    def legal_steps(self, state):
        return jax.device_get(self._legal_steps(state))

    def padded(self, steps: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [B, L] and lengths [B] of a step each."""
        tokens_BL = np.full((len(steps), self.task.max_step), self.vocabulary.pad, np.int32)
        for row, step in zip(tokens_BL, steps, strict=True):
            row[: len(step)] = step
        return tokens_BL, np.array([len(step) for step in steps], np.int32)

    def play(self, states: Sequence[Any], chains: Sequence[Sequence[list[int]]]) -> list[list[Transition]]:
        """What the task says of each step of each chain, from an unbatched state each."""
        said: list[list[Transition]] = []
        for start in range(0, len(chains), _B):
            some = [*chains[start : start + _B], *[[]] * _B][:_B]
            state = _stack([*states[start : start + _B], *[states[0]] * _B][:_B])
            levels = []
            for level in range(max(map(len, some))):
                steps = [chain[level] if level < len(chain) else [] for chain in some]
                levels.append(self.step(state, *self.padded(steps)))
                state = levels[-1].state
            said += [[_take(levels[i], b) for i in range(len(chain))] for b, chain in enumerate(some)]
        return said[: len(chains)]

    def some_step(self, generator: np.random.Generator, listed: list[list[int]]) -> list[int]:
        """A step that is as a rule legal where `listed` has any, or the same with something wrong."""
        known = listed or self.worked_steps
        step = list(known[generator.integers(len(known))])
        return step if generator.random() < 0.8 else self.spoilt(generator, step)

    def spoilt(self, generator: np.random.Generator, step: list[int]) -> list[int]:
        """Another token somewhere, one too few or too many, or anything at all."""
        kind, at = generator.integers(4), int(generator.integers(len(step)))
        any_token = lambda: int(generator.integers(self.vocabulary.size))
        if kind == 0:
            step = [*step[:at], any_token(), *step[at + 1 :]]
        elif kind == 1 and len(step) > 1:
            step = [*step[:at], *step[at + 1 :]]
        elif kind == 2:
            step = [*step[:at], any_token(), *step[at:]][: self.task.max_step]
        else:
            step = [any_token() for _ in range(generator.integers(1, self.task.max_step + 1))]
        return step

    @functools.cached_property
    def worked_steps(self) -> list[list[int]]:
        return [step for _, steps in self.solved for step in steps]

    @functools.cached_property
    def plays(self) -> list[list[Level]]:
        """Random play of the batch, legal and illegal, which goes on for two steps after the last one."""
        return [self._play_at_random(np.random.default_rng(seed)) for seed in range(_PLAYS)]

    def _play_at_random(self, generator) -> list[Level]:
        state, levels = self.problems.state, []
        for _ in range(self.task.max_steps + 2):
            steps = [self.some_step(generator, listed) for listed in self.listed(state)]
            tokens_BL, length_B = self.padded(steps)
            levels.append(Level(state, tokens_BL, length_B, self.step(state, tokens_BL, length_B)))
            state = levels[-1].said.state
        return levels

    def listed(self, state) -> list[list[list[int]]]:
        """The steps that the task lists for each state of a batch; none where it lists none."""
        if not self.lists:
            return [[] for _ in range(_B)]
        steps = self.legal_steps(state)
        return [
            [steps.tokens_AL[b, a, : steps.length_A[b, a]].tolist() for a in np.flatnonzero(steps.valid_A[b])]
            for b in range(_B)
        ]


@pytest.fixture(scope="module", params=CONFIGS)
def case(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.getbasetemp() / "contract"))
        yield Case(CONFIGS[request.param]())


def _stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _take(tree, b):
    return jax.tree.map(lambda x: x[b], tree)


def _form(tree):
    return jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), tree)


def test_splits_share_no_problem_and_every_row_loads(case):
    told = [str(row) for rows in case.rows.values() for row in rows]
    assert len(set(told)) == len(told)
    assert all(case.rows.values())
    for rows in case.rows.values():
        problems = data.load_problems(case.task, rows[:_ROWS])
        assert problems.index.tolist() == list(range(len(rows[:_ROWS])))
        assert _form(_take(problems, 0)) == _form(_take(case.problems, 0))
    if type(case.config).splits is not TaskConfig.splits:
        assert case.config.splits() == case.rows


def test_what_a_user_types_is_the_problem_of_its_row(case):
    for b in range(6):
        problem = case.task.problem(str(case.batch_rows[b]), b)
        np.testing.assert_array_equal(problem.tokens_P, case.problems.tokens_P[b])
        assert (problem.index, problem.length) == (b, case.problems.length[b])
        assert _form(problem) == _form(_take(case.problems, b))


def test_problems_are_numpy_of_the_types_that_devices_have(case):
    leaves = jax.tree.leaves(case.problems)
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
    assert [leaf.dtype for leaf in leaves] == [jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in leaves]
    assert case.problems.tokens_P.dtype == np.int32 and case.problems.tokens_P.shape == (_B, case.task.max_prompt)


def test_prompts_and_steps_are_text_and_back(case):
    decode, encode = case.vocabulary.decode, case.vocabulary.encode
    for tokens_P, length in zip(case.problems.tokens_P, case.problems.length, strict=True):
        assert 0 < length <= case.task.max_prompt
        assert (tokens_P[length:] == case.vocabulary.pad).all()
        # Tokens that are no text, as the start token, are not in the words.
        assert encode(decode(tokens_P[:length])) == [token for token in tokens_P[:length].tolist() if decode([token])]
    listed = itertools.chain(*(case.listed(level.state)[0] for level in case.plays[0]))
    for step in (*listed, *itertools.chain(*(steps for _, steps in case.solved))):
        assert encode(decode(step)) == [token for token in step if decode([token])]
        assert 0 <= min(step) <= max(step) < case.vocabulary.size
        end, state = len(case.vocabulary.step_end_SV), 0
        for place, token in enumerate(step):
            state = int(case.vocabulary.step_end_SV[state, token])
            assert (state == end) == (place == len(step) - 1), "a step ends with its last token"


def test_worked_solutions_are_right(case):
    if not case.solved:
        pytest.skip("this task offers none")
    states = [case.task.load(row, 0).state for row, _ in case.solved]
    for (row, steps), said in zip(case.solved, case.play(states, [s for _, s in case.solved]), strict=True):
        assert len(steps) <= case.task.max_steps and max(map(len, steps)) <= case.task.max_step
        assert all(each.legal for each in said), row
        assert [bool(each.done) for each in said] == [False] * (len(steps) - 1) + [True], row
        assert [float(each.reward) for each in said] == [0.0] * (len(steps) - 1) + [1.0], row


def test_a_step_keeps_the_form_of_the_state(case):
    task, state = case.task, _take(case.problems, 0).state
    said = jax.eval_shape(
        task.step, state, jax.ShapeDtypeStruct((task.max_step,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    )
    form = jax.tree.map(lambda x: (x.shape, x.dtype), said)
    assert form.state == _form(state)
    assert (form.reward, form.done, form.legal) == (((), jnp.float32), ((), jnp.bool_), ((), jnp.bool_))


def test_play_ends_and_stays_over(case):
    for levels in case.plays:
        done_DB = np.stack([level.said.done for level in levels])
        assert done_DB[case.task.max_steps - 1].all()
        assert (done_DB[1:] >= done_DB[:-1]).all()
        for level, over_B in zip(levels[1:], done_DB[:-1], strict=True):
            assert not level.said.reward[over_B].any()
            assert not level.said.legal[over_B].any()


def test_a_reward_is_for_a_legal_chain_that_is_done(case):
    for levels in case.plays:
        legal_B = np.ones(_B, bool)
        for level in levels:
            legal_B &= level.said.legal
            assert ((level.said.reward >= 0) & (level.said.reward <= 1)).all()
            assert not level.said.reward[~(level.said.done & legal_B)].any()


def test_no_illegal_chain_is_rewarded(case):
    """Right solutions with one step spoilt, or one that is put between."""
    generator, chains, states, places = np.random.default_rng(0), [], [], []
    for row, steps in case.solved:
        for at, kept in itertools.product(range(len(steps)), (0, 1)):
            chains.append([*steps[:at], case.spoilt(generator, steps[at]), *steps[at + kept :]][: case.task.max_steps])
            states.append(case.task.load(row, 0).state)
            places.append(at)
    illegal = 0
    for chain, at, said in zip(chains, places, case.play(states, chains), strict=True):
        if not said[at].legal:
            illegal += 1
            assert not any(each.reward for each in said), [case.vocabulary.decode(step) for step in chain]
    assert illegal or not (case.solved and case.lists)


def test_only_the_tokens_of_a_step_count(case):
    """What stands behind it does not, and without its end it is another one; an empty one earns nothing."""
    generator = np.random.default_rng(1)
    for level in case.plays[0]:
        noise_BL = generator.integers(case.vocabulary.size, size=level.tokens_BL.shape, dtype=np.int32)
        behind_BL = np.arange(case.task.max_step) >= level.length_B[:, None]
        again = case.step(level.state, np.where(behind_BL, noise_BL, level.tokens_BL), level.length_B)
        jax.tree.map(np.testing.assert_array_equal, again, level.said)
        if case.lists:
            assert not case.step(level.state, level.tokens_BL, level.length_B - 1).legal[level.said.legal].any()
        assert not case.step(level.state, level.tokens_BL, np.zeros_like(level.length_B)).reward.any()


def test_listed_steps_are_different_and_legal(case):
    if not case.lists:
        pytest.skip("this task lists none")
    task, total = case.task, 0
    shape = (_B, task.max_legal_steps)
    form = (((*shape, task.max_step), np.int32), (shape, np.int32), (shape, np.bool_))
    for levels in case.plays:
        later_B = np.zeros(_B, bool)  # some step before was legal.
        for level in levels:
            steps = case.legal_steps(level.state)
            assert _form((steps.tokens_AL, steps.length_A, steps.valid_A)) == form
            assert (steps.length_A[~steps.valid_A] == 0).all()
            assert (steps.valid_A.sum(-1)[later_B] <= task.max_later_steps).all()
            later_B |= level.said.legal
            for listed in case.listed(level.state):
                assert len({tuple(step) for step in listed}) == len(listed)
                total += len(listed)
            for a in range(task.max_legal_steps):
                said = case.step(level.state, steps.tokens_AL[:, a], steps.length_A[:, a])
                assert said.legal[steps.valid_A[:, a]].all()
    assert total


def test_nothing_is_listed_where_it_is_over(case):
    if not case.lists:
        pytest.skip("this task lists none")
    over = 0
    for said in (level.said for levels in case.plays for level in levels):
        steps = case.legal_steps(said.state)
        assert not steps.valid_A[said.done].any()
        over += said.done.sum()
    assert over


def test_worked_steps_are_listed(case):
    if not case.lists:
        pytest.skip("this task lists none")
    states = [case.task.load(row, 0).state for row, _ in case.solved]
    played = case.play(states, [steps for _, steps in case.solved])
    pairs = [
        (before, step)
        for state, said, (_, steps) in zip(states, played, case.solved, strict=True)
        for before, step in zip([state, *(each.state for each in said[:-1])], steps, strict=True)
    ]
    for start in range(0, len(pairs), _B):
        some = [*pairs[start : start + _B], *[pairs[0]] * _B][:_B]
        listed = case.listed(_stack([state for state, _ in some]))
        assert all(step in steps for (_, step), steps in zip(some, listed, strict=True))


def test_a_reference_decides_the_reward_alone(case):
    """Where a task does not verify itself: with another right answer, nothing that a search may see is different.

    The right answer is the field `reference` of the state.
    """
    if case.task.self_verifying:
        pytest.skip("this task verifies itself")

    other = case.step(_swapped(case.problems.state), *case.padded([[]] * _B)).state.reference
    for levels in case.plays:
        state = _swapped(levels[0].state)
        for level in levels:
            assert case.listed(state) == case.listed(level.state)
            said = case.step(state, level.tokens_BL, level.length_B)
            jax.tree.map(np.testing.assert_array_equal, _seen(said), _seen(level.said))
            jax.tree.map(np.testing.assert_array_equal, said.state.reference, other)
            state = said.state

    # And the reward of a right answer is another one.
    states = [case.task.load(row, 0).state for row, _ in case.solved]
    wrong = [
        dataclasses.replace(a, reference=b.reference) for a, b in zip(states, states[1:] + states[:1], strict=True)
    ]
    differs = 0
    for state, given, said in zip(states, wrong, case.play(wrong, [steps for _, steps in case.solved]), strict=True):
        same = jax.tree.all(jax.tree.map(np.array_equal, state.reference, given.reference))
        assert said[-1].reward == same
        differs += not same
    assert differs


def _swapped(state):
    """A batch of states, each with the right answer of the one before it."""
    return dataclasses.replace(state, reference=jax.tree.map(lambda x: np.roll(x, 1, 0), state.reference))


def _seen(said: Transition):
    return dataclasses.replace(said.state, reference=None), said.done, said.legal


def test_an_augmented_problem_is_one_that_can_be_solved(case):
    """Its prompt is the text of a problem whose solutions are right from its state."""
    key_B = jax.random.split(jax.random.key(0), _B)
    augmented = jax.device_get(jax.jit(jax.vmap(case.task.augment))(case.problems, key_B))
    assert _form(augmented) == _form(case.problems)
    np.testing.assert_array_equal(augmented.index, case.problems.index)
    np.testing.assert_array_equal(augmented.length, case.problems.length)
    changed = np.flatnonzero((augmented.tokens_P != case.problems.tokens_P).any(-1))
    if not len(changed):
        jax.tree.map(np.testing.assert_array_equal, augmented, case.problems)
        pytest.skip("this task shows no symmetries")
    states, chains = [], []
    for b in changed:
        text = case.vocabulary.decode(augmented.tokens_P[b, : augmented.length[b]]).rstrip("\n")
        for steps in case.task.solutions(text, 2):
            states.append(_take(augmented.state, b))
            chains.append(steps)
    assert chains and all(said[-1].reward == 1 for said in case.play(states, chains))


def test_under_other_names_the_answers_are_as_right(case):
    """A renaming keeps tokens apart, and turns a problem and its solutions into another one and its solutions."""
    names_BV = jax.device_get(jax.jit(jax.vmap(case.task.renaming))(jax.random.split(jax.random.key(0), _B)))
    np.testing.assert_array_equal(np.sort(names_BV, -1), np.tile(np.arange(case.vocabulary.size), (_B, 1)))
    assert (names_BV[:, case.vocabulary.pad] == case.vocabulary.pad).all()
    if (names_BV == np.arange(case.vocabulary.size)).all():
        pytest.skip("this task has no names that could be others")
    states, chains = [], []
    for b, row in enumerate(case.batch_rows):
        prompt = case.problems.tokens_P[b, : case.problems.length[b]]
        text = case.vocabulary.decode(names_BV[b, prompt].tolist()).rstrip("\n")
        for steps in case.task.solutions(row, 2):
            states.append(case.task.problem(text).state)
            chains.append([names_BV[b, step].tolist() for step in steps])
    assert chains and all(said[-1].reward == 1 for said in case.play(states, chains))


def test_what_is_no_problem_is_told_in_a_sentence(case):
    row = str(case.batch_rows[0])
    words = row.split()
    texts = [
        "", " ", "\n", "?", "no problem at all", "1" * 5000, "1 2 3 " * 2000, "a b c " * 2000, "\0", "-1", "1e9", "½",
        *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))), f"{row} {row}", row[::-1], row[:-1],
        *(" ".join([*words[:i], "xyzzy", *words[i + 1 :]]) for i in range(len(words))), f"{row}\n{row}",
    ]  # fmt: skip
    refused = 0
    for text in texts:
        try:
            problem = case.task.problem(text)
        except ProblemError as error:
            refused += 1
            assert len(str(error)) > 20 and len(str(error).splitlines()) == 1
            assert str(error)[0].isupper() or str(error)[0] in "'\""
        else:
            assert text.strip()
            assert _form(problem) == _form(_take(case.problems, 0))
    assert refused > 3
