"""The ablations: every row is a config, and training on best-of-N samples imitates right chains alone."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm.config import apply_overrides, load_config
from alphallm.errors import UserError
from alphallm.evaluation.chains import sample
from alphallm.training import loop
from experiments import survival
from experiments.ablations import best_of_n, run

CONFIG = apply_overrides(
    load_config(survival.REPOSITORY / survival.CONFIG),
    {**survival.TINY, "warm_start.data": "none", "search.num_simulations": 2},
)


@pytest.mark.parametrize("name", run.ABLATIONS)
def test_a_row_is_a_config_that_differs_from_the_default(name):
    base = apply_overrides(load_config("configs/game24_cpu.py"), run.COMMON)
    changed = apply_overrides(base, run.ABLATIONS[name])
    assert (changed == base) == (name == "default")
    loop.check(changed)


def test_best_of_n_draws_what_a_search_with_a_wide_root_writes():
    task = types.SimpleNamespace(max_steps=2)
    assert best_of_n.chains_per_problem(task, CONFIG) == 6  # (2 + 1) * 4 candidates
    wide = apply_overrides(CONFIG, {"search.root_candidates": 12})
    assert best_of_n.chains_per_problem(task, wide) == 10  # 12 of the root, 2 * 4 later


def test_a_target_over_candidates_needs_all_of_the_widest_node():
    config = apply_overrides(CONFIG, {"targets.policy": "candidates"})
    loop.check(config)
    with pytest.raises(UserError, match="needs all 12 candidates"):
        loop.check(apply_overrides(config, {"search.root_candidates": 12}))


def test_what_is_recorded_is_not_trained_again(monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(run, "train", lambda name, base, folder, overrides: trained.append((name, overrides["seed"])))
    monkeypatch.setattr(
        run, "evaluated", lambda folder, num: {"greedy": [0.0, 1.0], "search": [1.0, float("puct" in folder)]}
    )

    def call(only, seeds, problems=0):
        options = types.SimpleNamespace(
            base="configs/game24_cpu.py", output=str(tmp_path / "runs"), results=str(tmp_path), only=only, seeds=seeds,
            override=[], num_problems=problems,
        )  # fmt: skip
        monkeypatch.setattr(run.flags, "FLAGS", options)
        run.main([], {})
        return json.loads((tmp_path / "table.json").read_text())["rows"]

    call(["default"], ["0"])
    rows = call(["puct", "default"], ["0", "1"])
    assert trained == [("default", "0"), ("puct", "0"), ("puct", "1"), ("default", "1")]
    assert [(row["ablation"], row["strategy"], row["by_seed"]) for row in rows] == [
        ("default", "greedy", [0.5, 0.5]), ("default", "search", [0.5, 0.5]),
        ("puct", "greedy", [0.5, 0.5]), ("puct", "search", [1.0, 1.0]),
    ]  # fmt: skip
    assert rows[-1]["difference"]["estimate"] == 0.5
    assert (tmp_path / "figure.png").exists()
    with pytest.raises(UserError, match=r"another problems \(all, not 8\): give another --results"):
        call(["default"], ["0"], problems=8)


def all_finished(*arguments, **options):
    drawn = sample(*arguments, **options)
    return dataclasses.replace(drawn, finished_BJ=jnp.ones_like(drawn.finished_BJ))


def test_training_on_best_of_n_imitates_right_chains_alone(monkeypatch):
    def judge(task, problem, tokens_BDL, length_BD):
        """In place of the verifier, which accepts nothing of an untrained model: a chain may start with a third of the
        tokens."""
        right_B = tokens_BDL[:, 0, 0] % 3 == 0
        return right_B.astype(jnp.float32), None, right_B

    monkeypatch.setattr(best_of_n.strategies, "judge", judge)
    monkeypatch.setattr(best_of_n.chains, "sample", all_finished)
    trainer = best_of_n.BestOfNTrainer(CONFIG)
    state = trainer.initial_state()
    before = jax.device_get(state.learner.params)
    state, metrics = trainer.tick(trainer.to_devices(state), 0)
    state = trainer.to_host(state)
    assert all(np.isfinite(value) for value in metrics.values())
    pairs_of_leaves = zip(jax.tree.leaves(before), jax.tree.leaves(state.learner.params), strict=True)
    assert any(not np.array_equal(a, b) for a, b in pairs_of_leaves)
    stored = state.replay.rows
    np.testing.assert_array_equal(stored.valid.sum(-1), 1)
    pairs = jax.tree.map(lambda x: np.concatenate(x[np.asarray(stored.valid)]), (stored.imitated, stored.judged))
    pairs = best_of_n.Pair(*pairs, valid=None)
    assert len(pairs.judged.outcome) == CONFIG.targets.nodes_per_tree * CONFIG.training.problems_per_iteration
    for chain in (pairs.imitated, pairs.judged):
        right = chain.tokens_DL[:, 0, 0] % 3 == 0
        np.testing.assert_array_equal(chain.outcome, right)
        assert right.any() and not right.all()
    np.testing.assert_array_equal((pairs.imitated.length_D > 0).any(-1), pairs.imitated.outcome > 0)
    assert (pairs.judged.length_D > 0).any(-1).all()
