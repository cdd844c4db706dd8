"""A run is its config and its tick: stopped anywhere, or killed, it goes on as if it had not been."""

import dataclasses
import json
import os
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest

from alphallm.config import apply_overrides, load_config, to_dict
from alphallm.errors import UserError
from alphallm.models.export import flatten
from alphallm.tasks import BlocksworldConfig
from alphallm.training import loop, run_folder
from alphallm.training.checkpoints import Checkpoints
from alphallm.training.learner import Packed
from alphallm.training.loop import Trainer, train
from experiments import survival

# Three ticks of warm start and self-play, and evaluations of the one puzzle: everything is compiled, and tiny.
CONFIG = apply_overrides(
    load_config(survival.REPOSITORY / survival.CONFIG),
    {**survival.TINY, "warm_start.num_steps": 20, "training.num_iterations": 4, "evaluation.every": 100,
     "checkpoints.every": 2, "task.manual_dir": "a folder that its dataset does not need"},
)  # fmt: skip


class OnePuzzle:
    """In place of `Validation`, whose strategies are tested elsewhere and take most of a minute to compile."""

    def __init__(self, *arguments):
        pass

    def __call__(self, params):
        return {"search": float(np.abs(params["final_norm"]).sum())}, []

    def kl(self, params, reference):
        return float(np.abs(params["final_norm"] - reference["final_norm"]).sum())


@pytest.fixture(autouse=True)
def without_validation(monkeypatch):
    monkeypatch.setattr(loop, "Validation", OnePuzzle)


@pytest.fixture(scope="module")
def trainer():
    """One trainer of CONFIG for all tests, so that it is compiled once: it keeps nothing from tick to tick."""
    return Trainer(CONFIG)


SUMS, LOSS = {"search/solved": np.ones((1, 2), np.float32)}, {"loss/policy": jax.numpy.ones(1)}


@pytest.mark.parametrize("actor", ["latest", "average"])
def test_the_actor_searches_with_the_weights_it_is_asked_to(trainer, monkeypatch, actor):
    monkeypatch.setattr(trainer, "config", apply_overrides(CONFIG, {"training.actor": actor}))
    monkeypatch.setattr(trainer.steps, "self_play", lambda weights, *rest: (weights, None, SUMS))
    monkeypatch.setattr(trainer.steps, "learn", lambda learner, stored, rows, *rest: (rows, stored, LOSS))
    both = types.SimpleNamespace(weights="latest", average_weights="average")
    state, _ = trainer.tick(loop.State(both, None), trainer.warm_ticks)
    assert state.learner == actor


def test_trees_of_a_step_divide_the_lanes_or_are_a_multiple():
    with pytest.raises(UserError, match="trees_per_step is 3: give a divisor or a multiple of .* which is 4"):
        loop.check(apply_overrides(CONFIG, {"training.trees_per_step": 3}))
    for trees in (1, 2, 4, 8):
        if trees % jax.device_count() == 0:
            loop.check(apply_overrides(CONFIG, {"training.trees_per_step": trees}))


def test_a_task_that_has_no_hindsight_says_so():
    with pytest.raises(UserError, match="game24 can not say what random play solves"):
        loop.check(apply_overrides(CONFIG, {"warm_start.data": "hindsight"}))


def test_a_warm_start_in_hindsight_draws_the_same_plays_when_a_run_goes_on():
    task = BlocksworldConfig(num_blocks=(3, 4), train_plan=(2, 4), test_plan=(2, 4), max_steps=4, num_train=20)
    config = apply_overrides(CONFIG, {"warm_start.data": "hindsight", "training.overfit": ""})
    one, other = (Trainer(dataclasses.replace(config, task=task)).warm_source() for _ in range(2))
    assert isinstance(one, Packed) and len(one.tokens_T) > 10
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_curriculum_goes_by_the_steps_of_worked_solutions():
    solved = types.SimpleNamespace(name="knight", solutions=lambda row, limit: [["step"] * row][:limit])
    np.testing.assert_array_equal(loop.problem_lengths(solved, [3, 1, 2], differ=True), [3, 1, 2])
    np.testing.assert_array_equal(loop.problem_lengths(solved, [3, 1, 2], differ=False), [0, 0, 0])
    unsolved = types.SimpleNamespace(name="knight", solutions=lambda row, limit: [])
    with pytest.raises(UserError, match="curriculum_iterations .* the task knight has none for some: set it to 0"):
        loop.problem_lengths(unsolved, [3], differ=True)


