"""What the studies share: their options, the commit that they were run at, and tables in Markdown."""

import os
import subprocess
from collections.abc import Mapping, Sequence

from alphallm.errors import UserError


def whole_numbers(name: str, values: Sequence[str], least: int) -> list[int]:
    """The numbers of the option `name`; UserError where one is none or too small."""
    if not values or any(not value.strip().isdecimal() or int(value) < least for value in values):
        raise UserError(f"--{name}={','.join(values)}: give whole numbers of {least} or more with commas, as in 1,2,4.")
    return [int(value) for value in values]


def commit() -> str:
    """The checkout's."""
    folder = os.path.dirname(os.path.abspath(__file__))
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=folder)
    return found.stdout.strip()


def write_markdown(path: str, lines: Sequence[Mapping[str, object]]) -> None:
    """A table: a line for each of `lines`, by the names of columns, which all of them have."""
    cells = [[*lines[0]], ["---"] * len(lines[0]), *([str(value) for value in line.values()] for line in lines)]
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"| {' | '.join(row)} |\n" for row in cells)
