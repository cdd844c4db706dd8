"""Problems of a split, through tensorflow-datasets (imported on first use: it takes time that not every run has)."""

import contextlib
import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from alphallm.errors import UserError
from alphallm.tasks import splits
from alphallm.tasks.arithmetic import TaskConfig
from alphallm.tasks.examples import Example, download
from alphallm.tasks.text import TextTaskConfig
from alphallm.tasks.text import load_split as load_text_split
from alphallm.types import Problem

SPLITS = ("train", "validation", "test")
_CSV_URL = (
    "https://raw.githubusercontent.com/princeton-nlp/tree-of-thought-llm/"
    "ab400345c5ea39d28ea6d7d3be0e417b11113c87/src/tot/data/24/24.csv"
)
_CSV_SHA256 = "b9f12b3e36d987a3c714c4cef17d89a137d7c59da26532fcfb93b4821d8111b5"


def load_problems(task: Any, rows: Sequence[Any]) -> Problem:
    """The problems of a split's rows as one batch: numpy arrays with a leading axis B; index counts from 0.

    Rows are checked for form but, unlike in `task.problem`, not for having a solution.
    """
    if not rows:
        raise UserError("There are no problems to load: give at least one.")
    problems = [task.load(row, index) for index, row in enumerate(rows)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *problems)


def load_split(config: TaskConfig | TextTaskConfig, split: str, data_dir: str = "") -> list[Any]:
    """The rows of a split in their fixed order, building the dataset into `data_dir` if it is not there.

    A row is what the task's `load` takes: a problem's text, or an `Example`. `str` of it says which problem it is.

    Game of 24: where `config.max_number` is above 13, puzzles with larger numbers follow those of the split "train".
    `data_dir` is by default $TFDS_DATA_DIR or ~/tensorflow_datasets. Raises UserError, in a sentence that says what to
    do, for an unknown dataset or split, too few problems to fill every split, and a ranked csv that is missing or not
    what it should be.
    """
    if split not in SPLITS:
        raise UserError(f"Unknown split {split!r}: give one of {', '.join(SPLITS)}.")
    if isinstance(config, TextTaskConfig):
        return load_text_split(config, split, data_dir)
    _check_dataset(config)
    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    texts = _read(_builder(config, root), split, config, root)
    if config.name == "game24" and split == "train" and config.max_number > splits.LARGEST_GAME24:
        texts += _read(_extra_builder(config, root), split, config, root)
    return texts


def _read(builder, split: str, config: TaskConfig, root: pathlib.Path) -> list[str]:
    with _quietly():
        if not builder.is_prepared():
            _prepare(builder, config, root)
        return [_as_text(example["problem"]) for example in builder.as_data_source(split=split)]


def read_examples(make_builder: Callable[..., Any], split: str) -> tuple[list[Example], list[str]]:
    """The examples of a split, and what the builder left out of all of them."""
    import tensorflow_datasets as tfds

    with _quietly():
        builder = make_builder(file_format="array_record")
        if not builder.is_prepared():
            try:
                builder.download_and_prepare(download_config=tfds.download.DownloadConfig())
            except OSError as error:
                if not builder.is_prepared():
                    raise UserError(f"The dataset cannot be built ({error}): set TFDS_DATA_DIR to another.") from error
        rows = [
            Example(**{name: _as_text(value) for name, value in row.items()})
            for row in builder.as_data_source(split=split)
        ]
        return rows, list((builder.info.metadata or {}).get("skipped", []))


def _check_dataset(config: TaskConfig):
    known = {"game24": splits.GAME24_DATASETS, "countdown": ("default",)}
    if config.name not in known:
        raise UserError(f"Unknown task {config.name!r}: give one of {', '.join(known)}.")
    if config.dataset not in known[config.name]:
        raise UserError(
            f"Unknown dataset {config.dataset!r} of {config.name}: give one of {', '.join(known[config.name])}."
        )


def _builder(config: TaskConfig, root: pathlib.Path):
    """The TFDS builder of a checked config."""
    if config.name == "game24":
        from alphallm.tasks.game24 import game24_dataset_builder as game24

        return game24.Builder(config=config.dataset, data_dir=root, file_format="array_record")
    from alphallm.tasks.countdown import countdown_dataset_builder as countdown

    made = countdown.countdown_config(config.num_numbers, config.max_number, config.max_target)
    return _builder_of(countdown.Builder, made, root)


def _extra_builder(config: TaskConfig, root: pathlib.Path):
    from alphallm.tasks.game24 import game24_dataset_builder as game24

    return _builder_of(game24.Builder, game24.extra_config(config.max_number), root)


def _builder_of(builder, made, root: pathlib.Path):
    """The builder of a config made on the spot; TFDS wants those that the class lists by their name."""
    config = made.name if made.name in builder.builder_configs else made
    return builder(config=config, data_dir=root, file_format="array_record")


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


def _prepare(builder, config: TaskConfig, root: pathlib.Path):
    """Builds the dataset; another process may build the same one at the same time."""
    import tensorflow_datasets as tfds

    ranked = config.name == "game24" and config.dataset != "default"
    manual_dir = _folder_of_csv(config.manual_dir, root) if ranked else None
    download_config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder.download_and_prepare(download_config=download_config)
    except OSError as error:
        if not builder.is_prepared():
            raise UserError(f"{root} cannot hold the dataset ({error}): give another data_dir.") from error


def _folder_of_csv(manual_dir: str, root: pathlib.Path) -> pathlib.Path:
    """The folder that holds the ranked csv: the user's, or one below `root` that it is downloaded to."""
    if manual_dir:
        folder = pathlib.Path(manual_dir).expanduser()
        if not (folder / splits.CSV_NAME).is_file():
            raise UserError(f"{folder / splits.CSV_NAME} does not exist: {splits.CSV_HELP}.")
        return folder
    folder = root / "downloads" / "game24"
    if not (folder / splits.CSV_NAME).is_file():
        download(_CSV_URL, _CSV_SHA256, folder / splits.CSV_NAME, splits.CSV_HELP)
    return folder


def _as_text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
