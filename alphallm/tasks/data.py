"""Problems of a split, through tensorflow-datasets (imported on first use: it takes time that not every run has)."""

import contextlib
import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from alphallm.errors import UserError
from alphallm.tasks.base import TaskConfig
from alphallm.tasks.examples import Example
from alphallm.types import Problem

SPLITS = ("train", "validation", "test")


def load_problems(task: Any, rows: Sequence[Any]) -> Problem:
    """The problems of a split's rows as one batch: numpy arrays with a leading axis B; index counts from 0.

    Rows are checked for form but, unlike in `task.problem`, not for having a solution.
    """
    if not rows:
        raise UserError("There are no problems to load: give at least one.")
    problems = [task.load(row, index) for index, row in enumerate(rows)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *problems)


def load_split(config: TaskConfig, split: str, data_dir: str = "") -> list[Any]:
    """The rows of a split in their fixed order, building the dataset into `data_dir` if it is not there.

    A row is what the task's `load` takes: a problem's text, or an `Example`. `str` of it says which problem it is.
    `data_dir` is by default $TFDS_DATA_DIR or ~/tensorflow_datasets. Raises UserError, in a sentence that says what to
    do, for an unknown split and where the dataset can not be built.
    """
    if split not in SPLITS:
        raise UserError(f"Unknown split {split!r}: give one of {', '.join(SPLITS)}.")
    return config.rows(split, data_dir)


def root(data_dir: str = "") -> pathlib.Path:
    """The folder that datasets are built in."""
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def generated(config: TaskConfig, split: str, data_dir: str = "") -> list[str]:
    """The rows of a split that the task's config makes itself."""
    from alphallm.tasks.generated import generated_dataset_builder

    made = generated_dataset_builder.config_of(config)
    return read(builder_of(generated_dataset_builder.Builder, made, root(data_dir)), split)


def builder_of(builder, made, folder: pathlib.Path):
    """The builder of a config made on the spot; TFDS wants those that the class lists by their name."""
    config = made.name if made.name in builder.builder_configs else made
    with _quietly():
        return builder(config=config, data_dir=folder, file_format="array_record")


def read(builder, split: str, manual_dir: pathlib.Path | None = None) -> list[str]:
    """The problems of a split, in words."""
    return [_as_text(row["problem"]) for row in _rows(builder, split, manual_dir)]


def read_examples(builder, split: str) -> tuple[list[Example], list[str]]:
    """The examples of a split, and what the builder left out of all of them."""
    rows = [Example(**{name: _as_text(value) for name, value in row.items()}) for row in _rows(builder, split)]
    return rows, list((builder.info.metadata or {}).get("skipped", []))


def _rows(builder, split: str, manual_dir: pathlib.Path | None = None) -> list[Any]:
    """The rows of a split; another process may build the same dataset at the same time."""
    import tensorflow_datasets as tfds

    with _quietly():
        if not builder.is_prepared():
            try:
                builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
            except OSError as error:
                if not builder.is_prepared():
                    raise UserError(
                        f"{builder.data_dir} cannot hold the dataset ({error}): give another data_dir."
                    ) from error
        return list(builder.as_data_source(split=split))


@contextlib.contextmanager
def _quietly():
    """Hides the progress bars and harmless warnings that TFDS writes while it builds."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _as_text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
