"""The learner: the losses of rows and of demonstrations, and one optimizer step.

A row is scored in one packed pass: prompt, path and K candidates lie side by side, and each candidate attends to the
prompt, the path and itself. Nothing is computed twice for a shared prefix.
"""

import dataclasses
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
from alphallm.types import Tool, pytree

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
    is_step_T: jax.Array  # bool: the model is to write the token: it is of a step, and no tool wrote it.


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
    """Policy and value loss of rows [R, ...]: this device's share of the mean over a device axis, if there is one."""
    mean = functools.partial(losses.masked_mean, axis=axis)
    rows = _fewer_candidates(rows, config.training.candidates_per_row)
    log_prob_RK, value_RK, value_R = score(model, params, rows, tool)
    if config.targets.policy == "candidates":
        policy_R = jax.vmap(losses.policy_loss_among_candidates)(
            log_prob_RK, rows.written_K, rows.offset_K, rows.policy_K1[:, :-1]
        )
    elif config.targets.policy in ("sampled", "verified_paths"):
        policy_R = -jnp.sum(rows.policy_K1[:, :-1] * log_prob_RK, -1)
    else:
        policy_R = jax.vmap(losses.policy_loss_with_rest)(log_prob_RK, rows.written_K, rows.policy_K1)
    has_target = rows.policy_weight * rows.valid
    # Few rows led to a solution at first, and a mean over them alone would be an update as large as any other.
    over = rows.valid if config.targets.policy == "verified_paths" else has_target
    policy = mean(policy_R * has_target, over)
    node = losses.binary_cross_entropy(value_R, rows.value)
    candidate = losses.binary_cross_entropy(value_RK, rows.value_K)
    valid_R1 = rows.valid[:, None]
    value = 0.5 * mean(node, rows.value_weight * rows.valid)
    value += 0.5 * mean(candidate, rows.value_weight_K * valid_R1)
    # How far the policy has moved since the rows were searched.
    moved = jax.vmap(losses.kl_with_rest)(rows.log_prob_K, log_prob_RK, rows.written_K)
    metrics = {
        "loss/policy": policy,
        "loss/value": value,
        "targets/policy_entropy": mean(losses.entropy(rows.policy_K1), has_target),
        "policy/kl_since_search": mean(moved, has_target),
        "targets/value": mean(rows.value, rows.value_weight * rows.valid),
        "value/error": mean(jnp.square(jax.nn.sigmoid(value_RK) - rows.value_K), rows.value_weight_K * valid_R1),
    }
    return policy + config.training.value_weight * value, metrics


def _fewer_candidates(rows: Row, num: int) -> Row:
    """Keeps each row's `num` candidates that matter most; the others' share of the target joins the rest.

    A cross-entropy over any of the candidates and everything else has the same minimum, so this costs information, not
    truth. Kept are those that the target likes, then the illegal ones (which the policy should unlearn), then others.
    """
    total = rows.written_K.shape[1]
    if num >= total:
        return rows
    score = rows.policy_K1[:, :-1] + 0.01 * rows.value_weight_K + 0.001 * rows.written_K
    _, index = lax.top_k(score, num)

    def take(x):
        return jax.vmap(lambda row, i: row[i])(x, index)

    target = take(rows.policy_K1[:, :-1])
    rest = jnp.sum(rows.policy_K1, -1, keepdims=True) - jnp.sum(target, -1, keepdims=True)
    policy_K1 = jnp.concatenate([target, jnp.maximum(rest, 0.0)], -1)
    return dataclasses.replace(
        rows, policy_K1=policy_K1, **{name: take(getattr(rows, name)) for name in _PER_CANDIDATE}
    )


_PER_CANDIDATE = ("tokens_KL", "length_K", "written_K", "log_prob_K", "offset_K", "value_K", "value_weight_K")


