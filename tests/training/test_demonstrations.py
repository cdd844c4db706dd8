"""Packed solutions: every token once, and the loss of a text is what it is alone."""

import collections
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm.errors import UserError
from alphallm.models import LanguageModel, ModelConfig
from alphallm.tasks import ArithmeticConfig, BlocksworldConfig, TextConfig, data, make_task
from alphallm.training import learner
from alphallm.training.config import Config
from alphallm.training.demonstrations import demonstrations, hindsight
from alphallm.training.learner import Packed
from alphallm.training.steps import Steps
from tests.tasks import worked

MODEL_CONFIG = ModelConfig(num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=16)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "calculator"])
def text_task(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("worked")
    config = TextConfig(
        name="jsonl", manual_dir=worked.write(folder), vocabulary_size=400, max_prompt_tokens=64, max_step_tokens=40,
        calculator=request.param,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        return make_task(config), data.load_split(config, "train")


def texts_of(packed: Packed) -> list[tuple[int, ...]]:
    return [
        tuple(tokens[number == i].tolist())
        for tokens, number in zip(packed.tokens_T, packed.text_T, strict=True)
        for i in range(1, number.max() + 1)
    ]


def test_every_solution_is_there_once(text_task):
    task, rows = text_task
    packed = demonstrations(task, rows, 256, seed=0)
    wanted = [(*task.prompt(row.question), *itertools.chain(*task.solutions(row)[0])) for row in rows]
    assert sorted(texts_of(packed)) == sorted(wanted)
    assert (packed.text_T > 0).mean() > 0.8
    for tokens, number, position, is_step in zip(
        packed.tokens_T, packed.text_T, packed.position_T, packed.is_step_T, strict=True
    ):
        for i in range(1, number.max() + 1):
            place = np.flatnonzero(number == i)
            assert (np.diff(place) == 1).all() and (position[place] == np.arange(len(place))).all()
            text = task.vocabulary.decode(tokens[place])
            prompt = len(task.prompt(text.removeprefix("Question: ").partition("\nAnswer")[0]))
            left_out = len(place) - prompt - is_step[place].sum()
            assert not is_step[place][:prompt].any()
            # The calculator's results, two of them, and the two signs that close each.
            assert (left_out > 0) == (task.tool is not None)
    assert not packed.is_step_T[packed.text_T == 0].any()


def test_packing_does_not_change_the_loss(text_task):
    task, rows = text_task
    model = LanguageModel(MODEL_CONFIG, task.vocabulary.size)
    params = jax.tree.map(lambda x: x + 0.1, model.init(jax.random.key(0)))
    loss = jax.jit(lambda packed: learner.packed_loss(model, params, jax.tree.map(jnp.asarray, packed))[0])
    together = demonstrations(task, rows[:6], 256, seed=0)
    alone = demonstrations(task, rows[:6], 0, seed=0)
    assert len(together.tokens_T) < len(alone.tokens_T) == 6
    assert float(loss(together)) == pytest.approx(float(loss(alone)), rel=1e-5)
    # What stands in another text does not matter, and what stands in the same one does.
    for number, matters in ((1, True), (2, False)):
        is_step = np.where(together.text_T == number, together.is_step_T, False)
        tokens = together.tokens_T.copy()
        tokens[0, 0] = (tokens[0, 0] + 1) % task.vocabulary.size  # of the first text
        one, other = (
            Packed(t, together.position_T, together.text_T, is_step, together.steps_left_T)
            for t in (together.tokens_T, tokens)
        )
        assert (float(loss(one)) != float(loss(other))) == matters


def test_with_a_discount_the_value_head_learns_how_many_steps_are_left(text_task):
    task, rows = text_task
    packed = demonstrations(task, rows, 256, seed=0)
    ends = 0
    for tokens, number, left in zip(packed.tokens_T, packed.text_T, packed.steps_left_T, strict=True):
        for i in range(1, number.max() + 1):
            steps_left = left[number == i]
            here = np.flatnonzero(steps_left)
            count, ends = len(here), ends + len(here)
            assert list(steps_left[here]) == list(range(count, 0, -1))
            # A prompt ends before the first step, and a step with its line.
            text = [task.vocabulary.decode(tokens[number == i][: at + 1]) for at in here]
            assert text[0].rstrip().endswith("Answer:") and all(t.endswith("\n") for t in text[1:])
    assert ends > len(rows) and not packed.steps_left_T[packed.text_T == 0].any()

    model = LanguageModel(MODEL_CONFIG, task.vocabulary.size)
    params = model.init(jax.random.key(0))
    packed = jax.tree.map(jnp.asarray, packed)
    losses = {d: jax.device_get(learner.packed_loss(model, params, packed, 0.5, d)) for d in (1.0, 0.9)}
    assert losses[1.0][0] == losses[1.0][1]["loss/policy"] and "loss/value" not in losses[1.0][1]
    # A new value head says one half of everything.
    loss, metrics = losses[0.9]
    np.testing.assert_allclose(metrics["loss/value"], np.log(2), rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["loss/policy"] + 0.5 * metrics["loss/value"], rtol=1e-6)


def test_solutions_that_are_too_long_are_left_out(text_task):
    task, rows = text_task
    lengths = [len(task.prompt(row.question)) + sum(map(len, task.solutions(row)[0])) for row in rows]
    size = int(np.median(lengths))
    packed = demonstrations(task, rows, size, seed=0)
    assert len(texts_of(packed)) == sum(length <= size for length in lengths)
    with pytest.raises(UserError, match=f"raise warm_start.sequence_tokens=10 to {min(lengths)} at least, or give 0"):
        demonstrations(task, rows, 10, seed=0)


def test_arithmetic_has_demonstrations_too():
    task = make_task(ArithmeticConfig(max_step_tokens=6))
    packed = demonstrations(task, ["4 9 10 13", "1 1 4 6"], 0, seed=0)
    wanted = {
        "".join([f"{puzzle} -> 24\n", solution])
        for puzzle in ("4 9 10 13", "1 1 4 6")
        for solution in task.solution_texts(puzzle, 20)
    }
    assert {task.vocabulary.decode(text) for text in texts_of(packed)} == wanted


def test_other_forms_of_a_problem_have_solutions_of_their_own():
    task = make_task(ArithmeticConfig(max_step_tokens=6))
    packed = demonstrations(task, ["4 9 10 13"], 0, seed=0, forms=6)
    prompts = set()
    for text in map(task.vocabulary.decode, texts_of(packed)):
        prompt, _, solution = text.partition("\n")
        prompts.add(prompt)
        assert sorted(prompt.removesuffix(" -> 24").split()) == sorted("4 9 10 13".split())
        assert solution in task.solution_texts(prompt, 20)
    assert len(prompts) > 3 and "4 9 10 13 -> 24" in prompts


def test_plays_are_solutions_in_hindsight_and_none_of_so_many_steps_is_shown_too_often():
    config = BlocksworldConfig(num_blocks=(3, 4), train_plan=(2, 4), test_plan=(2, 4), max_steps=6)
    task, rows = make_task(config), data.load_split(config, "train")[:20]
    packed = hindsight(task, rows, 0, seed=0, number=10)
    played = [play for row in rows for play in task.hindsight(row, 10, seed=0)]
    play_of = {(*play.prompt, *itertools.chain(*play.steps)): play for play in played}
    of_all = collections.Counter(play.steps_left[0] for play in played)
    shown = collections.Counter(play_of[text].steps_left[0] for text in texts_of(packed))  # All were played.
    most = len(played) // len(of_all)
    assert shown == {steps: min(most, number) for steps, number in of_all.items()}
    assert {*of_all} == {2, 4, 6} and of_all[2] > most > of_all[6] > 0
    # The policy imitates the steps that were taken, and the value head learns how many are left before each.
    for row in range(len(packed.tokens_T)):
        for number in range(1, packed.text_T[row].max() + 1):
            of_text = packed.text_T[row] == number
            play = play_of[tuple(packed.tokens_T[row][of_text].tolist())]
            learnt = [taken for step, taken in zip(play.steps, play.taken, strict=True) for _ in step]
            assert packed.is_step_T[row][of_text].tolist() == [False] * len(play.prompt) + learnt
            left = packed.steps_left_T[row][of_text]
            assert left[left > 0].tolist() == play.steps_left and left[len(play.prompt) - 1] == play.steps_left[0]
    with pytest.raises(UserError, match="The task game24 has no solutions to start from"):
        hindsight(make_task(ArithmeticConfig()), ["4 9 10 13"], 0, seed=0, number=10)


def test_solutions_are_drawn_under_other_names():
    config = Config(task=BlocksworldConfig(num_blocks=(3, 4), train_plan=(2, 4)), model=MODEL_CONFIG)
    task = config.task.make()
    packed = demonstrations(task, data.load_split(config.task, "train")[:20], 0, seed=0)
    keys = jax.random.split(jax.random.key(0), len(packed.tokens_T))
    steps = Steps(LanguageModel(MODEL_CONFIG, task.vocabulary.size), task, config)
    renamed = jax.device_get(steps._renamed(packed, keys, "tokens_T"))
    texts = [task.vocabulary.decode(text) for text in texts_of(renamed)]
    changed = 0
    for text, before in zip(texts, map(task.vocabulary.decode, texts_of(packed)), strict=True):
        prompt, _, plan = text.partition("\n")
        assert plan in task.solution_texts(prompt)
        changed += text != before
    assert changed > len(texts) / 2
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(renamed, tokens_T=packed.tokens_T), packed)
