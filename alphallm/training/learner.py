"""The learner: the losses of rows and of demonstrations, and one optimizer step.

A row is scored in one packed pass: behind the prompt lie the K candidates of all M nodes side by side, and each attends
to the prompt, to those candidates that are the steps on the way to its node, and to itself. Nothing is computed twice.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from alphallm import losses
from alphallm.decode import causal_mask
from alphallm.models import LanguageModel, lora
from alphallm.training.config import Config, OptimizerConfig
from alphallm.training.targets import Row
from alphallm.types import Branches, Tool, pytree

AXIS = "data"


@pytree
class Learner:
    """What training changes, replay aside."""

    params: Any  # those that are trained: all of them, unless the model has LoRA.
    frozen: Any  # the others, in the model's dtype.
    average: Any  # exponential moving average of params, what evaluation and export use.
    optimizer: optax.OptState
    step: jax.Array  # int32: optimizer steps so far.

    @property
    def weights(self) -> dict[str, Any]:
        """All parameters."""
        return lora.join(self.frozen, self.params)

    @property
    def average_weights(self) -> dict[str, Any]:
        return lora.join(self.frozen, self.average)


@pytree
class Chain:
    """A demonstrated solution or attempt: a prompt and its steps."""

    prompt_P: jax.Array  # int32
    prompt_length: jax.Array  # int32
    tokens_DL: jax.Array  # int32
    length_D: jax.Array  # int32: 0 past the last step.
    outcome: jax.Array  # float32 in [0, 1]: the reward at its end.


@pytree
class Packed:
    """Worked solutions with their prompts, several in one sequence: nothing is computed for padding."""

    tokens_T: jax.Array  # int32
    position_T: jax.Array  # int32: of each token within its text.
    text_T: jax.Array  # int32: which text a token belongs to, counted from 1; 0 for padding.
    is_step_T: jax.Array  # bool: the model is to write the token: it is of a solution's step, and no tool wrote it.
    steps_left_T: jax.Array  # int32: at a prompt's or a step's last token, the steps after it; 0 at all others.


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping, and AdamW or Muon."""
    if config.name == "adamw":
        update = optax.adamw(schedule, b2=0.99, weight_decay=config.weight_decay, mask=_is_matrix)
    else:
        update = _muon(config, schedule)
    return optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), update)


def _is_matrix(params):
    """True for what weight decay applies to: matrices, not norms and biases (a layer's are stacked: one axis more)."""
    return {
        name: jax.tree.map(lambda x: x.ndim > 2, leaf) if name == "layers" else leaf.ndim > 1
        for name, leaf in params.items()
    }


def _muon(config: OptimizerConfig, schedule) -> optax.GradientTransformation:
    """Muon for the layers' matrices (each layer's own, though stacked), AdamW for all else."""

    def labels(params):
        return {
            name: jax.tree.map(lambda x: "muon" if x.ndim == 3 else "adamw", leaf) if name == "layers" else "adamw"
            for name, leaf in params.items()
        }

    dimensions = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    muon = optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=lambda p: jax.tree.map(lambda _: dimensions, p)),
        # An orthogonal update's entries are smaller the larger the matrix; this gives them the size of Adam's, so that
        # one learning rate serves both (Liu et al. 2025, "Muon is scalable for LLM training", equation 4).
        optax.stateless(lambda u, _: jax.tree.map(lambda x: 0.2 * max(x.shape[1:]) ** 0.5 * x, u)),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )
    adamw = optax.adamw(schedule, b2=0.99, weight_decay=config.weight_decay, mask=_is_matrix)
    return optax.multi_transform({"muon": muon, "adamw": adamw}, labels)


def init(config: Config, params, schedule: optax.Schedule) -> Learner:
    optimizer = make_optimizer(config.optimizer, schedule)
    trained, frozen = lora.split(params, config.model)
    return Learner(trained, frozen, jax.tree.map(jnp.copy, trained), optimizer.init(trained), jnp.int32(0))


