"""The tree search: a root from the prompt, and one function that appends, verifies and proposes.

mctx runs simulate, expand and backward. What it cannot hold lies here: a node's keys and values, in a pool of
pages, one a node, threaded through mctx's `loop_fn`; and the set of candidates worth another visit, kept between
simulations so that no simulation is spent where everything is known.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import mctx
from jax import lax

from alphallm import decode
from alphallm.models import LanguageModel
from alphallm.search import between, selection
from alphallm.search.tree import SearchConfig, Tree
from alphallm.types import KeyValues, Problem, Task, TaskState, pytree


@pytree
class Node:
    """mctx's embedding of a node: what its children need, and what its candidates are."""

    expanded_B: jax.Array  # bool: False for the stand-ins that mctx makes below terminal candidates.
    legal_B: jax.Array  # bool: every step from the root is legal; for training, read by no selection.
    depth_B: jax.Array  # int32.
    raw_value_B: jax.Array  # float32: the value head's reading.
    path_BD: jax.Array  # int32: the pages on the way from the root, this node's own last. A page has its node's number.
    path_length_BD: jax.Array  # int32: tokens on each page.
    length_B: jax.Array  # int32: tokens of prompt and path.
    log_prob_B: jax.Array  # float32: the policy's log-probability of the path.
    likelihood_B: jax.Array  # float32: the mean likelihood of the tokens of each step on the path, summed over steps.
    state: TaskState
    candidates: decode.Candidates
    valid_BK: jax.Array  # bool: may be chosen.
    child_value_BK: jax.Array
    reward_BK: jax.Array
    done_BK: jax.Array
    legal_BK: jax.Array
    open_BK: jax.Array  # bool: a visit could still teach something.


@dataclasses.dataclass
class _Cell:
    """Hands what belongs to a simulation to `recurrent_fn` while the loop's body is traced."""

    pool: Any = None  # KeyValues
    simulation: Any = None  # int32 []
    settled_B: Any = None  # bool: nothing that this simulation could find would become the answer.


