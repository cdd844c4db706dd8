"""A decoder-only transformer with a policy head (its token logits) and a value head.

The block is that of Llama 3, Qwen2.5 and Qwen3: RMSNorm before each half, rotary positions, grouped-query attention
with optional biases and query-key norm, SwiGLU, optionally tied embeddings. The layers' parameters are stacked along a
leading axis `Y` and scanned, which traces and compiles in constant time and works inside `mctx`'s `recurrent_fn`.

One forward function serves prefill, appending a step, decoding candidates side by side, and training: `X` new positions
attend to any number of cached blocks and to each other under a mask that the caller gives.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from alphallm.errors import check_range
from alphallm.types import Branches, KeyValues, Past, pytree

_MASKED = -1e30  # Finite: a query that may attend to nothing gives numbers, not NaN.


@dataclasses.dataclass(frozen=True)
class RopeScalingConfig:
    """How the rotary frequencies are stretched for contexts longer than those of the pretraining."""

    # Linear divides all frequencies by the factor (Chen et al. 2023); llama3 the low ones only (Llama 3.1).
    kind: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    # llama3: a wave that fits fewer than `low` times into the pretraining's context is stretched, one that fits more
    # than `high` times is not, and what is between goes over smoothly.
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192

    def __post_init__(self):
        check_range(self, 1, math.inf, "factor", "original_positions")
        if not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise ValueError(
                f"low_frequency_factor is {self.low_frequency_factor} and high_frequency_factor is "
                f"{self.high_frequency_factor}: give numbers above 0, the second one the larger."
            )


PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down", "head")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation; see `alphallm.models.lora`."""

    rank: int = 0  # 0 trains all parameters.
    scale: float = 2.0  # what the change is multiplied by (alpha / rank in the paper).
    projections: tuple[str, ...] = PROJECTIONS  # which matrices of a layer, and the policy head.

    def __post_init__(self):
        check_range(self, 0, math.inf, "rank")
        unknown = [name for name in self.projections if name not in PROJECTIONS]
        if unknown or (self.rank and not self.projections):
            raise ValueError(f"projections={','.join(self.projections)}: give some of {', '.join(PROJECTIONS)}.")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The transformer's shape. The defaults are the small model of the Game of 24."""

    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    hidden_dim: int = 256  # of the SwiGLU.
    rope_theta: float = 10_000.0
    rope_scaling: RopeScalingConfig = RopeScalingConfig()
    norm_epsilon: float = 1e-6
    attention_bias: bool = False  # on the query, key and value projections (Qwen2.5).
    output_bias: bool = False  # on the attention's output projection (Llama's and Qwen3's option, with the others).
    qk_norm: bool = True  # RMSNorm of each head's queries and keys (Qwen3).
    tied_embeddings: bool = True
    # Of activations and cached keys and values, and of frozen parameters; those that are trained stay float32.
    dtype: str = "float32"
    lora: LoraConfig = LoraConfig()


@pytree
class Hidden:
    """What the trunk computes for X new positions."""

    hidden_BXE: jax.Array  # after the final norm.
    keys_values: KeyValues  # of the new positions: [Y, B, G, X, C] each.


class _Parameters(nnx.Module):
    """Named parameters. (nnx.Dict is newer than the oldest flax supported.)"""

    def __init__(self, **parameters: nnx.Param):
        for name, parameter in parameters.items():
            setattr(self, name, parameter)

    def named(self) -> dict[str, nnx.Param]:
        return {name: value for name, value in vars(self).items() if isinstance(value, nnx.Param)}


