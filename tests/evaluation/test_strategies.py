"""Strategies against plain Python, on a task and a model that are tables (see tests/search/tabular.py).

ALPHALLM_FULL=1 puts every strategy's batch into another order, otherwise one of each kind of program.
"""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm import decode
from alphallm.errors import UserError
from alphallm.evaluation import MODES, Strategy, chains, compare, plans, strategies
from alphallm.models import LanguageModel, ModelConfig
from alphallm.search import SearchConfig
from tests.search import tabular

SEEDS = list(range(12))
MODEL = tabular.TabularModel()
TASK = tabular.TabularTask(binary=True, done=0.1, illegal=0.3)
PARAMS = MODEL.init(0)
PROBLEMS = jax.device_get(TASK.problems(SEEDS))
SEARCH = SearchConfig(num_simulations=3, num_candidates=4, max_considered=4)
KNOBS = {"greedy": 0, "value_greedy": 4, "best_of_n": 6, "majority": 6, "search": 3}
KNOBS |= {"search_listed": 3, "search_uniform": 3, "weighted": 6, "beam": 3, "dvts": 3, "puct": 3, "depth_first": 3}
KNOBS |= {"pass_at_k": 3, "search_value": 3, "search_majority": 3, "search_weighted": 3, "search_visited": 3}
KNOBS |= {"rollout": 3, "rap": 3, "search_early": 3, "alpha": 3, "adaptive": 40}
ORDERED = ("greedy", "value_greedy", "best_of_n", "beam", "search", "rollout", "alpha", "adaptive")
ORDERED = tuple(KNOBS) if os.environ.get("ALPHALLM_FULL") == "1" else ORDERED
VERIFIED_ONLY = ("search_listed", "search_uniform", "pass_at_k")
NONE = SearchConfig()


def make(name, mode="verified", knob=None):
    if name == "adaptive":
        return Strategy(name, mode, knob or KNOBS[name], SEARCH)
    if name in plans.SEARCHES:
        return plans.with_simulations(TASK, SEARCH, name, mode, knob or KNOBS[name])
    return Strategy(name, mode, knob or KNOBS[name], SearchConfig(num_candidates=4))


def solved(strategy, problems=PROBLEMS, *, model=MODEL, seed=0, batch_size=12):
    return compare.solve_all(model, TASK, strategy, PARAMS, problems, seed, batch_size)[0]


@functools.cache
def sampled(num, temperature=1.0):
    """Chains of all problems, by their definition of keys, sampled all at once."""

    def run(params, problem):
        key = lambda i: jax.random.fold_in(jax.random.key(0), i)
        key_BJ = jax.vmap(lambda i: jax.vmap(lambda j: jax.random.fold_in(key(i), j))(jnp.arange(num)))(problem.index)
        prefix = decode.prefill(MODEL, params, problem)
        return chains.sample(MODEL, TASK, params, problem, prefix, key_BJ, temperature=temperature)

    return jax.device_get(jax.jit(run)(PARAMS, PROBLEMS))


def judged(b, tokens_DL, length_D):
    """Reward, complete, and all legal, step by step in Python; a step without its end makes the chain incomplete."""
    state = jax.tree.map(lambda x: x[b], PROBLEMS.state)
    best, complete, legal = 0.0, False, True
    for tokens, length in zip(tokens_DL, length_D, strict=True):
        if length and tokens[length - 1] != tabular.END:
            return 0.0, False, legal
        if length:
            state, reward, complete, step_legal = TASK.plain_step(state, tokens, length)
            best, legal = max(best, reward), legal and step_legal
    return best, complete, legal


def text(result, b):
    return [tuple(t[:n].tolist()) for t, n in zip(result.tokens_BDL[b], result.length_BD[b], strict=True) if n]


