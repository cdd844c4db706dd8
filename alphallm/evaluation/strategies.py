"""The strategies: each answers a batch of problems in one compiled function and says what it spent.

Two modes. `verified`: the task checks itself, so a strategy may read the reward of a finished answer and which steps
are legal. `value_only`: it may read neither; the value head judges finished answers, and some answers are illegal. The
task's `done`, which says only that an answer is complete, is read in both. Scoring is always the verifier's.

    greedy           the likeliest token, one chain; nothing to choose, so it is the same in both modes.
    best_of_n        N sampled chains; the best by reward (verified) or by log pi(chain) + scale * value, as in search.
    majority         N sampled chains; the commonest answer among the finished ones, in verified mode among those
                     without an illegal step (self-consistency, Wang et al. 2022).
    weighted         the same, each chain voting with its value (weighted majority).
    pass_at_k        the chance that one of k sampled chains is right (Chen et al. 2021), estimated from 2k of them;
                     what is told as spent is the k's. Nobody chooses, so it bounds best_of_n where a task does not
                     verify itself. Verified mode only.
    value_greedy     the best of K candidate steps by their values, at each step: a tree search of one ply.
    beam             W partial answers; of all their candidate steps the W best by value (BFS-V). The best finished one
                     as in best_of_n.
    dvts             W subtrees, each with its own best candidate at each step (diverse verifier tree search).
    search           tree search and the best finished answer in its tree; greedy's answer where it holds none.
    search_value, search_majority, search_weighted, search_visited
                     the same tree; the answer of the largest value, by the votes of its finished answers, by votes
                     weighted with values, and at the end of the most visited path.
    search_early     search until no open candidate can become the answer any more, or a solution was verified.
    puct             search with PUCT, whatever policy the run's search has.
    alpha            PUCT that commits to a step after each share of its simulations and goes on below it, with the
                     subtree that it has there (MCTS-alpha of TS-LLM).
    rollout          PUCT whose simulations each go on to the end of an answer before anything is backed up
                     (MCTS-Rollout of TS-LLM).
    rap              the same with UCT, and with the likelihood of the steps instead of the value head (RAP, Hao et al.
                     2023).
    depth_first      search that goes always on from the best candidate by value until nothing below it is open (DFS-V).
    search_listed    search over all legal steps instead of those that the policy proposes, as in classic AlphaZero.
                     Verified mode only, since it knows the rules.
    adaptive         greedy's answers for the problems that it is sure of, more and more search for the others, within
                     a mean budget; see `adaptive`. The only one whose answers depend on the other problems.
    search_uniform   search_listed knowing nothing: every token as likely as any other, value 1/2 everywhere. It tells
                     learning from enumeration. Verified mode only, since it can not judge.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from alphallm import decode
from alphallm.evaluation import beams, solutions
from alphallm.evaluation import chains as chain_sampling
from alphallm.evaluation.chains import where_rows
from alphallm.evaluation.plans import BEAMS, RULE_OF, SEARCHES, Strategy
from alphallm.evaluation.solutions import RULES, Chains, Solutions, Spend
from alphallm.models import Hidden, LanguageModel
from alphallm.search import CERTAIN, SearchConfig, Tree, search
from alphallm.types import KeyValues, Problem, pytree

MAX_ROWS = 1024  # chains sampled at once; more are sampled one chunk after another, so that memory stays bounded.


@pytree
class Result:
    """An answer to each problem, its judgement, what it took, and everything that it was chosen from."""

    found_B: jax.Array  # bool: the answer is complete, and legal as far as the strategy may see; else a mere attempt.
    reward_B: jax.Array  # float32: the verifier's judgement, for scoring only.
    legal_B: jax.Array  # bool: the answer is complete and every step of it legal; for scoring only.
    value_B: jax.Array  # float32: what the strategy took the answer for, in [0, 1].
    tokens_BDL: jax.Array  # int32, padded.
    length_BD: jax.Array  # int32: tokens of each step, 0 past the last.
    spend: Spend
    solutions: Solutions | None  # All finished answers; greedy's fallback of a search is not among them.
    solution_reward_BJ: jax.Array | None  # float32: the verifier's judgement of each, for scoring only.


@pytree
class Switches:
    """What of a strategy may change without compiling it anew."""

    verified: jax.Array  # bool []: the mode.
    rule: jax.Array  # int32 []: how a finished answer is chosen, by its place in RULES.


def switches(strategy: Strategy) -> Switches:
    _, rule = RULE_OF.get(strategy.name, (strategy.name, "best"))
    return Switches(jnp.asarray(strategy.mode == "verified"), jnp.int32([*RULES].index(rule)))


def program(strategy: Strategy) -> Strategy:
    """What is compiled for a strategy: both modes share it, and so do the rules by which an answer is chosen."""
    name, _ = RULE_OF.get(strategy.name, (strategy.name, "best"))
    return dataclasses.replace(strategy, name=name, mode="both")


def answer(
    model: LanguageModel, task, program: Strategy, params, problem: Problem, seed: jax.Array, switches: Switches
) -> Result:
    """Answers a batch of problems by `program(strategy)` with `switches(strategy)`; pure.

    A problem's randomness is its own, `fold_in(key(seed), index)`: its answer does not depend on batch or place.
    """
    key_B = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(problem.index)
    arguments = (task, params, problem, key_B)
    if program.name == "greedy":
        return _greedy(model, *arguments)
    scale = jnp.where(switches.verified, CERTAIN, program.search.answer_scale)
    choose = lambda held: lax.switch(switches.rule, list(RULES.values()), held, scale)
    if program.name in SEARCHES:
        uniform = program.name == "search_uniform"
        searcher = _Uninformed(model) if uniform else model
        return _search(searcher, *arguments, program.search, switches.verified, choose)
    if program.name in BEAMS:
        width, num = program.knob, program.search.num_candidates
        if program.name == "value_greedy":
            width, num = 1, program.knob
        chains, spend = beams.search(
            model, *arguments, width=width, num=num, apart=program.name == "dvts", min_p=program.search.min_p,
            verified=switches.verified,
        )  # fmt: skip
        return _pick_chain(task, problem, chains, spend, choose, switches.verified)
    if program.name == "pass_at_k":
        chains = _sample(model, *arguments, num=2 * program.knob, temperature=1.0)
        result = _pick_chain(task, problem, chains, _spent_on_chains(problem, chains), choose, switches.verified)
        assert result.solution_reward_BJ is not None
        chance_B = solutions.pass_at_k(result.solution_reward_BJ > 0, program.knob)
        spend = result.spend
        half = dataclasses.replace(
            spend, tokens_B=spend.tokens_B // 2, expansions_B=spend.expansions_B // 2,
            positions_B=problem.length + (spend.positions_B - problem.length) // 2,
        )  # fmt: skip
        return dataclasses.replace(result, reward_B=chance_B, spend=half)
    chains = _sample(model, *arguments, num=program.knob, temperature=1.0)
    return _pick_chain(task, problem, chains, _spent_on_chains(problem, chains), choose, switches.verified)


def judge(task, problem: Problem, tokens_BDL, length_BD) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the verifier says of one answer to each problem: its reward, whether complete, and whether all steps are
    legal (complete or not). Every step that is given must end in a step-end token."""

    def one(state, tokens_DL, length_D):
        def step(carry, inputs):
            state, reward, done, legal = carry
            tokens_L, length = inputs
            after = task.step(state, tokens_L, length)
            written = length > 0
            state = jax.tree.map(lambda new, old: jnp.where(written, new, old), after.state, state)
            reward = jnp.maximum(reward, jnp.where(written, after.reward, 0.0))
            return (state, reward, done | (written & after.done), legal & (after.legal | ~written)), None

        start = (state, jnp.float32(0.0), jnp.bool_(False), jnp.bool_(True))
        (_, reward, done, legal), _ = lax.scan(step, start, (tokens_DL, length_D))
        return reward, done, legal

    return jax.vmap(one)(problem.state, tokens_BDL, length_BD)


