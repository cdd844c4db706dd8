"""Checkpoints of a whole run, through Orbax: atomic, the newest few kept, checked when read.

A checkpoint holds every leaf of a state under its path's name ("params/layers/wq") and a JSON dict `meta`. What is
read is compared with a template leaf by leaf, because Orbax returns whatever was stored, of whatever shape. Typed
random keys are stored as their data. Saving runs in the background: `save` of 30 MB returns after about 0.1 s on one
core, while writing takes 0.3 s.
"""

import functools
import json
import logging
import os
import shutil
import sys
import zlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Self

import jax
import numpy as np

from alphallm.errors import UserError

_MARK = "ALPHALLM_CHECKPOINTS"  # a file in the folder, so that a foreign folder is told from ours


class Checkpoints:
    """The checkpoints in a folder, which is made by the first `save`. Reading changes nothing on the disk.

    Use it as a context manager, or call `close`: a save that is still running when Python ends is lost.
    Every method raises `UserError` if the folder holds something else.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        """`keep` complete checkpoints are kept, the newest ones."""
        self.directory = os.path.abspath(os.fspath(directory))
        self.keep = keep
        self._damaged: set[int] = set()
        self._writer: Any = None
        self._check_folder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except UserError as failure:
            if error is None:
                raise
            if not ("No space left" in str(error) and "the disk is full" in str(failure)):  # One sentence is enough.
                print(f"warning: {failure}", file=sys.stderr)

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Starts saving; the state may be changed or donated as soon as this returns.

        Waits for the save before. A save that failed, on a full disk for example, raises `UserError` here, in the next
        `save`, or in `wait` and `close`; the checkpoints before it are whole.
        """
        ocp = _orbax()
        writer = self._open_writer()
        named = {name: _stored(leaf) for name, leaf in _named_leaves(state).items()}
        # Orbax refuses arrays without elements, and there is nothing in them to save.
        arrays = {name: array for name, array in named.items() if array.size}
        try:
            self._wait()
            header = {"meta": dict(meta), "checksum": _checksum(arrays, meta)}
            items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), header=ocp.args.JsonSave(header))
            saved = writer.save(step, args=items)
        except Exception as error:
            raise self._save_failed(error) from error
        if not saved:
            raise UserError(
                f"Step {step} can not be saved in {self.directory!r}, whose newest checkpoint is of step "
                f"{writer.latest_step()}; save a later step, or delete the folders of the later ones first."
            )

    def wait(self) -> None:
        """Returns when the last save is on the disk."""
        try:
            self._wait()
        except Exception as error:
            raise self._save_failed(error) from error

    def close(self) -> None:
        """Waits for the last save and ends the background threads."""
        try:
            self.wait()
        finally:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.close()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending, without those that `restore` found damaged."""
        if not os.path.isdir(self.directory):
            return []
        found = {int(name) for name in os.listdir(self.directory) if name.isdecimal()}
        return sorted(found - self._damaged)

    def latest(self) -> int | None:
        """The newest step that has a checkpoint, None if there is none."""
        return max(self.steps(), default=None)

    def restore(self, template: Any, step: int | None = None, partial: bool = False) -> tuple[Any, dict[str, Any]]:
        """The state (numpy leaves and typed keys in the template's structure) and `meta` of a step.

        The template's leaves are arrays or `jax.ShapeDtypeStruct`s; `partial` allows it to have only some of the stored
        leaves. Without `step` it is the newest checkpoint that can be read: a damaged one is passed over with a warning
        (the next save moves it aside). A difference from the template is a `UserError` that names the first one.
        """
        self._check_folder()
        self.wait()
        candidates = [step] if step is not None else self.steps()[::-1]
        if not candidates or not os.path.isdir(self._path(candidates[0])):
            asked = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise UserError(f"There is {asked} in {self.directory!r}, which has steps {self.steps()}.")
        passed_over = []
        for candidate in candidates:
            try:
                arrays, meta = self.read(candidate)
            except Exception as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                if step is not None:
                    raise UserError(
                        f"The checkpoint {self._path(step)!r} is damaged ({reason}); delete that folder, "
                        f"and an older one is taken."
                    ) from error
                self._damaged.add(candidate)
                passed_over.append(f"the checkpoint {self._path(candidate)!r} is damaged and is passed over ({reason})")
                continue
            for warning in passed_over:
                print(f"warning: {warning}.", file=sys.stderr)
            return _fill(template, arrays, partial, self._path(candidate)), meta
        raise UserError(
            f"Every checkpoint in {self.directory!r} is damaged (steps {sorted(self._damaged)}); delete this folder to "
            f"start anew, or restore it from a copy."
        )

    def _path(self, step: int) -> str:
        return os.path.join(self.directory, str(step))

    def _check_folder(self) -> None:
        if not os.path.lexists(self.directory):
            return
        if not os.path.isdir(self.directory):
            raise UserError(
                f"{self.directory!r} is not a folder; give the folder of a run, or one that does not exist."
            )
        names = os.listdir(self.directory)
        if names and _MARK not in names:
            raise UserError(
                f"The folder {self.directory!r} holds {min(names)!r} but no checkpoints of AlphaLLM; "
                f"give the folder of a run, or one that does not exist."
            )

    def _open_writer(self) -> Any:
        if self._writer is not None:
            return self._writer
        ocp = _orbax()
        self._check_folder()
        try:
            os.makedirs(self.directory, exist_ok=True)
            open(os.path.join(self.directory, _MARK), "a").close()
            for step in self._damaged:
                aside = os.path.join(self.directory, f"damaged-{step}")
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(self._path(step), aside)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self.keep, cleanup_tmp_directories=True, enable_async_checkpointing=True,
                create=False, multiprocessing_options=_alone(),
            )  # fmt: skip
            self._writer = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise self._save_failed(error) from error
        self._damaged.clear()
        return self._writer

    def _wait(self) -> None:
        if self._writer is not None:
            self._writer.wait_until_finished()

    def read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays of a step by their names, and `meta`; raises whatever is wrong with them."""
        ocp = _orbax()
        items = ocp.args.Composite(state=ocp.args.StandardRestore(), header=ocp.args.JsonRestore())
        inner = ocp.CompositeOptions(multiprocessing_options=_alone())
        handler = ocp.CompositeCheckpointHandler(composite_options=inner)
        with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as reader:
            found = reader.restore(self._path(step), args=items)
        arrays, meta = {name: np.asarray(array) for name, array in found.state.items()}, found.header["meta"]
        if _checksum(arrays, meta) != found.header["checksum"]:
            raise ValueError("the checksum differs")
        return arrays, meta

    def _save_failed(self, error: Exception) -> UserError:
        full = "No space left" in str(error)  # an OSError's words, and TensorStore's
        reason = "the disk is full" if full else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        advice = "free some space" if full else "mend that"
        return UserError(
            f"A checkpoint could not be saved in {self.directory!r} ({reason}); the steps {self.steps()} are whole: "
            f"{advice} and run the same command again."
        )


@functools.cache
def _orbax() -> ModuleType:
    """Orbax, whose threads no longer print what it raises as well.

    Each of them logs its error with a traceback, and TensorStore's report to event loops that are closed by then.
    """
    import orbax.checkpoint as ocp

    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
    print_unraisable = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            print_unraisable(unraisable)

    sys.unraisablehook = hook
    return ocp


def _alone() -> Any:
    """Options with which Orbax does not wait for other processes: what is saved is whole, on one host."""
    host = jax.process_index()
    options = _orbax().options.MultiprocessingOptions
    return options(primary_host=host, active_processes={host}, barrier_sync_key_prefix=f"host{host}")


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("Two leaves of the state have the same name; a key of a dict must not contain '/'.")
    return named


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(leaf: Any) -> Any:
    """The generator of a typed key, also of a `ShapeDtypeStruct`, which `jax.random.key_impl` refuses untraced."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]


def _stored(leaf: Any) -> np.ndarray:
    """A copy on the host: what is being saved in the background must not change, nor be donated."""
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _checksum(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> int:
    """Orbax finds truncated files, but not a changed byte."""
    total = zlib.crc32(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(arrays):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(arrays[name].tobytes(), total)
    return total


def _fill(template: Any, arrays: Mapping[str, np.ndarray], partial: bool, where: str) -> Any:
    """The template's structure with the stored arrays, each checked."""
    wanted = _named_leaves(template)
    advice = "continue with the config that it was made with, or in another folder"
    filled = []
    for name, leaf in wanted.items():
        target = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        shape, dtype = np.shape(target), np.dtype(getattr(target, "dtype", None) or np.asarray(target).dtype)
        if 0 in shape:
            filled.append(np.zeros(shape, dtype))
            continue
        if name not in arrays:
            raise UserError(f"The checkpoint {where!r} has no {name!r}, which this run needs; {advice}.")
        array = arrays[name]
        if array.shape != shape or array.dtype != dtype:
            raise UserError(
                f"In the checkpoint {where!r}, {name!r} is {array.dtype} of shape {array.shape}, but this run needs "
                f"{dtype} of shape {shape}; {advice}."
            )
        filled.append(
            jax.random.wrap_key_data(jax.numpy.asarray(array), impl=_key_impl(leaf)) if _is_key(leaf) else array
        )
    unwanted = [name for name in arrays if name not in wanted]
    if unwanted and not partial:
        raise UserError(f"The checkpoint {where!r} has {unwanted[0]!r}, which this run does not know; {advice}.")
    return jax.tree.unflatten(jax.tree.structure(template), filled)