def test_greedy_is_the_argmax_of_the_full_forward_pass():
    config = ModelConfig(num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=16)
    model = LanguageModel(config, TASK.vocabulary_size)
    params = jax.tree.map(lambda x: 3 * x, model.init(jax.random.key(1)))
    result = compare.solve_all(model, TASK, make("greedy"), params, PROBLEMS, batch_size=12)[0]

    @jax.jit
    def next_token(tokens, length):
        positions = jnp.arange(tokens.shape[1])[None]
        hidden = model.trunk(params, tokens, positions, decode.causal_mask(1, tokens.shape[1]))
        return jnp.argmax(model.logits(params, hidden.hidden_BXE[:, length - 1])[0])

    lengths = set()
    for b in range(len(SEEDS)):
        prompt = PROBLEMS.tokens_P[b, : PROBLEMS.length[b]].tolist()
        written = [token for step in text(result, b) for token in step]
        padded = np.zeros((1, 16), np.int32)
        padded[0, : len(prompt) + len(written)] = prompt + written
        expected = [int(next_token(padded, len(prompt) + i)) for i in range(len(written))]
        assert written == expected
        assert result.spend.positions_B[b] == len(prompt) + len(written)
        assert result.spend.tokens_B[b] == len(written)
        lengths.add(len(written))
    assert len(lengths) > 1


@pytest.mark.parametrize("mode", MODES)
def test_best_of_n_is_the_best_of_its_chains(mode):
    result, drawn = solved(make("best_of_n", mode, 20)), sampled(20)
    outshone = 0  # how often a wrong chain has a higher value than a right one
    for b in range(len(SEEDS)):
        verdicts = [judged(b, drawn.tokens_BJDL[b, j], drawn.length_BJD[b, j]) for j in range(20)]
        assert [complete for _, complete, _ in verdicts] == drawn.finished_BJ[b].tolist()
        right = [complete and legal and reward > 0 for reward, complete, legal in verdicts]
        values = drawn.value_BJ[b]
        allowed = [complete and legal for _, complete, legal in verdicts]
        outshone += 0 < max((values[j] for j in range(20) if right[j]), default=0) < max(values * allowed)
        if mode == "verified":
            assert (result.reward_B[b] > 0 and result.legal_B[b]) == any(right)
        elif drawn.finished_BJ[b].any():
            score = drawn.log_prob_BJ[b] + NONE.value_scale * NONE.visit_offset * drawn.value_BJ[b]
            best = max(np.flatnonzero(drawn.finished_BJ[b]), key=lambda j: score[j])
            np.testing.assert_array_equal(result.tokens_BDL[b], drawn.tokens_BJDL[b, best])
            assert (result.reward_B[b], result.legal_B[b]) == (verdicts[best][0], verdicts[best][2])
    assert outshone
    assert 0 < (result.reward_B * result.legal_B).mean() < 1


@pytest.mark.parametrize("name", ["best_of_n", "search"])
def test_a_result_may_keep_all_its_solutions(name):
    plain = solved(make(name))
    kept = compare.solve_all(MODEL, TASK, make(name), PARAMS, PROBLEMS, 0, 12, keep_solutions=True)[0]
    assert plain.solutions is None
    held = kept.solutions
    several = 0
    for b in np.flatnonzero(held.allowed_BJ.any(-1)):  # Elsewhere a search answers as greedy decoding does.
        several += held.allowed_BJ[b].sum() > 1
        assert kept.reward_B[b] == kept.solution_reward_BJ[b][held.allowed_BJ[b]].max()
        for j in np.flatnonzero(held.allowed_BJ[b]):
            reward, complete, legal = judged(b, held.chains.tokens_BJDL[b, j], held.chains.length_BJD[b, j])
            assert complete and legal and kept.solution_reward_BJ[b, j] == np.float32(reward)
    assert several > 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["majority", "weighted"])