def states_equal(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def final_state(workdir):
    return Checkpoints(workdir / "checkpoints").restore(Trainer(CONFIG).initial_state())


class Stopped(Exception):
    pass


def stopping(trainer, tick):
    """The trainer, but it is stopped when it should make a tick."""

    class Stopping:
        def __getattr__(self, name):
            return getattr(trainer, name)

        def tick(self, state, now):
            if now == tick:
                raise Stopped
            return trainer.tick(state, now)

    return Stopping()


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, trainer):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(CONFIG, str(whole), make_trainer=lambda _: trainer)
    # Ticks 1 (warm start), 2 and 4 end with a checkpoint; ticks 3 and 4 are lost and made again.
    for tick in (1, 3, 4):
        with pytest.raises(Stopped):
            train(CONFIG, str(stopped), make_trainer=lambda _, tick=tick: stopping(trainer, tick))
    train(CONFIG, str(stopped), make_trainer=lambda _: trainer)
    (one, meta), (other, other_meta) = final_state(whole), final_state(stopped)
    assert meta == other_meta == {"tick": 5, "iteration": 4}
    assert states_equal(one, other)
    rows = survival.logged(stopped)
    assert rows == survival.logged(whole)
    assert [row["step"] for row in rows if "loss/policy" in row] == [1, 2, 3, 4, 5]


