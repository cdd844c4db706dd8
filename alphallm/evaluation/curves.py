"""Solve rates along training, drawn from a run's metrics."""

import json
import os
from collections.abc import Sequence

from alphallm.errors import UserError

_PREFIX = "validation/"


def read_curves(folder: str) -> dict[str, tuple[list[int], list[float]]]:
    """Solve rate by strategy along a run's ticks, from its metrics.jsonl: {strategy: (ticks, rates)}."""
    path = os.path.join(folder, "metrics.jsonl")
    if not os.path.exists(path):
        raise UserError(f"{path!r} does not exist: give the folder of a run that was evaluated at least once.")
    curves: dict[str, tuple[list[int], list[float]]] = {}
    with open(path, encoding="utf-8") as file:
        for row in map(json.loads, file):
            for name, rate in row.items():
                if name.startswith(_PREFIX):
                    ticks, rates = curves.setdefault(name.removeprefix(_PREFIX), ([], []))
                    ticks.append(row["step"])
                    rates.append(rate)
    if not curves:
        raise UserError(f"{path!r} holds no evaluation yet: let the run go on until its first table.")
    return curves


def plot_training(folders: Sequence[str], path: str | None = None):
    """Draws the solve rates of runs (seeds of one config) along training: the mean as a line, the range as a band.

    Returns the figure, and writes it to `path` if there is one.
    """
    import numpy as np
    from matplotlib.figure import Figure

    runs = [read_curves(folder) for folder in folders]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, strategy in enumerate(runs[0]):
        columns = [run[strategy] for run in runs if strategy in run]
        length = min(len(ticks) for ticks, _ in columns)
        ticks = columns[0][0][:length]
        rates = np.array([rates[:length] for _, rates in columns])
        color = f"C{number}"
        axes.plot(ticks, rates.mean(0), color=color, marker="o", markersize=3, label=strategy)
        if len(columns) > 1:
            axes.fill_between(ticks, rates.min(0), rates.max(0), color=color, alpha=0.2, linewidth=0)
    axes.set(
        xlabel="tick (calls of the warm start, then iterations)",
        ylabel="solve rate on validation problems",
        ylim=(0, 1),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
