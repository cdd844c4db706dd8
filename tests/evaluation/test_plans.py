"""Budgets and knobs: arithmetic of the worst case."""

import dataclasses
import types

import pytest

from alphallm.errors import UserError
from alphallm.evaluation import STRATEGIES, plans
from alphallm.search import SearchConfig

TASK = types.SimpleNamespace(  # as game24
    max_steps=3, max_step=8, max_legal_steps=36, max_later_steps=18, self_verifying=True
)
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
        ("pass_at_k", 48, 2),
        ("search", 48, 2),  # three expansions of one candidate, and 24 for a greedy answer
        ("search", 408, 4),  # 48 steps of 8: four simulations of 8, and 16 for the root
        ("search", 1000, 10),  # 122 steps: two thirds of them are five answers of two simulations of 8
        ("search_majority", 1000, 10),
        ("puct", 408, 4),
        ("search", 2000, 26),  # 247 steps: 36 at the root, and 13 answers of two simulations of 8
        ("depth_first", 408, 4),
        ("search_listed", 600, 2),  # 36 * 8 for the root, 18 * 8 for a later node
        ("search_listed", 1000, 4),
        ("search_uniform", 1000, 4),
    ],
)
def test_knobs(name, budget, knob):
    assert plans.plan(TASK, SEARCH, name, "verified", budget).knob == knob


@pytest.mark.parametrize(
    ("name", "smallest"), [("greedy", 24), ("best_of_n", 24), ("beam", 384), ("search", 48), ("search_listed", 600)]
)
def test_a_budget_too_small_names_the_smallest(name, smallest):
    assert plans.plan(TASK, SEARCH, name, "verified", smallest)
    with pytest.raises(
        UserError, match=f"{name} can not be run within {smallest - 1} .* smallest budget is {smallest}"
    ):
        plans.plan(TASK, SEARCH, name, "verified", smallest - 1)


def test_a_search_has_its_knob_and_no_noise():
    strategy = plans.plan(TASK, SEARCH, "search", "value_only", 3000)
    assert strategy.search == dataclasses.replace(
        SEARCH, num_simulations=32, num_candidates=8, root_candidates=116, max_considered=16, dirichlet_fraction=0.0
    )
    assert strategy.knob_text == "32 simulations x 8, root 116"


def test_a_search_that_may_know_the_rules_lists_the_root_s_steps_where_its_share_pays_for_them():
    search = plans.plan(TASK, SEARCH, "search", "verified", 3000).search
    assert (search.root_proposer, search.num_simulations, search.num_candidates) == ("listed", 42, 8)
    assert plans.plan(TASK, SEARCH, "search", "verified", 3000).knob_text == "42 simulations x 8, root all legal"
    for budget in range(100, 4000, 50):
        verified = plans.plan(TASK, SEARCH, "search", "verified", budget).search
        sampled = plans.plan(TASK, SEARCH, "search", "value_only", budget).search
        if sampled.root_candidates < 36:
            assert verified == sampled
        else:
            assert verified.root_proposer == "listed" and verified.num_simulations >= sampled.num_simulations
            spent = (36 + verified.num_simulations * verified.num_candidates) * 8 + 24
            assert budget - 2 * 8 * 8 - 8 < spent <= budget
            again = plans.with_simulations(TASK, verified, "search", "value_only", verified.num_simulations).search
            assert again.root_proposer == "same"


@pytest.mark.parametrize(("simulations", "considered"), [(1, 1), (2, 1), (7, 3), (32, 16)])
@pytest.mark.parametrize("of_self_play", [1, 64])
def test_a_search_considers_what_it_can_finish_whatever_self_play_considers(simulations, considered, of_self_play):
    search = dataclasses.replace(SEARCH, max_considered=of_self_play)
    assert plans.with_simulations(TASK, search, "search", "verified", simulations).search.max_considered == considered


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_search_can_finish_what_it_considers(steps):
    """And its worst case stays within the budget; simulations only grow with it."""
    task = types.SimpleNamespace(**vars(TASK) | {"max_steps": steps})
    smallest, simulations = plans.smallest_budget(task, SEARCH, "search"), 0
    for budget in range(smallest, 40 * smallest, 7):
        search = plans.plan(task, SEARCH, "search", "value_only", budget).search
        assert search.num_simulations >= max(1, search.max_considered * (steps - 1))
        assert 1 <= search.num_candidates <= min(search.root_candidates, 8)
        spent = (search.root_candidates + search.num_simulations * search.num_candidates) * 8 + 8 * steps
        assert budget - 8 < spent <= budget
        assert search.num_simulations >= simulations
        simulations = search.num_simulations
    assert search.num_candidates == 8 and simulations > max(1, steps - 1) and search.max_considered > 1