def update(learner: Learner, config: OptimizerConfig, schedule: optax.Schedule, loss_fn, batch):
    """One step on `loss_fn(weights, batch) -> (loss, metrics)`, averaged over devices.

    With `config.micro_batches` above 1 the batch's rows are worked through in as many parts, one after the other, and
    the parts' gradients averaged: activations are then those of a part.
    """
    of_trained = lambda params, part: loss_fn(lora.join(learner.frozen, params), part)
    gradient_of = jax.value_and_grad(of_trained, has_aux=True)
    parts = config.micro_batches
    if parts == 1:
        (_, metrics), gradient = gradient_of(learner.params, batch)
    else:

        def add(total, part):
            (_, metrics), gradient = gradient_of(learner.params, part)
            return jax.tree.map(lambda x, y: x + y / parts, total, (gradient, metrics)), None

        split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        one = jax.tree.map(lambda x: x[0], split)
        shapes = jax.eval_shape(gradient_of, learner.params, one)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[1], shapes[0][1]))
        (gradient, metrics), _ = lax.scan(add, nothing, split)
    gradient, metrics = lax.pmean((gradient, metrics), AXIS)
    with jax.named_scope("optimizer"):
        changes, optimizer = make_optimizer(config, schedule).update(gradient, learner.optimizer, learner.params)
        params = optax.apply_updates(learner.params, changes)
    # Early averages are shorter, so that the first evaluations are not those of random weights.
    decay = jnp.minimum(config.ema_decay, (1.0 + learner.step) / (10.0 + learner.step))
    decay = jnp.where(config.ema_decay > 0, decay, 0.0)
    average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, learner.average, params)
    metrics["gradient_norm"] = optax.global_norm(gradient)
    return Learner(params, learner.frozen, average, optimizer, learner.step + 1), metrics


def row_loss(
    model: LanguageModel, params, rows: Row, config: Config, axis: str | None = None, tool: Tool | None = None
):
    """Policy and value loss of the nodes of rows [R, ...]: this device's share of the mean over a device axis."""
    mean = functools.partial(losses.masked_mean, axis=axis)
    log_prob_RMK, value_RMK, value_RM = score(model, params, rows, tool)
    if config.targets.policy == "candidates":
        policy_RM = _over_nodes(losses.policy_loss_among_candidates)(
            log_prob_RMK, rows.written_MK, rows.offset_MK, rows.policy_MK1[..., :-1]
        )
    elif config.targets.policy in ("sampled", "verified_paths"):
        policy_RM = -jnp.sum(rows.policy_MK1[..., :-1] * log_prob_RMK, -1)
    else:
        policy_RM = _over_nodes(losses.policy_loss_with_rest)(log_prob_RMK, rows.written_MK, rows.policy_MK1)
    # A row of padding alone weighs nothing, whatever is in it.
    valid_RM = rows.valid_M & rows.valid[:, None]
    has_target = rows.policy_weight_M * valid_RM
    # Few nodes led to a solution at first, and a mean over them alone would be an update as large as any other.
    over = valid_RM if config.targets.policy == "verified_paths" else has_target
    policy = mean(policy_RM * has_target, over)
    node = losses.binary_cross_entropy(value_RM, rows.value_M)
    candidate = losses.binary_cross_entropy(value_RMK, rows.value_MK)
    of_nodes, of_candidates = rows.value_weight_M * valid_RM, rows.value_weight_MK * valid_RM[..., None]
    value = 0.5 * mean(node, of_nodes) + 0.5 * mean(candidate, of_candidates)
    # How far the policy has moved since the rows were searched.
    moved = _over_nodes(losses.kl_with_rest)(rows.log_prob_MK, log_prob_RMK, rows.written_MK)
    metrics = {
        "loss/policy": policy,
        "loss/value": value,
        "targets/policy_entropy": mean(losses.entropy(rows.policy_MK1), has_target),
        "policy/kl_since_search": mean(moved, has_target),
        "targets/value": mean(rows.value_M, of_nodes),
        "value/error": mean(jnp.square(jax.nn.sigmoid(value_RMK) - rows.value_MK), of_candidates),
    }
    return policy + config.training.value_weight * value, metrics


def _over_nodes(loss):
    return jax.vmap(jax.vmap(loss))


