"""The same run on other layouts of devices: `python -m experiments.layouts [--layouts=1x1,1x2,1x4,1x8,2x4]`.

A layout is processes x devices, all processes together; several processes meet over gloo. For each of them

*   one iteration in float32 from the same random weights: what self-play stored must be the same, and the weights after
    the learner's steps must agree,
*   20 iterations in float64, warm start before them: everything in the last checkpoint must agree.

(In float32 a sum over another number of parts differs in its last bits, and a search turns a last bit into another
choice sooner or later; in float64 twenty iterations are too few for that.) Last, a run begun on the layout with most
devices is continued on fewer, and must end as the others did.
"""

import functools
import os
import pathlib
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
FLOAT32 = {
    "training.num_iterations": 1, "warm_start.data": "none", "warm_start.batch_size": 8,
    "training.problems_per_iteration": 8,
    "evaluation.every": 1, "checkpoints.every": 1, "training.overfit": "", "evaluation.num_problems": 4,
}  # fmt: skip
FLOAT64 = {
    **FLOAT32, "model.dtype": "float64", "training.num_iterations": 20, "warm_start.data": "random_play",
    "warm_start.num_steps": 20, "evaluation.every": 20, "checkpoints.every": 5,
    "checkpoints.keep": 10,
}  # fmt: skip
TOLERANCE_FLOAT32 = 1e-5  # of a weight after an iteration, absolute.
TOLERANCE_FLOAT64 = 1e-9  # of anything after 20 iterations, absolute.


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
        run(root / f"float32_{layout}", layout, FLOAT32)
        run(root / f"float64_{layout}", layout, FLOAT64)
        print(f"{layout} done", flush=True)
    single = [layout for layout in layouts if layout.startswith("1x")]
    moving = [max(single, key=devices_of), *sorted(set(single[:2]), key=devices_of)[::-1]]
    for number, layout in enumerate(moving, start=1):
        run(root / "moving", layout, {**FLOAT64, "training.num_iterations": 20 * number // len(moving)})
    rows = []
    for layout in layouts[1:]:
        one, other = (root / f"float32_{each}" for each in (layouts[0], layout))
        whole, moved = (root / f"float64_{each}" for each in (layouts[0], layout))
        rows.append(verdict(layout, (stored(one), stored(other)), (stored(whole), stored(moved))))
    same = stored(root / f"float64_{layouts[0]}")
    rows.append(verdict(" then ".join(moving), ({}, {}), (same, stored(root / "moving"))))
    return rows


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


def verdict(layout: str, float32: tuple[Any, Any], float64: tuple[Any, Any]) -> dict[str, Any]:
    played = _furthest(*float32, only="replay/")
    learned = _furthest(*float32, only="learner/params")
    whole = _furthest(*float64)
    right = not played and (learned or 0.0) <= TOLERANCE_FLOAT32 and (whole or 0.0) <= TOLERANCE_FLOAT64
    return {
        "layout": layout,
        "stored by self-play": played,
        "weights after one iteration": learned,
        "all after 20, float64": whole,
        "verdict": "right" if right else "wrong",
    }


def _furthest(one: dict[str, np.ndarray], other: dict[str, np.ndarray], only: str = "") -> float | None:
    """The largest difference of any number in either; None where there is nothing to compare."""
    names = [name for name in one if name.startswith(only)]
    if not names:
        return None
    return max(float(np.max(np.abs(one[name].astype(np.float64) - other[name]))) for name in names)


if __name__ == "__main__":
    define_flags()
    run_main(main)
