"""A run's folder: its config, metrics, samples and the place of its checkpoints.

    config.json      the config, as `alphallm.config.to_dict` gives it
    metrics.jsonl    one row for each logged step, {"step": 3, "loss": 0.1, ...}
    events.*         the same for TensorBoard
    samples.jsonl    solved and failed samples; samples.txt has the same to read
    checkpoints/     see `alphallm.training.checkpoints`

Logs may run ahead of the checkpoints: a run that is continued first calls `cut_back` with the step it continues from.
"""

import contextlib
import dataclasses
import json
import math
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any, Self

from alphallm.config import differences, from_dict, to_dict
from alphallm.errors import ConfigError, UserError

_CONFIG, _METRICS, _SAMPLES, _READABLE = "config.json", "metrics.jsonl", "samples.jsonl", "samples.txt"


def read_config(folder: str | os.PathLike) -> dict[str, Any] | None:
    """The config of the run in this folder; None where there is no folder, or nothing in it."""
    path = os.path.join(folder, _CONFIG)
    if not os.path.exists(folder):
        return None
    if not os.path.isdir(folder):
        raise UserError(f"{os.fspath(folder)!r} is not a folder; give a run's folder, or one that does not exist.")
    if not os.path.exists(path):
        # Hidden files do not count: a run killed in its first moment leaves only its half-written config.
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        if names:
            raise UserError(
                f"The folder {os.fspath(folder)!r} holds {names[0]!r} but no {_CONFIG}, so it is not a run's folder; "
                f"give a run's folder, or one that does not exist."
            )
        return None
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except ValueError as error:
        raise UserError(f"{path!r} is damaged ({error}); restore it, or delete the folder to start anew.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path!r} is not a config; give a run's folder, or one that does not exist.")
    return config


def write_config(folder: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Makes the folder if need be, and writes the config (a dict) into it, whole or not at all."""
    try:
        os.makedirs(folder, exist_ok=True)
        _replace_file(os.path.join(folder, _CONFIG), json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise _not_written(folder, error) from error


def check_same_config(folder: str | os.PathLike, config: Any, free: Sequence[str] = ()) -> list[str]:
    """Raises `UserError` with every difference between the folder's config and `config` (a dataclass or its dict).

    The fields named in `free`, and what is inside them, may differ; their differences are returned, as "path: old ->
    new". A folder that does not exist or is empty has no differences. A field that is younger than the folder counts
    with its default.
    """
    recorded = read_config(folder)
    if recorded is not None and dataclasses.is_dataclass(config):
        with contextlib.suppress(ConfigError):  # What no longer exists is a difference, and is told as one.
            recorded = to_dict(from_dict(type(config), recorded))  # type: ignore[arg-type]
    found = differences(recorded, config) if recorded is not None else []
    allowed = [line for line in found if any(_is_in(line.partition(":")[0], field) for field in free)]
    refused = [line for line in found if line not in allowed]
    if refused:
        raise UserError(
            f"The run in {os.fspath(folder)!r} was made with another config ({'; '.join(refused)}): "
            f"take back these differences, or give another folder."
        )
    return allowed


class RunLog:
    """Writes a run's metrics and samples; each row is on the disk when the call returns. Close it in the end."""

    def __init__(self, folder: str | os.PathLike, tensorboard: bool = True, writes: bool = True):
        """The folder is made if it does not exist. Without `tensorboard` no event files are written, and nothing at
        all without `writes`: for all hosts but one."""
        self.folder, self._writes = os.fspath(folder), writes
        self._with_events, self._events, self._first_step = tensorboard, None, 0
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise _not_written(folder, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs numbers (Python's, NumPy's or JAX's scalars) under their names; one that is not finite is null."""
        if not self._writes:
            return
        numbers = {name: _number(value) for name, value in values.items()}
        self._append(_METRICS, json.dumps({"step": step, **numbers}) + "\n")
        if not self._with_events:
            return
        try:
            for name, number in numbers.items():
                if number is not None:
                    self._open_events().add_scalar(name, number, step)
            self._open_events().flush()
        except OSError as error:
            raise _not_written(self.folder, error) from error

    def sample(self, step: int, title: str, text: str, **details: Any) -> None:
        """Logs one sample in words; `details` (what JSON knows) are kept beside it in samples.jsonl."""
        if not self._writes:
            return
        row = {"step": step, "title": title, "text": text, **details}
        self._append(_SAMPLES, json.dumps(row) + "\n")
        self._append(_READABLE, _readable(row))

    def cut_back(self, step: int) -> None:
        """Drops what was logged after `step`, and a last row that was not written to its end."""
        if not self._writes:
            return
        try:
            for name in (_METRICS, _SAMPLES):
                path = os.path.join(self.folder, name)
                if not os.path.exists(path):
                    continue
                rows = [row for row in read_rows(path) if row["step"] <= step]
                _replace_file(path, "".join(json.dumps(row) + "\n" for row in rows))
                if name == _SAMPLES:
                    _replace_file(os.path.join(self.folder, _READABLE), "".join(map(_readable, rows)))
        except OSError as error:
            raise _not_written(self.folder, error) from error
        self.close()
        self._first_step = step + 1  # TensorBoard hides the events from here on that an earlier process wrote.

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def _append(self, name: str, text: str) -> None:
        try:
            with open(os.path.join(self.folder, name), "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise _not_written(self.folder, error) from error

    def _open_events(self) -> Any:
        if self._events is None:
            from tensorboardX import SummaryWriter, record_writer  # takes most of a second to import

            files = types.SimpleNamespace(open=_EventFile, directory_check=lambda path: None)
            record_writer.register_writer_factory("alphallm", files)
            self._events = SummaryWriter(f"alphallm:{self.folder}", purge_step=self._first_step or None)
        return self._events


class _EventFile:
    """An event file for TensorBoard that swallows what a full disk does not take: metrics.jsonl has it, and says so.

    The library's own raises in a background thread, and once more at every attempt to close it.
    """

    def __init__(self, path: str):
        self._file = open(path.partition(":")[2], "wb", buffering=0)

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._file.write(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a JSONL file, without a last one that was not written to its end."""
    with open(path, encoding="utf-8") as file:
        lines = file.readlines()
    rows = []
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) - 1:
                break
            raise UserError(f"Line {number + 1} of {os.fspath(path)!r} is damaged ({error}); delete it.") from error
    return rows


def _readable(row: Mapping[str, Any]) -> str:
    return f"step {row['step']} · {row['title']}\n{row['text']}\n\n"


def _number(value: Any) -> int | float | None:
    number = value if isinstance(value, (int, float)) else value.item()
    return number if math.isfinite(number) else None


def _is_in(path: str, field: str) -> bool:
    return path == field or path.startswith(field + ".")


def _replace_file(path: str, text: str) -> None:
    folder, name = os.path.split(path)
    partial = os.path.join(folder, f".{name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)


def _not_written(folder: str | os.PathLike, error: OSError) -> UserError:
    return UserError(
        f"Nothing more can be written to {os.fspath(folder)!r} ({error.strerror or error}); "
        f"mend that and run the same command again."
    )