def test_a_search_that_commits_has_as_many_shares_as_steps_before_the_last():
    alpha = plans.plan(TASK, SEARCH, "alpha", "verified", 3000).search
    assert (alpha.policy, alpha.num_simulations, alpha.commit_every) == ("puct", 42, 21)
    assert plans.plan(TASK, alpha, "puct", "verified", 3000).search.commit_every == 0
    # A run whose self-play commits is judged by a search that does, in shares of its own budget's size.
    self_play = dataclasses.replace(alpha, num_simulations=8, commit_every=3)
    judged = plans.plan(TASK, self_play, "search", "verified", 3000).search
    assert judged.commit_every == -(-judged.num_simulations // 2) > 3
    assert plans.plan(TASK, SEARCH, "search_early", "verified", 3000).search.early_stop


@pytest.mark.parametrize("name", ["puct", "depth_first"])
def test_a_named_policy_replaces_the_run_s(name):
    assert plans.plan(TASK, SEARCH, name, "verified", 3000).search.policy == name
    assert plans.plan(TASK, SEARCH, "search", "verified", 3000).search.policy == SEARCH.policy


def test_listing_legal_steps_belongs_to_the_verified_mode():
    listed = dataclasses.replace(SEARCH, proposer="listed")
    verified = plans.plan(TASK, listed, "search", "verified", 3000)
    assert (verified.search.proposer, verified.knob) == ("listed", (2976 - 36 * 8) // (18 * 8))
    value_only = plans.plan(TASK, listed, "search", "value_only", 3000)
    assert (value_only.search.proposer, value_only.knob) == ("gumbel_top_k", 32)
    for name in ("search_listed", "search_uniform"):
        assert plans.plan(TASK, SEARCH, name, "verified", 3000).search.proposer == "listed"
        assert plans.plan(TASK, SEARCH, name, "value_only", 3000) is None


def test_default_budgets_are_those_that_every_strategy_meets():
    assert plans.possible_budgets(TASK, SEARCH, STRATEGIES) == (1000, 3000)
    assert plans.possible_budgets(TASK, SEARCH, ["search"]) == (300, 1000, 3000)
    wide = dataclasses.replace(SEARCH, num_candidates=60)
    assert plans.possible_budgets(TASK, wide, STRATEGIES) == (3000,)  # for beam search
    assert plans.possible_budgets(TASK, wide, ["best_of_n"]) == (300, 1000, 3000)
    huge = dataclasses.replace(SEARCH, num_candidates=1000)
    assert plans.possible_budgets(TASK, huge, STRATEGIES) == (24000,)


@pytest.mark.parametrize(
    ("name", "mode", "words"), [("mcts", "verified", "best_of_n"), ("search", "cheat", "value_only")]
)
def test_unknown_names_are_told_the_known_ones(name, mode, words):
    with pytest.raises(UserError, match=words):
        plans.plan(TASK, SEARCH, name, mode, 1000)


def test_a_task_that_does_not_verify_itself_has_one_mode():
    task = types.SimpleNamespace(**vars(TASK) | {"self_verifying": False, "max_legal_steps": 0, "max_later_steps": 0})
    assert plans.modes(task) == ("value_only",) and plans.modes(TASK) == plans.MODES
    for name in plans.STRATEGIES:
        assert plans.plan(task, SearchConfig(), name, "verified", 10_000) is None or name == "greedy", name
    assert plans.plan(task, SearchConfig(), "search", "value_only", 10_000).search.root_proposer == "same"
