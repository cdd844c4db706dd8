"""Which problems there are, and which of them are for training, validation and test. Plain Python, host side.

Everything is deterministic and the same on every machine: orders come from a hash of the problem's text. A problem is
a multiset of numbers (and a target), written once, with its numbers sorted, so it is in one split in any order.
"""

import csv
import hashlib
import itertools
import pathlib
import random
from fractions import Fraction

from alphallm.errors import UserError
from alphallm.tasks import solver

GAME24_DATASETS = ("default", "tot", "tsllm")
CSV_NAME = "24.csv"
CSV_HELP = (
    f"put {CSV_NAME} of the Tree-of-Thoughts repository (src/tot/data/24/{CSV_NAME}) into a folder and name the folder "
    "as manual_dir, or use the dataset 'default', which needs no file"
)
_NUM_GAME24 = 1362
LARGEST_GAME24 = 13  # of the numbers of a puzzle, as on playing cards.
_NUM_COUNTDOWN = 10000

Splits = dict[str, list[str]]


def game24_default() -> Splits:
    """The solvable multisets of four numbers from 1 to 13 in a seeded order: 1062 train, 100 validation, 200 test."""
    texts = _shuffled(_solvable(LARGEST_GAME24))
    return {"train": texts[300:], "validation": texts[200:300], "test": texts[:200]}


def game24_extra(max_number: int) -> list[str]:
    """More to train on: the solvable multisets of four numbers whose largest is above 13, up to `max_number`."""
    return _shuffled([text for text in _solvable(max_number) if int(text.split()[-1]) > LARGEST_GAME24])


def _solvable(max_number: int) -> list[str]:
    """The multisets of four numbers from 1 to `max_number` that can be made into 24, each with its numbers sorted."""
    multisets = itertools.combinations_with_replacement(range(1, max_number + 1), 4)
    return [" ".join(map(str, numbers)) for numbers in multisets if solver.solvable(numbers, 24)]


def game24_ranked(dataset: str, csv_path: pathlib.Path) -> Splits:
    """The literature's splits of the csv ranked by difficulty; validation is 100 puzzles that are not in the test.

    "tot": test on ranks 901-1000 (Yao et al. 2023). "tsllm": test on ranks 1001-1362 (Feng et al. 2023).
    """
    ranked = _read_ranked(csv_path)
    test = range(900, 1000) if dataset == "tot" else range(1000, _NUM_GAME24)
    rest = _shuffled([text for i, text in enumerate(ranked) if i not in test])
    return {"train": rest[100:], "validation": rest[:100], "test": [ranked[i] for i in test]}


def _read_ranked(csv_path: pathlib.Path) -> list[str]:
    """Sorted puzzles in the order of their rank; UserError where the file is missing or is not that csv."""
    if not csv_path.is_file():
        raise UserError(f"{csv_path} does not exist: {CSV_HELP}.")
    try:
        with csv_path.open(newline="", encoding="utf-8") as file:
            rows = [(int(row["Rank"]), sorted(map(int, row["Puzzles"].split()))) for row in csv.DictReader(file)]
    except (KeyError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"{csv_path} is not the ranked csv, whose columns start Rank,Puzzles: {CSV_HELP}.") from error
    texts = [" ".join(map(str, numbers)) for _, numbers in sorted(rows)]
    ranks = sorted(rank for rank, _ in rows)
    if ranks != list(range(1, _NUM_GAME24 + 1)) or len(set(texts)) != _NUM_GAME24:
        raise UserError(f"{csv_path} does not hold {_NUM_GAME24} puzzles of ranks 1 to {_NUM_GAME24}: {CSV_HELP}.")
    return texts


def countdown(num_numbers: int, max_number: int, max_target: int) -> Splits:
    """At most 10,000 different solvable problems, drawn with a fixed seed: 80 % train, 10 % validation, 10 % test.

    Numbers are drawn evenly from 1 .. max_number; the target is what a random chain of steps over them gives, where
    that is a whole number from 1 to max_target.
    """
    draw = random.Random(0)
    texts: dict[str, None] = {}  # in the order drawn.
    for _ in range(20 * _NUM_COUNTDOWN):
        numbers = sorted(draw.randint(1, max_number) for _ in range(num_numbers))
        target = _random_result(draw, numbers)
        if target.denominator == 1 and 1 <= target <= max_target:
            texts[f"{' '.join(map(str, numbers))} -> {target}"] = None
        if len(texts) == _NUM_COUNTDOWN:
            break
    ordered = _shuffled(list(texts))
    tenth = len(ordered) // 10
    if tenth == 0:
        raise UserError(
            f"countdown has only {len(ordered)} problems of {num_numbers} numbers up to {max_number} and targets up to "
            f"{max_target}, so a split would be empty: raise num_numbers, max_number or max_target."
        )
    return {"train": ordered[2 * tenth :], "validation": ordered[tenth : 2 * tenth], "test": ordered[:tenth]}


def _random_result(draw: random.Random, numbers: list[int]) -> Fraction:
    remaining = [Fraction(number) for number in numbers]
    while len(remaining) > 1:
        a, b = (remaining.pop(draw.randrange(len(remaining))) for _ in range(2))
        steps = list(solver.pair_results(a, b))
        remaining.append(steps[draw.randrange(len(steps))][-1])
    return remaining[0]


def _shuffled(texts: list[str]) -> list[str]:
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