class Transformer(nnx.Module):
    """Holds the parameters; `trunk`, `logits` and `value_logit` are pure in them."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, *, rngs: nnx.Rngs):
        self.config = config
        y, e, f = config.num_layers, config.width, config.hidden_dim
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def matrix(fan_in: int, *shape: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), shape) * fan_in**-0.5)

        def residual(fan_in: int, *shape: int) -> nnx.Param:
            # Projections that write into the residual stream start smaller (GPT-2): depth does not grow its variance.
            return nnx.Param(jax.random.normal(rngs.params(), shape) * (2 * y * fan_in) ** -0.5)

        # Tied embeddings serve as the output projection too, so their scale is that of a projection.
        self.embedding = matrix(e, vocabulary_size, e)
        layers = {
            "attention_norm": nnx.Param(jnp.ones((y, e))),
            "q": matrix(e, y, e, queries),
            "k": matrix(e, y, e, keys),
            "v": matrix(e, y, e, keys),
            "o": residual(queries, y, queries, e),
            "mlp_norm": nnx.Param(jnp.ones((y, e))),
            "gate": matrix(e, y, e, f),
            "up": matrix(e, y, e, f),
            "down": residual(f, y, f, e),
        }
        if config.attention_bias:
            layers["q_bias"] = nnx.Param(jnp.zeros((y, queries)))
            layers["k_bias"] = nnx.Param(jnp.zeros((y, keys)))
            layers["v_bias"] = nnx.Param(jnp.zeros((y, keys)))
        if config.output_bias:
            layers["o_bias"] = nnx.Param(jnp.zeros((y, e)))
        if config.qk_norm:
            layers["q_norm"] = nnx.Param(jnp.ones((y, config.head_dim)))
            layers["k_norm"] = nnx.Param(jnp.ones((y, config.head_dim)))
        lora = config.lora
        for name in [name for name in lora.projections if lora.rank and name != "head"]:
            _, inputs, outputs = layers[name].shape
            layers[f"{name}_lora_a"] = matrix(inputs, y, inputs, lora.rank)
            layers[f"{name}_lora_b"] = nnx.Param(jnp.zeros((y, lora.rank, outputs)))
        if lora.rank and "head" in lora.projections:
            self.head_lora_a = matrix(e, e, lora.rank)
            self.head_lora_b = nnx.Param(jnp.zeros((lora.rank, vocabulary_size)))
        self.layers = _Parameters(**layers)
        self.final_norm = nnx.Param(jnp.ones(e))
        if not config.tied_embeddings:
            self.unembedding = matrix(e, vocabulary_size, e)
        self.value_hidden = matrix(e, e, e)
        self.value_hidden_bias = nnx.Param(jnp.zeros(e))
        self.value_out = nnx.Param(jnp.zeros(e))
        self.value_bias = nnx.Param(jnp.zeros(()))

    def trunk(
        self,
        tokens_BX: jax.Array,
        positions_BX: jax.Array,
        mask_BXX: jax.Array | Branches | None,
        past: Sequence[Past] = (),
    ) -> Hidden:
        """Runs the layers over X new positions.

        Args:
          tokens_BX: the new tokens.
          positions_BX: their positions in the sequence, for the rotary embedding; any order, repeats allowed.
          mask_BXX: True where new position x (second axis) may attend to new position (third axis); `Branches` says the
            same of texts that branch, and None lets each position attend to itself alone.
          past: cached blocks to attend to as well, each with its own mask.
        """
        dtype = jnp.dtype(self.config.dtype)
        cos_BX1C, sin_BX1C = _rotary(positions_BX, _frequencies(self.config), dtype)
        masks = [p.mask_BXS for p in past] + _masks(mask_BXX, tokens_BX.shape[1])
        bias = [jnp.where(m[:, None, None], 0.0, _MASKED) for m in masks]

        # Activations are [B * X, E] matrices: weight gradients are then plain products, without a transposed copy.
        # A layer's activations are computed again for its gradient; on a CPU that is faster than fetching them.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def block(x_RE, layer_and_past):
            layer, cached = layer_and_past
            layer = jax.tree.map(lambda p: p.astype(dtype), layer)
            normed = _rms_norm(x_RE, layer["attention_norm"], self.config.norm_epsilon)
            attended, keys_values = self._attention(layer, normed, cos_BX1C, sin_BX1C, cached, bias, mask_BXX)
            x_RE = x_RE + attended
            normed = _rms_norm(x_RE, layer["mlp_norm"], self.config.norm_epsilon)
            with jax.named_scope("mlp"):
                hidden = jax.nn.silu(self._project(layer, "gate", normed)) * self._project(layer, "up", normed)
                x_RE = x_RE + self._project(layer, "down", hidden)
            return x_RE, keys_values

        layers = {name: parameter[...] for name, parameter in self.layers.named().items()}
        x_RE = self.embedding[...].astype(dtype)[tokens_BX.reshape(-1)]
        x_RE, keys_values = lax.scan(block, x_RE, (layers, tuple(p.keys_values for p in past)))
        x_RE = _rms_norm(x_RE, self.final_norm[...], self.config.norm_epsilon)
        return Hidden(x_RE.reshape(*tokens_BX.shape, -1), keys_values)

    @jax.named_scope("attention")
    def _attention(self, layer, x_RE, cos_BX1C, sin_BX1C, cached, bias, mask_BXX):
        config = self.config
        b, x = cos_BX1C.shape[:2]
        g, c = config.num_kv_heads, config.head_dim

        def project(name: str) -> jax.Array:
            y = self._project(layer, name, x_RE)
            if config.attention_bias:
                y = y + _like(layer[f"{name}_bias"], y)
            return y.reshape(b, x, -1, c)

        q, k, v = project("q"), project("k"), project("v")
        if config.qk_norm:
            q = _rms_norm(q, layer["q_norm"], config.norm_epsilon)
            k = _rms_norm(k, layer["k_norm"], config.norm_epsilon)
        q, k = _rotate(q, cos_BX1C, sin_BX1C), _rotate(k, cos_BX1C, sin_BX1C)
        k_BGXC, v_BGXC = k.swapaxes(1, 2), v.swapaxes(1, 2)

        heads = config.num_heads // g
        q_BGHXC = q.reshape(b, x, g, heads, c).transpose(0, 2, 3, 1, 4) * c**-0.5
        new = KeyValues(k_BGXC, v_BGXC)
        blocks = [*cached, *_blocks(mask_BXX, new)]
        scores = [_scores(q_BGHXC, kv.keys) + m for kv, m in zip(blocks, bias, strict=True)]
        weights = jax.nn.softmax(_widened(jnp.concatenate(scores, -1)), -1).astype(v.dtype)
        parts, start = [], 0
        for kv in blocks:
            size = kv.keys.shape[-2]
            parts.append(_weighted_sum(weights[..., start : start + size], kv.values))
            start += size
        attended = sum(parts[1:], parts[0]).transpose(0, 3, 1, 2, 4).reshape(b * x, -1)
        attended = self._project(layer, "o", attended)
        if config.output_bias:
            attended = attended + _like(layer["o_bias"], attended)
        return attended, new

    def _project(self, layer, name: str, x):
        """x W, and what LoRA adds to it."""
        y = x @ layer[name]
        if f"{name}_lora_a" in layer:
            y = y + self.config.lora.scale * ((x @ layer[f"{name}_lora_a"]) @ layer[f"{name}_lora_b"])
        return y

    @jax.named_scope("policy_head")
    def logits(self, hidden_E: jax.Array) -> jax.Array:
        """The policy head: next-token logits, float32, for hidden states `[..., E]`."""
        table = self.embedding if self.config.tied_embeddings else self.unembedding
        # Sums of a bfloat16 product are kept in float32, not rounded and widened again.
        wide = _wide(hidden_E.dtype)
        logits = jnp.matmul(hidden_E, table[...].astype(hidden_E.dtype).T, preferred_element_type=wide)
        if self.config.lora.rank and "head" in self.config.lora.projections:
            a, b = (x[...].astype(hidden_E.dtype) for x in (self.head_lora_a, self.head_lora_b))
            logits = logits + self.config.lora.scale * jnp.matmul(hidden_E @ a, b, preferred_element_type=wide)
        return logits

    @jax.named_scope("value_head")
    def value_logit(self, hidden_E: jax.Array) -> jax.Array:
        """The value head: the logit of the expected outcome in [0, 1], float32, for hidden states `[..., E]`."""
        h = jax.nn.silu(_widened(hidden_E) @ self.value_hidden[...] + _like(self.value_hidden_bias[...], hidden_E))
        return h @ self.value_out[...] + self.value_bias[...]


def _masks(mask_BXX, x: int) -> list[jax.Array]:
    """The masks [B or 1, X or 1, S] of the blocks that `_blocks` makes of new positions."""
    if mask_BXX is None:
        return [jnp.ones((1, 1, 1), bool)]
    if not isinstance(mask_BXX, Branches):
        return [mask_BXX]
    own = mask_BXX.own_JLL.reshape(-1, mask_BXX.own_JLL.shape[-1])
    return [mask_BXX.mask_BXS, jnp.pad(own, ((x - len(own), 0), (0, 0)))[None]]


def _blocks(mask_BXX, new: KeyValues) -> list[KeyValues]:
    """Keys and values [B, G, X, C] of new positions, as those that attend to them share them."""
    if mask_BXX is None:
        return [jax.tree.map(lambda y: y[..., None, :], new)]
    if not isinstance(mask_BXX, Branches):
        return [new]
    num, size = mask_BXX.own_JLL.shape[:2]
    shared = jax.tree.map(lambda y: jnp.take_along_axis(y, mask_BXX.shared_BS[:, None, :, None], 2), new)
    own = jax.tree.map(lambda y: y[:, :, -num * size :].reshape(*y.shape[:2], num, size, -1), new)
    return [shared, own]


def _scores(q_BGHXC, keys):
    """[B, G, H, X, S]: of keys `[B, G, S, C]` that all X share, or `[B, G, X, S, C]` that are each one's own, or
    `[B, G, J, S, C]` that each of the last J * S has in common with its branch (0 for the others).
    """
    b, g, h, x, c = q_BGHXC.shape
    if keys.ndim == 4:
        # All query heads of a key-value head form one matrix: each block of keys is read once, by one product.
        return jnp.einsum("bgrc,bgsc->bgrs", q_BGHXC.reshape(b, g, h * x, c), keys).reshape(b, g, h, x, -1)
    j, s = keys.shape[2:4]
    if j == x:
        return jnp.sum(q_BGHXC[..., None, :] * keys[:, :, None], -1)
    scores = jnp.einsum("bghjlc,bgjsc->bghjls", q_BGHXC[..., -j * s :, :].reshape(b, g, h, j, s, c), keys)
    return jnp.pad(scores.reshape(b, g, h, j * s, s), ((0, 0), (0, 0), (0, 0), (x - j * s, 0), (0, 0)))


def _weighted_sum(weights_BGHXS, values):
    """[B, G, H, X, C]: of values with the axes of `_scores`' keys."""
    b, g, h, x, s = weights_BGHXS.shape
    if values.ndim == 4:
        return jnp.einsum("bgrs,bgsc->bgrc", weights_BGHXS.reshape(b, g, h * x, s), values).reshape(b, g, h, x, -1)
    j = values.shape[2]
    if j == x:
        return jnp.sum(weights_BGHXS[..., None] * values[:, :, None], -2)
    weights = weights_BGHXS[..., -j * s :, :].reshape(b, g, h, j, s, s)
    summed = jnp.einsum("bghjls,bgjsc->bghjlc", weights, values).reshape(b, g, h, j * s, -1)
    return jnp.pad(summed, ((0, 0), (0, 0), (0, 0), (x - j * s, 0), (0, 0)))


