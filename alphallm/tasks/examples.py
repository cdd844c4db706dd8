"""Questions with worked solutions, from JSONL files: GSM8K, MATH, or a user's own. Plain Python, host side.

The files are train.jsonl and test.jsonl, and validation.jsonl if there is one; else a part of train.jsonl is for
validation. A row that can not be used is left out and told, with its file, its number and what is wrong with it.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import urllib.request
from collections.abc import Mapping
from typing import Any

from alphallm.errors import UserError
from alphallm.tasks.grader import extract

_NUM_VALIDATION = 500  # but no more than a tenth of the training rows.
_HELP = "put train.jsonl and test.jsonl into a folder and name it as task.manual_dir"
_TOLD = 5  # unusable rows that are told one by one.


@dataclasses.dataclass(frozen=True)
class Example:
    """A question with its answer. The solution, if there is one, ends in the answer, after `####` or in a box."""

    question: str
    solution: str = ""
    answer: str = ""

    def __str__(self) -> str:
        return " ".join(self.question.split())


@dataclasses.dataclass(frozen=True)
class Fields:
    """What the fields of a row are called; without `answer`, it is what the solution ends in."""

    question: str
    solution: str
    answer: str


@dataclasses.dataclass(frozen=True)
class _Source:
    fields: Fields
    urls: Mapping[str, tuple[str, str]]  # by split: where it is, and its SHA-256.


_GSM8K = (
    "https://raw.githubusercontent.com/openai/grade-school-math/"
    "3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/"
)
# The split of Let's Verify Step by Step (Lightman et al. 2023): 12,000 to train on, and the 500 called MATH-500.
_MATH = (
    "https://media.githubusercontent.com/media/openai/prm800k/"
    "00811d6de065642a6967b9017d4cee59550c0ef4/prm800k/math_splits/"
)
SOURCES = {
    "gsm8k": _Source(
        Fields("question", "answer", ""),
        {
            "train": (_GSM8K + "train.jsonl", "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
            "test": (_GSM8K + "test.jsonl", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
        },
    ),
    "math": _Source(
        Fields("problem", "solution", "answer"),
        {
            "train": (_MATH + "train.jsonl", "90d96daeac3fe343ebb1e22ce93dd99690f75983e957f88de42f87cffe1e8076"),
            "test": (_MATH + "test.jsonl", "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132"),
        },
    ),
}


def locate(name: str, manual_dir: str, root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of a dataset by split: the user's, or downloaded into a folder below `root`."""
    if manual_dir:
        folder = pathlib.Path(manual_dir).expanduser()
        absent = [f"{each}.jsonl" for each in ("train", "test") if not (folder / f"{each}.jsonl").is_file()]
        if absent:
            raise UserError(f"{folder} has no {absent[0]}: give a folder with train.jsonl and test.jsonl.")
        paths = {split: folder / f"{split}.jsonl" for split in ("train", "validation", "test")}
        return {split: path for split, path in paths.items() if path.is_file()}
    if name not in SOURCES:
        raise UserError(f"The dataset {name!r} is a user's own: give task.manual_dir, with train.jsonl and test.jsonl.")
    folder = root / "downloads" / name
    for split, (url, checksum) in SOURCES[name].urls.items():
        if not (folder / f"{split}.jsonl").is_file():
            download(url, checksum, folder / f"{split}.jsonl", _HELP)
    return {split: folder / f"{split}.jsonl" for split in SOURCES[name].urls}


def split(files: Mapping[str, pathlib.Path], fields: Fields) -> tuple[dict[str, list[Example]], list[str]]:
    """The examples of train, validation and test, and what was left out, in sentences.

    No question is in two splits: one that the test has is taken from the others. Without a file for validation, the
    training rows with the smallest hashes are for it.
    """
    skipped: list[str] = []
    found = {name: _read(path, fields, skipped) for name, path in files.items()}
    test = {_key(row) for row in found["test"]}
    train = _without(found["train"], test, "train.jsonl", skipped)
    if "validation" in found:
        validation = _without(found["validation"], test, "validation.jsonl", skipped)
    else:
        validation = sorted(train, key=_key)[: min(_NUM_VALIDATION, max(1, len(train) // 10))]
    kept = _without(train, {_key(row) for row in validation}, "", [])
    splits = {"train": kept, "validation": validation, "test": found["test"]}
    for name, rows in splits.items():
        if not rows:
            told = f" {skipped[0]}" if skipped else ""
            raise UserError(f"There are no rows for the split {name!r}: give more.{told}")
    return splits, skipped


def fingerprint(files: Mapping[str, pathlib.Path], fields: Fields) -> str:
    """Differs where the contents of the files, or what is read of them, differ."""
    digest = hashlib.sha256(repr(fields).encode())
    for name in sorted(files):
        digest.update(name.encode() + files[name].read_bytes())
    return digest.hexdigest()[:12]


def _read(path: pathlib.Path, fields: Fields, skipped: list[str]) -> list[Example]:
    rows: dict[str, Example] = {}
    wrong: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = _example(line, fields)
            if _key(row) in rows:
                raise ValueError("the question is that of an earlier row")
            rows[_key(row)] = row
        except ValueError as error:
            wrong.append(f"{path.name} row {number}: {error}.")
    skipped += wrong[:_TOLD]
    if len(wrong) > _TOLD:
        skipped.append(f"{path.name}: {len(wrong) - _TOLD} more of {number} lines.")
    return list(rows.values())


def _example(line: str, fields: Fields) -> Example:
    """The example of a line; ValueError says what is wrong with it."""
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"it is no JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")

    def text(name: str) -> str:
        if name not in row:
            raise ValueError(f"it has no field {name!r}, only {', '.join(map(repr, row)) or 'none'}")
        value = row[name]
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise ValueError(f"its field {name!r} is {type(value).__name__}, not text or a number")
        return str(value).strip()

    question, solution = text(fields.question), text(fields.solution) if fields.solution else ""
    answer = text(fields.answer) if fields.answer else extract(solution)
    if not question:
        raise ValueError(f"its field {fields.question!r} is empty")
    if not answer:
        where = fields.answer or fields.solution
        raise ValueError(f"there is no answer in {where!r}: it ends neither in '#### ANSWER' nor in \\boxed{{ANSWER}}")
    if extract(solution) is None:
        solution = f"{solution}\n#### {answer}".strip()
    return Example(question, solution, answer)


def _key(row: Example) -> str:
    """Of questions that differ in spaces and case only, the same."""
    return hashlib.sha256(" ".join(row.question.lower().split()).encode()).hexdigest()


def _without(rows: list[Example], keys: set[str], file: str, skipped: list[str]) -> list[Example]:
    kept = [row for row in rows if _key(row) not in keys]
    if file and len(kept) < len(rows):
        skipped.append(f"{file}: {len(rows) - len(kept)} questions that test.jsonl has too.")
    return kept


def download(url: str, checksum: str, path: pathlib.Path, help_: str):
    """Fetches a file whose SHA-256 is known; UserError, with what to do instead, where that fails."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()
    except OSError as error:
        raise UserError(f"{url} cannot be downloaded ({error}): {help_}.") from error
    if hashlib.sha256(content).hexdigest() != checksum:
        raise UserError(f"{url} gave a file with an unexpected checksum: {help_}.")
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)  # at once, so that a killed download leaves no half a file under the right name.
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): {help_}.") from error