def test_voting_is_for_the_last_step(name, mode):
    """Each chain has one vote, or its value; of the chains with most votes the likeliest one is the answer."""
    num = 6  # Few enough to be tied sometimes.
    result, drawn = solved(make(name, mode, num)), sampled(num)
    tied, differs = 0, 0
    for b in range(len(SEEDS)):
        votes, copies, log_prob, last = {}, {}, {}, {}
        for j in range(num):
            _, _, legal = judged(b, drawn.tokens_BJDL[b, j], drawn.length_BJD[b, j])
            if drawn.finished_BJ[b, j] and (legal or mode == "value_only"):
                chain = drawn.tokens_BJDL[b, j].tobytes()
                written = drawn.length_BJD[b, j] > 0
                answer = last[chain] = drawn.tokens_BJDL[b, j][np.flatnonzero(written)[-1]].tobytes()
                copies[answer] = copies.get(answer, 0) + 1
                votes[answer] = votes.get(answer, 0) + (1 if name == "majority" else float(drawn.value_BJ[b, j]))
                log_prob[chain] = drawn.log_prob_BJ[b, j]
        assert result.found_B[b] == bool(votes)
        if votes:
            tied += sorted(votes.values())[-2:].count(max(votes.values())) > 1
            score = {chain: (round(votes[answer], 5), log_prob[chain]) for chain, answer in last.items()}
            assert result.tokens_BDL[b].tobytes() == max(score, key=score.__getitem__)
            differs += copies[last[result.tokens_BDL[b].tobytes()]] < max(copies.values())
    assert tied if name == "majority" else differs


def test_too_little_memory_is_said():
    def allocate(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 105143153640 bytes.")

    def break_down(*arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: other")

    program = compare._Program(MODEL, TASK, make("greedy"), False)
    program._compiled = allocate
    with pytest.raises(UserError, match="^greedy .*105143153640 bytes.*give a smaller --batch_size or smaller budgets"):
        program()
    program._compiled = break_down
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        program()


def test_chains_do_not_depend_on_how_many_there_are_nor_on_chunks(monkeypatch):
    drawn = sampled(6)
    few = sampled(3)
    np.testing.assert_array_equal(drawn.tokens_BJDL[:, :3], few.tokens_BJDL)
    whole = solved(make("best_of_n"))
    monkeypatch.setattr(strategies, "MAX_ROWS", 12 * 4)  # 6 chains in two chunks
    compare._program.cache_clear()
    chunked = solved(make("best_of_n"))
    # 5 chains in two chunks of 3: the sixth must not count.
    five = solved(make("best_of_n", knob=5))
    np.testing.assert_array_equal(five.spend.tokens_B, sampled(6).length_BJD[:, :5].sum((1, 2)))
    jax.tree.map(np.testing.assert_array_equal, whole, chunked)


@pytest.mark.parametrize("mode", MODES)
def test_search_counts_what_it_ran(mode):
    """Positions against the model's own count of its calls, for one problem at a time."""
    model = tabular.TabularModel(count=True)
    calls = []
    model._called = lambda: None
    trunk = model.trunk

    def counted(params, tokens_BX, positions_BX, mask_BXX, past=()):
        jax.debug.callback(lambda size=tokens_BX.shape[1]: calls.append(size))
        return trunk(params, tokens_BX, positions_BX, mask_BXX, past)

    model.trunk = counted
    fell_back = 0
    for seed in SEEDS:
        problem = jax.tree.map(lambda x, seed=seed: x[seed : seed + 1], PROBLEMS)
        # 5 candidates, so that proposals (5), appended steps (2), prompts (4) and greedy decoding (1) differ in size.
        strategy = Strategy("search", mode, 3, dataclasses.replace(SEARCH, num_candidates=5))
        calls.clear()
        result = solved(strategy, problem, model=model, batch_size=1)
        jax.effects_barrier()
        greedy = calls.count(1)
        proposals = calls.count(5)
        fell_back += greedy > 0
        steps = int(np.sum(result.length_BD > 0)) if greedy else 0
        assert result.spend.expansions_B[0] == 1 + calls.count(2) + steps
        assert result.spend.calls_B[0] == len(calls)
        # A proposal of K steps takes as many turns as its longest step, and writes at most K tokens a turn.
        assert proposals <= result.spend.tokens_B[0] - greedy <= 5 * proposals
        assert calls.count(4) == 1 + (greedy > 0)
    assert mode == "value_only" or 0 < fell_back < len(SEEDS)


def test_the_spend_on_a_tree_is_a_sum_over_its_nodes():
    searched = tabular.searched(MODEL, TASK, SEARCH, PARAMS, SEEDS, True, True)
    spend = strategies.spent_on_tree(searched, np.full(len(SEEDS), 4))
    for b in range(len(SEEDS)):
        nodes = np.flatnonzero(searched.expanded_BN[b])
        tokens = sum(int(searched.length_BNK[b, n].sum()) for n in nodes)
        appended = sum(
            int(searched.length_BNK[b, searched.parent_BN[b, n], searched.action_BN[b, n]]) for n in nodes[1:]
        )
        calls = len(nodes) + sum(int(searched.length_BNK[b, n].max()) for n in nodes)
        told = [int(x[b]) for x in (spend.tokens_B, spend.expansions_B, spend.positions_B, spend.calls_B)]
        assert told == [tokens, len(nodes), 4 + tokens + appended, calls]
    assert len(set(np.asarray(spend.expansions_B).tolist())) > 1


@pytest.mark.parametrize("name", KNOBS)
def test_without_a_verifier_no_choice_depends_on_it(name):
    if name in VERIFIED_ONLY:
        pytest.skip("it has a verifier")
    flipped = jax.device_get(TASK.problems(SEEDS, flip=True))
    honest, misled = (solved(make(name, "value_only"), problems) for problems in (PROBLEMS, flipped))
    assert np.any(honest.legal_B != misled.legal_B)
    assert np.any(honest.reward_B != misled.reward_B)
    unscored = functools.partial(dataclasses.replace, reward_B=0, legal_B=0)
    jax.tree.map(np.testing.assert_array_equal, unscored(honest), unscored(misled))


@pytest.mark.parametrize("name", ORDERED)
def test_results_do_not_depend_on_batch_order_or_padding(name):
    together = solved(make(name))
    order = np.random.default_rng(0).permutation(len(SEEDS))
    shuffled = solved(make(name), jax.tree.map(lambda x: x[order], PROBLEMS), batch_size=5)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other[order], atol=1e-6), shuffled, together)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", KNOBS)