@jax.named_scope("score")
def score(model: LanguageModel, params, rows: Row, tool: Tool | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probability [R, K] and value logit [R, K] of every candidate, and the value logit [R] of the node.

    What a tool wrote is in no log-probability.
    """
    num_rows, num_prompt = rows.prompt_P.shape
    _, num_path, max_length = rows.path_DL.shape
    num = rows.tokens_KL.shape[1]
    tokens, positions, real, group = pack(rows)
    earlier = jnp.arange(tokens.shape[1])[:, None] >= jnp.arange(tokens.shape[1])[None]
    # Group 0 is the shared prefix, group k + 1 candidate k.
    related = (group[:, None] == group[None]) | (group[None] == 0)
    mask = real[:, None] & (earlier & related)[None]
    hidden = model.trunk(params, tokens, positions, mask).hidden_BXE
    start = num_prompt + num_path * max_length
    # The last real prefix token lies on the path's last page if there is one, else at the prompt's end.
    depth = jnp.sum(rows.path_length_D > 0, -1)
    on_page = num_prompt + (depth - 1) * max_length + _last(rows.path_length_D, depth) - 1
    last = jnp.where(depth > 0, on_page, rows.prompt_length - 1)
    hidden_node = jnp.take_along_axis(hidden, last[:, None, None], 1)
    hidden_steps = hidden[:, start:].reshape(num_rows, num, max_length, -1)
    # Token l of a step is predicted from the position before it; the first one from the node itself.
    before = jnp.concatenate(
        [jnp.broadcast_to(hidden_node[:, None], (num_rows, num, 1, hidden.shape[-1])), hidden_steps[:, :, :-1]], 2
    )
    log_probs = jax.nn.log_softmax(model.logits(params, before))
    token_log_prob = jnp.take_along_axis(log_probs, rows.tokens_KL[..., None], -1)[..., 0]
    in_step = jnp.arange(max_length)[None, None] < rows.length_K[..., None]
    if tool is not None:
        in_step &= ~jax.vmap(jax.vmap(tool.forced_tokens))(rows.tokens_KL)
    log_prob = jnp.sum(jnp.where(in_step, token_log_prob, 0.0), -1)
    end = jnp.maximum(rows.length_K - 1, 0)[..., None, None]
    hidden_end = jnp.take_along_axis(hidden_steps, end, 2)[:, :, 0]
    return log_prob, model.value_logit(params, hidden_end), model.value_logit(params, hidden_node[:, 0])


def chain_loss(model: LanguageModel, params, chain: Chain, value_weight: float, axis: str | None = None):
    """Loss of whole demonstrated chains [R, ...]: next-token for their steps, value at the prompt's and steps' ends."""
    mean = functools.partial(losses.masked_mean, axis=axis)
    hidden, next_log_prob, tokens, is_step, is_end, real = _chain_pass(model, params, chain)
    policy = -mean(next_log_prob, is_step[:, 1:])
    outcome = jnp.broadcast_to(chain.outcome[:, None], tokens.shape)
    value = mean(losses.binary_cross_entropy(model.value_logit(params, hidden), outcome), is_end & real)
    return policy + value_weight * value, {"loss/policy": policy, "loss/value": value}


def packed_loss(model: LanguageModel, params, packed: Packed, axis: str | None = None):
    """Next-token loss of the steps of packed solutions [R, T]. The value head learns nothing: all of them are right."""
    same_text = packed.text_T[:, :, None] == packed.text_T[:, None]
    mask = same_text & causal_mask(*packed.tokens_T.shape)
    hidden = model.trunk(params, packed.tokens_T, packed.position_T, mask).hidden_BXE
    log_probs = jax.nn.log_softmax(model.logits(params, hidden[:, :-1]))
    next_log_prob = jnp.take_along_axis(log_probs, packed.tokens_T[:, 1:, None], -1)[..., 0]
    policy = -losses.masked_mean(next_log_prob, packed.is_step_T[:, 1:], axis)
    return policy, {"loss/policy": policy}


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


def _last(length_RD, depth_R):
    return jnp.take_along_axis(length_RD, jnp.maximum(depth_R - 1, 0)[:, None], 1)[:, 0]


def pack(rows: Row):
    """Tokens, positions and reality [R, T] of prefix and candidates side by side, and each position's group [T]."""
    num_rows, num_prompt = rows.prompt_P.shape
    _, num_path, max_length = rows.path_DL.shape
    num = rows.tokens_KL.shape[1]
    slot_P, slot_L = jnp.arange(num_prompt)[None], jnp.arange(max_length)[None, None]
    before_D = rows.prompt_length[:, None] + jnp.cumsum(rows.path_length_D, -1) - rows.path_length_D
    prefix_length = rows.prompt_length + jnp.sum(rows.path_length_D, -1)

    def flat(x):
        return x.reshape(num_rows, -1)

    tokens = jnp.concatenate([rows.prompt_P, flat(rows.path_DL), flat(rows.tokens_KL)], 1)
    positions = jnp.concatenate(
        [
            jnp.broadcast_to(slot_P, rows.prompt_P.shape),
            flat(before_D[..., None] + slot_L),
            flat(jnp.broadcast_to(prefix_length[:, None, None] + slot_L, rows.tokens_KL.shape)),
        ],
        1,
    )
    real = jnp.concatenate(
        [
            slot_P < rows.prompt_length[:, None],
            flat(slot_L < rows.path_length_D[..., None]),
            flat(slot_L < rows.length_K[..., None]),
        ],
        1,
    )
    group = jnp.concatenate(
        [jnp.zeros(num_prompt + num_path * max_length, jnp.int32), jnp.repeat(jnp.arange(1, num + 1), max_length)]
    )
    return tokens, positions, real, group