@jax.named_scope("score")
def score(model: LanguageModel, params, rows: Row, tool: Tool | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probability [R, M, K] and value logit [R, M, K] of every candidate, and the value logit [R, M] of the nodes.

    What a tool wrote is in no log-probability.
    """
    num_rows, num_prompt = rows.prompt_P.shape
    _, num_nodes, num, max_length = rows.tokens_MKL.shape
    tokens, positions, branches = pack(rows)
    hidden = model.trunk(params, tokens, positions, branches).hidden_BXE
    # A node is read at the last token of the step that leads to it, the root at the prompt's.
    step_RM, step_length_RM = _leading_steps(rows)
    end_RM = num_prompt + step_RM * max_length + step_length_RM - 1
    last_RM = jnp.where(rows.parent_M >= 0, end_RM, rows.prompt_length[:, None] - 1)
    hidden_node = jnp.take_along_axis(hidden, last_RM[..., None], 1)
    hidden_steps = hidden[:, num_prompt:].reshape(num_rows, num_nodes, num, max_length, -1)
    # Token l of a step is predicted from the position before it; the first one from the node itself.
    first = jnp.broadcast_to(hidden_node[:, :, None, None], (*hidden_steps.shape[:3], 1, hidden.shape[-1]))
    before = jnp.concatenate([first, hidden_steps[..., :-1, :]], -2)
    log_probs = jax.nn.log_softmax(model.logits(params, before))
    token_log_prob = jnp.take_along_axis(log_probs, rows.tokens_MKL[..., None], -1)[..., 0]
    in_step = jnp.arange(max_length)[None, None, None] < rows.length_MK[..., None]
    if tool is not None:
        in_step &= ~_over_nodes(jax.vmap(tool.forced_tokens))(rows.tokens_MKL)
    log_prob = jnp.sum(jnp.where(in_step, token_log_prob, 0.0), -1)
    end = jnp.maximum(rows.length_MK - 1, 0)[..., None, None]
    hidden_end = jnp.take_along_axis(hidden_steps, end, 3)[:, :, :, 0]
    return log_prob, model.value_logit(params, hidden_end), model.value_logit(params, hidden_node)


def chain_loss(
    model: LanguageModel, params, chain: Chain, value_weight: float, discount: float = 1.0, axis: str | None = None
):
    """Loss of whole demonstrated chains [R, ...]: next-token for their steps, value at the prompt's and steps' ends."""
    mean = functools.partial(losses.masked_mean, axis=axis)
    hidden, next_log_prob, tokens, is_step, is_end, real = _chain_pass(model, params, chain)
    policy = -mean(next_log_prob, is_step[:, 1:])
    is_end &= real
    steps_left = jnp.sum(is_end, 1, keepdims=True) - jnp.cumsum(is_end, 1)
    outcome = chain.outcome[:, None] * discount ** jnp.maximum(steps_left - 1, 0)
    value = mean(losses.binary_cross_entropy(model.value_logit(params, hidden), outcome), is_end)
    return policy + value_weight * value, {"loss/policy": policy, "loss/value": value}


def packed_loss(
    model: LanguageModel,
    params,
    packed: Packed,
    value_weight: float = 0.0,
    discount: float = 1.0,
    axis: str | None = None,
):
    """Next-token loss of the steps of packed solutions [R, T], and value loss at all ends but the last of each.

    All of them are right, so without a discount the value head would learn nothing but that, and has no loss. With one
    it learns how many steps are left.
    """
    same_text = packed.text_T[:, :, None] == packed.text_T[:, None]
    mask = same_text & causal_mask(*packed.tokens_T.shape)
    hidden = model.trunk(params, packed.tokens_T, packed.position_T, mask).hidden_BXE
    log_probs = jax.nn.log_softmax(model.logits(params, hidden[:, :-1]))
    next_log_prob = jnp.take_along_axis(log_probs, packed.tokens_T[:, 1:, None], -1)[..., 0]
    policy = -losses.masked_mean(next_log_prob, packed.is_step_T[:, 1:], axis)
    if discount == 1.0:
        return policy, {"loss/policy": policy}
    worth = discount ** (packed.steps_left_T - 1)
    value = losses.binary_cross_entropy(model.value_logit(params, hidden), worth)
    value = losses.masked_mean(value, packed.steps_left_T > 0, axis)
    return policy + value_weight * value, {"loss/policy": policy, "loss/value": value}


def chain_log_prob(model: LanguageModel, params, chain: Chain, tool: Tool | None = None) -> jax.Array:
    """Log-probability [R] of each chain's steps after its prompt, what a tool wrote left out."""
    _, next_log_prob, _, is_step, _, _ = _chain_pass(model, params, chain, tool)
    return jnp.sum(jnp.where(is_step[:, 1:], next_log_prob, 0.0), -1)


def _chain_pass(model: LanguageModel, params, chain: Chain, tool: Tool | None = None):
    """Hidden states [R, T, E], log-probabilities [R, T - 1] of the next tokens, and what `compact` returns."""
    tokens, is_step, is_end, real = compact(chain, tool)
    num_rows, size = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(size)[None], (num_rows, size))
    hidden = model.trunk(params, tokens, positions, causal_mask(num_rows, size)).hidden_BXE
    log_probs = jax.nn.log_softmax(model.logits(params, hidden[:, :-1]))
    next_log_prob = jnp.take_along_axis(log_probs, tokens[:, 1:, None], -1)[..., 0]
    return hidden, next_log_prob, tokens, is_step, is_end, real


