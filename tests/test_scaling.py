"""The scaling study's fit and its count of training compute."""

import dataclasses
import types

import numpy as np
import pytest

from alphallm.training.config import Config, TrainingConfig, WarmStartConfig
from alphallm.training.targets import TargetConfig
from experiments.scaling import run


def test_the_fit_finds_the_line_that_made_the_points():
    compute = np.geomspace(1e6, 1e9, 7)
    rate = 1 / (1 + np.exp(7.5 - 1.1 * np.log10(compute)))
    found = run.fit(compute, rate, 1e6)
    assert (found.intercept, found.slope) == (pytest.approx(-7.5, abs=1e-3), pytest.approx(1.1, abs=1e-3))
    np.testing.assert_allclose(found(compute), rate, atol=1e-4)
    assert np.isfinite(run.fit([1.0, 10.0], [1.0, 1.0], 100).slope)  # where all is solved


def test_training_compute_counts_warm_start_search_and_learning():
    task = types.SimpleNamespace(max_prompt=5, max_steps=3, max_step=6)
    model = types.SimpleNamespace(flops_per_token=lambda: 2.0)
    config = Config(
        warm_start=WarmStartConfig(num_steps=30, batch_size=4),
        training=TrainingConfig(learner_steps=2, problems_per_iteration=8, trees_per_step=4),
        targets=TargetConfig(nodes_per_tree=6, candidates_per_node=4),
    )
    metrics = [{"step": 1}, {"step": 2}, {"step": 3, "search/tokens": 160.0}, {"step": 4, "search/tokens": 320.0}]
    warm = 30 * 4 * 23 * 3
    learnt = 2 * 4 * (5 + 6 * 4 * 6) * 3
    of = lambda step: run.training_flops(config, task, model, metrics, step) / 2.0
    assert of(1) == 20 * 4 * 23 * 3
    assert of(2) == warm
    assert of(3) == warm + (160 + 10 + 5) * 8 + learnt  # K = 16: a sixteenth is appended
    assert of(4) == warm + (160 + 10 + 5 + 320 + 20 + 5) * 8 + 2 * learnt
    packed = dataclasses.replace(config, warm_start=WarmStartConfig(num_steps=30, batch_size=4, sequence_tokens=50))
    assert run.training_flops(packed, task, model, metrics, 1) / 2.0 == 20 * 4 * 50 * 3