def test_a_damaged_checkpoint_is_passed_over_and_saved_again(tmp_path, trainer):
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    train(CONFIG, str(whole), make_trainer=lambda _: trainer)
    shutil.copytree(whole, damaged)
    assert Checkpoints(damaged / "checkpoints").steps() == [4, 5]
    largest = max((damaged / "checkpoints" / "5").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    train(CONFIG, str(damaged), make_trainer=lambda _: trainer)
    (one, meta), (other, other_meta) = final_state(whole), final_state(damaged)
    assert meta == other_meta == {"tick": 5, "iteration": 4}
    assert states_equal(one, other)


def test_an_older_checkpoint_is_named_by_its_step(tmp_path, trainer):
    train(CONFIG, str(tmp_path), make_trainer=lambda _: trainer)
    newest, same, older = (loop.load_params(f"{tmp_path}{at}")[1] for at in ("", "@5", "@4"))
    assert states_equal(newest, same) and not states_equal(newest, older)
    assert loop.split_step(f"{tmp_path}@4") == (str(tmp_path), 4)
    (tmp_path / "x@4").mkdir()
    assert loop.split_step(str(tmp_path / "x@4")) == (str(tmp_path / "x@4"), None)
    with pytest.raises(UserError, match=r"no checkpoint of step 3 .* has steps \[4, 5\]"):
        loop.load_params(f"{tmp_path}@3")


def test_a_run_that_had_ended_exports_the_same_again(tmp_path, trainer):
    first = train(CONFIG, str(tmp_path), make_trainer=lambda _: trainer)
    files = ("weights.safetensors", "metrics.json", "config.json")
    exported = [(tmp_path / "export" / name).read_bytes() for name in files]
    assert json.loads(exported[2])["task"]["manual_dir"] == ""  # a folder of this machine alone.
    shutil.rmtree(tmp_path / "export")  # as if it had been killed after its last checkpoint.
    assert train(CONFIG, str(tmp_path), make_trainer=lambda _: trainer) == first != {}
    assert [(tmp_path / "export" / name).read_bytes() for name in files] == exported


def test_states_that_differ_in_one_bit_are_told_apart():
    state = Trainer(CONFIG).initial_state()
    assert states_equal(state, state)
    learner = dataclasses.replace(state.learner, step=state.learner.step + 1)
    assert not states_equal(state, dataclasses.replace(state, learner=learner))


def test_a_tick_depends_on_seed_and_tick_only(trainer):
    started = [trainer.to_devices(trainer.initial_state()) for _ in range(3)]
    first, _ = trainer.tick(started[0], 1)
    again, _ = trainer.tick(started[1], 1)
    later, _ = trainer.tick(started[2], 2)
    first, again, later = (trainer.to_host(state) for state in (first, again, later))
    assert states_equal(first, again)
    assert not states_equal(first.learner.params, later.learner.params)


def test_a_run_of_another_config_is_refused_and_left_alone(tmp_path):
    run_folder.write_config(tmp_path, to_dict(CONFIG))
    changes = {"seed": 3, "model.width": 64, "training.num_iterations": 9}
    with pytest.raises(UserError, match=r"seed: 0 -> 3; model.width: 32 -> 64\)"):
        train(apply_overrides(CONFIG, changes), str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text()) == to_dict(CONFIG)


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(tmp_path, trainer):
    class Diverging:
        def __getattr__(self, name):
            return getattr(trainer, name)

        def tick(self, state, now):
            state, metrics = trainer.tick(state, now)
            return state, {**metrics, "loss/value": float("nan")} if now == 3 else metrics

    with pytest.raises(UserError, match="loss/value is nan at tick 4: training stopped"):
        train(CONFIG, str(tmp_path), make_trainer=lambda _: Diverging())
    assert Checkpoints(tmp_path / "checkpoints").latest() == 2


def test_weights_of_another_shape_are_refused(tmp_path, monkeypatch):
    narrow = Trainer(CONFIG).initial_state().learner.params
    wide = Trainer(apply_overrides(CONFIG, {"model.width": 64})).initial_state().learner.params
    monkeypatch.setattr(loop, "load_params", lambda folder: (CONFIG, narrow))
    assert loop.initial_params("runs/x", narrow).keys() == narrow.keys()
    with pytest.raises(UserError, match=r"init_from='runs/x' has \(.*\) for .*, and this config's model has"):
        loop.initial_params("runs/x", wide)


def test_a_run_that_is_killed_goes_on_bit_for_bit(tmp_path):
    cache = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    kills, faults = survival.survive(tmp_path, number=1, ticks=6, devices=1, seed=0, cache=cache)
    assert faults == [] and kills  # `python -m experiments.survival` kills a run twenty times.


def test_a_run_with_lora_starts_from_weights_and_gives_plain_ones(tmp_path):
    """Nothing is compiled: what LoRA adds, what is kept, and what is handed on."""
    start = Trainer(CONFIG)
    loop._export(start, start.to_devices(start.initial_state()), str(tmp_path / "base"), {})
    _, base = loop.load_params(str(tmp_path / "base"))
    config = apply_overrides(CONFIG, {"model.lora.rank": 2, "model.dtype": "bfloat16", "init_from": f"{tmp_path}/base"})
    trainer = Trainer(config)
    state = trainer.initial_state()
    kept = {name for name in flatten(state.learner.frozen) if name.startswith("layers/")}
    assert "layers/q" in kept and not any("lora" in name for name in kept)
    np.testing.assert_array_equal(state.learner.frozen["layers"]["q"].astype(np.float32), base["layers"]["q"])
    grown = jax.tree.map(lambda x: x + 0.01, state.learner.average)
    state = dataclasses.replace(state, learner=dataclasses.replace(state.learner, average=grown))

    run = tmp_path / "run"
    run_folder.write_config(run, to_dict(config))
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save(1, trainer.to_host(trainer.to_devices(state)), {"tick": 1, "iteration": 0})
    loop._export(trainer, trainer.to_devices(state), str(run / "export"), {})
    plain, params = loop.load_params(str(run))
    again, exported = loop.load_params(str(run / "export"))
    assert plain.model == again.model and plain.model.lora.rank == 0
    # An adapted head can not stay tied to the embedding.
    assert not plain.model.tied_embeddings and "unembedding" in params
    for name, value in flatten(params).items():
        np.testing.assert_allclose(np.asarray(value, np.float32), flatten(exported)[name], atol=0.02, err_msg=name)
    assert np.abs(np.asarray(params["layers"]["q"], np.float32) - base["layers"]["q"]).max() > 1e-3
