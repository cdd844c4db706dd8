"""Weights without the rest of a run: a folder of `weights.safetensors`, `config.json` and `metrics.json`."""

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from alphallm.errors import UserError

WEIGHTS, CONFIG, METRICS = "weights.safetensors", "config.json", "metrics.json"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}
_CODES = {"float32": "F32", "bfloat16": "BF16"}  # as safetensors calls them.
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
    leaves = flatten(params)
    shapes = {name: np.shape(leaf) for name, leaf in leaves.items()}
    try:
        os.makedirs(folder, exist_ok=True)
        write_arrays(os.path.join(folder, WEIGHTS), shapes, dtype, leaves.__getitem__, _FORMAT)
        write_file(folder, CONFIG, (json.dumps(config, indent=2) + "\n").encode())
        write_file(folder, METRICS, (json.dumps(metrics, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"The weights could not be written to {os.fspath(folder)!r}: {error}.") from error


def write_arrays(
    path: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    read: Callable[[str], Any],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file of the arrays that `read(name)` gives, each as `dtype`, "float32" or "bfloat16".

    They are read one after the other and not kept (safetensors' own writer wants all of them at once). The file appears
    whole or not at all.
    """
    check_dtype(dtype)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name in sorted(shapes):
        end = start + math.prod(shapes[name]) * DTYPES[dtype].itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shapes[name]), "data_offsets": [start, end]}
        start = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    partial = _partial(path)
    with open(partial, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in sorted(shapes):
            array = np.asarray(read(name), DTYPES[dtype], order="C")
            if array.shape != tuple(shapes[name]):
                raise ValueError(f"{name} has the shape {array.shape}, not {tuple(shapes[name])}.")
            file.write(array.reshape(-1).view(np.uint8).data)
    os.replace(partial, path)


def load_export(folder: str | os.PathLike) -> tuple[dict[Any, Any], dict[str, Any], dict[str, Any]]:
    """The parameters (nested dicts of float32 arrays), the config and the metrics that `export_weights` wrote."""
    _check_complete(folder)
    path = os.path.join(folder, WEIGHTS)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("format") != _FORMAT["format"]:
                raise UserError(f"The weights in {path!r} were not exported by AlphaLLM; give a folder that it wrote.")
            arrays = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"The weights in {path!r} are damaged ({error}); export them again.") from error
    return unflatten(arrays), _read_json(folder, CONFIG), _read_json(folder, METRICS)


def read_export_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The config alone, of a folder that `export_weights` wrote."""
    _check_complete(folder)
    return _read_json(folder, CONFIG)


def _check_complete(folder: str | os.PathLike) -> None:
    absent = [name for name in (WEIGHTS, CONFIG, METRICS) if not os.path.isfile(os.path.join(folder, name))]
    if absent:
        raise UserError(
            f"{os.fspath(folder)!r} is not a folder of exported weights: it has no {absent[0]}; "
            f"such a folder holds {WEIGHTS}, {CONFIG} and {METRICS}."
        )


def flatten(params: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by their names, the keys joined with "/"."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if "/" in str(key):
            raise ValueError(f"The parameter {prefix}{key} has a '/' in its name, which separates names here.")
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, np.ndarray]) -> dict[Any, Any]:
    """The inverse of `flatten`."""
    params: dict[Any, Any] = {}
    for name, array in flat.items():
        # NNX numbers the modules of a list with integers; no parameter of ours is named by a string of digits.
        *path, last = [int(key) if key.isdecimal() else key for key in name.split("/")]
        group = params
        for key in path:
            group = group.setdefault(key, {})
        group[last] = array
    return params


def check_dtype(dtype: str) -> None:
    """Raises UserError where weights can not be stored as `dtype`."""
    if dtype not in DTYPES:
        raise UserError(f"Weights can not be stored as {dtype!r}; choose one of {', '.join(DTYPES)}.")


def write_file(folder: str | os.PathLike, name: str, content: bytes) -> None:
    """Writes a small file, whole or not at all."""
    path = os.path.join(folder, name)
    with open(_partial(path), "wb") as file:
        file.write(content)
    os.replace(_partial(path), path)


def _partial(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.partial")


def _read_json(folder: str | os.PathLike, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise UserError(f"{path!r} is damaged ({error}); export the weights again.") from error