def compact(chain: Chain, tool: Tool | None = None):
    """Chains as plain sequences [R, T]: tokens, which the model wrote in steps, at which a value is read, and real."""
    num_rows, num_prompt = chain.prompt_P.shape
    _, _, max_length = chain.tokens_DL.shape
    slot_P, slot_L = jnp.arange(num_prompt)[None], jnp.arange(max_length)[None, None]

    def join(of_prompt, of_steps):
        return jnp.concatenate([of_prompt, of_steps.reshape(num_rows, -1)], 1)

    real = join(slot_P < chain.prompt_length[:, None], slot_L < chain.length_D[..., None])
    written = slot_L < chain.length_D[..., None]
    if tool is not None:
        written &= ~jax.vmap(jax.vmap(tool.forced_tokens))(chain.tokens_DL)
    is_step = join(jnp.zeros_like(chain.prompt_P, bool), written)
    is_end = join(slot_P == chain.prompt_length[:, None] - 1, slot_L == chain.length_D[..., None] - 1)
    order = jnp.argsort(~real, axis=1, stable=True)
    pick = lambda x: jnp.take_along_axis(x, order, 1)
    return pick(join(chain.prompt_P, chain.tokens_DL)), pick(is_step), pick(is_end), pick(real)


def pack(rows: Row):
    """Tokens and positions [R, T], and who attends to whom, of prompts and all nodes' candidates behind them.

    A candidate attends to the prompt, to the steps on the way to its node, and to itself.
    """
    num_rows, num_prompt = rows.prompt_P.shape
    _, num_nodes, num, max_length = rows.tokens_MKL.shape
    step_RM, length_RM = _leading_steps(rows)
    way_RMM = jax.vmap(_ways)(rows.parent_M)
    start_RM = rows.prompt_length[:, None] + jnp.einsum("rmn,rn->rm", way_RMM.astype(jnp.int32), length_RM)
    slot_P, slot_L = jnp.arange(num_prompt)[None], jnp.arange(max_length)[None, None]
    slot_RP = jnp.broadcast_to(slot_P, rows.prompt_P.shape)

    def join(of_prompts, of_steps):
        return jnp.concatenate([of_prompts, of_steps.reshape(num_rows, -1)], 1)

    tokens = join(rows.prompt_P, rows.tokens_MKL)
    positions = join(slot_RP, jnp.repeat(start_RM, num, 1)[..., None] + slot_L)
    # Shared are the prompt and the steps that lead to the nodes after the root.
    step_RN, length_RN, way_RMN = step_RM[:, 1:], length_RM[:, 1:], way_RMM[..., 1:]
    shared = join(slot_RP, num_prompt + step_RN[..., None] * max_length + slot_L)
    real_RP = slot_P < rows.prompt_length[:, None]
    on_way_RMNL = way_RMN[..., None] & (slot_L < length_RN[..., None])[:, None]
    sees_prompt_RMP = jnp.broadcast_to(real_RP[:, None], (num_rows, num_nodes, num_prompt))
    of_nodes_RMS = jnp.concatenate([sees_prompt_RMP, on_way_RMNL.reshape(num_rows, num_nodes, -1)], -1)
    of_prompt_RPP = jnp.tri(num_prompt, dtype=bool)[None] & real_RP[:, None]
    of_prompt_RPS = jnp.pad(of_prompt_RPP, ((0, 0), (0, 0), (0, shared.shape[1] - num_prompt)))
    mask = jnp.concatenate([of_prompt_RPS, jnp.repeat(of_nodes_RMS, num * max_length, 1)], 1)
    own = jnp.broadcast_to(jnp.tri(max_length, dtype=bool), (num_nodes * num, max_length, max_length))
    return tokens, positions, Branches(shared, mask, own)


def _leading_steps(rows: Row) -> tuple[jax.Array, jax.Array]:
    """Which of its row's M * K steps leads to each node, and that one's length, [R, M]; rubbish for the root."""
    num_rows, _, num = rows.length_MK.shape
    step_RM = jnp.maximum(rows.parent_M * num + rows.action_M, 0)
    return step_RM, jnp.take_along_axis(rows.length_MK.reshape(num_rows, -1), step_RM, 1)


def _ways(parent_M) -> jax.Array:
    """Bool [M, M]: whether node n is on the way from the root, which is not, to node m, or m itself."""
    itself = jnp.diag(parent_M >= 0)

    def add(m, way_MM):
        return way_MM.at[m].set(itself[m] | (way_MM[parent_M[m]] & (parent_M[m] >= 0)))

    return lax.fori_loop(1, len(parent_M), add, jnp.zeros_like(itself))