def search(
    model: LanguageModel,
    task: Task,
    config: SearchConfig,
    params,
    problem: Problem,
    key_B: jax.Array,
    verified_B: jax.Array,
    masked_B: jax.Array,
) -> Tree:
    """Searches one tree for each problem.

    Args:
      problem: a batch of problems.
      key_B: a typed random key a problem. All of a problem's randomness comes from it, so its tree does not depend on
        the batch, its place in it, or the device.
      verified_B: bool; where True, candidates that complete an answer are worth their reward, else what the value head
        says of them.
      masked_B: bool; where True, illegal candidates are never chosen.

    Returns:
      The trees, `config.num_simulations + 1` nodes each.
    """
    expander = _Expander(model, task, config, params, key_B, verified_B, masked_B)
    prefix = decode.prefill(model, params, problem)
    root = expander.root(prefix, problem)
    cell = _Cell()

    def recurrent_fn(params, rng_key, action_B, parent: Node):
        del params, rng_key  # Closed over; and a problem's randomness is its own.
        output, node, page = expander.expand(prefix, cell.pool, cell.simulation, action_B, parent, cell.settled_B)
        cell.pool = jax.tree.map(
            lambda pool, new: lax.dynamic_update_slice_in_dim(pool, new[:, :, None], cell.simulation + 1, axis=2),
            cell.pool, page,
        )  # fmt: skip
        return output, node

    def loop_fn(lower, upper, body, init):
        def body_with_pool(simulation, carry):
            (rng_key, tree), cell.pool = carry
            cell.simulation, cell.settled_B = simulation, None
            if config.early_stop:
                cell.settled_B = between.settled(tree, verified_B, config.answer_scale)
            rng_key, tree = body(simulation, (rng_key, tree))
            if config.rollout:
                tree = between.roll_on(carry[0][1], tree, simulation + 1, task.max_steps, config)
            tree = between.close_exhausted(tree, simulation + 1, task.max_steps)
            return (rng_key, tree), cell.pool

        pool = expander.empty_pool()
        if not config.commit_every:
            return lax.fori_loop(lower, upper, body_with_pool, (init, pool))[0]

        def move(number, carry):
            begin = lower + number * config.commit_every
            end = jnp.minimum(begin + config.commit_every, upper)
            (rng_key, tree), pool = lax.fori_loop(begin, end, body_with_pool, carry[:2])
            tree, taken = between.reroot(tree, selection.final_action(tree, config))
            moves = jax.tree.map(lambda all_, new: all_.at[number].set(new), carry[2], taken)
            return (rng_key, tree), pool, moves

        num_moves = -(-config.num_simulations // config.commit_every)
        none = jnp.zeros((num_moves, key_B.shape[0]), jnp.int32)
        (rng_key, tree), _, moves = lax.fori_loop(0, num_moves, move, (init, pool, between.Move(none, none)))
        # Back to the first root, so that the tree tells all that was searched.
        back = lambda i, tree: between.unroot(tree, jax.tree.map(lambda x: x[num_moves - 1 - i], moves))
        return rng_key, lax.fori_loop(0, num_moves, back, tree)

    prior_logits = root.candidates.prior_logits_BK
    if config.policy == "puct" and config.dirichlet_fraction > 0:
        prior_logits = selection.add_dirichlet_noise(key_B, prior_logits, root.valid_BK, config)
    value_B = expander.backed_up_value(root)
    tree = mctx.search(
        params=(),
        rng_key=jax.random.key(0),  # Split by mctx and read by nobody.
        root=mctx.RootFnOutput(prior_logits=prior_logits, value=value_B, embedding=root),
        recurrent_fn=recurrent_fn,
        root_action_selection_fn=jax.named_scope("select")(selection.root_action_selection(config)),
        interior_action_selection_fn=jax.named_scope("select")(selection.interior_action_selection(config)),
        num_simulations=config.num_simulations,
        max_depth=task.max_steps,
        invalid_actions=~root.open_BK,
        extra_data=selection.ExtraData(
            root_gumbel=root.candidates.root_gumbel_BK,
            key=key_B,
            rollout=jnp.full((key_B.shape[0], task.max_steps), -1, jnp.int32),
        ),
        loop_fn=loop_fn,
    )
    return _result(tree, config)


@dataclasses.dataclass(frozen=True)
class _Expander:
    """Makes nodes: appends the chosen step, verifies, proposes."""

    model: LanguageModel
    task: Task
    config: SearchConfig
    params: object
    key_B: jax.Array
    verified_B: jax.Array
    masked_B: jax.Array

    @property
    def _pages(self) -> int:
        # The last step of an answer is never continued, so it needs no page.
        return max(1, self.task.max_steps - 1)

    def empty_pool(self) -> KeyValues:
        """One page `[G, L, C]` a node, for keys and for values, for every layer and problem."""
        model = self.model.config
        shape = (
            model.num_layers, self.key_B.shape[0], self.config.num_simulations + 1, model.num_kv_heads,
            self.task.max_step, model.head_dim,
        )  # fmt: skip
        return KeyValues(*(jnp.zeros(shape, model.dtype) for _ in range(2)))

    def root(self, prefix: decode.Prefix, problem: Problem) -> Node:
        batch = problem.length.shape[0]
        none = jnp.zeros((batch, self._pages), jnp.int32)
        expanded = jnp.ones((batch,), bool)
        keys_B = jax.vmap(lambda k: jax.random.fold_in(k, 0))(self.key_B)
        proposer = self.config.proposer if self.config.root_proposer == "same" else self.config.root_proposer
        candidates = self._propose(prefix, problem.state, keys_B, proposer, self.config.root_width)
        if self.config.proposer != "listed":  # mctx wants as many candidates everywhere.
            candidates = self._padded(candidates, self.config.num_candidates)
        return self._node(
            candidates, problem.state, expanded, expanded, jnp.zeros((batch,), jnp.int32), prefix.value_B, none, none,
            prefix.length_B, jnp.zeros((batch,)), jnp.zeros((batch,)),
        )  # fmt: skip

    def expand(self, prompt: decode.Prefix, pool, simulation, action_B, parent: Node, settled_B):
        """Makes the node that candidate `action_B` of `parent` leads to; a stand-in where `settled_B` (may be None).

        Returns mctx's output, the node, and its page `[Y, B, G, L, C]`.
        """
        row = jnp.arange(action_B.shape[0])
        tokens_BL = parent.candidates.tokens_BKL[row, action_B]
        step_length_B = parent.candidates.length_BK[row, action_B]
        done_B = parent.done_BK[row, action_B] | ~parent.valid_BK[row, action_B]
        expanded_B = parent.expanded_B & ~done_B & (parent.depth_B + 1 < self.task.max_steps)
        if settled_B is not None:
            expanded_B &= ~settled_B
        state = jax.vmap(self.task.step)(parent.state, tokens_BL, step_length_B).state
        own_BD = jnp.arange(self._pages)[None] == parent.depth_B[:, None]
        path_BD = jnp.where(own_BD, simulation + 1, parent.path_BD)
        path_length_BD = jnp.where(own_BD, step_length_B[:, None], parent.path_length_BD)
        depth_B, length_B = parent.depth_B + 1, parent.length_B + step_length_B
        log_prob_B = parent.log_prob_B + parent.candidates.log_prob_BK[row, action_B]
        likelihood_B = parent.likelihood_B + _likelihood(parent.candidates)[row, action_B]

        def run(pool):
            pages = _gather_path(pool, parent.path_BD)
            past, mask_BS = self._past(prompt, pages, parent.path_length_BD, parent.depth_B)
            page, logits_BV, value_B = decode.append(
                self.model, self.params, past, mask_BS, parent.length_B, tokens_BL, step_length_B
            )
            own = own_BD[None, :, None, :, None, None]
            pages = jax.tree.map(lambda all_, new: jnp.where(own, new[:, :, :, None], all_), pages, page)
            past, mask_BS = self._past(prompt, pages, path_length_BD, depth_B)
            prefix = decode.Prefix(past, mask_BS, length_B, logits_BV, value_B)
            # Simulation i makes node i + 1, and the root is node 0: no two nodes share a key.
            keys_B = jax.vmap(lambda k: jax.random.fold_in(k, simulation + 1))(self.key_B)
            candidates = self._propose(prefix, state, keys_B, self.config.proposer, self.config.num_candidates)
            return self._padded(candidates, parent.candidates.length_BK.shape[1]), value_B, page

        def skip(pool):
            shapes = jax.eval_shape(run, pool)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        candidates, raw_value_B, page = lax.cond(jnp.any(expanded_B), run, skip, pool)
        legal_B = parent.legal_B & parent.legal_BK[row, action_B]
        node = self._node(
            candidates, state, expanded_B, legal_B, depth_B, raw_value_B, path_BD, path_length_BD, length_B, log_prob_B,
            likelihood_B,
        )  # fmt: skip
        value_B = self.backed_up_value(node)
        # Where nothing was expanded, the candidate's own value is all there is: its reward if it was verified.
        reward_B = jnp.where(expanded_B, 0.0, parent.child_value_BK[row, action_B])
        output = mctx.RecurrentFnOutput(
            reward=reward_B,
            discount=expanded_B * self.config.discount,
            prior_logits=node.candidates.prior_logits_BK,
            value=jnp.where(expanded_B, value_B, 0.0),
        )
        return output, node, page

    def backed_up_value(self, node: Node) -> jax.Array:
        """What a new node is worth: V(s), its candidates' mean, or both; at least any verified reward among them."""
        # The prior of a candidate that is not valid is 0, and so is its value.
        children_B = jnp.sum(jax.nn.softmax(node.candidates.prior_logits_BK) * node.child_value_BK, -1)
        value_B = {
            "value": node.raw_value_B,
            "children": children_B,
            "both": 0.5 * (node.raw_value_B + children_B),
        }[self.config.backup]
        verified = self.verified_B[:, None] & node.done_BK & node.valid_BK
        best_B = jnp.max(jnp.where(verified, node.reward_BK, 0.0), -1)
        dead_end_B = ~jnp.any(node.valid_BK, -1)
        return jnp.where(dead_end_B, 0.0, jnp.maximum(value_B, best_B))

    @jax.named_scope("gather_pages")
    def _past(self, prompt: decode.Prefix, pages: KeyValues, path_length_BD, depth_B):
        """Joins the prompt's cache and the path's pages `[Y, B, G, D, L, C]` along S; the mask says what is real."""
        past = jax.tree.map(
            lambda p, x: jnp.concatenate([p, x.reshape(*x.shape[:3], -1, x.shape[-1])], 3), prompt.past, pages
        )
        on_path_BD = jnp.arange(self._pages)[None] < depth_B[:, None]
        real_BDL = jnp.arange(self.task.max_step)[None, None] < path_length_BD[..., None]
        mask = (on_path_BD[..., None] & real_BDL).reshape(depth_B.shape[0], -1)
        return past, jnp.concatenate([prompt.mask_BS, mask], 1)

    def _padded(self, candidates: decode.Candidates, least: int) -> decode.Candidates:
        """The candidates, and empty ones where there are fewer than `least`."""
        missing = max(0, least - candidates.length_BK.shape[1])
        return decode.with_empty(candidates, missing, self.task.vocabulary.pad)

    @jax.named_scope("propose")
    def _propose(self, prefix: decode.Prefix, state, keys_B, proposer: str, num: int) -> decode.Candidates:
        config, vocabulary = self.config, self.task.vocabulary
        step_end_SV = jnp.asarray(vocabulary.step_end_SV)
        common: dict[str, Any] = {"step_end_SV": step_end_SV, "pad": vocabulary.pad}
        written: dict[str, Any] = {"num": num, "max_length": self.task.max_step, "tool": self.task.tool, **common}
        arguments = (self.model, self.params, prefix, keys_B)
        if proposer == "listed":
            steps = jax.vmap(self.task.legal_steps)(state)
            candidates = decode.listed(*arguments, steps=steps, **common)
        elif proposer == "iid":
            candidates = decode.iid(*arguments, temperature=config.temperature, **written)
        else:
            candidates = decode.gumbel_top_k(*arguments, **written)
        if config.prior == "policy":
            candidates = dataclasses.replace(candidates, prior_logits_BK=candidates.log_prob_BK)
        return candidates

    @jax.named_scope("verify")
    def _node(
        self, candidates, state, expanded_B, legal_B, depth_B, raw_value_B, path_BD, path_length_BD, length_B,
        log_prob_B, likelihood_B,
    ) -> Node:  # fmt: skip
        """Verifies the candidates. What the caller may not see is masked here, once."""
        over_candidates = jax.vmap(jax.vmap(self.task.step, in_axes=(None, 0, 0)))
        verdict = over_candidates(state, candidates.tokens_BKL, candidates.length_BK)
        allowed = jnp.where(self.masked_B[:, None], verdict.legal, decode.likely(candidates, self.config.min_p))
        valid = candidates.valid_BK & allowed & expanded_B[:, None]
        known = self.verified_B[:, None] & verdict.done
        value_BK = candidates.value_BK
        if self.config.values == "likelihood":
            value_BK = (likelihood_B[:, None] + _likelihood(candidates)) / (depth_B[:, None] + 1)
            raw_value_B = likelihood_B / jnp.maximum(depth_B, 1)
        to_come = jnp.where(verdict.done, 1.0, self.config.discount)
        child_value = jnp.where(known, verdict.reward, to_come * value_BK)
        child_value = jnp.where(valid, child_value, 0.0)
        at_limit = depth_B[:, None] + 1 >= self.task.max_steps
        prior_logits = jnp.where(valid, candidates.prior_logits_BK, decode.LOG_ZERO)
        worth = child_value >= self.config.prune if self.config.policy == "depth_first" else True
        return Node(
            expanded_B=expanded_B,
            legal_B=legal_B,
            depth_B=depth_B,
            raw_value_B=jnp.where(expanded_B, raw_value_B, 0.0),
            path_BD=path_BD,
            path_length_BD=path_length_BD,
            length_B=length_B,
            log_prob_B=log_prob_B,
            likelihood_B=likelihood_B,
            state=state,
            candidates=dataclasses.replace(candidates, prior_logits_BK=prior_logits),
            valid_BK=valid,
            child_value_BK=child_value,
            reward_BK=verdict.reward,
            done_BK=verdict.done,
            legal_BK=verdict.legal,
            open_BK=valid & ~verdict.done & ~at_limit & worth,
        )


def _likelihood(candidates: decode.Candidates) -> jax.Array:
    """float32 [B, K]: the geometric mean of a candidate's token probabilities."""
    return jnp.exp(candidates.log_prob_BK / jnp.maximum(candidates.length_BK, 1))


def _gather_path(pool: KeyValues, path_BD: jax.Array) -> KeyValues:
    """The pages on each problem's path, `[Y, B, G, D, L, C]`."""
    row = jnp.arange(path_BD.shape[0])[:, None]
    return jax.tree.map(lambda pages: pages[:, row, path_BD].swapaxes(2, 3), pool)


def _result(tree, config: SearchConfig) -> Tree:
    node: Node = tree.embeddings
    visited_BNK = tree.children_visits > 0
    q_BNK = tree.children_rewards + tree.children_discounts * tree.children_values
    expanded_BN = node.expanded_B
    completed = jax.vmap(jax.vmap(selection.completed_q, in_axes=(None, 0, None)), in_axes=(0, None, None))
    nodes = jnp.arange(tree.node_values.shape[1])
    tokens_BNK = node.candidates.length_BK * node.candidates.count_BK  # Equal samples were all written.
    return Tree(
        expanded_BN=expanded_BN,
        parent_BN=tree.parents,
        action_BN=tree.action_from_parent,
        legal_BN=node.legal_B,
        depth_BN=node.depth_B,
        path_log_prob_BN=node.log_prob_B,
        path_BND=node.path_BD,
        visits_BN=tree.node_visits,
        raw_value_BN=node.raw_value_B,
        value_BN=tree.node_values,
        children_BNK=tree.children_index,
        child_visits_BNK=tree.children_visits,
        q_BNK=jnp.where(visited_BNK, q_BNK, 0.0),
        completed_q_BNK=completed(tree, nodes, config.completion),
        child_value_BNK=node.child_value_BK,
        prior_logits_BNK=tree.children_prior_logits,
        gumbel_BNK=node.candidates.root_gumbel_BK,
        log_prob_BNK=node.candidates.log_prob_BK,
        tokens_BNKL=node.candidates.tokens_BKL,
        length_BNK=node.candidates.length_BK,
        valid_BNK=node.valid_BK,
        legal_BNK=node.legal_BK,
        done_BNK=node.done_BK,
        reward_BNK=node.reward_BK,
        written_BNK=node.candidates.valid_BK & expanded_BN[..., None],
        tokens_generated_B=jnp.sum(tokens_BNK * expanded_BN[..., None], (1, 2)),
        root_action_B=selection.final_action(tree, config),
    )
