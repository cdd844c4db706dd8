"""Weights without the rest of a run: a folder of `weights.safetensors`, `config.json` and `metrics.json`."""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from alphallm.errors import UserError

WEIGHTS, CONFIG, METRICS = "weights.safetensors", "config.json", "metrics.json"
_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}
_FORMAT = {"format": "alphallm 1"}


def export_weights(
    folder: str | os.PathLike,
    params: Mapping[Any, Any],
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    dtype: str = "float32",
) -> None:
    """Writes parameters (nested dicts of arrays) as `dtype`, "float32" or "bfloat16", with their config and metrics.

    Names are the keys joined with "/". Each file appears whole or not at all.
    """
    if dtype not in _DTYPES:
        raise UserError(f"Weights can not be exported as {dtype!r}; choose one of {', '.join(_DTYPES)}.")
    arrays = {name: np.asarray(leaf, _DTYPES[dtype], order="C") for name, leaf in _flatten(params).items()}
    try:
        os.makedirs(folder, exist_ok=True)
        _write(folder, WEIGHTS, safetensors.numpy.save(arrays, metadata=_FORMAT))
        _write(folder, CONFIG, (json.dumps(config, indent=2) + "\n").encode())
        _write(folder, METRICS, (json.dumps(metrics, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"The weights could not be written to {os.fspath(folder)!r}: {error}.") from error


def load_export(folder: str | os.PathLike) -> tuple[dict[Any, Any], dict[str, Any], dict[str, Any]]:
    """The parameters (nested dicts of float32 arrays), the config and the metrics that `export_weights` wrote."""
    absent = [name for name in (WEIGHTS, CONFIG, METRICS) if not os.path.isfile(os.path.join(folder, name))]
    if absent:
        raise UserError(
            f"{os.fspath(folder)!r} is not a folder of exported weights: it has no {absent[0]}; "
            f"such a folder holds {WEIGHTS}, {CONFIG} and {METRICS}."
        )
    path = os.path.join(folder, WEIGHTS)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            written_by_us = (file.metadata() or {}).get("format") == _FORMAT["format"]
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"The weights in {path!r} are damaged ({error}); export them again.") from error
    if not written_by_us:
        raise UserError(f"The weights in {path!r} were not exported by AlphaLLM; give a folder that it wrote.")
    params = _unflatten({name: array.astype(np.float32) for name, array in arrays.items()})
    return params, _read_json(folder, CONFIG), _read_json(folder, METRICS)


def _flatten(params: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if "/" in str(key):
            raise ValueError(f"The parameter {prefix}{key} has a '/' in its name, which separates names here.")
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _unflatten(flat: Mapping[str, np.ndarray]) -> dict[Any, Any]:
    params: dict[Any, Any] = {}
    for name, array in flat.items():
        # NNX numbers the modules of a list with integers; no parameter of ours is named by a string of digits.
        *path, last = [int(key) if key.isdecimal() else key for key in name.split("/")]
        group = params
        for key in path:
            group = group.setdefault(key, {})
        group[last] = array
    return params


def _write(folder: str | os.PathLike, name: str, content: bytes) -> None:
    partial = os.path.join(folder, f".{name}.partial")
    with open(partial, "wb") as file:
        file.write(content)
    os.replace(partial, os.path.join(folder, name))


def _read_json(folder: str | os.PathLike, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise UserError(f"{path!r} is damaged ({error}); export the weights again.") from error
