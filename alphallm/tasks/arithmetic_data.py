"""The rows of game24 and countdown, through their tensorflow-datasets builders."""

import pathlib
from typing import TYPE_CHECKING

from alphallm.errors import UserError
from alphallm.tasks import data, splits
from alphallm.tasks.examples import download

if TYPE_CHECKING:
    from alphallm.tasks.arithmetic import ArithmeticConfig

_CSV_URL = (
    "https://raw.githubusercontent.com/princeton-nlp/tree-of-thought-llm/"
    "ab400345c5ea39d28ea6d7d3be0e417b11113c87/src/tot/data/24/24.csv"
)
_CSV_SHA256 = "b9f12b3e36d987a3c714c4cef17d89a137d7c59da26532fcfb93b4821d8111b5"


def load_split(config: "ArithmeticConfig", split: str, data_dir: str = "") -> list[str]:
    """The problems of a split in their fixed order. Puzzles of 24 with numbers above 13 follow those of "train".

    Raises UserError for an unknown dataset, too few problems to fill every split, and a ranked csv that is missing or
    not what it should be.
    """
    _check_dataset(config)
    root = data.root(data_dir)
    texts = _read(_builder(config, root), split, config, root)
    if config.name == "game24" and split == "train" and config.max_number > splits.LARGEST_GAME24:
        texts += _read(_extra_builder(config, root), split, config, root)
    return texts


def _read(builder, split: str, config: "ArithmeticConfig", root: pathlib.Path) -> list[str]:
    ranked = config.name == "game24" and config.dataset != "default"
    manual_dir = None
    if ranked and not builder.is_prepared():
        manual_dir = _folder_of_csv(config.manual_dir, root)
    return data.read(builder, split, manual_dir)


def _check_dataset(config: "ArithmeticConfig"):
    known = splits.GAME24_DATASETS if config.name == "game24" else ("default",)
    if config.dataset not in known:
        raise UserError(f"Unknown dataset {config.dataset!r} of {config.name}: give one of {', '.join(known)}.")


def _builder(config: "ArithmeticConfig", root: pathlib.Path):
    """The TFDS builder of a checked config."""
    if config.name == "game24":
        from alphallm.tasks.game24 import game24_dataset_builder as game24

        return game24.Builder(config=config.dataset, data_dir=root, file_format="array_record")
    from alphallm.tasks.countdown import countdown_dataset_builder as countdown

    made = countdown.countdown_config(config.num_numbers, config.max_number, config.max_target)
    return data.builder_of(countdown.Builder, made, root)


def _extra_builder(config: "ArithmeticConfig", root: pathlib.Path):
    from alphallm.tasks.game24 import game24_dataset_builder as game24

    return data.builder_of(game24.Builder, game24.extra_config(config.max_number), root)


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