def _wide(dtype):
    """Where sums are kept: float32, or float64 where that is what a test asks for."""
    return jnp.promote_types(dtype, jnp.float32)


def _widened(x):
    return x.astype(_wide(x.dtype))


def _like(bias, x):
    """The bias with leading axes of size one, so that adding it promotes no rank."""
    return bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _rms_norm(x, scale_E, epsilon):
    y = _widened(x)
    y = y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + epsilon)
    return y.astype(x.dtype) * _like(scale_E.astype(x.dtype), x)


def _frequencies(config: ModelConfig):
    """Float32 [C / 2]: the rotary embedding's radians a position, the fastest first."""
    frequencies = config.rope_theta ** (-jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim)
    scaling = config.rope_scaling
    if scaling.kind == "none":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    waves = scaling.original_positions * frequencies / (2 * jnp.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = jnp.clip((waves - low) / (high - low), 0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def _rotary(positions_BX, frequencies, dtype):
    # In float32 whatever the dtype: bfloat16 can not tell position 1000 from 1001.
    angles = positions_BX[..., None, None].astype(jnp.float32) * frequencies[None, None, None]
    angles = jnp.concatenate([angles, angles], -1)  # the rotate-half layout of the Hugging Face models.
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def _rotate(x_BXHC, cos, sin):
    first, second = jnp.split(x_BXHC, 2, axis=-1)
    return x_BXHC * cos + jnp.concatenate([-second, first], -1) * sin


class LanguageModel:
    """The transformer as pure functions of a plain dict of parameters.

    NNX is split once, here; everything else in the library carries `params`, a nested dict of arrays.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int):
        self.config = config
        self.vocabulary_size = vocabulary_size
        abstract = nnx.eval_shape(lambda: Transformer(config, vocabulary_size, rngs=nnx.Rngs(0)))
        self._graph, self._state = nnx.split(abstract)

    def init(self, key: jax.Array):
        """Random parameters; eager, because compiling the initialisation costs seconds on a CPU."""
        return nnx.to_pure_dict(nnx.state(Transformer(self.config, self.vocabulary_size, rngs=nnx.Rngs(params=key))))

    def _bind(self, params) -> Transformer:
        state = jax.tree.map(lambda x: x, self._state)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self._graph, state, copy=True)

    def trunk(self, params, tokens_BX, positions_BX, mask_BXX, past: Sequence[Past] = ()) -> Hidden:
        return self._bind(params).trunk(tokens_BX, positions_BX, mask_BXX, past)

    def logits(self, params, hidden_E) -> jax.Array:
        return self._bind(params).logits(hidden_E)

    def value_logit(self, params, hidden_E) -> jax.Array:
        return self._bind(params).value_logit(hidden_E)

    def num_params(self) -> int:
        return sum(x.size for x in jax.tree.leaves(self._state))

    def flops_per_token(self) -> int:
        """Forward FLOPs of one token: two for each parameter of a matrix product (attention scores left out)."""
        looked_up = 0 if self.config.tied_embeddings else self.vocabulary_size * self.config.width
        return 2 * (self.num_params() - looked_up)
