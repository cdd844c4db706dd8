"""Low-rank adaptation (Hu et al. 2021): a model's matrices stay as they are, and small ones are trained beside them.

With `ModelConfig.lora.rank` above 0 a model has, for every adapted projection W, the matrices A and B of
x W + scale * x A B, where B starts at zero. Trained are these, the value head and the final norm. All else is frozen:
kept in the model's dtype, without gradient, average and optimizer state.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from alphallm.models.transformer import LoraConfig, ModelConfig

_TRAINED = ("value_", "final_norm")


def is_trained(path: str, config: ModelConfig) -> bool:
    """Whether the parameter with this name, its keys joined with "/", is trained."""
    name = path.rpartition("/")[2]
    return not config.lora.rank or "_lora_" in name or path.startswith(_TRAINED)


def split(params: Mapping[str, Any], config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trained and frozen parameters; without LoRA all are trained."""
    trained: dict[str, Any] = {}
    frozen: dict[str, Any] = {}
    dtype = jnp.dtype(config.dtype)

    def sort(group: Mapping[str, Any], prefix: str, trained: dict[str, Any], frozen: dict[str, Any]):
        for name, value in group.items():
            if isinstance(value, Mapping):
                sort(value, f"{prefix}{name}/", trained.setdefault(name, {}), frozen.setdefault(name, {}))
            elif is_trained(f"{prefix}{name}", config):
                trained[name] = value
            else:
                frozen[name] = jax.ShapeDtypeStruct(value.shape, dtype) if _is_shape(value) else value.astype(dtype)

    sort(params, "", trained, frozen)
    return trained, _without_empty(frozen)


def join(frozen: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split`: all parameters."""
    joined = dict(frozen)
    for name, value in trained.items():
        joined[name] = join(frozen.get(name, {}), value) if isinstance(value, Mapping) else value
    return joined


def merge(params: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The parameters of the same function as a model without LoRA, one matrix after the other; `plain` is its config.

    An adapted head of tied embeddings becomes an output matrix of its own.
    """
    if not config.lora.rank:
        return dict(params)
    layers = {name: value for name, value in params["layers"].items() if "_lora_" not in name}
    rest = {name: value for name, value in params.items() if "_lora_" not in name and name != "layers"}
    scale = config.lora.scale
    for name in layers:
        if f"{name}_lora_a" in params["layers"]:
            a, b = params["layers"][f"{name}_lora_a"], params["layers"][f"{name}_lora_b"]
            layers[name] = layers[name] + scale * jnp.einsum("yir,yro->yio", a, b).astype(layers[name].dtype)
    if "head_lora_a" in params:
        change = scale * (params["head_lora_a"] @ params["head_lora_b"]).T
        table = params["embedding" if config.tied_embeddings else "unembedding"]
        rest["unembedding"] = table + change.astype(table.dtype)
    return {**rest, "layers": layers}


def plain(config: ModelConfig) -> ModelConfig:
    """The config of what `merge` returns."""
    tied = config.tied_embeddings and not (config.lora.rank and "head" in config.lora.projections)
    return dataclasses.replace(config, lora=LoraConfig(), tied_embeddings=tied)


def _is_shape(value: Any) -> bool:
    return isinstance(value, jax.ShapeDtypeStruct)


def _without_empty(group: dict[str, Any]) -> dict[str, Any]:
    kept = {name: _without_empty(value) if isinstance(value, dict) else value for name, value in group.items()}
    return {name: value for name, value in kept.items() if not isinstance(value, dict) or value}
