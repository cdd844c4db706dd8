"""The recorded run of the README: three seeds of configs/game24_cpu.py, judged once on the test split.

python -m experiments.game24_cpu.run --output=runs/game24_cpu [--seeds=0,1,2]

Trains each seed into OUTPUT/seed_N (a finished one is left alone, an unfinished one goes on), evaluates them and the
first seed's warm start, and writes here what the README shows: training.png, tables and figures of both
comparisons, and the first seed's weights.
"""

import os
import shutil
import subprocess
import sys

from absl import flags

from alphallm.config import run_main
from alphallm.errors import UserError

HERE = os.path.dirname(os.path.abspath(__file__))
# Generated tokens a puzzle: 3200 is a search of 32 simulations, 300 is value-greedy's choice among 16 candidates.
COMPARISONS = (
    ("at_equal_tokens", "--methods=greedy,best_of_n,majority,search,search_uniform", "--budgets=400,1000,3200"),
    ("value_greedy", "--methods=value_greedy", "--budgets=300"),
)


def define_flags() -> None:
    flags.DEFINE_string("output", "runs/game24_cpu", "The folder of the runs.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the training.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    del arguments, overrides
    runs = [os.path.join(flags.FLAGS.output, f"seed_{seed}") for seed in flags.FLAGS.seeds]
    for seed, run in zip(flags.FLAGS.seeds, runs, strict=True):
        _run("alphallm.train", "--config=configs/game24_cpu.py", f"--workdir={run}", f"--config.seed={seed}")
    judged = f"--workdir={','.join([*runs, os.path.join(runs[0], 'warm_start')])}"
    for output, methods, budgets in COMPARISONS:
        _run("alphallm.evaluate", judged, "--split=test", methods, budgets, f"--output={os.path.join(HERE, output)}")
    from alphallm.evaluation.curves import plot_training

    plot_training(runs, os.path.join(HERE, "training.png"))
    shutil.copytree(os.path.join(runs[0], "export"), os.path.join(HERE, "export"), dirs_exist_ok=True)


def _run(module: str, *options: str) -> None:
    command = [sys.executable, "-m", module, *options]
    print("$", " ".join(command), flush=True)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{module} failed, as it says above; the same command goes on from there.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