def test_scores_are_the_verifiers(name, mode):
    result = solved(make(name, mode))
    for b in range(len(SEEDS)):
        reward, complete, legal = judged(b, result.tokens_BDL[b], result.length_BD[b])
        reward = result.reward_B[b] if name == "pass_at_k" else reward  # a chance, tested below
        assert (result.reward_B[b], result.legal_B[b]) == (np.float32(reward), complete and legal)
        if name != "greedy" and name not in plans.SEARCHES and mode == "verified" and result.found_B[b]:
            assert legal


def test_randomness_is_the_seeds():
    first, again, other = (solved(make("best_of_n"), seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.spend.tokens_B, again.spend.tokens_B)
    assert np.any(first.spend.tokens_B != other.spend.tokens_B)


def test_uniform_search_reads_nothing_of_the_model():
    one, other = (
        compare.solve_all(MODEL, TASK, make("search_uniform"), MODEL.init(seed), PROBLEMS)[0] for seed in (0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert np.all(one.spend.positions_B == 0)
    assert np.all(one.spend.expansions_B >= 1)


def test_the_worst_case_stays_within_the_budget():
    for name, mode in (
        ("value_greedy", "value_only"), ("best_of_n", "value_only"), ("search", "value_only"),
        ("search_listed", "verified"), ("beam", "value_only"), ("dvts", "value_only"),
    ):  # fmt: skip
        strategy = plans.plan(TASK, SEARCH, name, mode, 57)
        assert 0 < solved(strategy).spend.tokens_B.max() <= 57