# Sampled chains.


def _sample(model, task, params, problem: Problem, key_B, *, num: int, temperature: float) -> Chains:
    """`num` chains of each problem, sampled in chunks; chain j is the same however many there are."""
    prefix = decode.prefill(model, params, problem)
    batch = key_B.shape[0]
    chunks = -(-num // max(1, MAX_ROWS // batch))
    index_XJ = jnp.arange(-(-num // chunks) * chunks).reshape(chunks, -1)

    def chunk(index_J):
        key_BJ = jax.vmap(lambda key: jax.vmap(lambda j: jax.random.fold_in(key, j))(index_J))(key_B)
        return chain_sampling.sample(model, task, params, problem, prefix, key_BJ, temperature=temperature)

    drawn = lax.map(chunk, index_XJ)  # The last chunk may have a few too many.
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(batch, -1, *x.shape[3:])[:, :num], drawn)


def _spent_on_chains(problem: Problem, chains: Chains) -> Spend:
    """What sampling took: every token was run once, the chains of a problem side by side."""
    written_B = jnp.sum(chains.length_BJD, (1, 2))
    longest_B = jnp.max(jnp.sum(chains.length_BJD, -1), -1)
    return Spend(written_B, jnp.sum(chains.length_BJD > 0, (1, 2)), problem.length + written_B, 1 + longest_B)


def _pick_chain(task, problem: Problem, chains: Chains, spend: Spend, choose, verified) -> Result:
    """The result of answering with the chain that `choose(solutions)` points at."""
    over_chains = jax.vmap(lambda tokens, length: judge(task, problem, tokens, length), in_axes=1, out_axes=1)
    reward_BJ, _, legal_BJ = over_chains(chains.tokens_BJDL, chains.length_BJD)
    reward_BJ = jnp.where(chains.finished_BJ, reward_BJ, 0.0)  # A broken-off step is none that a task may judge.
    held = Solutions(
        chains=chains,
        allowed_BJ=chains.finished_BJ & (legal_BJ | ~verified),
        value_BJ=jnp.where(verified, reward_BJ, chains.value_BJ),
        visits_BJD=jnp.zeros_like(chains.length_BJD),
    )
    return _pick(held, reward_BJ, chains.finished_BJ & legal_BJ, spend, choose)


def _pick(held: Solutions, reward_BJ, legal_BJ, spend: Spend, choose) -> Result:
    chosen_B = choose(held)
    row = jnp.arange(chosen_B.shape[0])
    pick = lambda x: x[row, chosen_B]
    return Result(
        found_B=pick(held.allowed_BJ),
        reward_B=pick(reward_BJ),
        legal_B=pick(legal_BJ),
        value_B=pick(held.value_BJ),
        tokens_BDL=pick(held.chains.tokens_BJDL),
        length_BD=pick(held.chains.length_BJD),
        spend=spend,
        solutions=held,
        solution_reward_BJ=reward_BJ,
    )


def _greedy(model, task, params, problem: Problem, key_B) -> Result:
    chains = _sample(model, task, params, problem, key_B, num=1, temperature=0.0)
    first = lambda held: jnp.zeros(key_B.shape[0], jnp.int32)
    return _pick_chain(task, problem, chains, _spent_on_chains(problem, chains), first, jnp.bool_(False))


# Search.


def _search(model, task, params, problem: Problem, key_B, config: SearchConfig, verified, choose) -> Result:
    mode_B = jnp.broadcast_to(verified, key_B.shape)
    tree = search(model, task, config, params, problem, key_B, mode_B, mode_B)
    chains, visits_BJD = solutions.of_tree(tree, task.max_steps, task.vocabulary.pad)
    batch, size = chains.finished_BJ.shape
    reward_BJ = jnp.where(chains.finished_BJ, tree.reward_BNK.reshape(batch, size), 0.0)
    legal_BJ = chains.finished_BJ & (tree.legal_BN[..., None] & tree.legal_BNK).reshape(batch, size)
    held = Solutions(chains, chains.finished_BJ, chains.value_BJ, visits_BJD)
    uninformed = isinstance(model, _Uninformed)
    spend = spent_on_tree(tree, jnp.zeros_like(problem.length) if uninformed else problem.length)
    if uninformed:
        spend = dataclasses.replace(spend, positions_B=jnp.zeros_like(spend.positions_B))  # It runs no model,
        return _pick(held, reward_BJ, legal_BJ, spend, choose)  # and has no greedy answer to fall back to.
    searched = _pick(held, reward_BJ, legal_BJ, spend, choose)

    def fall_back(searched: Result) -> Result:
        greedy = _greedy(model, task, params, problem, key_B)
        instead = lambda field: where_rows(searched.found_B, getattr(searched, field), getattr(greedy, field))
        answers = ("found_B", "reward_B", "legal_B", "value_B", "tokens_BDL", "length_BD")
        add = lambda spent, more: spent + jnp.where(searched.found_B, 0, more)
        return dataclasses.replace(
            searched,
            **{field: instead(field) for field in answers},
            spend=jax.tree.map(add, searched.spend, greedy.spend),
        )

    return lax.cond(jnp.all(searched.found_B), lambda searched: searched, fall_back, searched)


def spent_on_tree(tree: Tree, prompt_B) -> Spend:
    """What the model wrote and ran for a tree, for prompts of `prompt_B` tokens."""
    row = jnp.arange(tree.parent_BN.shape[0])[:, None]
    parent_BN, action_BN = jnp.maximum(tree.parent_BN, 0), jnp.maximum(tree.action_BN, 0)
    appended_BN = tree.expanded_BN & (tree.parent_BN >= 0)
    appended_B = jnp.sum(jnp.where(appended_BN, tree.length_BNK[row, parent_BN, action_BN], 0), -1)
    expansions_B = jnp.sum(tree.expanded_BN, -1)
    longest_BN = jnp.max(tree.length_BNK, -1)
    tokens_B = tree.tokens_generated_B
    return Spend(
        tokens_B=tokens_B,
        expansions_B=expansions_B,
        positions_B=prompt_B + tokens_B + appended_B,
        # An expansion is one call for the step that leads there (at the root, the prompt) and one for each token.
        calls_B=expansions_B + jnp.sum(jnp.where(tree.expanded_BN, longest_BN, 0), -1),
    )


class _Uninformed(LanguageModel):
    """A stand-in for a model that finds all tokens equally likely and every position worth 1/2; it costs nothing."""

    def __init__(self, model: LanguageModel):
        self.config, self.vocabulary_size = model.config, model.vocabulary_size

    def trunk(self, params, tokens_BX, positions_BX, mask_BXX, past=()) -> Hidden:
        config, (batch, size) = self.config, tokens_BX.shape
        shape = (config.num_layers, batch, config.num_kv_heads, size, config.head_dim)
        keys_values = KeyValues(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
        return Hidden(jnp.zeros((batch, size, 1), config.dtype), keys_values)

    def logits(self, params, hidden_E) -> jax.Array:
        return jnp.zeros((*hidden_E.shape[:-1], self.vocabulary_size))

    def value_logit(self, params, hidden_E) -> jax.Array:
        return jnp.zeros(hidden_E.shape[:-1])
