"""What the studies share: their options, the commit that they were run at, results, tables in Markdown and lines in
figures."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from alphallm.config import apply_overrides, load_config
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


def study_config(path: str, fields: Mapping[str, Any], overrides: Sequence[str]) -> Any:
    """A config file's config with a study's own fields, and with what --override says, FIELD=VALUE each."""
    wrong = [item for item in overrides if "=" not in item]
    if wrong:
        raise UserError(f"--override={wrong[0]!r}: give FIELD=VALUE, as in warm_start.num_steps=100.")
    return apply_overrides(load_config(path), {**fields, **dict(item.split("=", 1) for item in overrides)})


def read_results(folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a folder's results.json has of each run, by its name; UserError where it was made otherwise."""
    path = os.path.join(folder, "results.json")
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    for name, value in json.loads(json.dumps(settings)).items():
        if found[name] != value:
            told = "" if isinstance(value, dict) else f" ({found[name]}, not {value})"
            raise UserError(f"{path} was made with another {name}{told}: give another --results and --output.")
    return found["runs"]


def write_results(folder: str, settings: dict[str, Any], runs: dict[str, Any]) -> None:
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "results.json")
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump({**settings, "runs": runs}, file, indent=1)
    os.replace(path + ".new", path)  # Hours of training are in it.


def draw_rates(axes, places: Sequence[float], rates: Sequence[Any], style: str, colour, label: str) -> None:
    """Rates with their intervals."""
    spread = [[r.estimate - r.low for r in rates], [r.high - r.estimate for r in rates]]
    axes.errorbar(
        places, [r.estimate for r in rates], yerr=spread, fmt=style, color=colour, label=label, markersize=4, capsize=2
    )
