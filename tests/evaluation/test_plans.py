"""Budgets and knobs: arithmetic of the worst case."""

import dataclasses
import types

import pytest

from alphallm.errors import UserError
from alphallm.evaluation import STRATEGIES, plans
from alphallm.search import SearchConfig

TASK = types.SimpleNamespace(max_steps=3, max_step=8, max_legal_steps=36, max_later_steps=18)  # as game24
SEARCH = SearchConfig(num_candidates=16, dirichlet_fraction=0.25)


@pytest.mark.parametrize(
    ("name", "budget", "knob"),
    [
        ("greedy", 24, 0),
        ("value_greedy", 24, 1),
        ("value_greedy", 1000, 41),  # 41 * 24 = 984
        ("best_of_n", 47, 1),
        ("best_of_n", 48, 2),
        ("majority", 3000, 125),
        ("weighted", 48, 2),
        ("beam", 384, 1),  # three expansions of 16 * 8
        ("beam", 1000, 3),  # one for the first step, two for each beam
        ("dvts", 3200, 12),
        ("search", 280, 1),  # two expansions of 16 * 8, and 24 for a greedy answer
        ("search", 407, 1),
        ("search", 408, 2),
        ("puct", 408, 2),
        ("depth_first", 408, 2),
        ("search_listed", 456, 1),  # 36 * 8 for the root, 18 * 8 for a later node
        ("search_listed", 1000, 4),
        ("search_uniform", 408, 2),  # the simulations of search, though it lists up to 36 steps
    ],
)
def test_knobs(name, budget, knob):
    assert plans.plan(TASK, SEARCH, name, "verified", budget).knob == knob


@pytest.mark.parametrize(
    ("name", "smallest"), [("greedy", 24), ("best_of_n", 24), ("beam", 384), ("search", 280), ("search_listed", 456)]
)
def test_a_budget_too_small_names_the_smallest(name, smallest):
    assert plans.plan(TASK, SEARCH, name, "verified", smallest)
    with pytest.raises(
        UserError, match=f"{name} can not be run within {smallest - 1} .* smallest budget is {smallest}"
    ):
        plans.plan(TASK, SEARCH, name, "verified", smallest - 1)


def test_a_search_has_its_knob_and_no_noise():
    strategy = plans.plan(TASK, SEARCH, "search", "verified", 3000)
    assert strategy.search == dataclasses.replace(SEARCH, num_simulations=strategy.knob, dirichlet_fraction=0.0)
    assert strategy.knob_text == "22 simulations x 16"


@pytest.mark.parametrize("name", ["puct", "depth_first"])
def test_a_named_policy_replaces_the_run_s(name):
    assert plans.plan(TASK, SEARCH, name, "verified", 3000).search.policy == name
    assert plans.plan(TASK, SEARCH, "search", "verified", 3000).search.policy == SEARCH.policy


def test_listing_legal_steps_belongs_to_the_verified_mode():
    listed = dataclasses.replace(SEARCH, proposer="listed")
    verified = plans.plan(TASK, listed, "search", "verified", 3000)
    assert (verified.search.proposer, verified.knob) == ("listed", (2976 - 36 * 8) // (18 * 8))
    value_only = plans.plan(TASK, listed, "search", "value_only", 3000)
    assert (value_only.search.proposer, value_only.knob) == ("gumbel_top_k", 2976 // (16 * 8) - 1)
    for name in ("search_listed", "search_uniform"):
        assert plans.plan(TASK, SEARCH, name, "verified", 3000).search.proposer == "listed"
        assert plans.plan(TASK, SEARCH, name, "value_only", 3000) is None


def test_default_budgets_are_those_that_every_strategy_meets():
    assert plans.possible_budgets(TASK, SEARCH, STRATEGIES) == (1000, 3000)
    assert plans.possible_budgets(TASK, SEARCH, ["search"]) == (300, 1000, 3000)
    wide = dataclasses.replace(SEARCH, num_candidates=60)
    assert plans.possible_budgets(TASK, wide, STRATEGIES) == (3000,)
    assert plans.possible_budgets(TASK, wide, ["best_of_n"]) == (300, 1000, 3000)
    huge = dataclasses.replace(SEARCH, num_candidates=1000)
    assert plans.possible_budgets(TASK, huge, STRATEGIES) == (24000,)


@pytest.mark.parametrize(
    ("name", "mode", "words"), [("mcts", "verified", "best_of_n"), ("search", "cheat", "value_only")]
)
def test_unknown_names_are_told_the_known_ones(name, mode, words):
    with pytest.raises(UserError, match=words):
        plans.plan(TASK, SEARCH, name, mode, 1000)
