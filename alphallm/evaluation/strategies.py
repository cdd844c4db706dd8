"""The strategies: each answers a batch of problems in one compiled function and says what it spent.

Two modes. `verified`: the task checks itself, so a strategy may read the reward of a finished answer and which steps
are legal. `value_only`: it may read neither; the value head judges finished answers, and some answers are illegal. The
task's `done`, which says only that an answer is complete, is read in both. Scoring is always the verifier's.

    greedy          the likeliest token, one chain; nothing to choose, so it is the same in both modes.
    best_of_n       N sampled chains; the best by reward (verified) or by log pi(chain) + scale * value, as in search.
    majority        N sampled chains; the commonest finished one, in verified mode among those without an illegal step
                    (self-consistency, Wang et al. 2022). The likelier one of two that are equally common.
    weighted        N sampled chains; the one whose copies' values have the largest sum (weighted majority).
    value_greedy    the best of K candidate steps by their values, at each step: a tree search of one ply.
    beam            W partial answers; of all their candidate steps the W best by value (BFS-V). The best finished one
                    as in best_of_n.
    dvts            W subtrees, each with its own best candidate at each step (diverse verifier tree search).
    search          tree search and the best finished answer in its tree; greedy's answer where it holds none.
    puct            the same with PUCT, whatever policy the run's search has.
    depth_first     the same, always on from the best candidate by value until nothing below it is open (DFS-V).
    search_listed   the same search over all legal steps instead of those that the policy proposes, as in classic
                    AlphaZero. Verified mode only, since it knows the rules.
    search_uniform  search_listed knowing nothing: every token as likely as any other, value 1/2 everywhere. It tells
                    learning from enumeration. Verified mode only, since it can not judge.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from alphallm import decode
from alphallm.evaluation import beams
from alphallm.evaluation import chains as chain_sampling
from alphallm.evaluation.chains import Chains, where_rows
from alphallm.evaluation.plans import BEAMS, SAMPLED, SEARCHES, Strategy
from alphallm.models import Hidden, LanguageModel
from alphallm.search import CERTAIN, SearchConfig, Tree, best_answer, search
from alphallm.types import KeyValues, Problem, pytree

MAX_ROWS = 1024  # chains sampled at once; more are sampled one chunk after another, so that memory stays bounded.


@pytree
class Result:
    """An answer to each problem, its judgement, and what it took."""

    found_B: jax.Array  # bool: the answer is complete, and legal as far as the strategy may see; else a mere attempt.
    reward_B: jax.Array  # float32: the verifier's judgement, for scoring only.
    legal_B: jax.Array  # bool: the answer is complete and every step of it legal; for scoring only.
    value_B: jax.Array  # float32: what the strategy took the answer for, in [0, 1].
    tokens_BDL: jax.Array  # int32, padded.
    length_BD: jax.Array  # int32: tokens of each step, 0 past the last.
    tokens_generated_B: jax.Array  # int32: tokens of all steps written, not only the answer's.
    expansions_B: jax.Array  # int32: partial answers that the model continued.
    positions_B: jax.Array  # int32: tokens run through the model: prompt, proposals, appended steps; padding left out.


@pytree
class Switches:
    """What of a strategy may change without compiling it anew."""

    verified: jax.Array  # bool []: the mode.
    choice: jax.Array  # int32 []: how sampled chains are chosen from, by its place in SAMPLED.


def switches(strategy: Strategy) -> Switches:
    choice = SAMPLED.index(strategy.name) if strategy.name in SAMPLED else 0
    return Switches(jnp.asarray(strategy.mode == "verified"), jnp.int32(choice))


def program(strategy: Strategy) -> Strategy:
    """What is compiled for a strategy: both modes share it, and so do the choices from sampled chains."""
    name = SAMPLED[0] if strategy.name in SAMPLED else strategy.name
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
        return _pick_chain(task, problem, _sample(model, *arguments, num=1, temperature=0.0), _first, jnp.bool_(False))
    best = functools.partial(_best, scale=program.search.answer_scale)
    if program.name in BEAMS:
        width, num = program.knob, program.search.num_candidates
        if program.name == "value_greedy":
            width, num = 1, program.knob
        chains, spend = beams.search(
            model, *arguments, width=width, num=num, apart=program.name == "dvts", min_p=program.search.min_p,
            verified=switches.verified,
        )  # fmt: skip
        return dataclasses.replace(
            _pick_chain(task, problem, chains, best, switches.verified),
            tokens_generated_B=spend.tokens_B,
            expansions_B=spend.expansions_B,
            positions_B=problem.length + spend.positions_B,
        )
    if program.name in SEARCHES and program.name != "search_uniform":
        return _search(model, *arguments, program.search, switches.verified)
    if program.name == "search_uniform":
        result = _search(_Uninformed(model), *arguments, program.search, switches.verified)
        return dataclasses.replace(result, positions_B=jnp.zeros_like(result.positions_B))  # It runs no model.

    def choose(*arguments):
        of_sampled = (best, _commonest, functools.partial(_commonest, weighted=True))  # As SAMPLED names them.
        return lax.switch(switches.choice, of_sampled, *arguments)

    chains = _sample(model, *arguments, num=program.knob, temperature=1.0)
    return _pick_chain(task, problem, chains, choose, switches.verified)


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


def _pick_chain(task, problem: Problem, chains: Chains, choose, verified) -> Result:
    """The result of answering with the chain that `choose(chains, allowed_BJ, seen_reward_BJ)` points at."""
    over_chains = jax.vmap(lambda tokens, length: judge(task, problem, tokens, length), in_axes=1, out_axes=1)
    reward_BJ, _, legal_BJ = over_chains(chains.tokens_BJDL, chains.length_BJD)
    reward_BJ = jnp.where(chains.finished_BJ, reward_BJ, 0.0)  # A broken-off step is none that a task may judge.
    allowed_BJ = chains.finished_BJ & (legal_BJ | ~verified)
    value_BJ = jnp.where(verified, reward_BJ, chains.value_BJ)
    chosen_B = choose(chains, allowed_BJ, jnp.where(verified, reward_BJ, 0.0))
    tokens_B = jnp.sum(chains.length_BJD, (1, 2))
    row = jnp.arange(allowed_BJ.shape[0])
    pick = lambda x: x[row, chosen_B]
    return Result(
        found_B=pick(allowed_BJ),
        reward_B=pick(reward_BJ),
        legal_B=pick(chains.finished_BJ & legal_BJ),
        value_B=pick(value_BJ),
        tokens_BDL=pick(chains.tokens_BJDL),
        length_BD=pick(chains.length_BJD),
        tokens_generated_B=tokens_B,
        expansions_B=jnp.sum(chains.length_BJD > 0, (1, 2)),
        positions_B=problem.length + tokens_B,
    )


def _first(chains: Chains, allowed_BJ, reward_BJ):
    return jnp.zeros(allowed_BJ.shape[0], jnp.int32)


def _best(chains: Chains, allowed_BJ, reward_BJ, *, scale: float):
    # As `best_answer` chooses. A reward counts more than any value; where no reward is shown, all are 0.
    score_BJ = chains.log_prob_BJ + scale * chains.value_BJ + CERTAIN * reward_BJ
    return jnp.argmax(jnp.where(allowed_BJ, score_BJ, -jnp.inf), -1)


def _commonest(chains: Chains, allowed_BJ, reward_BJ, *, weighted: bool = False):
    def one(inputs):
        tokens_JQ, allowed_J, log_prob_J, vote_J = inputs
        equal_JJ = jnp.all(tokens_JQ[:, None] == tokens_JQ[None], -1) & allowed_J[None]
        votes_J = jnp.where(allowed_J, jnp.sum(equal_JJ * vote_J[None], -1), 0.0)
        # Equal chains add up the same votes in the same order, so that their sums are equal to the last bit.
        return jnp.argmax(jnp.where(votes_J == jnp.max(votes_J), log_prob_J, -jnp.inf))

    tokens_BJQ = chains.tokens_BJDL.reshape(*allowed_BJ.shape, -1)
    vote_BJ = chains.value_BJ if weighted else jnp.ones_like(chains.value_BJ)
    # One problem after another: the table of pairs is quadratic in the number of chains.
    return lax.map(one, (tokens_BJQ, allowed_BJ, chains.log_prob_BJ, vote_BJ))


# Search.


def _search(model, task, params, problem: Problem, key_B, config: SearchConfig, verified) -> Result:
    mode_B = jnp.broadcast_to(verified, key_B.shape)
    tree = search(model, task, config, params, problem, key_B, mode_B, mode_B)
    scale = jnp.where(verified, CERTAIN, config.answer_scale)
    best = best_answer(tree, task.max_steps, task.vocabulary.pad, scale)
    tokens_B, expansions_B, positions_B = spent_on_tree(tree)
    reward_B, done_B, legal_B = judge(task, problem, best.tokens_BDL, best.length_BD)
    searched = Result(
        found_B=best.found_B,
        reward_B=reward_B,
        legal_B=done_B & legal_B,
        value_B=best.value_B,
        tokens_BDL=best.tokens_BDL,
        length_BD=best.length_BD,
        tokens_generated_B=tokens_B,
        expansions_B=expansions_B,
        positions_B=problem.length + positions_B,
    )
    if isinstance(model, _Uninformed):
        return searched  # It has no greedy answer to fall back to.

    def fall_back(searched: Result) -> Result:
        chains = _sample(model, task, params, problem, key_B, num=1, temperature=0.0)
        greedy = _pick_chain(task, problem, chains, _first, jnp.bool_(False))
        both = jax.tree.map(functools.partial(where_rows, searched.found_B), searched, greedy)
        add = lambda a, b: a + jnp.where(searched.found_B, 0, b)
        return dataclasses.replace(
            both,
            tokens_generated_B=add(searched.tokens_generated_B, greedy.tokens_generated_B),
            expansions_B=add(searched.expansions_B, greedy.expansions_B),
            positions_B=add(searched.positions_B, greedy.positions_B),
        )

    return lax.cond(jnp.all(searched.found_B), lambda searched: searched, fall_back, searched)


def spent_on_tree(tree: Tree) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens generated, nodes that the model continued, and positions run beyond the prompt, each [B]."""
    row = jnp.arange(tree.parent_BN.shape[0])[:, None]
    parent_BN, action_BN = jnp.maximum(tree.parent_BN, 0), jnp.maximum(tree.action_BN, 0)
    appended_BN = tree.expanded_BN & (tree.parent_BN >= 0)
    appended_B = jnp.sum(jnp.where(appended_BN, tree.length_BNK[row, parent_BN, action_BN], 0), -1)
    tokens_B = tree.tokens_generated_B
    return tokens_B, jnp.sum(tree.expanded_BN, -1), tokens_B + appended_B


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
