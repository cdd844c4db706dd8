"""The same run on other layouts of devices: `python -m experiments.layouts [--layouts=1x1,1x2,1x4,1x8,2x4]`.

A layout is processes x devices, all processes together; several processes meet over gloo. For each of them

*   a whole run in float64, warm start and 20 iterations: everything in the last checkpoint must agree,
*   one iteration in float32 from the same weights: the tokens and all other whole numbers that self-play stored must be
    the same, its real numbers and the weights after the learner's steps must agree.

(In float32 a sum over another number of parts differs in its last bits, and a search turns a last bit into another
choice sooner or later; in float64 twenty iterations are too few for that.) Last, the run of the layout with most
devices is taken back to an early checkpoint and continued on fewer, twice, and must end as the others did.
"""

import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from absl import flags

from alphallm.config import run_main
from alphallm.errors import UserError
from experiments import survival
from experiments.launch.local import launch, wait

LAYOUTS = ("1x1", "1x2", "1x4", "1x8", "2x4")
TICKS = 25
FLOAT64 = {
    "model.dtype": "float64", "training.num_iterations": TICKS - 5, "warm_start.num_steps": 100,
    "warm_start.batch_size": 8, "training.problems_per_iteration": 8, "training.overfit": "",
    "evaluation.num_problems": 4, "evaluation.every": TICKS, "checkpoints.every": 5, "checkpoints.keep": 10,
}  # fmt: skip
FLOAT32 = {
    **FLOAT64, "model.dtype": "float32", "training.num_iterations": 1, "warm_start.data": "none",
    "optimizer.warmup_steps": 1,
}  # fmt: skip
# Of any number, in units of the larger of it and 1.
TOLERANCE_FLOAT32 = 1e-4
TOLERANCE_FLOAT64 = 1e-9


def define_flags() -> None:
    flags.DEFINE_list("layouts", list(LAYOUTS), "Processes x devices; the first is what others are compared with.")
    flags.DEFINE_string("output", "", "A folder for the runs; by default one that is deleted in the end.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    del arguments, overrides
    from alphallm.display import print_table

    with tempfile.TemporaryDirectory() as temporary:
        rows = compare(pathlib.Path(flags.FLAGS.output or temporary), flags.FLAGS.layouts)
    print_table("Against the first layout", rows)
    if any(row["verdict"] != "right" for row in rows):
        sys.exit(1)


def compare(root: pathlib.Path, layouts: list[str], cache: pathlib.Path | None = None) -> list[dict[str, Any]]:
    """A row for each layout but the first, and one for the run that changes its layout."""
    run = functools.partial(train, cache=cache or root / "cache")
    for layout in layouts:
        run(root / f"float64_{layout}", layout, FLOAT64)
        start = {"init_from": root / f"float64_{layouts[0]}" / "warm_start"}
        run(root / f"float32_{layout}", layout, {**FLOAT32, **start})
        print(f"{layout} done", flush=True)
    most, fewer = max(layouts, key=devices_of), sorted(layouts, key=devices_of)[1::-1]
    moving = root / "moving"
    shutil.rmtree(moving, ignore_errors=True)
    shutil.copytree(root / f"float64_{most}", moving)
    for number, layout in enumerate(fewer, start=1):
        take_back(moving, number * TICKS // 3)
        run(moving, layout, FLOAT64)
    rows = [
        verdict(
            layout,
            *(stored(root / f"{kind}_{each}") for kind in ("float32", "float64") for each in (layouts[0], layout)),
        )
        for layout in layouts[1:]
    ]
    whole = _furthest(stored(root / f"float64_{layouts[0]}"), stored(moving))
    moved = {"layout": f"{most}, then {', then '.join(fewer)}", "all after 20 iterations, float64": whole}
    return [*rows, {**moved, "verdict": "right" if whole <= TOLERANCE_FLOAT64 else "wrong"}]


def take_back(workdir: pathlib.Path, tick: int) -> None:
    """Forgets the checkpoints after a tick."""
    steps = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    for path in steps:
        if int(path.name) > tick:
            shutil.rmtree(path)


def devices_of(layout: str) -> int:
    return int(layout.partition("x")[2])


def train(workdir: pathlib.Path, layout: str, changes: dict[str, Any], cache: pathlib.Path) -> None:
    values = {**survival.TINY, **changes}
    arguments = [f"--config={survival.CONFIG}", f"--workdir={workdir}"]
    arguments += [f"--config.{name}={value}" for name, value in values.items()]
    environment = {
        **os.environ, "PYTHONPATH": str(survival.REPOSITORY), "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": survival.without_device_count(os.environ.get("XLA_FLAGS", "")),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_ENABLE_X64": str(int(changes.get("model.dtype") == "float64")),
    }  # fmt: skip
    log = workdir.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    processes, _, devices = layout.partition("x")
    with log.open("a") as file:
        started = launch(
            arguments, int(processes), int(devices),
            env=environment, cwd=survival.REPOSITORY, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        status = wait(started)
    if status:
        raise UserError(f"The run on {layout} ended with status {status}: see {log.read_text()[-600:]}")


def stored(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Everything in a run's newest checkpoint, by name; zeros in the replay where there is no row."""
    from alphallm.training.checkpoints import Checkpoints

    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.latest()
    if step is None:
        raise UserError(f"The run in {workdir} left no checkpoint.")
    arrays, _ = checkpoints.read(step)
    valid = arrays["replay/rows/valid"]
    for name, array in arrays.items():
        if name.startswith("replay/rows/"):
            arrays[name] = np.where(valid.reshape(*valid.shape, *[1] * (array.ndim - 2)), array, 0)
    return arrays


def verdict(layout: str, one32, other32, one64, other64) -> dict[str, Any]:
    played = [{name: x for name, x in each.items() if name.startswith("replay/")} for each in (one32, other32)]
    whole = [{name: x for name, x in each.items() if x.dtype.kind != "f"} for each in played]
    real = [{name: x for name, x in each.items() if x.dtype.kind == "f"} for each in played]
    learned = [{name: x for name, x in each.items() if name.startswith("learner/params/")} for each in (one32, other32)]
    furthest = {
        "self-play, whole numbers": _furthest(*whole),
        "self-play, real numbers": _furthest(*real),
        "weights learned from it": _furthest(*learned),
        "all after 20 iterations, float64": _furthest(one64, other64),
    }
    exact, *close, last = furthest.values()
    right = exact == 0 and max(close) <= TOLERANCE_FLOAT32 and last <= TOLERANCE_FLOAT64
    return {"layout": layout, **furthest, "verdict": "right" if right else "wrong"}


def _furthest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest difference of any number in either, in units of the larger of it and 1."""

    def apart(x, y):
        x = x.astype(np.float64)
        return float(np.max(np.abs(x - y) / np.maximum(np.abs(x), 1.0)))

    return max(apart(one[name], other[name]) for name in one)


if __name__ == "__main__":
    define_flags()
    run_main(main)
